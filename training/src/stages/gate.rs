//! Whether to expand a query, learnt on the retriever's development part.

use std::collections::BTreeMap;
use std::path::Path;

use expandr_models::gate::{self, Combination, Features, Gate, Row};
use expandr_models::weights::{Role, adapted_id, weights_id};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Context, development::Development, weight::query_weight};
use crate::folder::replace_file;
use crate::pairs::query_id;
use crate::plan::Work;
use crate::steps::Model;
use crate::{Error, Result};

/// Searches the development part with and without expansions, and learns from what each gained.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Gate { examples, encoder, writer, weight } = &context.node.work else {
        return Err(Error::Input("not a stage of gates".into()));
    };
    let query_weight = query_weight(context, *weight)?;
    let otherwise = "set `gate.enabled` to false";
    let development = Development::load(context, *examples, *encoder, otherwise).await?;
    let rows = rows(&development, query_weight as f32);
    let expander = expander_ids(context, &context.expander(*writer).0);
    let encoder = development.encoder.clone();
    let (expander, merged) = (expander.first().cloned(), expander.get(1).cloned());
    let joint_encoding = context.recipe.expansions.joint_encoding;
    let with = Combination { encoder, expander, query_weight, joint_encoding };
    let gate = Gate::fit(&rows, with).merged(merged);
    let json = gate.to_json().map_err(|error| Error::Input(error.to_string()))?;
    replace_file(&context.own(0), &json)?;
    let figures = gate.trained_on();
    if gate.threshold().is_none() {
        context.note(&format!(
            "the gate never expands: on {} development queries no threshold gains for sure (always: {:+.4}, gated: \
             {:+.4})",
            figures.queries, figures.gain_always, figures.gain_gated
        ));
    }
    if gate.threshold().is_some() && figures.gain_gated < figures.gain_always {
        context.note(&format!(
            "behind the gate expansion gains less than always ({:+.4}, always: {:+.4}): it saves generations ({:.0} % of \
             them), not quality",
            figures.gain_gated,
            figures.gain_always,
            100.0 * figures.share_skipped
        ));
    }
    let mut summary = serde_json::to_value(figures).unwrap_or_default();
    summary["passages"] = json!(development.documents.len());
    summary["threshold"] = json!(gate.threshold());
    summary["query_weight"] = json!(query_weight);
    Ok(summary)
}

/// What expansion did to each query: the mean over its positives, so that a query with several counts once.
fn rows(development: &Development, weight: f32) -> Vec<Row> {
    let mut by_query: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    for row in rows_of_pairs(development, weight) {
        by_query.entry(row.id.clone()).or_default().push(row);
    }
    let mean = |mut rows: Vec<Row>| {
        let gain = rows.iter().map(|row| row.gain).sum::<f64>() / rows.len() as f64;
        rows.pop().map(|row| Row { gain, ..row })
    };
    by_query.into_values().filter_map(mean).collect()
}

fn rows_of_pairs(development: &Development, weight: f32) -> Vec<Row> {
    (0..development.queries.len())
        .into_par_iter()
        .map(|index| {
            let similarities = development.similarities(index);
            let query = &development.lines[index].query;
            Row {
                id: query_id(query),
                features: Features::new(query, &best(&similarities.by_query)),
                gain: similarities.value(weight) - similarities.value(1.0),
            }
        })
        .collect()
}

/// The cosines that count, best first.
fn best(cosines: &[f32]) -> Vec<f32> {
    let mut cosines = cosines.to_vec();
    cosines.sort_by(|a, b| b.total_cmp(a));
    cosines.truncate(gate::DEPTH);
    cosines
}

/// The ids that a service gives the expander: with the adapter beside its base where it has one, and merged. None where
/// its weights are elsewhere.
fn expander_ids(context: &Context<'_>, model: &Model) -> Vec<String> {
    let id = |folder: &Path| weights_id(folder).ok();
    let folder = |model: &Model| match model {
        Model::Named(name) => context.steps.locate(name, Role::Expander).ok(),
        Model::Made(folder) | Model::Adapted { merged: folder, .. } => Some(folder.clone()),
    };
    let ids = match model {
        Model::Named(_) | Model::Made(_) => vec![folder(model).and_then(|folder| id(&folder))],
        Model::Adapted { base, adapter, merged } => {
            vec![folder(base).and_then(|base| adapted_id(&base, adapter).ok()), id(merged)]
        }
    };
    ids.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::ExampleLine;

    #[test]
    fn gains_are_those_of_the_search_and_features_those_of_its_hits() {
        let unit = |at: usize| -> Vec<f32> { (0..4).map(|n| f32::from(n == at)).collect() };
        let line = |query: &str| ExampleLine {
            query: query.into(),
            expansions: vec!["e".into()],
            positive: "p".into(),
            negatives: Vec::new(),
        };
        let development = Development {
            lines: vec![line("where is it"), line("bones")],
            // The first is led right by its expansion, the second is right alone.
            queries: vec![vec![0.6, 0.8, 0.0, 0.0], unit(2)],
            expansions: vec![unit(0), unit(3)],
            documents: (0..4).map(unit).collect(),
            positives: vec![0, 2],
            encoder: String::new(),
        };
        let found = rows_of_pairs(&development, 0.25);
        let second = 1.0 / 3f64.log2();
        assert!((found[0].gain - (1.0 - second)).abs() < 1e-12, "{found:?}");
        assert!((found[1].gain - (second - 1.0)).abs() < 1e-12, "{found:?}");
        assert_eq!(found[0].features, Features::new("where is it", &[0.8, 0.6, 0.0, 0.0]));
        assert_eq!(found[0].id, query_id("Where is it?"));
        assert_eq!(rows(&development, 0.25).len(), 2);
        // Were both the same query's, it would count once, with the mean of both gains.
        let lines = vec![line("where is it"), line("Where is it?")];
        let found = rows(&Development { lines, ..development }, 0.25);
        assert_eq!(found.len(), 1);
        assert!(found[0].gain.abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn only_the_best_cosines_count() {
        let cosines: Vec<f32> = (0..15).map(|n| ((n * 7) % 15) as f32).collect();
        assert_eq!(best(&cosines), [14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0]);
    }
}
