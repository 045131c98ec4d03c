//! The table: what each row reached, and which differences are more than luck.

use std::collections::BTreeMap;
use std::fmt::Write;

use expandr_evaluation::metrics::Options as Scoring;
use expandr_evaluation::significance::{Comparison, Options, compare_values};
use expandr_evaluation::{Metric, evaluate};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    Context,
    evaluation::{CollectionScores, RowScores},
};
use crate::folder::replace_file;
use crate::plan::{Arm, Work};
use crate::{Error, Result, collections};

/// The report's JSON.
#[derive(Serialize)]
struct Report {
    recipe: Value,
    rows: Vec<Row>,
    comparisons: Vec<Compared>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    title: String,
    collections: Vec<CollectionScores>,
    /// The mean over the collections, by metric.
    average: BTreeMap<String, f64>,
}

/// Two rows on one metric, first less second.
#[derive(Serialize)]
struct Compared {
    first: String,
    second: String,
    metric: String,
    /// None for the average over the collections.
    collection: Option<String>,
    #[serde(flatten)]
    comparison: Comparison,
}

/// Every row is compared with these, and these with each other.
const REFERENCES: [&str; 3] = ["query", "ft", "expandr"];

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
        rows.push(row(arm, in_order(scores, &names), metrics));
    }
    let comparisons = comparisons(&rows, metrics, context.recipe.seed)?;
    let recipe = serde_json::to_value(context.recipe).unwrap_or_default();
    let report = Report { recipe, rows, comparisons };
    let json = serde_json::to_vec_pretty(&report).map_err(|error| Error::Input(error.to_string()))?;
    replace_file(&context.own(0), &json)?;
    let page = page(&report, metrics);
    replace_file(&context.own(1), page.as_bytes())?;
    let averages: BTreeMap<&str, &BTreeMap<String, f64>> =
        report.rows.iter().map(|row| (row.name.as_str(), &row.average)).collect();
    Ok(json!({ "average": averages }))
}

fn row(arm: &Arm, scores: RowScores, metrics: &[String]) -> Row {
    let average = average(&scores.collections, metrics);
    Row { name: arm.name.into(), title: arm.title.into(), collections: scores.collections, average }
}

/// The collections in this order, whatever it was when the row was evaluated.
fn in_order(mut scores: RowScores, names: &[&str]) -> RowScores {
    let place = |scores: &CollectionScores| names.iter().position(|name| *name == scores.name);
    // A stable sort: collections of one name keep the order that they had.
    scores.collections.sort_by_key(place);
    scores
}

fn average(collections: &[CollectionScores], metrics: &[String]) -> BTreeMap<String, f64> {
    let mean = |metric: &String| {
        let values = collections.iter().filter_map(|scores| scores.mean.get(metric));
        values.sum::<f64>() / collections.len().max(1) as f64
    };
    metrics.iter().map(|metric| (metric.clone(), mean(metric))).collect()
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
    let average = average(&found, names);
    Ok(Some(Row { name: "bm25".into(), title: "BM25".into(), collections: found, average }))
}

fn comparisons(rows: &[Row], metrics: &[String], seed: u64) -> Result<Vec<Compared>> {
    let mut compared = Vec::new();
    let options = Options { seed, ..Options::default() };
    for (position, first) in rows.iter().enumerate() {
        for second in rows {
            let reference = REFERENCES.iter().position(|name| *name == second.name);
            let own = REFERENCES.iter().position(|name| *name == first.name);
            // References among each other are compared once.
            let wanted = match (own, reference) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(own), Some(reference)) => own > reference,
            };
            if !wanted || rows[position].name == second.name {
                continue;
            }
            for metric in metrics {
                compare_rows(first, second, metric, &options, &mut compared)?;
            }
        }
    }
    Ok(compared)
}

/// Collection by collection, and on the average: there every query's difference is weighed so that each collection
/// counts alike, as in the average itself.
fn compare_rows(
    first: &Row,
    second: &Row,
    metric: &str,
    options: &Options,
    compared: &mut Vec<Compared>,
) -> Result<()> {
    let mut all: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let mut add = |collection: Option<String>, values: &[Vec<f64>; 2]| -> Result<()> {
        let comparison = compare_values(&values[0], &values[1], options)?;
        compared.push(Compared {
            first: first.name.clone(),
            second: second.name.clone(),
            metric: metric.to_owned(),
            collection,
            comparison,
        });
        Ok(())
    };
    let sizes: Vec<usize> = first.collections.iter().map(|scores| values_of(scores, metric).len()).collect();
    let total: usize = sizes.iter().sum();
    for (one, other) in first.collections.iter().zip(&second.collections) {
        let values = [values_of(one, metric), values_of(other, metric)];
        if values[0].is_empty() {
            continue;
        }
        add(Some(one.name.clone()), &values)?;
        let weight = total as f64 / (sizes.len() * values[0].len()) as f64;
        for (all, values) in all.iter_mut().zip(values) {
            all.extend(values.into_iter().map(|value| value * weight));
        }
    }
    if sizes.len() > 1 { add(None, &all) } else { Ok(()) }
}

fn values_of(scores: &CollectionScores, metric: &str) -> Vec<f64> {
    scores.queries.get(metric).map(|values| values.values().copied().collect()).unwrap_or_default()
}

/// The report for people: a table a metric, marks for what is significant, and the p-values below.
fn page(report: &Report, metrics: &[String]) -> String {
    let mut page = String::from("# Report\n");
    for metric in metrics {
        let names: Vec<&str> = report
            .rows
            .first()
            .map(|row| row.collections.iter().map(|c| c.name.as_str()).collect())
            .unwrap_or_default();
        // Writing to a string can't fail.
        let _ = writeln!(page, "\n## {metric}\n\n| | {} | average |", names.join(" | "));
        let _ = writeln!(page, "|---|{}---|", "---|".repeat(names.len()));
        for row in &report.rows {
            let _ = write!(page, "| {} |", row.title);
            for scores in &row.collections {
                let value = scores.mean.get(metric).copied().unwrap_or_default();
                let _ =
                    write!(page, " {:.2}{} |", 100.0 * value, marks(report, row, metric, Some(&scores.name)));
            }
            let value = row.average.get(metric).copied().unwrap_or_default();
            let _ = writeln!(page, " {:.2}{} |", 100.0 * value, marks(report, row, metric, None));
        }
    }
    page.push_str(
        "\n† ◇: better than Query and than w/ Retriever Training at p < 0.05 (two-sided paired permutation test, not \
         corrected for the number of tests); ↓: worse than Query likewise. The average's tests weigh every collection \
         alike.\n",
    );
    for row in report.rows.iter().filter(|row| row.name == "auto") {
        let skipped = row.collections.iter().map(|scores| {
            let queries = metrics.first().map_or(0, |metric| values_of(scores, metric).len());
            format!("{} of {queries} on {}", scores.skipped, scores.name)
        });
        let _ = writeln!(page, "\nThe gate left unexpanded: {}.", skipped.collect::<Vec<_>>().join(", "));
    }
    for metric in metrics.iter().take(1) {
        let _ = writeln!(
            page,
            "\n## Differences in {metric}\n\n| | against | on | difference | p | wins, losses, ties |"
        );
        page.push_str("|---|---|---|---|---|---|\n");
        for compared in report.comparisons.iter().filter(|compared| compared.metric == *metric) {
            let found = &compared.comparison;
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:+.2} | {:.4} | {}, {}, {} |",
                compared.first,
                compared.second,
                compared.collection.as_deref().unwrap_or("average"),
                100.0 * found.difference,
                found.p_value,
                found.wins,
                found.losses,
                found.ties
            );
        }
    }
    page
}

fn marks(report: &Report, row: &Row, metric: &str, collection: Option<&str>) -> &'static str {
    let of = |second: &str| {
        report.comparisons.iter().find(|compared| {
            compared.first == row.name
                && compared.second == second
                && compared.metric == metric
                && compared.collection.as_deref() == collection
        })
    };
    let significant = |compared: Option<&Compared>, sign: f64| {
        compared.is_some_and(|c| c.comparison.p_value < 0.05 && c.comparison.difference * sign > 0.0)
    };
    match (significant(of("query"), 1.0), significant(of("ft"), 1.0), significant(of("query"), -1.0)) {
        (true, true, _) => "†◇",
        (true, false, _) => "†",
        (false, true, false) => "◇",
        (false, _, true) => "↓",
        _ => "",
    }
}
