//! The weight of the query in the search, chosen on the retriever's development part.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use expandr_models::TextKind;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Context,
    encode::{dot, encode, normalize},
};
use crate::example::ExampleLine;
use crate::folder::{JsonLines, replace_file};
use crate::plan::Work;
use crate::seed::draw;
use crate::{Error, Result};

/// At most so many queries are searched for; more make the choice no better.
const MOST: usize = 2000;
/// Weights are tried from 0 to 1 in so many steps.
const STEPS: usize = 20;
/// A query's value is 1 / log2(1 + rank) of its positive down to this rank (nDCG with one relevant document).
const DEPTH: usize = 10;

/// `weight.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Chosen {
    /// The weight of the query's vector.
    pub(crate) query_weight: f64,
    /// nDCG@10 of every weight that was tried.
    pub(crate) tried: Vec<(f64, f64)>,
    /// How many queries it was chosen on.
    pub(crate) queries: usize,
    /// Among how many passages their positives were searched.
    pub(crate) passages: usize,
}

impl Chosen {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs_err::read(path)?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::Input(format!("{}: not readable ({error}); do stage weight again", path.display()))
        })
    }
}

/// Searches the development part's positives with every weight, among all its positives and negatives.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Weight { examples, encoder } = &context.node.work else {
        return Err(Error::Input("not a stage of weights".into()));
    };
    let seed = context.recipe.seed;
    let mut lines: Vec<(u64, ExampleLine)> = Vec::new();
    for line in JsonLines::<ExampleLine>::open(&context.output(examples.0, 1))? {
        let line = line?;
        if line.expansion.is_some() {
            lines.push((draw(seed, &["weight", &line.query, &line.positive]), line));
        }
    }
    if lines.is_empty() {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: "the retriever's development part has no query with an expansion; raise \
                     `data.retriever_dev_share`, or set `evaluation.query_weight` to a number"
                .into(),
        });
    }
    lines.sort_by_key(|(drawn, _)| *drawn);
    lines.truncate(MOST);
    let lines: Vec<ExampleLine> = lines.into_iter().map(|(_, line)| line).collect();

    let passages: BTreeSet<&str> = lines
        .iter()
        .flat_map(|line| std::iter::once(&line.positive).chain(&line.negatives))
        .map(String::as_str)
        .collect();
    let positions: HashMap<&str, usize> =
        passages.iter().enumerate().map(|(position, passage)| (*passage, position)).collect();
    let encoder = context.steps.encoder(&context.encoder(*encoder).0).await?;
    let batch = context.recipe.machine.encode_batch;
    let texts = |of: fn(&ExampleLine) -> String| lines.iter().map(of).collect::<Vec<String>>();
    let queries = texts(|line| line.query.clone());
    let expansions = texts(|line| line.expansion.clone().unwrap_or_default());
    let documents: Vec<String> = passages.iter().map(|passage| (*passage).to_owned()).collect();
    let mut vectors = [
        encode(encoder.as_ref(), TextKind::Query, queries, batch).await?,
        encode(encoder.as_ref(), TextKind::Document, expansions, batch).await?,
        encode(encoder.as_ref(), TextKind::Document, documents, batch).await?,
    ];
    vectors.iter_mut().flatten().for_each(|vector| normalize(vector));
    let [queries, expansions, documents] = &vectors;
    let positives: Vec<usize> = lines.iter().map(|line| positions[line.positive.as_str()]).collect();
    let tried = try_weights(queries, expansions, documents, &positives);
    let query_weight = best(&tried);
    let chosen = Chosen { query_weight, tried, queries: lines.len(), passages: documents.len() };
    let json = serde_json::to_vec_pretty(&chosen).map_err(|error| Error::Input(error.to_string()))?;
    replace_file(&context.own(0), &json)?;
    Ok(json!({ "query_weight": query_weight, "queries": chosen.queries, "passages": chosen.passages }))
}

/// nDCG@10 of every weight.
fn try_weights(
    queries: &[Vec<f32>],
    expansions: &[Vec<f32>],
    documents: &[Vec<f32>],
    positives: &[usize],
) -> Vec<(f64, f64)> {
    let values: Vec<Vec<f64>> = (0..queries.len())
        .into_par_iter()
        .map(|index| {
            let to =
                |vector: &[f32]| documents.iter().map(|document| dot(vector, document)).collect::<Vec<f32>>();
            let (by_query, by_expansion) = (to(&queries[index]), to(&expansions[index]));
            (0..=STEPS)
                .map(|step| {
                    let weight = step as f32 / STEPS as f32;
                    // The inner product is linear, so the average need not be made.
                    let score = |document: usize| {
                        weight * by_query[document] + (1.0 - weight) * by_expansion[document]
                    };
                    let own = score(positives[index]);
                    let before = (0..documents.len()).filter(|document| score(*document) > own).count();
                    if before < DEPTH { 1.0 / ((before + 2) as f64).log2() } else { 0.0 }
                })
                .collect()
        })
        .collect();
    (0..=STEPS)
        .map(|step| {
            let sum: f64 = values.iter().map(|values| values[step]).sum();
            (step as f64 / STEPS as f64, sum / values.len().max(1) as f64)
        })
        .collect()
}

/// The weight of the best value; of equals the one nearest to the paper's 0.5.
fn best(tried: &[(f64, f64)]) -> f64 {
    let mut best = (0.5, f64::NEG_INFINITY);
    for (weight, value) in tried {
        let nearer = (weight - 0.5).abs() < (best.0 - 0.5_f64).abs();
        if *value > best.1 || (*value == best.1 && nearer) {
            best = (*weight, *value);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_that_finds_most_is_chosen() {
        // The queries point at the wrong documents, the expansions at the right ones.
        let documents: Vec<Vec<f32>> =
            (0..30).map(|n| (0..30).map(|component| f32::from(component == n)).collect()).collect();
        let positives: Vec<usize> = (0..10).collect();
        let queries: Vec<Vec<f32>> = (10..20).map(|n| documents[n].clone()).collect();
        let expansions: Vec<Vec<f32>> = (0..10).map(|n| documents[n].clone()).collect();
        let tried = try_weights(&queries, &expansions, &documents, &positives);
        assert_eq!((tried.len(), tried[0]), (STEPS + 1, (0.0, 1.0)));
        assert!(tried[STEPS].1 < 0.7, "{tried:?}");
        // Up to 0.5 (where both tie, and ties count for the positive) all is found.
        assert_eq!(best(&tried), 0.5);
        let swapped = try_weights(&expansions, &queries, &documents, &positives);
        assert_eq!(best(&swapped), 0.5);
        assert_eq!(best(&[(0.0, 0.1), (0.3, 0.4), (0.5, 0.2), (1.0, 0.3)]), 0.3);
    }
}
