//! DPR's retriever training data: a list of questions with positive and hard negative passages.

use serde::Deserialize;

use super::{Example, Intake, json_lines::for_each_element};
use crate::{Result, text::joined};

#[derive(Deserialize)]
struct Entry {
    question: String,
    positive_ctxs: Vec<Passage>,
    #[serde(default)]
    hard_negative_ctxs: Vec<Passage>,
    #[serde(default)]
    negative_ctxs: Vec<Passage>,
}

#[derive(Deserialize)]
struct Passage {
    #[serde(default)]
    title: Option<String>,
    text: String,
}

impl Passage {
    fn joined(&self) -> String {
        joined(self.title.as_deref().unwrap_or_default(), &self.text)
    }
}

/// The first positive passage, as DPR itself takes it; hard negatives come before the others. Questions without a
/// positive passage, which the published files have, are counted.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    let wanted = "{\"question\", \"positive_ctxs\": [{\"title\", \"text\"}], \"hard_negative_ctxs\"}";
    for_each_element(path, None, wanted, intake, |entry: Entry, _, intake| {
        let Some(positive) = entry.positive_ctxs.first() else {
            intake.without_positive();
            return Ok(());
        };
        let passages = entry.hard_negative_ctxs.iter().chain(&entry.negative_ctxs);
        let negatives = passages.take(intake.max_negatives()).map(Passage::joined).collect();
        intake.example(Example { query: entry.question, positive: positive.joined(), negatives, label: None })
    })
}
