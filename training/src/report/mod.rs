//! What each row of a run reached, and which differences are more than luck; of one run, or of several that differ in their seeds.

mod page;
mod pooled;

use std::collections::BTreeMap;
use std::path::Path;

use expandr_evaluation::significance::{Comparison, Options, Stratum, compare_strata, compare_values};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::folder::replace_file;
use crate::{Error, Result};

pub use pooled::pool;

/// Every row is compared with these, and these with each other.
const REFERENCES: [&str; 3] = ["query", "ft", "expandr"];

/// A report, as report.json has it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The recipe of the run; of several runs that of the first.
    pub recipe: Value,
    /// Of several runs what each has otherwise than another, by the settings' names; of one run empty.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<BTreeMap<String, Value>>,
    /// Whether runs' encoders are means of trainings (`contrastive.soup`) that they have in part in common, so that the
    /// deviation between them says less than it seems to.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shared_trainings: bool,
    /// Rows that not every run has, and which are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The measures; the page tests the first.
    pub metrics: Vec<String>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// Every row against the reference rows.
    pub comparisons: Vec<Compared>,
}

/// A row: what one way to search reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name in a recipe.
    pub name: String,
    /// Its name for people.
    pub title: String,
    /// By collection, in the recipe's order. Of several runs each figure is the mean over the runs.
    pub collections: Vec<CollectionScores>,
    /// The mean over the collections, by metric. Collections of one group (CQADupStack's forums) count as one.
    pub average: BTreeMap<String, f64>,
    /// Of several runs the average of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<BTreeMap<String, f64>>,
}

/// What a row reached on one collection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CollectionScores {
    /// Its name.
    pub name: String,
    /// Means by metric.
    pub mean: BTreeMap<String, f64>,
    /// Values by metric and query.
    pub queries: BTreeMap<String, BTreeMap<String, f64>>,
    /// Queries that were searched without an expansion though the row has them, because nothing was written. Of several
    /// runs all together, as is `skipped`.
    pub without_expansion: usize,
    /// Queries that the gate did not expand.
    #[serde(default)]
    pub skipped: usize,
    /// Mean words of what stood beside the query.
    pub mean_words: f64,
}

/// Two rows on one metric, first less second.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// A row's name.
    pub first: String,
    /// Another's.
    pub second: String,
    /// The metric.
    pub metric: String,
    /// None for the average over the collections.
    pub collection: Option<String>,
    /// Means, difference, p-value.
    #[serde(flatten)]
    pub comparison: Comparison,
}

impl Row {
    /// A row of one run.
    pub(crate) fn new(
        name: &str,
        title: &str,
        collections: Vec<CollectionScores>,
        metrics: &[String],
    ) -> Self {
        let average = average(&collections, metrics);
        Self { name: name.into(), title: title.into(), collections, average, runs: Vec::new() }
    }
}

impl Report {
    /// The report of one run, which has these rows.
    ///
    /// # Errors
    /// When rows can't be compared because they did not search the same queries.
    pub(crate) fn new(recipe: Value, rows: Vec<Row>, metrics: &[String], seed: u64) -> Result<Self> {
        let comparisons = comparisons(&rows, metrics, seed)?;
        let metrics = metrics.to_vec();
        let (runs, left_out, shared_trainings) = (Vec::new(), Vec::new(), false);
        Ok(Self { recipe, runs, shared_trainings, left_out, metrics, rows, comparisons })
    }

    /// Writes it for programs and for people.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, json: &Path, page: &Path) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).map_err(|error| Error::Input(error.to_string()))?;
        replace_file(json, &bytes)?;
        replace_file(page, self.page().as_bytes())
    }
}

fn average(collections: &[CollectionScores], metrics: &[String]) -> BTreeMap<String, f64> {
    let weights = weights(collections);
    let all = weights.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mean = |metric: &String| {
        let values = collections.iter().map(|scores| scores.mean.get(metric).copied().unwrap_or_default());
        values.zip(&weights).map(|(value, weight)| value * weight).sum::<f64>() / all
    };
    metrics.iter().map(|metric| (metric.clone(), mean(metric))).collect()
}

/// How much each collection counts in the average: one, and the members of a group (`group/member`) together one, as where
/// systems are compared.
fn weights(collections: &[CollectionScores]) -> Vec<f64> {
    let group = |scores: &CollectionScores| {
        scores.name.split_once('/').map_or(scores.name.clone(), |(group, _)| group.to_owned())
    };
    let mut members: BTreeMap<String, usize> = BTreeMap::new();
    for scores in collections.iter().filter(|scores| scores.name.contains('/')) {
        *members.entry(group(scores)).or_default() += 1;
    }
    let weight = |scores| members.get(&group(scores)).map_or(1.0, |members| 1.0 / *members as f64);
    collections.iter().map(weight).collect()
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

/// Collection by collection, and on the average, in which each collection counts alike, or each group of them.
fn compare_rows(
    first: &Row,
    second: &Row,
    metric: &str,
    options: &Options,
    compared: &mut Vec<Compared>,
) -> Result<()> {
    let mut add = |collection: Option<String>, comparison: Comparison| {
        compared.push(Compared {
            first: first.name.clone(),
            second: second.name.clone(),
            metric: metric.to_owned(),
            collection,
            comparison,
        });
    };
    let mut strata = Vec::new();
    let pairs = first.collections.iter().zip(&second.collections).zip(weights(&first.collections));
    for ((one, other), weight) in pairs {
        let stratum = Stratum { first: values_of(one, metric), second: values_of(other, metric), weight };
        if stratum.first.is_empty() {
            continue;
        }
        add(Some(one.name.clone()), compare_values(&stratum.first, &stratum.second, options)?);
        strata.push(stratum);
    }
    if strata.len() > 1 {
        add(None, compare_strata(&strata, options)?);
    }
    Ok(())
}

fn values_of(scores: &CollectionScores, metric: &str) -> Vec<f64> {
    scores.queries.get(metric).map(|values| values.values().copied().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forums_of_a_group_count_as_one_collection() {
        const METRIC: &str = "ndcg@10";
        let metrics = [METRIC.to_owned()];
        let row = |name: &str, values: [f64; 3]| {
            let scores = |(collection, value): (&str, f64)| {
                let queries = (0..30).map(|n| (format!("q{n}"), value)).collect();
                CollectionScores {
                    name: collection.into(),
                    mean: [(METRIC.to_owned(), value)].into(),
                    queries: [(METRIC.to_owned(), queries)].into(),
                    ..CollectionScores::default()
                }
            };
            let collections = ["cqadupstack/android", "fiqa", "cqadupstack/english"].into_iter().zip(values);
            Row::new(name, name, collections.map(scores).collect(), &metrics)
        };
        let rows = vec![row("query", [0.1, 0.5, 0.3]), row("ft", [0.2, 0.9, 0.4])];
        assert!((rows[0].average[METRIC] - 0.35).abs() < 1e-12, "{:?}", rows[0].average);
        let report = Report::new(Value::Null, rows, &metrics, 42).unwrap();
        let average = report.comparisons.iter().find(|compared| compared.collection.is_none()).unwrap();
        assert!((average.comparison.difference - 0.25).abs() < 1e-12, "{:?}", average.comparison);
        assert!(Row::new("none", "None", Vec::new(), &metrics).average[METRIC].abs() < 1e-12);
    }
}
