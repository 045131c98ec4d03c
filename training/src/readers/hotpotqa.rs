//! HotpotQA: a list of questions, each with ten paragraphs of which two support the answer.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Example, Intake, json_lines::for_each_element};
use crate::{Result, text::joined};

#[derive(Deserialize)]
struct Entry {
    question: String,
    supporting_facts: Facts,
    context: Context,
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// As pairs of title and sentence number (the original file), or as two lists side by side (the hub's copy).
#[derive(Deserialize)]
#[serde(untagged)]
enum Facts {
    Pairs(Vec<(String, serde::de::IgnoredAny)>),
    Lists { title: Vec<String> },
}

/// As pairs of title and sentences, or as two lists side by side.
#[derive(Deserialize)]
#[serde(untagged)]
enum Context {
    Pairs(Vec<(String, Vec<String>)>),
    Lists { title: Vec<String>, sentences: Vec<Vec<String>> },
}

/// One pair a supporting paragraph; the other paragraphs are negatives. The label is the question's type.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    let wanted =
        "{\"question\", \"supporting_facts\": [[title, sentence]], \"context\": [[title, [sentences]]]}";
    for_each_element(path, None, wanted, intake, |entry: Entry, line, intake| {
        let supporting: BTreeSet<String> = match entry.supporting_facts {
            Facts::Pairs(pairs) => pairs.into_iter().map(|(title, _)| title).collect(),
            Facts::Lists { title } => title.into_iter().collect(),
        };
        let paragraphs = match entry.context {
            Context::Pairs(pairs) => pairs,
            Context::Lists { title, sentences } if title.len() == sentences.len() => {
                title.into_iter().zip(sentences).collect()
            }
            Context::Lists { title, sentences } => {
                let detail = format!(
                    "{} titles and {} paragraphs in one context; they must be as many",
                    title.len(),
                    sentences.len()
                );
                return intake.broken(path, line, &detail);
            }
        };
        // Sentences keep the space before them, as published.
        let text = |(title, sentences): &(String, Vec<String>)| joined(title, &sentences.concat());
        let (gold, others): (Vec<_>, Vec<_>) =
            paragraphs.iter().partition(|(title, _)| supporting.contains(title));
        if gold.is_empty() {
            intake.without_positive();
        }
        for paragraph in gold {
            intake.example(Example {
                query: entry.question.clone(),
                positive: text(paragraph),
                negatives: others.iter().take(intake.max_negatives()).map(|other| text(other)).collect(),
                label: entry.kind.clone(),
            })?;
        }
        Ok(())
    })
}
