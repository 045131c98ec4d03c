//! Runs: a ranked list a query, and their TREC form (`query Q0 document rank score tag`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::Path;

use crate::lines::Lines;
use crate::{Error, Result};

/// One document in a ranked list.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// The document's id.
    pub id: String,
    /// Higher is better. Single precision because trec_eval ranks in it: two scores that differ only beyond it
    /// are a tie there, and so they are here.
    pub score: f32,
}

/// What one system answered: a ranked list a query.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    lists: BTreeMap<String, Vec<Hit>>,
}

/// trec_eval's order: score descending, then id descending (byte by byte).
fn order(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then_with(|| b.id.cmp(&a.id))
}

impl Run {
    /// A run without lists.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the list of one query, in any order; it is kept in trec_eval's (score descending, ties by id
    /// descending), which is the order that is scored and written. An empty list is a query that found nothing.
    ///
    /// # Errors
    /// When the query already has a list, a document comes twice in it, or a score is not finite.
    pub fn insert(&mut self, query: &str, mut hits: Vec<Hit>) -> Result<()> {
        let mut ids = HashSet::new();
        for hit in &mut hits {
            if !hit.score.is_finite() {
                return Err(Error::Input(format!(
                    "query {query:?}: the score of document {:?} is {}; scores must be finite",
                    hit.id, hit.score
                )));
            }
            hit.score += 0.0; // -0 and 0 are the same score
            if !ids.insert(hit.id.as_str()) {
                return Err(Error::Input(format!(
                    "query {query:?}: document {:?} comes twice; a list holds a document once",
                    hit.id
                )));
            }
        }
        hits.sort_by(order);
        if self.lists.contains_key(query) {
            return Err(Error::Input(format!("query {query:?} already has a list in this run")));
        }
        self.lists.insert(query.to_owned(), hits);
        Ok(())
    }

    /// The list of a query, best first.
    pub fn hits(&self, query: &str) -> Option<&[Hit]> {
        self.lists.get(query).map(Vec::as_slice)
    }

    /// Queries with a list, sorted.
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        self.lists.keys().map(String::as_str)
    }

    /// Number of queries with a list.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether no query has a list.
    pub fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Drops from each list the document whose id is the query's own; how many there were. BEIR's rule: in ArguAna
    /// and Quora the queries are documents of the corpus, and each would find itself.
    pub fn drop_own_documents(&mut self) -> usize {
        let mut dropped = 0;
        for (query, hits) in &mut self.lists {
            let before = hits.len();
            hits.retain(|hit| hit.id != *query);
            dropped += before - hits.len();
        }
        dropped
    }

    /// Cuts every list to its best `depth` documents.
    pub fn truncate(&mut self, depth: usize) {
        for hits in self.lists.values_mut() {
            hits.truncate(depth);
        }
    }

    /// Reads TREC's form. As in trec_eval, the score ranks; the file's order and rank column don't count.
    ///
    /// # Errors
    /// When the file is missing or empty, or a line is broken or repeats a document of its query.
    pub fn read(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let mut run = Self::new();
        let mut seen: BTreeMap<String, HashSet<String>> = BTreeMap::new();
        while let Some((number, line)) = lines.next_line()? {
            let (query, hit) = parse_line(line).map_err(|detail| Error::line(path, number, detail))?;
            if !seen.entry(query.to_owned()).or_default().insert(hit.id.clone()) {
                return Err(Error::line(
                    path,
                    number,
                    format!("document {:?} comes twice for query {query:?}; keep one line", hit.id),
                ));
            }
            run.lists.entry(query.to_owned()).or_default().push(hit);
        }
        if run.is_empty() {
            return Err(Error::file(
                path,
                "holds no ranked list; is it the right file, and was it written whole?",
            ));
        }
        for hits in run.lists.values_mut() {
            hits.sort_by(order);
        }
        Ok(run)
    }

    /// Writes TREC's form, ranks from 1. Scores are written so that reading gives the same number back.
    ///
    /// # Errors
    /// When an id or the tag is empty or holds white space, which the form can't carry, and when writing fails.
    pub fn write(&self, tag: &str, output: &mut impl Write) -> Result<()> {
        check_trec_id("run tag", tag)?;
        for (query, hits) in &self.lists {
            check_trec_id("query id", query)?;
            for (index, hit) in hits.iter().enumerate() {
                check_trec_id("document id", &hit.id)?;
                writeln!(output, "{query} Q0 {} {} {} {tag}", hit.id, index + 1, hit.score)?;
            }
        }
        Ok(())
    }
}

/// Whether an id can stand in a TREC file.
pub(crate) fn check_trec_id(what: &str, id: &str) -> Result<()> {
    if id.is_empty() || id.contains(char::is_whitespace) {
        return Err(Error::Input(format!(
            "{what} {id:?} is empty or holds white space, which a TREC file can't carry; rename it in the collection"
        )));
    }
    Ok(())
}

fn parse_line(line: &str) -> std::result::Result<(&str, Hit), String> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let [query, _q0, document, _rank, score, _tag] = columns.as_slice() else {
        return Err(format!("{} columns; want `query Q0 document rank score tag`", columns.len()));
    };
    let score = match score.parse::<f64>() {
        Ok(score) if (score as f32).is_finite() => score as f32 + 0.0,
        _ => return Err(format!("score {score:?} is not a finite number")),
    };
    Ok((*query, Hit { id: (*document).to_owned(), score }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hit(id: &str, score: f32) -> Hit {
        Hit { id: id.into(), score }
    }

    fn read(content: &str) -> Result<Run> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        Run::read(file.path())
    }

    #[test]
    fn ties_go_to_the_greater_id() {
        let mut run = Run::new();
        run.insert("q", vec![hit("a", 1.0), hit("c", 0.5), hit("b", 1.0), hit("d", -0.0), hit("e", 0.0)])
            .unwrap();
        let ids: Vec<&str> = run.hits("q").unwrap().iter().map(|hit| hit.id.as_str()).collect();
        assert_eq!(ids, ["b", "a", "c", "e", "d"]);
    }

    #[test]
    fn what_a_run_refuses() {
        let mut run = Run::new();
        assert!(run.insert("q", vec![hit("a", f32::NAN)]).unwrap_err().to_string().contains("is NaN"));
        assert!(
            run.insert("q", vec![hit("a", 1.0), hit("a", 2.0)])
                .unwrap_err()
                .to_string()
                .contains("comes twice")
        );
        run.insert("q", vec![hit("a b", 1.0)]).unwrap();
        assert!(run.insert("q", Vec::new()).unwrap_err().to_string().contains("already has a list"));
        assert!(run.write("tag", &mut Vec::new()).unwrap_err().to_string().contains("\"a b\""));
        assert!(run.write("my tag", &mut Vec::new()).unwrap_err().to_string().contains("run tag"));
    }

    #[test]
    fn own_documents_are_dropped() {
        let mut run = Run::new();
        run.insert("1", vec![hit("1", 1.0), hit("2", 0.5)]).unwrap();
        run.insert("2", vec![hit("1", 1.0)]).unwrap();
        assert_eq!(run.drop_own_documents(), 1);
        assert_eq!(run.hits("1").unwrap(), [hit("2", 0.5)]);
    }

    #[test]
    fn broken_lines_are_named() {
        for (content, wrong) in [
            ("", "holds no ranked list"),
            ("q Q0 d 1 0.5\n", ":1: 5 columns"),
            ("q Q0 d 1 0.5 t\nq Q0 e 2 high t\n", ":2: score \"high\""),
            ("q Q0 d 1 1e60 t\n", ":1: score \"1e60\""),
            (
                "q Q0 d 1 0.5 t\nr Q0 d 1 0.5 t\nq Q0 d 2 0.4 t\n",
                ":3: document \"d\" comes twice for query \"q\"",
            ),
        ] {
            let error = read(content).unwrap_err().to_string();
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_written_run_reads_back(lists in prop::collection::btree_map("[a-z0-9]{1,4}", prop::collection::btree_map("[a-z0-9]{1,4}", -1e30f32..1e30, 1..8), 1..6)) {
            let mut run = Run::new();
            for (query, hits) in &lists {
                run.insert(query, hits.iter().map(|(id, score)| hit(id, *score)).collect()).unwrap();
            }
            let mut text = Vec::new();
            run.write("tag", &mut text).unwrap();
            prop_assert_eq!(read(std::str::from_utf8(&text).unwrap()).unwrap(), run);
        }
    }
}
