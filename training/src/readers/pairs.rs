//! JSON lines {query, positive, negative}: E5's and echo-embeddings' training data, and our own.

use serde::Deserialize;

use super::{
    Example, Intake,
    json_lines::{for_each_line, object},
};
use crate::Result;

#[derive(Deserialize)]
struct Line {
    query: Option<String>,
    positive: Option<Texts>,
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

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Label {
    Text(String),
    Number(serde_json::Number),
}

const WANTED: &str = "{\"query\", \"positive\"[, \"negative\", \"label\"]}";

impl Line {
    /// The pair of the line; the error says what it lacks.
    fn example(self) -> std::result::Result<Example, String> {
        let positives = self.positive.map(Texts::into_vec).unwrap_or_default();
        let positive = positives.into_iter().find(|positive| !positive.trim().is_empty());
        let query = self.query.filter(|query| !query.trim().is_empty());
        let query = query.ok_or_else(|| missing("query"))?;
        let positive = positive.ok_or_else(|| missing("positive"))?;
        let given = [self.negative, self.negatives].into_iter().flatten();
        let label = self.label.map(|label| match label {
            Label::Text(text) => text,
            Label::Number(number) => number.to_string(),
        });
        Ok(Example { query, positive, negatives: given.flat_map(Texts::into_vec).collect(), label })
    }
}

/// The pair of one line of the layout [`Format::Pairs`](super::Format::Pairs), exactly as a run would read it.
///
/// # Errors
/// What is wrong with the line, without its file and number.
pub fn parse_pair(line: &[u8]) -> std::result::Result<Example, String> {
    object::<Line>(line).map_err(|error| format!("{error}; want {WANTED}"))?.example()
}

pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    for_each_line(path, WANTED, intake, |line: Line, number, intake| match line.example() {
        Ok(example) => intake.example(example),
        Err(detail) => intake.broken(path, number, &detail),
    })
}

fn missing(name: &str) -> String {
    format!("{name:?} is missing or empty; every pair needs it")
}
