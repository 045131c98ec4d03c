//! Documentation comments of public items as documents.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
};

use expandr_evaluation::Document;
use serde_json::{Map, json};
use syn::{Attribute, Expr, ImplItem, Item, Lit, Meta, TraitItem, Visibility};

use super::crates::{self, CrateSource};

/// Shorter comments say too little to be found by a question.
const MIN_CHARS: usize = 80;
/// About what an encoder of 256 tokens reads.
const MAX_CHARS: usize = 1000;
/// So that one large crate doesn't fill the corpus alone.
const MAX_PER_CRATE: usize = 150;

/// Up to `passages` documents from the crates of this build.
pub(super) fn corpus(passages: usize) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for source in crates::sources()? {
        if documents.len() >= passages {
            break;
        }
        let mut found = passages_of(&source);
        found.truncate(MAX_PER_CRATE.min(passages - documents.len()));
        documents.extend(found);
    }
    Ok(documents)
}

/// The passages of one crate, in the order of its files; files that don't parse are left out.
fn passages_of(source: &CrateSource) -> Vec<Document> {
    let mut collector = Collector { source, seen: HashMap::new(), documents: Vec::new() };
    let root = source.folder.join("src");
    for file in rust_files(&root) {
        let Ok(text) = fs_err::read_to_string(&file) else { continue };
        let Ok(parsed) = syn::parse_file(&text) else { continue };
        let Some(path) = module_path(&source.name, file.strip_prefix(&root).unwrap_or(&file)) else {
            continue;
        };
        collector.add("mod", &path, &parsed.attrs);
        collector.items(&path, &parsed.items);
    }
    collector.documents
}

/// Every .rs file below `root`, nearest first.
fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = VecDeque::from([root.to_owned()]);
    while let Some(folder) = folders.pop_front() {
        let Ok(entries) = fs_err::read_dir(&folder) else { continue };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                folders.push_back(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// `sync/mpsc/bounded.rs` of tokio is `tokio::sync::mpsc::bounded`; test and binary files have none.
fn module_path(krate: &str, file: &Path) -> Option<String> {
    let mut parts = vec![krate.replace('-', "_")];
    let components: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    if components
        .iter()
        .any(|part| matches!(*part, "tests" | "test.rs" | "tests.rs" | "bin" | "main.rs" | "benches"))
    {
        return None;
    }
    for part in components {
        match part.strip_suffix(".rs") {
            Some("lib" | "mod") => {}
            Some(name) => parts.push(name.to_owned()),
            None => parts.push(part.to_owned()),
        }
    }
    Some(parts.join("::"))
}

struct Collector<'a> {
    source: &'a CrateSource,
    /// How often a path has been used: items behind `cfg` and methods of several impls repeat.
    seen: HashMap<String, usize>,
    documents: Vec<Document>,
}

impl Collector<'_> {
    fn items(&mut self, path: &str, items: &[Item]) {
        for item in items {
            self.item(path, item);
        }
    }

    fn item(&mut self, path: &str, item: &Item) {
        let at = |name: &dyn std::fmt::Display| format!("{path}::{name}");
        match item {
            Item::Fn(i) if public(&i.vis) => self.add("fn", &at(&i.sig.ident), &i.attrs),
            Item::Struct(i) if public(&i.vis) => self.add("struct", &at(&i.ident), &i.attrs),
            Item::Enum(i) if public(&i.vis) => self.add("enum", &at(&i.ident), &i.attrs),
            Item::Type(i) if public(&i.vis) => self.add("type", &at(&i.ident), &i.attrs),
            Item::Const(i) if public(&i.vis) => self.add("const", &at(&i.ident), &i.attrs),
            Item::Macro(i) => {
                if let Some(name) = &i.ident {
                    self.add("macro", &at(name), &i.attrs);
                }
            }
            Item::Trait(i) if public(&i.vis) => {
                let path = at(&i.ident);
                self.add("trait", &path, &i.attrs);
                for item in &i.items {
                    if let TraitItem::Fn(f) = item {
                        self.add("method", &format!("{path}::{}", f.sig.ident), &f.attrs);
                    }
                }
            }
            Item::Impl(i) if i.trait_.is_none() => {
                let Some(name) = type_name(&i.self_ty) else { return };
                for item in &i.items {
                    if let ImplItem::Fn(f) = item
                        && public(&f.vis)
                    {
                        self.add("method", &format!("{path}::{name}::{}", f.sig.ident), &f.attrs);
                    }
                }
            }
            Item::Mod(i) if public(&i.vis) => {
                let path = at(&i.ident);
                self.add("mod", &path, &i.attrs);
                if let Some((_, items)) = &i.content {
                    self.items(&path, items);
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, kind: &str, path: &str, attributes: &[Attribute]) {
        let Some(text) = documentation(attributes) else { return };
        let times = self.seen.entry(path.to_owned()).or_default();
        *times += 1;
        let CrateSource { name, version, .. } = self.source;
        let id = match *times {
            1 => format!("{name}-{version}/{path}"),
            n => format!("{name}-{version}/{path}~{n}"),
        };
        let item = path.rsplit("::").next().unwrap_or(path);
        let link = format!("https://docs.rs/{name}/{version}/{}/?search={item}", name.replace('-', "_"));
        let fields =
            [("crate", name.as_str()), ("version", version), ("item", path), ("kind", kind), ("link", &link)];
        let metadata: Map<_, _> =
            fields.into_iter().map(|(field, value)| (field.to_owned(), json!(value))).collect();
        self.documents.push(Document { id, title: path.to_owned(), text, metadata });
    }
}

fn public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn type_name(ty: &syn::Type) -> Option<String> {
    match ty {
        syn::Type::Path(path) => Some(path.path.segments.last()?.ident.to_string()),
        _ => None,
    }
}

/// The prose of an item's doc comments, code blocks left out; none where there is too little of it.
fn documentation(attributes: &[Attribute]) -> Option<String> {
    let mut lines = Vec::new();
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("doc")) {
        match &attribute.meta {
            Meta::NameValue(pair) => {
                if let Expr::Lit(literal) = &pair.value
                    && let Lit::Str(text) = &literal.lit
                {
                    lines.extend(text.value().lines().map(str::to_owned));
                }
            }
            Meta::List(list) if list.tokens.to_string().contains("hidden") => return None,
            _ => {}
        }
    }
    let mut prose = String::new();
    let mut in_code = false;
    for line in &lines {
        let line = line.trim();
        if line.starts_with("```") || line.starts_with("~~~") {
            in_code = !in_code;
            continue;
        }
        // Link definitions ("[`Foo`]: crate::Foo") and bare headings say nothing.
        if in_code || line.starts_with('[') && line.contains("]: ") || line.starts_with("# Example") {
            continue;
        }
        if prose.len() + line.len() > MAX_CHARS {
            break;
        }
        prose.push_str(line);
        prose.push('\n');
    }
    let prose = prose.trim();
    (prose.chars().count() >= MIN_CHARS).then(|| prose.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> CrateSource {
        CrateSource { name: "my-crate".into(), version: "1.2.3".into(), folder: PathBuf::new() }
    }

    #[test]
    fn items_become_documents_with_their_place() {
        let source = source();
        let mut collector = Collector { source: &source, seen: HashMap::new(), documents: Vec::new() };
        let code = r#"
            /// Waits until all of the given tasks have ended, and gives their results in the order of the tasks.
            ///
            /// ```
            /// let never = "shown";
            /// ```
            pub fn join_all() {}
            /// Private things are nobody's business, however long their documentation comment may happen to be.
            fn hidden() {}
            pub struct Pool;
            impl Pool {
                /// Takes a connection out of the pool, and waits for one when all of them are in use at the moment.
                pub fn take(&self) {}
            }
        "#;
        collector.items("my_crate::pool", &syn::parse_file(code).unwrap().items);
        let documents = collector.documents;
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].id, "my-crate-1.2.3/my_crate::pool::join_all");
        assert!(!documents[0].text.contains("never"));
        assert_eq!(documents[1].title, "my_crate::pool::Pool::take");
        assert_eq!(documents[1].metadata["link"], "https://docs.rs/my-crate/1.2.3/my_crate/?search=take");
    }

    #[test]
    fn files_are_modules() {
        assert_eq!(module_path("a-b", Path::new("sync/mpsc/mod.rs")).unwrap(), "a_b::sync::mpsc");
        assert_eq!(module_path("a-b", Path::new("lib.rs")).unwrap(), "a_b");
        assert_eq!(module_path("a-b", Path::new("sync/tests/x.rs")), None);
    }

    #[test]
    fn a_corpus_of_several_thousand_passages_is_there() {
        let documents = corpus(2000).unwrap();
        assert_eq!(documents.len(), 2000);
        let mut ids: Vec<String> = documents.into_iter().map(|document| document.id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 2000, "ids are unique");
    }
}
