//! Answers as they come over the wire, and the file that keeps them while a run goes on.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::endpoint::describe_problem;
use crate::{Error, Result};

/// What became of the expansion of one query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expansion {
    /// `applied`, `cached`, `supplied`, `skipped`, `disabled` or `degraded`; `unstated` where the server says nothing.
    pub status: String,
    /// Why it was degraded or skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the failing part said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The passages that were embedded.
    #[serde(default)]
    pub texts: Vec<String>,
    /// Tokens of these passages.
    #[serde(default)]
    pub output_tokens: u64,
    /// Whether the budget cut a passage that was used.
    #[serde(default)]
    pub cut: bool,
    /// The query's share in the averaged vector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_weight: Option<f64>,
    /// Cosine of query and passages, the mean over these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_cosine: Option<f64>,
    /// Share of the ten best hits that are also among the ten best of the query alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_overlap_at_10: Option<f64>,
}

/// The answer to one query of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The query's id.
    pub query_id: String,
    /// Ids and scores as the server ranked them.
    pub hits: Vec<(String, f32)>,
    /// What became of the expansion.
    pub expansion: Expansion,
    /// The bundle that answered; empty where the server names none.
    pub bundle: String,
    /// The server's own measurement in milliseconds.
    pub took_ms: Option<f64>,
    /// From sending the request, which may hold several queries, to its whole answer, in milliseconds.
    pub request_ms: f64,
}

/// The body of an answer to a batch. What is not needed here is passed over while reading.
#[derive(Deserialize)]
pub(super) struct WireBatch {
    pub(super) results: Vec<Wire>,
}

/// One element of `results`: an answer, or a problem, which has no hits.
#[derive(Deserialize)]
pub(super) struct Wire {
    hits: Option<Vec<WireHit>>,
    expansion: Option<Expansion>,
    bundle: Option<Value>,
    took_ms: Option<f64>,
    status: Option<u16>,
    title: Option<String>,
    detail: Option<String>,
    errors: Option<Value>,
}

#[derive(Deserialize)]
struct WireHit {
    id: String,
    score: f32,
}

/// Why a member of a batch was not answered.
#[derive(Debug, PartialEq)]
pub(super) struct Problem {
    /// The HTTP status that a request of its own would have got.
    pub(super) status: Option<u16>,
    /// What the server said.
    pub(super) description: String,
}

impl Wire {
    pub(super) fn into_answer(self, query_id: &str, request_ms: f64) -> std::result::Result<Answer, Problem> {
        let Some(hits) = self.hits else {
            let problem = json!({"title": self.title, "detail": self.detail, "errors": self.errors});
            return Err(Problem { status: self.status, description: describe_problem(&problem) });
        };
        let unstated = || Expansion { status: "unstated".into(), ..Expansion::default() };
        Ok(Answer {
            query_id: query_id.to_owned(),
            hits: hits.into_iter().map(|hit| (hit.id, hit.score)).collect(),
            expansion: self.expansion.unwrap_or_else(unstated),
            bundle: match self.bundle {
                Some(Value::String(name)) => name,
                Some(other) if !other.is_null() => other.to_string(),
                _ => String::new(),
            },
            took_ms: self.took_ms,
            request_ms,
        })
    }
}

/// `answers.jsonl`: what a run has so far. One process at a time writes to it.
pub(super) struct AnswerLog {
    path: PathBuf,
    file: fs_err::File,
    answers: BTreeMap<String, Answer>,
    bundle: Option<String>,
}

impl AnswerLog {
    /// Opens or creates the log and reads what is there. A last line that a crash cut short is removed.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(path)?;
        if file.file().try_lock().is_err() {
            return Err(Error::file(
                path,
                "another evaluation is writing to this run folder; wait for it or choose another",
            ));
        }
        let mut log = Self { path: path.to_owned(), file, answers: BTreeMap::new(), bundle: None };
        log.read()?;
        Ok(log)
    }

    fn read(&mut self) -> Result<()> {
        let content = fs_err::read(&self.path)?;
        let whole = content.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if whole < content.len() {
            self.file.file().set_len(whole as u64)?;
        }
        for (index, line) in content[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let at_line = |detail: String| Error::line(&self.path, index + 1, detail);
            let answer: Answer = serde_json::from_slice(line).map_err(|error| {
                at_line(format!("not an answer of an earlier run ({error}); use an empty run folder"))
            })?;
            if self.answers.contains_key(&answer.query_id) {
                return Err(at_line(format!(
                    "query {:?} is answered twice; use an empty run folder",
                    answer.query_id
                )));
            }
            self.admit(answer)?;
        }
        Ok(())
    }

    /// Whether a query has its answer.
    pub(super) fn has(&self, query_id: &str) -> bool {
        self.answers.contains_key(query_id)
    }

    /// All answers by query.
    pub(super) fn answers(&self) -> &BTreeMap<String, Answer> {
        &self.answers
    }

    /// The bundle of all answers; none when there is no answer.
    pub(super) fn bundle(&self) -> Option<&str> {
        self.bundle.as_deref()
    }

    /// Keeps answers that just came.
    ///
    /// # Errors
    /// When another bundle gave one of them; then none of them is kept.
    pub(super) fn append(&mut self, answers: Vec<Answer>) -> Result<()> {
        let mut lines = Vec::new();
        let first = answers.first().map(|answer| answer.bundle.as_str());
        let expected = self.bundle.as_deref().or(first);
        for answer in &answers {
            check_bundle(expected, &answer.bundle)?;
            serde_json::to_writer(&mut lines, answer).map_err(std::io::Error::from)?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines)?;
        for answer in answers {
            self.admit(answer)?;
        }
        Ok(())
    }

    fn admit(&mut self, answer: Answer) -> Result<()> {
        check_bundle(self.bundle(), &answer.bundle)?;
        self.bundle.get_or_insert_with(|| answer.bundle.clone());
        self.answers.insert(answer.query_id.clone(), answer);
        Ok(())
    }
}

fn check_bundle(expected: Option<&str>, bundle: &str) -> Result<()> {
    match expected {
        Some(before) if before != bundle => {
            Err(Error::BundleChanged { before: before.to_owned(), after: bundle.to_owned() })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(query_id: &str, bundle: &str) -> Answer {
        let wire = json!({"hits": [{"id": "d", "score": 0.25, "text": "…"}], "bundle": bundle, "took_ms": 1.5,
            "expansion": {"status": "applied", "texts": ["p"], "output_tokens": 3, "cut": false, "query_weight": 0.5}});
        Wire::deserialize(wire).unwrap().into_answer(query_id, 2.0).unwrap()
    }

    #[test]
    fn a_log_goes_on_where_it_stopped_and_drops_a_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let mut log = AnswerLog::open(&path).unwrap();
        log.append(vec![answer("1", "b"), answer("2", "b")]).unwrap();
        drop(log);
        let mut torn = fs_err::read(&path).unwrap();
        torn.extend_from_slice(b"{\"query_id\":\"3\",\"hi");
        fs_err::write(&path, torn).unwrap();
        let mut log = AnswerLog::open(&path).unwrap();
        assert!(log.has("1") && log.has("2") && !log.has("3"));
        log.append(vec![answer("3", "b")]).unwrap();
        drop(log);
        let log = AnswerLog::open(&path).unwrap();
        assert_eq!(log.answers()["3"], answer("3", "b"));
        assert_eq!(log.bundle(), Some("b"));
    }

    #[test]
    fn another_bundle_is_refused_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let mut log = AnswerLog::open(&path).unwrap();
        log.append(vec![answer("1", "old")]).unwrap();
        let error = log.append(vec![answer("2", "new")]).unwrap_err().to_string();
        assert!(error.contains("from \"old\" to \"new\""), "{error}");
        drop(log);
        assert!(!AnswerLog::open(&path).unwrap().has("2"));
    }

    #[test]
    fn answers_of_two_bundles_at_once_are_refused_even_as_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let mut log = AnswerLog::open(&path).unwrap();
        assert!(log.append(vec![answer("1", "old"), answer("2", "new")]).is_err());
        drop(log);
        assert!(AnswerLog::open(&path).unwrap().answers().is_empty());
    }

    #[test]
    fn two_writers_and_foreign_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let log = AnswerLog::open(&path).unwrap();
        let error = AnswerLog::open(&path).err().unwrap().to_string();
        assert!(error.contains("another evaluation is writing"), "{error}");
        drop(log);
        fs_err::write(&path, "{\"a\":1}\n").unwrap();
        assert!(AnswerLog::open(&path).err().unwrap().to_string().contains("answers.jsonl:1: not an answer"));
    }
}
