//! The weight of the query in the search, chosen on the retriever's development part.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Context, development::Development};
use crate::folder::replace_file;
use crate::plan::{WeightNode, Work};
use crate::recipe::QueryWeight;
use crate::{Error, Result};

/// Weights are tried from 0 to 1 in so many steps.
const STEPS: usize = 20;

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
    fn read(path: &Path) -> Result<Self> {
        let text = fs_err::read(path)?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::Input(format!("{}: not readable ({error}); do stage weight again", path.display()))
        })
    }
}

/// The weight of the query for a row whose stages may have chosen one.
pub(super) fn query_weight(context: &Context<'_>, chosen: Option<WeightNode>) -> Result<f64> {
    match (chosen, context.recipe.evaluation.query_weight) {
        (Some(node), _) => Ok(Chosen::read(&context.output(node.0, 0))?.query_weight),
        (None, QueryWeight::Fixed(weight)) => Ok(weight),
        // Nothing to weigh.
        (None, QueryWeight::Dev) => Ok(1.0),
    }
}

/// Searches the development part's positives with every weight.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Weight { examples, encoder } = &context.node.work else {
        return Err(Error::Input("not a stage of weights".into()));
    };
    let otherwise = "set `evaluation.query_weight` to a number";
    let development = Development::load(context, *examples, *encoder, otherwise).await?;
    let tried = try_weights(&development);
    let query_weight = best(&tried);
    let (queries, passages) = (development.queries.len(), development.documents.len());
    let chosen = Chosen { query_weight, tried, queries, passages };
    let json = serde_json::to_vec_pretty(&chosen).map_err(|error| Error::Input(error.to_string()))?;
    replace_file(&context.own(0), &json)?;
    Ok(json!({ "query_weight": query_weight, "queries": queries, "passages": passages }))
}

/// nDCG@10 of every weight.
fn try_weights(development: &Development) -> Vec<(f64, f64)> {
    let values: Vec<Vec<f64>> = (0..development.queries.len())
        .into_par_iter()
        .map(|index| {
            let similarities = development.similarities(index);
            (0..=STEPS).map(|step| similarities.value(step as f32 / STEPS as f32)).collect()
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
        let development = Development {
            lines: Vec::new(),
            queries: (10..20).map(|n| documents[n].clone()).collect(),
            expansions: (0..10).map(|n| documents[n].clone()).collect(),
            documents,
            positives: (0..10).collect(),
            encoder: String::new(),
        };
        let tried = try_weights(&development);
        assert_eq!((tried.len(), tried[0]), (STEPS + 1, (0.0, 1.0)));
        assert!(tried[STEPS].1 < 0.7, "{tried:?}");
        // Up to 0.5 (where both tie, and ties count for the positive) all is found.
        assert_eq!(best(&tried), 0.5);
        let Development { queries, expansions, .. } = development;
        let swapped = Development { queries: expansions, expansions: queries, ..development };
        assert_eq!(best(&try_weights(&swapped)), 0.5);
        assert_eq!(best(&[(0.0, 0.1), (0.3, 0.4), (0.5, 0.2), (1.0, 0.3)]), 0.3);
    }
}
