//! Training pairs: a query, a passage that answers it, and passages that don't.

use std::collections::HashSet;
use std::path::PathBuf;

use expandr_evaluation::{Collection, lines::Lines};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A query and a passage that answers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// What is asked.
    pub query: String,
    /// A passage that answers it (the paper's d*).
    pub positive: String,
    /// Passages that don't, possibly none.
    pub negatives: Vec<String>,
    /// How the positive relates to the query where the source says so (`SUPPORTS`, …).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The name of the source.
    pub source: String,
}

/// A file of pairs: one JSON object a line, `query`, `positive`, and optionally `negative` (the E5 and
/// echo-embeddings layout) or `negatives`, each a text or a list of texts, and `label`. Further members are passed over.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// For counts and reports.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Only pairs with one of these labels are taken; without, all are.
    pub labels: Option<Vec<String>>,
}

/// What became of the lines of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SourceCounts {
    /// The source's name.
    pub source: String,
    /// Pairs in the file.
    pub read: usize,
    /// Dropped: its label was not asked for.
    pub other_label: usize,
    /// Dropped: its query occurs in an evaluation set.
    pub held_out: usize,
    /// Dropped: query and positive were there before, in this source or an earlier one.
    pub duplicates: usize,
    /// Taken.
    pub kept: usize,
    /// Negatives dropped from pairs that were taken, because they equal the positive.
    pub false_negatives: usize,
}

/// Queries of evaluation sets, on which nothing may be trained.
#[derive(Clone, Debug, Default)]
pub struct HeldOut {
    queries: HashSet<String>,
}

impl HeldOut {
    /// Adds the judged queries of a collection's split.
    pub fn add_collection(&mut self, collection: &Collection) {
        self.add_queries(collection.queries.iter().map(|query| query.text.as_str()));
    }

    /// Adds queries.
    pub fn add_queries<'a>(&mut self, queries: impl IntoIterator<Item = &'a str>) {
        self.queries.extend(queries.into_iter().map(normalize));
    }

    /// Whether a query is one of them, up to case, white space and punctuation at its ends.
    pub fn contains(&self, query: &str) -> bool {
        self.queries.contains(&normalize(query))
    }
}

/// Reads sources one after the other, drops what must not be trained on, and counts it.
#[derive(Debug, Default)]
pub struct PairReader {
    held_out: HeldOut,
    seen: HashSet<(String, String)>,
}

impl PairReader {
    /// A reader that drops the pairs of `held_out` queries.
    pub fn new(held_out: HeldOut) -> Self {
        Self { held_out, seen: HashSet::new() }
    }

    /// Reads a source whole. Duplicates are told across all sources that this reader has read.
    ///
    /// # Errors
    /// When the file can't be read or holds no pair, and at the first broken line.
    pub fn read(&mut self, source: &Source) -> Result<(Vec<Pair>, SourceCounts)> {
        let mut lines = Lines::open(&source.path)?;
        let mut pairs = Vec::new();
        let mut counts = SourceCounts { source: source.name.clone(), ..SourceCounts::default() };
        while let Some((number, line)) = lines.next_line()? {
            let pair =
                parse(line, &source.name).map_err(|detail| Error::line(&source.path, number, detail))?;
            counts.read += 1;
            if let Some(pair) = self.admit(pair, source, &mut counts) {
                pairs.push(pair);
            }
        }
        if counts.read == 0 {
            let detail = "holds no pair; is it the right file, and was it written whole?";
            return Err(Error::line(&source.path, 1, detail));
        }
        counts.kept = pairs.len();
        Ok((pairs, counts))
    }

    fn admit(&mut self, mut pair: Pair, source: &Source, counts: &mut SourceCounts) -> Option<Pair> {
        if let Some(labels) = &source.labels
            && !pair.label.as_ref().is_some_and(|label| labels.contains(label))
        {
            counts.other_label += 1;
            return None;
        }
        if self.held_out.contains(&pair.query) {
            counts.held_out += 1;
            return None;
        }
        let positive = normalize(&pair.positive);
        let negatives = pair.negatives.len();
        pair.negatives.retain(|negative| normalize(negative) != positive);
        if !self.seen.insert((normalize(&pair.query), positive)) {
            counts.duplicates += 1;
            return None;
        }
        counts.false_negatives += negatives - pair.negatives.len();
        Some(pair)
    }
}

#[derive(Deserialize)]
struct Line {
    query: Option<String>,
    positive: Option<String>,
    negative: Option<Texts>,
    negatives: Option<Texts>,
    label: Option<Label>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Text(String),
    Number(serde_json::Number),
}

fn parse(line: &str, source: &str) -> std::result::Result<Pair, String> {
    // Serde would also take an array for a struct, field by field.
    if !line.trim_start().starts_with('{') {
        return Err("not a JSON object; mend or remove the line".into());
    }
    let parsed: Line = serde_json::from_str(line).map_err(|error| {
        format!("not a pair ({error}); want {{\"query\", \"positive\"[, \"negative\", \"label\"]}}")
    })?;
    let text = |name: &str, value: Option<String>| match value {
        Some(value) if !value.trim().is_empty() => Ok(value),
        _ => Err(format!("{name:?} is missing or empty; every pair needs it")),
    };
    let mut negatives = Vec::new();
    for texts in [parsed.negative, parsed.negatives].into_iter().flatten() {
        match texts {
            Texts::One(one) => negatives.push(one),
            Texts::Many(many) => negatives.extend(many),
        }
    }
    negatives.retain(|negative| !negative.trim().is_empty());
    Ok(Pair {
        query: text("query", parsed.query)?,
        positive: text("positive", parsed.positive)?,
        negatives,
        label: parsed.label.map(|label| match label {
            Label::Text(text) => text,
            Label::Number(number) => number.to_string(),
        }),
        source: source.to_owned(),
    })
}

/// What makes two texts the same: lower case, single spaces, no punctuation at the ends.
pub(crate) fn normalize(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let joined = words.join(" ").to_lowercase();
    let trimmed = joined.trim_matches(|c: char| c.is_ascii_punctuation() || c.is_whitespace());
    // A text that is punctuation alone stays as it is.
    if trimmed.is_empty() { joined } else { trimmed.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_with(held_out: HeldOut, content: &str) -> Result<(Vec<Pair>, SourceCounts)> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        let source = Source { name: "s".into(), path: file.path().to_owned(), labels: None };
        PairReader::new(held_out).read(&source)
    }

    #[test]
    fn every_layout_of_negatives_reads() {
        let content = r#"{"query":"a","positive":"p"}
{"query":"b","positive":"p","negative":"n"}
{"query":"c","positive":"p","negative":["n","m"]}
{"query":"d","positive":"p","negatives":["n"," ","P."],"label":1,"other":[]}
"#;
        let (pairs, counts) = read_with(HeldOut::default(), content).unwrap();
        let negatives: Vec<usize> = pairs.iter().map(|pair| pair.negatives.len()).collect();
        assert_eq!(negatives, [0, 1, 2, 1]);
        assert_eq!(pairs[3].label.as_deref(), Some("1"));
        assert_eq!((counts.read, counts.kept, counts.false_negatives), (4, 4, 1));
    }

    #[test]
    fn held_out_queries_and_duplicates_are_dropped_and_counted() {
        let mut held_out = HeldOut::default();
        held_out.add_queries(["What  is Rust?"]);
        let content = r#"{"query":"what is rust","positive":"p"}
{"query":"who?","positive":"one"}
{"query":"Who","positive":"One "}
{"query":"who?","positive":"two"}
"#;
        let (pairs, counts) = read_with(held_out, content).unwrap();
        assert_eq!(pairs.iter().map(|pair| pair.positive.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        let expected = SourceCounts {
            source: "s".into(),
            read: 4,
            held_out: 1,
            duplicates: 1,
            kept: 2,
            ..SourceCounts::default()
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn labels_choose_pairs() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), "{\"query\":\"a\",\"positive\":\"p\",\"label\":\"SUPPORTS\"}\n{\"query\":\"b\",\"positive\":\"p\",\"label\":\"REFUTES\"}\n{\"query\":\"c\",\"positive\":\"p\"}\n").unwrap();
        let source =
            Source { name: "s".into(), path: file.path().to_owned(), labels: Some(vec!["SUPPORTS".into()]) };
        let (pairs, counts) = PairReader::default().read(&source).unwrap();
        assert_eq!((pairs.len(), counts.other_label), (1, 2));
    }

    #[test]
    fn duplicates_are_told_across_sources() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), "{\"query\":\"a\",\"positive\":\"p\"}\n").unwrap();
        let source = Source { name: "s".into(), path: file.path().to_owned(), labels: None };
        let mut reader = PairReader::default();
        assert_eq!(reader.read(&source).unwrap().1.kept, 1);
        assert_eq!(reader.read(&source).unwrap().1.duplicates, 1);
    }

    #[test]
    fn broken_lines_are_named() {
        for (content, wrong) in [
            ("", ":1: holds no pair"),
            ("{\"query\":\"a\",\"positive\":\"p\"}\n\n{\"query\":\"a\"", ":3: not a pair"),
            ("[\"a\",\"p\"]\n", ":1: not a JSON object"),
            ("{\"query\":\"a\"}\n", ":1: \"positive\" is missing or empty"),
            ("{\"query\":\" \",\"positive\":\"p\"}\n", ":1: \"query\" is missing or empty"),
            ("{\"query\":\"a\",\"positive\":[\"p\"]}\n", ":1: not a pair"),
        ] {
            let error = read_with(HeldOut::default(), content).unwrap_err().to_string();
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
    }

    #[test]
    fn a_collections_judged_queries_are_held_out() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("qrels")).unwrap();
        fs_err::write(folder.path().join("corpus.jsonl"), "{\"_id\":\"d\",\"text\":\"x\"}\n").unwrap();
        fs_err::write(
            folder.path().join("queries.jsonl"),
            "{\"_id\":\"1\",\"text\":\"Tested\"}\n{\"_id\":\"2\",\"text\":\"Trained\"}\n",
        )
        .unwrap();
        fs_err::write(folder.path().join("qrels/test.tsv"), "1\td\t1\n").unwrap();
        let mut held_out = HeldOut::default();
        held_out.add_collection(&Collection::open(folder.path(), Some("test")).unwrap());
        assert!(held_out.contains("tested?") && !held_out.contains("trained"));
    }
}
