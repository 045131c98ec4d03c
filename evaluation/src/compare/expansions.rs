//! The quality of each run's expansions.

use super::grid::{Grid, Member};
use super::name::is_raw;
use super::report::QualityReport;
use super::sources::Source;
use super::{QueryExpansion, RunFolder};
use crate::quality::{Item, measure};

/// How many hits an overlap is of.
const OVERLAP: usize = 10;

/// By collection and system with expansions, in the grid's order.
pub(super) fn quality(grid: &Grid, sources: &[Option<Source>], baseline: usize) -> Vec<QualityReport> {
    let mut all = Vec::new();
    for (member, source) in super::members(grid).zip(sources) {
        for (system, name) in grid.systems.iter().enumerate() {
            let Some(run) = member.run(system) else { continue };
            let items: Vec<Item<'_>> = member
                .queries
                .iter()
                .filter_map(|query| Some(item(query, run.expansions.get(query)?, source.as_ref())))
                .collect();
            let Some(quality) = measure(&items) else { continue };
            let overlap =
                recorded_overlap(member, run).or_else(|| overlap_with_raw_run(grid, member, run, baseline));
            all.push(QualityReport {
                collection: member.collection.clone(),
                system: name.clone(),
                quality,
                raw_overlap_at_10: overlap.as_ref().map(|(mean, _)| *mean),
                raw_overlap_source: overlap.map(|(_, source)| source),
            });
        }
    }
    all
}

fn item<'a>(query: &str, expansion: &'a QueryExpansion, source: Option<&'a Source>) -> Item<'a> {
    Item {
        texts: expansion.texts.iter().map(String::as_str).collect(),
        tokens: (expansion.output_tokens > 0).then_some(expansion.output_tokens),
        query_cosine: expansion.query_cosine,
        passages: source.map(|source| source.passages(query)).unwrap_or_default(),
        answers: source.map(|source| source.answers(query)).unwrap_or_default(),
    }
}

/// As the server recorded it, over the queries that have an expansion.
fn recorded_overlap(member: &Member, run: &RunFolder) -> Option<(f64, String)> {
    let expanded = expanded_queries(member, run);
    let values: Vec<f64> =
        expanded.into_iter().filter_map(|query| run.expansions.get(query)?.raw_overlap_at_10).collect();
    Some((mean(&values)?, "recorded".to_owned()))
}

/// From the run of a raw system with the same ranking: the baseline where it is one, else the first.
fn overlap_with_raw_run(
    grid: &Grid,
    member: &Member,
    run: &RunFolder,
    baseline: usize,
) -> Option<(f64, String)> {
    let mut candidates = vec![baseline];
    candidates.extend(0..grid.systems.len());
    let is_counterpart = |system: &usize| {
        member.run(*system).is_some_and(|other| is_raw(other) && other.ranking() == run.ranking())
    };
    let system = candidates.into_iter().find(is_counterpart)?;
    let raw = member.run(system)?;
    let expanded = expanded_queries(member, run);
    let values: Vec<f64> = expanded.into_iter().filter_map(|query| overlap(raw, run, query)).collect();
    Some((mean(&values)?, grid.systems[system].clone()))
}

fn expanded_queries<'a>(member: &'a Member, run: &RunFolder) -> Vec<&'a str> {
    let has_texts = |query: &&String| {
        run.expansions.get(query.as_str()).is_some_and(|expansion| !expansion.texts.is_empty())
    };
    member.queries.iter().filter(has_texts).map(String::as_str).collect()
}

/// Share of the first raw hits among the first expanded ones; none where the raw search found nothing.
fn overlap(raw: &RunFolder, run: &RunFolder, query: &str) -> Option<f64> {
    let first = |folder: &RunFolder| -> Vec<String> {
        let hits = folder.run.hits(query).unwrap_or_default();
        hits.iter().take(OVERLAP).map(|hit| hit.id.clone()).collect()
    };
    let (raw, expanded) = (first(raw), first(run));
    let shared = raw.iter().filter(|id| expanded.contains(id)).count();
    (!raw.is_empty()).then(|| shared as f64 / raw.len() as f64)
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
