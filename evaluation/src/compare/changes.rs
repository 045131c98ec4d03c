//! What changes query by query, and the queries that change most.

use std::collections::HashSet;

use super::grid::Member;
use super::report::{Change, FirstDocument, GoldDocument, QueryChange};
use super::sources::Source;
use super::tables::values;
use super::{CompareOptions, RunFolder};
use crate::{Metric, Result};

/// First documents that are shown of a list.
const FIRST: usize = 3;

/// The queries of one system on one collection against the baseline; none where one of the two has no run.
pub(super) fn change(
    member: &Member,
    (system, name): (usize, &str),
    baseline: usize,
    metric: Metric,
    options: &CompareOptions,
) -> Result<Option<Change>> {
    let (Some(ours), Some(theirs)) = (values(member, system, metric)?, values(member, baseline, metric)?)
    else {
        return Ok(None);
    };
    let (Some(run), Some(base)) = (member.run(system), member.run(baseline)) else { return Ok(None) };
    let mut changes: Vec<QueryChange> = Vec::new();
    for (query, (system, baseline)) in member.queries.iter().zip(ours.iter().zip(&theirs)) {
        changes.push(plain_change(query, run, base, *system, *baseline));
    }
    // By difference, then by id: the same on every machine.
    changes.sort_by(|a, b| b.difference.total_cmp(&a.difference).then_with(|| a.id.cmp(&b.id)));
    let differences: Vec<f64> = changes.iter().map(|change| change.difference).collect();
    let wins = differences.iter().filter(|difference| **difference > 0.0).count();
    let losses = differences.iter().filter(|difference| **difference < 0.0).count();
    let mut largest_losses = changes.clone();
    largest_losses.sort_by(|a, b| a.difference.total_cmp(&b.difference).then_with(|| a.id.cmp(&b.id)));
    largest_losses.truncate(losses.min(options.worst));
    changes.truncate(wins.min(options.worst));
    Ok(Some(Change {
        collection: member.collection.clone(),
        system: name.to_owned(),
        metric: metric.to_string(),
        wins,
        losses,
        ties: differences.len() - wins - losses,
        differences,
        largest_losses,
        largest_gains: changes,
    }))
}

fn plain_change(query: &str, run: &RunFolder, base: &RunFolder, system: f64, baseline: f64) -> QueryChange {
    let expansion = run.expansions.get(query);
    let texts = |expansion: Option<&super::QueryExpansion>| {
        expansion.map(|expansion| expansion.texts.clone()).unwrap_or_default()
    };
    QueryChange {
        id: query.to_owned(),
        query: expansion.map(|expansion| expansion.query.clone()).unwrap_or_default(),
        baseline,
        system,
        difference: system - baseline,
        expansion_status: expansion.map(|expansion| expansion.status.clone()).unwrap_or_default(),
        expansions: texts(expansion),
        baseline_expansions: texts(base.expansions.get(query)),
        gold: Vec::new(),
        baseline_first: first_documents(base, query),
        system_first: first_documents(run, query),
    }
}

fn first_documents(run: &RunFolder, query: &str) -> Vec<FirstDocument> {
    let hits = run.run.hits(query).unwrap_or_default();
    hits.iter()
        .take(FIRST)
        .map(|hit| FirstDocument { id: hit.id.clone(), title: None, relevant: None })
        .collect()
}

/// The documents whose titles are wanted.
pub(super) fn documents_of(change: &Change) -> HashSet<String> {
    let queries = change.largest_losses.iter().chain(&change.largest_gains);
    let first = queries.flat_map(|query| query.baseline_first.iter().chain(&query.system_first));
    first.map(|document| document.id.clone()).collect()
}

/// Fills in what only the collection knows: titles, and the relevant documents.
pub(super) fn add_documents(change: &mut Change, run: &RunFolder, base: &RunFolder, source: &Source) {
    for query in change.largest_losses.iter_mut().chain(&mut change.largest_gains) {
        for document in query.baseline_first.iter_mut().chain(&mut query.system_first) {
            document.title = source.title(&document.id);
            document.relevant = Some(source.grade(&query.id, &document.id) >= source.relevance_level);
        }
        let rank = |run: &RunFolder, id: &str| {
            let hits = run.run.hits(&query.id).unwrap_or_default();
            hits.iter().position(|hit| hit.id == id).map(|index| index + 1)
        };
        query.gold = source
            .gold(&query.id)
            .into_iter()
            .map(|(id, grade)| GoldDocument {
                title: source.title(id),
                grade,
                baseline_rank: rank(base, id),
                system_rank: rank(run, id),
                id: id.to_owned(),
            })
            .collect();
    }
}
