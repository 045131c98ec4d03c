//! Answers to queries, where a collection gives them: BEIR's HotpotQA has `metadata.answer`, question answering sets
//! `answers`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::corpus::Record;
use crate::lines::Lines;
use crate::{Error, Result};

/// Reads the answers of a `queries.jsonl`: `answer` or `answers`, each a text or a list of texts, in the query itself or
/// in its `metadata`. Queries without one are not in the result; a file of another form has none.
///
/// # Errors
/// When the file can't be read, or a line of JSON is broken.
pub fn read_answers(path: &Path) -> Result<HashMap<String, Vec<String>>> {
    let mut lines = Lines::open(path)?;
    let mut by_query = HashMap::new();
    while let Some((number, line)) = lines.next_line()? {
        if !line.starts_with('{') {
            return Ok(HashMap::new());
        }
        let at_line = |detail: String| Error::line(path, number, detail);
        let id = Record::parse(line).and_then(|mut record| record.take_id()).map_err(at_line)?;
        let value: Value = serde_json::from_str(line)
            .map_err(|error| at_line(format!("not JSON ({error}); mend or remove the line")))?;
        let mut answers = Vec::new();
        for holder in [&value, &value["metadata"]] {
            for name in ["answer", "answers"] {
                match &holder[name] {
                    Value::String(answer) => answers.push(answer.clone()),
                    Value::Array(list) => {
                        answers.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
                    }
                    _ => {}
                }
            }
        }
        answers.retain(|answer| !answer.trim().is_empty());
        if !answers.is_empty() {
            by_query.insert(id, answers);
        }
    }
    Ok(by_query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_where_collections_put_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            r#"{"_id":"1","text":"q","metadata":{"answer":"yes"}}"#,
            r#"{"_id":"2","text":"q","answers":["a","b",""]}"#,
            r#"{"_id":"3","text":"q"}"#,
        ];
        fs_err::write(file.path(), lines.join("\n")).unwrap();
        let answers = read_answers(file.path()).unwrap();
        assert_eq!(answers.len(), 2);
        assert_eq!(answers["1"], ["yes"]);
        assert_eq!(answers["2"], ["a", "b"]);
        fs_err::write(file.path(), "1\tquery\n").unwrap();
        assert!(read_answers(file.path()).unwrap().is_empty());
    }
}
