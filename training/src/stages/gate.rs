//! Whether to expand a query, learnt on the retriever's development part.

use expandr_models::gate::{self, Combination, Features, Gate, Row};
use expandr_models::weights::{Role, weights_id};
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{Context, development::Development, weight::query_weight};
use crate::folder::replace_file;
use crate::pairs::query_id;
use crate::plan::{ExpanderRef, Work};
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
    let with = Combination {
        encoder: development.encoder.clone(),
        expander: expander_id(context, *writer),
        query_weight,
    };
    let gate = Gate::fit(&rows, with);
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

/// What expansion did to each query.
fn rows(development: &Development, weight: f32) -> Vec<Row> {
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

/// The id that a service gives the expander; none where its weights are elsewhere.
fn expander_id(context: &Context<'_>, writer: ExpanderRef) -> Option<String> {
    let folder = match context.expander(writer).0 {
        Model::Named(name) => context.steps.locate(&name, Role::Expander).ok()?,
        Model::Made(folder) => folder,
    };
    weights_id(&folder).ok()
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
            expansion: Some("e".into()),
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
        let found = rows(&development, 0.25);
        let second = 1.0 / 3f64.log2();
        assert!((found[0].gain - (1.0 - second)).abs() < 1e-12, "{found:?}");
        assert!((found[1].gain - (second - 1.0)).abs() < 1e-12, "{found:?}");
        assert_eq!(found[0].features, Features::new("where is it", &[0.8, 0.6, 0.0, 0.0]));
        assert_eq!(found[0].id, query_id("Where is it?"));
    }

    #[test]
    fn only_the_best_cosines_count() {
        let cosines: Vec<f32> = (0..15).map(|n| ((n * 7) % 15) as f32).collect();
        assert_eq!(best(&cosines), [14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0]);
    }
}
