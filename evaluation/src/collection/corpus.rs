//! `corpus.jsonl`: one document a line.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};

use super::Qrels;
use crate::lines::Lines;
use crate::{Error, Result};

/// One document of a corpus.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Document {
    /// As in the file; a number has become its decimal string.
    pub id: String,
    /// Empty where the collection has none.
    pub title: String,
    /// The body. A few BEIR documents have an empty one.
    pub text: String,
    /// Whatever BEIR's `metadata` object holds.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
}

impl Document {
    /// Whether it has neither title nor text.
    pub fn is_blank(&self) -> bool {
        self.title.trim().is_empty() && self.text.trim().is_empty()
    }
}

/// What reading a whole corpus shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CorpusSummary {
    /// Lines that hold a document.
    pub documents: usize,
    /// Documents with neither title nor text.
    pub blank: usize,
    /// Judged relevant, and not in the corpus: no system can find them. Sorted.
    pub judged_but_absent: Vec<String>,
}

/// A line of `corpus.jsonl` or `queries.jsonl`: BEIR writes `_id`, others `id`; numbers stand for their digits.
#[derive(Deserialize)]
pub(super) struct Record {
    #[serde(default)]
    _id: Option<Id>,
    #[serde(default)]
    id: Option<Id>,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    pub(super) text: Option<String>,
    #[serde(default)]
    metadata: Option<Map<String, Value>>,
}

#[derive(PartialEq)]
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(id) => Ok(Self(id)),
            Value::Number(id) if id.is_u64() || id.is_i64() => Ok(Self(id.to_string())),
            other => Err(de::Error::custom(format!("an id must be a string or a whole number, not {other}"))),
        }
    }
}

impl Record {
    /// Parses one line; the error says what is wrong, without file and line.
    pub(super) fn parse(line: &str) -> std::result::Result<Self, String> {
        // Serde would also take an array for a struct, field by field.
        if !line.trim_start().starts_with('{') {
            return Err("not a JSON object; mend or remove the line".into());
        }
        serde_json::from_str(line)
            .map_err(|error| format!("not a JSON object of this kind ({error}); mend or remove the line"))
    }

    pub(super) fn take_id(&mut self) -> std::result::Result<String, String> {
        let id = match (self._id.take(), self.id.take()) {
            (Some(a), Some(b)) if a != b => {
                return Err(format!("has both _id {:?} and id {:?}; keep one", a.0, b.0));
            }
            (Some(id), _) | (None, Some(id)) => id.0,
            (None, None) => return Err("has neither _id nor id; give it one".into()),
        };
        if id.trim().is_empty() { Err("has an empty id; give it one".into()) } else { Ok(id) }
    }
}

/// The documents of a corpus file, streamed. Ends after the first error.
pub struct Documents {
    lines: Lines,
    seen: SeenIds,
    failed: bool,
}

impl Documents {
    /// Opens a `corpus.jsonl`.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { lines: Lines::open(path)?, seen: SeenIds::default(), failed: false })
    }

    fn read(&mut self) -> Result<Option<Document>> {
        let path = self.lines.path().to_owned();
        let Some((number, line)) = self.lines.next_line()? else {
            if self.seen.is_empty() {
                return Err(Error::file(
                    &path,
                    "holds no document; is it the right file, and was it written whole?",
                ));
            }
            return Ok(None);
        };
        let mut record = Record::parse(line).map_err(|detail| Error::line(&path, number, detail))?;
        let id = record.take_id().map_err(|detail| Error::line(&path, number, detail))?;
        if let Some(earlier) = self.seen.insert(&path, number, &id)? {
            return Err(Error::line(
                &path,
                number,
                format!("document id {id:?} is already on line {earlier}; ids must be unique"),
            ));
        }
        Ok(Some(Document {
            id,
            title: record.title.unwrap_or_default(),
            text: record.text.unwrap_or_default(),
            metadata: record.metadata.unwrap_or_default(),
        }))
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.read().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

/// Finds duplicate ids in a corpus of any size: eight bytes an id. Equal hashes are settled by reading the file
/// again up to the line in question, which also gives the line of the first occurrence.
#[derive(Default)]
struct SeenIds {
    hashes: HashSet<u64>,
}

impl SeenIds {
    fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Remembers the id of line `number`; the earlier line that has the same one, if any.
    fn insert(&mut self, path: &Path, number: usize, id: &str) -> Result<Option<usize>> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        if self.hashes.insert(hasher.finish()) {
            return Ok(None);
        }
        let mut lines = Lines::open(path)?;
        while let Some((earlier, line)) = lines.next_line()? {
            if earlier >= number {
                break;
            }
            let found = Record::parse(line).and_then(|mut record| record.take_id());
            if found.is_ok_and(|found| found == id) {
                return Ok(Some(earlier));
            }
        }
        Ok(None)
    }
}

pub(super) fn summarize(documents: Documents, qrels: &Qrels) -> Result<CorpusSummary> {
    let mut absent: HashSet<&str> = qrels.relevant_documents().collect();
    let mut summary = CorpusSummary::default();
    for document in documents {
        let document = document?;
        summary.documents += 1;
        summary.blank += usize::from(document.is_blank());
        absent.remove(document.id.as_str());
    }
    summary.judged_but_absent = absent.into_iter().map(str::to_owned).collect();
    summary.judged_but_absent.sort();
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Vec<Result<Document>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        Documents::open(file.path()).unwrap().collect()
    }

    fn last_error(content: &str) -> String {
        read(content).pop().unwrap().unwrap_err().to_string()
    }

    #[test]
    fn both_id_names_numbers_nulls_and_blank_lines_are_taken() {
        let documents: Vec<Document> = read(
            "\u{feff}{\"_id\": 31, \"title\": null, \"text\": \"a\"}\r\n\r\n{\"id\": \"x y\", \"title\": \"T\", \"metadata\": {\"year\": 1996}}\n",
        )
        .into_iter()
        .map(Result::unwrap)
        .collect();
        assert_eq!(
            documents[0],
            Document { id: "31".into(), title: String::new(), text: "a".into(), metadata: Map::new() }
        );
        assert_eq!(documents[1].id, "x y");
        assert_eq!(documents[1].metadata["year"], 1996);
    }

    #[test]
    fn each_kind_of_broken_line_is_named_by_its_number() {
        let good = "{\"_id\":\"a\",\"text\":\"t\"}\n";
        for (line, wrong) in [
            ("{\"_id\":\"b\",", ":3: not a JSON object"),
            ("[1]", ":3: not a JSON object"),
            ("{\"text\":\"t\"}", ":3: has neither _id nor id"),
            ("{\"_id\":\" \",\"text\":\"t\"}", ":3: has an empty id"),
            ("{\"_id\":1.5,\"text\":\"t\"}", "an id must be a string or a whole number, not 1.5"),
            ("{\"_id\":\"b\",\"id\":\"c\"}", ":3: has both _id \"b\" and id \"c\""),
            ("{\"_id\":\"b\",\"text\":[]}", ":3: not a JSON object of this kind"),
            ("{\"_id\":\"a\",\"text\":\"again\"}", ":3: document id \"a\" is already on line 1"),
        ] {
            let error = last_error(&format!("{good}\n{line}\n{good}"));
            assert!(error.contains(wrong), "{line}: {error}");
        }
    }

    #[test]
    fn an_empty_file_is_an_error() {
        assert!(last_error("\n \n").contains("holds no document"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named_by_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), b"{\"_id\":\"a\"}\n{\"_id\":\"\xff\"}\n").unwrap();
        let error = Documents::open(file.path()).unwrap().last().unwrap().unwrap_err().to_string();
        assert!(error.contains(":2: byte 9 is not UTF-8"), "{error}");
    }
}
