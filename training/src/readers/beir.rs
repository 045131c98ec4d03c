//! A BEIR folder with judgments to train on.

use std::collections::{HashMap, HashSet};

use expandr_evaluation::Collection;

use super::{Example, Intake};
use crate::{Result, text::joined};

/// Every relevant document makes a pair; documents judged 0 or below are negatives. Only documents that are judged
/// are held in memory.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let source = intake.source();
    let collection = Collection::open(&source.path, Some(&source.split))?;
    let mut judged: HashSet<&str> = HashSet::new();
    for query in &collection.queries {
        let judgments = collection.qrels.judgments(&query.id).into_iter().flatten();
        judged.extend(judgments.map(|(document, _)| document.as_str()));
    }
    let mut texts: HashMap<String, String> = HashMap::new();
    for document in collection.documents()? {
        let document = document?;
        if judged.contains(document.id.as_str()) {
            texts.insert(document.id, joined(&document.title, &document.text));
        }
    }
    for query in &collection.queries {
        let judgments = collection.qrels.judgments(&query.id).into_iter().flatten();
        // The judgments' own order is that of a hash map.
        let mut judgments: Vec<(&str, i32)> = judgments.map(|(id, grade)| (id.as_str(), *grade)).collect();
        judgments.sort();
        let not_relevant = judgments.iter().filter(|(_, grade)| *grade <= 0);
        let negatives: Vec<String> = not_relevant.filter_map(|(id, _)| texts.get(*id).cloned()).collect();
        for (id, _) in judgments.iter().filter(|(_, grade)| *grade > 0) {
            match texts.get(*id) {
                None => intake.without_positive(),
                Some(positive) => intake.example(Example {
                    query: query.text.clone(),
                    positive: positive.clone(),
                    negatives: negatives.clone(),
                    label: None,
                })?,
            }
        }
    }
    Ok(())
}
