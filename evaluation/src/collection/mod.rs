//! Test collections: documents, queries and judgments.
//!
//! The home layout is BEIR's: `corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`. Queries and judgments are also
//! read in TREC's forms and as plain TSV; which one a file is shows in its first line.

mod answers;
mod corpus;
mod qrels;
mod queries;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

pub use answers::read_answers;
pub use corpus::{CorpusSummary, Document, Documents};
pub use qrels::Qrels;
pub use queries::{Query, read_queries};

use crate::{Error, Result};

/// The collection whose members are reported as their mean.
const CQADUPSTACK: &str = "cqadupstack";

/// One test collection: a corpus on disk, and the judged queries of one split in memory.
#[derive(Clone, Debug)]
pub struct Collection {
    /// The folder's name; for a member of a group, `group/member`.
    pub name: String,
    /// Which judgments, e.g. `test`.
    pub split: String,
    /// The judged queries, in the order of the queries file.
    pub queries: Vec<Query>,
    /// The judgments.
    pub qrels: Qrels,
    corpus: PathBuf,
    queries_file: PathBuf,
    qrels_file: PathBuf,
}

impl Collection {
    /// Opens a folder in BEIR's layout. Only judged queries are kept, as BEIR's own loader does. Without `split`
    /// it is `dev` for a folder named `msmarco` (whose published figures are on dev) and `test` otherwise.
    ///
    /// CQADupStack is a folder of twelve collections, each with a corpus of its own; a forum in it is named
    /// `cqadupstack/<forum>`, so that a comparison reports the mean of the forums.
    ///
    /// # Errors
    /// When a file is missing, empty or has a broken line, and when a judged query has no text.
    pub fn open(folder: &Path, split: Option<&str>) -> Result<Self> {
        let name = collection_name(folder)?;
        let corpus = folder.join("corpus.jsonl");
        if !corpus.is_file() {
            return Err(no_corpus(folder));
        }
        let split = split.unwrap_or(if name == "msmarco" { "dev" } else { "test" }).to_owned();
        let qrels_file = qrels_path(folder, &split)?;
        let qrels = Qrels::read(&qrels_file)?;
        let queries_file = folder.join("queries.jsonl");
        let mut queries = read_queries(&queries_file)?;
        queries.retain(|query| qrels.judgments(&query.id).is_some());
        let with_text: HashSet<&str> = queries.iter().map(|query| query.id.as_str()).collect();
        if let Some(orphan) = qrels.queries().find(|id| !with_text.contains(id)) {
            return Err(Error::file(
                &queries_file,
                format!(
                    "query {orphan:?} is judged in split {split:?} and missing here; the two files don't belong together"
                ),
            ));
        }
        Ok(Self { name, split, queries, qrels, corpus, queries_file, qrels_file })
    }

    /// The documents, streamed from disk.
    ///
    /// # Errors
    /// When the file can't be opened. Broken lines come as errors of the iterator.
    pub fn documents(&self) -> Result<Documents> {
        Documents::open(&self.corpus)
    }

    /// Checksum of the queries' ids and texts in their order, eight hexadecimal digits: tells whether two runs asked the same.
    pub fn queries_crc32(&self) -> String {
        let mut hasher = crc32fast::Hasher::new();
        for query in &self.queries {
            for part in [query.id.as_str(), "\t", query.text.as_str(), "\n"] {
                hasher.update(part.as_bytes());
            }
        }
        format!("{:08x}", hasher.finalize())
    }

    /// Where the documents are.
    pub fn corpus_path(&self) -> &Path {
        &self.corpus
    }

    /// Where queries and judgments are.
    pub fn query_paths(&self) -> [&Path; 2] {
        [&self.queries_file, &self.qrels_file]
    }

    /// Reads the whole corpus once: counts, and judged documents that it lacks (which no system can find).
    ///
    /// # Errors
    /// At the first broken line or duplicate id, and when there is no document.
    pub fn check_corpus(&self) -> Result<CorpusSummary> {
        corpus::summarize(self.documents()?, &self.qrels)
    }
}

/// The folder's name, under `cqadupstack/` where it lies in a folder of that name.
fn collection_name(folder: &Path) -> Result<String> {
    let absolute = fs_err::canonicalize(folder)?;
    let Some(name) = absolute.file_name() else {
        return Err(Error::file(folder, "has no name; give the folder of one collection"));
    };
    let name = name.to_string_lossy().into_owned();
    let group = absolute.parent().and_then(Path::file_name);
    if group.is_some_and(|group| group.eq_ignore_ascii_case(CQADUPSTACK)) {
        return Ok(format!("{CQADUPSTACK}/{name}"));
    }
    Ok(name)
}

fn no_corpus(folder: &Path) -> Error {
    let layout = "a collection is a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv";
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut members: Vec<String> = entries
        .filter(|entry| entry.path().join("corpus.jsonl").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    members.sort();
    if members.is_empty() {
        return Error::file(folder, format!("no corpus.jsonl in it; {layout}"));
    }
    Error::file(
        folder,
        format!(
            "holds {} collections ({}), each with a corpus of its own; evaluate each against an index of its own",
            members.len(),
            members.join(", ")
        ),
    )
}

fn qrels_path(folder: &Path, split: &str) -> Result<PathBuf> {
    let qrels = folder.join("qrels");
    let path = qrels.join(format!("{split}.tsv"));
    if path.is_file() {
        return Ok(path);
    }
    let mut splits = Vec::new();
    if qrels.is_dir() {
        for entry in fs_err::read_dir(&qrels)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(split) = name.strip_suffix(".tsv") {
                splits.push(split.to_owned());
            }
        }
    }
    splits.sort();
    let available = if splits.is_empty() { "none".to_owned() } else { splits.join(", ") };
    Err(Error::file(&path, format!("no such split; available: {available}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collection(folder: &Path) {
        fs_err::create_dir_all(folder.join("qrels")).unwrap();
        fs_err::write(
            folder.join("corpus.jsonl"),
            "{\"_id\":\"d1\",\"title\":\"t\",\"text\":\"x\"}\n{\"id\":2,\"text\":\"y\"}\n",
        )
        .unwrap();
        fs_err::write(
            folder.join("queries.jsonl"),
            "{\"_id\":\"q1\",\"text\":\"a\"}\n{\"_id\":7,\"text\":\"b\"}\n",
        )
        .unwrap();
        fs_err::write(folder.join("qrels/test.tsv"), "query-id\tcorpus-id\tscore\n7\td1\t1\n7\tgone\t2\n")
            .unwrap();
    }

    #[test]
    fn a_folder_opens_with_its_judged_queries_only() {
        let folder = tempfile::tempdir().unwrap();
        collection(folder.path());
        let opened = Collection::open(folder.path(), None).unwrap();
        assert_eq!(opened.split, "test");
        assert_eq!(opened.queries, [Query { id: "7".into(), text: "b".into() }]);
        let summary = opened.check_corpus().unwrap();
        assert_eq!(summary.documents, 2);
        assert_eq!(summary.judged_but_absent, ["gone"]);
    }

    #[test]
    fn an_unknown_split_lists_those_that_exist() {
        let folder = tempfile::tempdir().unwrap();
        collection(folder.path());
        let error = Collection::open(folder.path(), Some("dev")).unwrap_err().to_string();
        assert!(error.ends_with("dev.tsv: no such split; available: test"), "{error}");
    }

    #[test]
    fn a_judged_query_without_text_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        collection(folder.path());
        fs_err::write(folder.path().join("qrels/test.tsv"), "nobody\td1\t1\n").unwrap();
        let error = Collection::open(folder.path(), None).unwrap_err().to_string();
        assert!(error.contains("\"nobody\" is judged"), "{error}");
    }

    #[test]
    fn forums_of_cqadupstack_are_members_of_a_group() {
        let folder = tempfile::tempdir().unwrap();
        let group = folder.path().join("CQADupStack");
        for forum in ["unix", "android"] {
            collection(&group.join(forum));
        }
        assert_eq!(Collection::open(&group.join("android"), None).unwrap().name, "cqadupstack/android");
        let error = Collection::open(&group, None).unwrap_err().to_string();
        assert!(error.contains("holds 2 collections (android, unix)"), "{error}");
        let error = Collection::open(&group.join("unix/qrels"), None).unwrap_err().to_string();
        assert!(error.contains("no corpus.jsonl in it; a collection is a folder"), "{error}");
    }
}
