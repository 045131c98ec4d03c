//! The table: what each row reached, and which differences are more than luck.

use std::collections::BTreeMap;

use expandr_evaluation::metrics::Options as Scoring;
use expandr_evaluation::{Metric, evaluate};
use serde_json::{Value, json};

use super::{Context, evaluation::RowScores};
use crate::plan::Work;
use crate::report::{CollectionScores, Report, Row};
use crate::{Error, Result, collections};

/// Writes report.json and report.md.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Report { rows: planned } = &context.node.work else {
        return Err(Error::Input("not a stage of reports".into()));
    };
    let metrics = &context.recipe.evaluation.metrics;
    let opened = collections::open(context.recipe)?;
    let names: Vec<&str> = opened.iter().map(|collection| collection.name.as_str()).collect();
    let mut rows = Vec::new();
    if let Some(lexical) = lexical(context).await? {
        rows.push(lexical);
    }
    for (arm, evaluation) in planned {
        let scores = RowScores::read(&context.output(evaluation.0, 0))?;
        rows.push(Row::new(arm.name, arm.title, in_order(scores, &names).collections, metrics));
    }
    let recipe = serde_json::to_value(context.recipe).unwrap_or_default();
    let report = Report::new(recipe, rows, metrics, context.recipe.seed)?;
    report.write(&context.own(0), &context.own(1))?;
    let averages: BTreeMap<&str, &BTreeMap<String, f64>> =
        report.rows.iter().map(|row| (row.name.as_str(), &row.average)).collect();
    Ok(json!({ "average": averages }))
}

/// The collections in this order, whatever it was when the row was evaluated.
fn in_order(mut scores: RowScores, names: &[&str]) -> RowScores {
    let place = |scores: &CollectionScores| names.iter().position(|name| *name == scores.name);
    // A stable sort: collections of one name keep the order that they had.
    scores.collections.sort_by_key(place);
    scores
}

/// BM25, if there is one.
async fn lexical(context: &Context<'_>) -> Result<Option<Row>> {
    let names = &context.recipe.evaluation.metrics;
    let metrics: std::result::Result<Vec<Metric>, _> = names.iter().map(|name| name.parse()).collect();
    let metrics = metrics?;
    let depth = metrics.iter().filter_map(|metric| metric.cut).max().unwrap_or(0).max(100);
    let mut found = Vec::new();
    for collection in collections::open(context.recipe)? {
        let Some(mut run) = context.steps.lexical(&collection, depth + 1).await? else { return Ok(None) };
        run.drop_own_documents();
        run.truncate(depth);
        let whole = context.recipe.evaluation.max_queries.is_none();
        let options = Scoring { missing_count_as_zero: whole, ..Scoring::default() };
        let scores = evaluate(&collection.qrels, &run, &metrics, &options);
        let mut row = CollectionScores { name: collection.name.clone(), ..CollectionScores::default() };
        for (column, name) in names.iter().enumerate() {
            row.mean.insert(name.clone(), scores.mean[column]);
            let values = scores.per_query.iter().map(|(query, values)| (query.clone(), values[column]));
            row.queries.insert(name.clone(), values.collect());
        }
        found.push(row);
    }
    Ok(Some(Row::new("bm25", "BM25", found, names)))
}
