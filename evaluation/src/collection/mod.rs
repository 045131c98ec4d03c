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
}

impl Collection {
    /// Opens a folder in BEIR's layout. Only judged queries are kept, as BEIR's own loader does. Without `split`
    /// it is `dev` for a folder named `msmarco` (whose published figures are on dev) and `test` otherwise.
    ///
    /// # Errors
    /// When a file is missing, empty or has a broken line, and when a judged query has no text.
    pub fn open(folder: &Path, split: Option<&str>) -> Result<Self> {
        let name = folder_name(folder)?;
        let corpus = folder.join("corpus.jsonl");
        if !corpus.is_file() {
            return Err(Error::file(
                folder,
                "no corpus.jsonl in it; a collection is a folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv",
            ));
        }
        let split = split.unwrap_or(if name == "msmarco" { "dev" } else { "test" }).to_owned();
        let qrels = Qrels::read(&qrels_path(folder, &split)?)?;
        let queries_path = folder.join("queries.jsonl");
        let mut queries = read_queries(&queries_path)?;
        queries.retain(|query| qrels.judgments(&query.id).is_some());
        let with_text: HashSet<&str> = queries.iter().map(|query| query.id.as_str()).collect();
        if let Some(orphan) = qrels.queries().find(|id| !with_text.contains(id)) {
            return Err(Error::file(
                &queries_path,
                format!(
                    "query {orphan:?} is judged in split {split:?} and missing here; the two files don't belong together"
                ),
            ));
        }
        Ok(Self { name, split, queries, qrels, corpus })
    }

    /// Opens a folder that is a collection, or one whose subfolders are (CQADupStack: twelve forums, reported as
    /// their mean). The members of a group come in the order of their names.
    ///
    /// # Errors
    /// As [`Collection::open`], and when neither the folder nor any subfolder is a collection.
    pub fn open_all(folder: &Path, split: Option<&str>) -> Result<Vec<Self>> {
        if folder.join("corpus.jsonl").is_file() {
            return Ok(vec![Self::open(folder, split)?]);
        }
        let group = folder_name(folder)?;
        let mut members = Vec::new();
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            if path.join("corpus.jsonl").is_file() {
                members.push(path);
            }
        }
        if members.is_empty() {
            return Err(Error::file(
                folder,
                "neither it nor a subfolder holds corpus.jsonl; a collection is a folder with corpus.jsonl, \
                 queries.jsonl and qrels/<split>.tsv",
            ));
        }
        members.sort();
        let mut collections = Vec::new();
        for member in members {
            let mut collection = Self::open(&member, split)?;
            collection.name = format!("{group}/{}", collection.name);
            collections.push(collection);
        }
        Ok(collections)
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

    /// Reads the whole corpus once: counts, and judged documents that it lacks (which no system can find).
    ///
    /// # Errors
    /// At the first broken line or duplicate id, and when there is no document.
    pub fn check_corpus(&self) -> Result<CorpusSummary> {
        corpus::summarize(self.documents()?, &self.qrels)
    }
}

fn folder_name(folder: &Path) -> Result<String> {
    let absolute = fs_err::canonicalize(folder)?;
    match absolute.file_name() {
        Some(name) => Ok(name.to_string_lossy().into_owned()),
        None => Err(Error::file(folder, "has no name; give the folder of one collection")),
    }
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
    fn a_group_opens_as_its_members() {
        let folder = tempfile::tempdir().unwrap();
        for forum in ["unix", "android"] {
            collection(&folder.path().join("cqadupstack").join(forum));
        }
        let opened = Collection::open_all(&folder.path().join("cqadupstack"), None).unwrap();
        let names: Vec<&str> = opened.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["cqadupstack/android", "cqadupstack/unix"]);
        let error = Collection::open_all(&folder.path().join("cqadupstack/unix/qrels"), None).unwrap_err();
        assert!(error.to_string().contains("neither it nor a subfolder"), "{error}");
    }

    #[test]
    fn ms_marco_defaults_to_dev() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("msmarco");
        collection(&folder);
        fs_err::rename(folder.join("qrels/test.tsv"), folder.join("qrels/dev.tsv")).unwrap();
        assert_eq!(Collection::open(&folder, None).unwrap().split, "dev");
    }
}
