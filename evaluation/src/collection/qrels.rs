//! Judgments: which document answers which query, and how well.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::lines::Lines;
use crate::{Error, Result};

/// Judgments a query. A grade of 1 or more is relevant, 0 is judged and not relevant; negative grades (spam and the
/// like in some TREC tracks) gain nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qrels {
    by_query: BTreeMap<String, HashMap<String, i32>>,
    repeated: usize,
}

impl Qrels {
    /// Reads BEIR's TSV (header `query-id corpus-id score`), the same without a header, or TREC's four columns
    /// (`query iteration document grade`, separated by any white space). The first line tells which.
    ///
    /// # Errors
    /// When the file is missing or empty, a line is broken, or a document is judged twice with different grades.
    pub fn read(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let mut form = None;
        let mut qrels = Self::default();
        while let Some((number, line)) = lines.next_line()? {
            let at_line = |detail| Error::line(path, number, detail);
            let form = match form {
                Some(form) => form,
                None => {
                    let detected = Form::detect(line).map_err(at_line)?;
                    form = Some(detected);
                    if is_header(line) {
                        continue;
                    }
                    detected
                }
            };
            let (query, document, grade) = form.parse(line).map_err(at_line)?;
            qrels.insert(query, document, grade).map_err(at_line)?;
        }
        if qrels.by_query.is_empty() {
            return Err(Error::file(
                path,
                "holds no judgment; is it the right file, and was it written whole?",
            ));
        }
        Ok(qrels)
    }

    /// Adds one judgment.
    ///
    /// # Errors
    /// When the document is already judged for the query with another grade.
    pub fn insert(&mut self, query: &str, document: &str, grade: i32) -> std::result::Result<(), String> {
        let judgments = self.by_query.entry(query.to_owned()).or_default();
        match judgments.insert(document.to_owned(), grade) {
            Some(earlier) if earlier != grade => Err(format!(
                "document {document:?} is judged {earlier} and {grade} for query {query:?}; keep one"
            )),
            Some(_) => {
                self.repeated += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// The judged queries, sorted.
    pub fn queries(&self) -> impl Iterator<Item = &str> {
        self.by_query.keys().map(String::as_str)
    }

    /// Grades by document; none for a query without judgments.
    pub fn judgments(&self, query: &str) -> Option<&HashMap<String, i32>> {
        self.by_query.get(query)
    }

    /// Documents that are relevant to some query (a document may come several times).
    pub fn relevant_documents(&self) -> impl Iterator<Item = &str> {
        let judgments = self.by_query.values().flatten();
        judgments.filter(|(_, grade)| **grade > 0).map(|(document, _)| document.as_str())
    }

    /// Number of judged queries.
    pub fn query_count(&self) -> usize {
        self.by_query.len()
    }

    /// Number of judgments.
    pub fn judgment_count(&self) -> usize {
        self.by_query.values().map(HashMap::len).sum()
    }

    /// Lines that repeated an earlier judgment word for word; they change nothing.
    pub fn repeated_lines(&self) -> usize {
        self.repeated
    }
}

/// How a line is laid out.
#[derive(Clone, Copy)]
enum Form {
    /// `query<tab>document<tab>grade`; ids may hold spaces.
    Tabs,
    /// `query document grade`, separated by white space.
    Spaces,
    /// `query iteration document grade`, separated by white space.
    Trec,
}

const WANTED: &str = "want `query document grade` (tabs) or TREC's `query iteration document grade`";

impl Form {
    fn detect(line: &str) -> std::result::Result<Self, String> {
        if line.split('\t').count() == 3 {
            return Ok(Self::Tabs);
        }
        match line.split_whitespace().count() {
            4 => Ok(Self::Trec),
            3 => Ok(Self::Spaces),
            columns => Err(format!("{columns} columns; {WANTED}")),
        }
    }

    fn parse(self, line: &str) -> std::result::Result<(&str, &str, i32), String> {
        let columns: Vec<&str> = match self {
            Self::Tabs => line.split('\t').map(str::trim).collect(),
            Self::Spaces | Self::Trec => line.split_whitespace().collect(),
        };
        let (query, document, grade) = match (self, columns.as_slice()) {
            (Self::Tabs | Self::Spaces, [query, document, grade]) => (*query, *document, *grade),
            (Self::Trec, [query, _iteration, document, grade]) => (*query, *document, *grade),
            (_, columns) => {
                return Err(format!("{} columns, unlike the lines before; {WANTED}", columns.len()));
            }
        };
        if query.is_empty() || document.is_empty() {
            return Err(format!("an id is empty; {WANTED}"));
        }
        Ok((query, document, parse_grade(grade)?))
    }
}

/// Grades are whole numbers; `1.0` is one too (some exports write every number so).
fn parse_grade(text: &str) -> std::result::Result<i32, String> {
    if let Ok(grade) = text.parse::<i32>() {
        return Ok(grade);
    }
    match text.parse::<f64>() {
        Ok(grade) if grade.fract() == 0.0 && grade.abs() <= f64::from(i32::MAX) => Ok(grade as i32),
        _ => Err(format!("grade {text:?} is not a whole number; {WANTED}")),
    }
}

fn is_header(line: &str) -> bool {
    let columns: Vec<String> =
        line.split_whitespace().map(|column| column.to_ascii_lowercase().replace('_', "-")).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    matches!(
        columns.as_slice(),
        ["query-id" | "qid" | "queryid" | "query", .., "score" | "relevance" | "rel" | "label" | "grade"]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Qrels> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        Qrels::read(file.path())
    }

    #[test]
    fn all_forms_read_alike() {
        let mut expected = Qrels::default();
        for (query, document, grade) in [("1", "a", 2), ("1", "b", 0), ("2", "c", -1)] {
            expected.insert(query, document, grade).unwrap();
        }
        for content in [
            "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n2\tc\t-1\n",
            "1\ta\t2\r\n1\tb\t0\r\n2\tc\t-1\r\n",
            "1 0 a 2\n1 0 b 0\n2\t0\tc\t-1\n",
            "1 a 2\n1 b 0\n2 c -1\n",
            "1\ta\t2.0\n1\tb\t0\n2\tc\t-1.0",
        ] {
            assert_eq!(read(content).unwrap(), expected, "{content:?}");
        }
        assert_eq!((expected.query_count(), expected.judgment_count()), (2, 3));
        assert_eq!(expected.relevant_documents().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn ids_in_tsv_may_hold_spaces() {
        let qrels = read("1\ta b c\t1\n").unwrap();
        assert_eq!(qrels.judgments("1").unwrap()["a b c"], 1);
    }

    #[test]
    fn broken_files_are_named_by_line() {
        for (content, wrong) in [
            ("", "holds no judgment"),
            ("query-id\tcorpus-id\tscore\n", "holds no judgment"),
            ("a b\n", ":1: 2 columns; want"),
            ("1\ta\tyes\n", ":1: grade \"yes\" is not a whole number"),
            ("1\ta\t1.5\n", ":1: grade \"1.5\""),
            ("1\ta\t1\n1\tb\n", ":2: 2 columns, unlike the lines before"),
            ("1 0 a 1\n1 a 1\n", ":2: 3 columns, unlike the lines before"),
            ("1\t\t1\n", ":1: an id is empty"),
            ("1\ta\t1\n1\ta\t2\n", ":2: document \"a\" is judged 1 and 2"),
        ] {
            let error = read(content).unwrap_err().to_string();
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
    }

    #[test]
    fn a_repeated_judgment_is_counted() {
        assert_eq!(read("1\ta\t1\n1\ta\t1\n").unwrap().repeated_lines(), 1);
    }
}
