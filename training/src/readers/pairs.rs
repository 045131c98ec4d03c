//! JSON lines {query, positive, negative}: E5's and echo-embeddings' training data, and our own.

use serde::Deserialize;

use super::{Example, Intake, json_lines::for_each_line};
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

pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    let wanted = "{\"query\", \"positive\"[, \"negative\", \"label\"]}";
    for_each_line(path, wanted, intake, |line: Line, number, intake| {
        let positives = line.positive.map(Texts::into_vec).unwrap_or_default();
        let positive = positives.into_iter().find(|positive| !positive.trim().is_empty());
        let query = line.query.filter(|query| !query.trim().is_empty());
        let (query, positive) = match (query, positive) {
            (Some(query), Some(positive)) => (query, positive),
            (None, _) => return intake.broken(path, number, &missing("query")),
            (_, None) => return intake.broken(path, number, &missing("positive")),
        };
        let given = [line.negative, line.negatives].into_iter().flatten();
        let label = line.label.map(|label| match label {
            Label::Text(text) => text,
            Label::Number(number) => number.to_string(),
        });
        intake.example(Example {
            query,
            positive,
            negatives: given.flat_map(Texts::into_vec).collect(),
            label,
        })
    })
}

fn missing(name: &str) -> String {
    format!("{name:?} is missing or empty; every pair needs it")
}
