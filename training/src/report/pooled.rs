//! Several runs in one report: what is left when the luck of a seed is averaged out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{CollectionScores, Report, Row};
use crate::{Error, Result};

/// What is read of a run's report.json.
#[derive(Clone, Deserialize)]
struct Single {
    recipe: Value,
    #[serde(default)]
    runs: Vec<Value>,
    #[serde(default)]
    metrics: Vec<String>,
    rows: Vec<Row>,
}

/// One report of several run folders, which should differ in their seeds alone; what they have otherwise is in the report. A
/// query's figure is the mean over the runs, and rows are compared by these.
///
/// # Errors
/// When a folder has no report, when it is of several runs already, and when the runs did not measure the same queries.
pub fn pool(folders: &[PathBuf]) -> Result<Report> {
    if folders.len() < 2 {
        return Err(Error::Input("a report of several runs takes two run folders or more".into()));
    }
    let singles: Vec<Single> = folders.iter().map(|folder| read(folder)).collect::<Result<_>>()?;
    let first = &singles[0];
    let recipes: Vec<&Value> = singles.iter().map(|single| &single.recipe).collect();
    let runs = differing(&recipes);
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    for name in names(&singles) {
        let of_runs: Vec<&Row> =
            singles.iter().filter_map(|single| single.rows.iter().find(|row| row.name == name)).collect();
        if of_runs.len() < singles.len() {
            left_out.push(name);
            continue;
        }
        rows.push(mean_row(&of_runs, &first.metrics, folders)?);
    }
    if rows.is_empty() {
        return Err(Error::Input("no row is in every run; set `evaluation.arms` alike".into()));
    }
    let seed = first.recipe["seed"].as_u64().unwrap_or(42);
    let report = Report::new(first.recipe.clone(), rows, &first.metrics, seed)?;
    Ok(Report { runs, left_out, shared_trainings: share_trainings(&recipes), ..report })
}

/// Whether the soups of two runs have trainings in common.
fn share_trainings(recipes: &[&Value]) -> bool {
    let seeds = |recipe: &Value| {
        let settings = &recipe["contrastive"];
        let first = settings["seed"].as_u64().or_else(|| recipe["seed"].as_u64()).unwrap_or_default();
        first..first.saturating_add(settings["soup"].as_u64().unwrap_or(1))
    };
    let seeds: Vec<Range<u64>> = recipes.iter().map(|recipe| seeds(recipe)).collect();
    let is_soup = |seeds: &Range<u64>| seeds.end - seeds.start > 1;
    let meet = |one: &Range<u64>, other: &Range<u64>| one.start < other.end && other.start < one.end;
    seeds.iter().enumerate().any(|(place, one)| {
        seeds[..place].iter().any(|other| (is_soup(one) || is_soup(other)) && meet(one, other))
    })
}

fn read(folder: &Path) -> Result<Single> {
    let path = folder.join("report.json");
    let wrong = |what: &str| Error::Input(format!("{}: {what}", path.display()));
    let text = fs_err::read(&path)?;
    let single: Single = serde_json::from_slice(&text)
        .map_err(|error| wrong(&format!("not the report of a run ({error}); do stage report again")))?;
    if !single.runs.is_empty() {
        return Err(wrong("it is of several runs already; name the run folders themselves"));
    }
    if single.metrics.is_empty() {
        return Err(wrong("it names no metrics; do stage report again"));
    }
    Ok(single)
}

/// The rows' names as they first occur.
fn names(singles: &[Single]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in singles.iter().flat_map(|single| &single.rows) {
        if !names.contains(&row.name) {
            names.push(row.name.clone());
        }
    }
    names
}

fn mean_row(rows: &[&Row], metrics: &[String], folders: &[PathBuf]) -> Result<Row> {
    let first = rows[0];
    for (row, folder) in rows.iter().zip(folders) {
        if !same_queries(first, row, metrics) {
            return Err(Error::Input(format!(
                "{} and {}: row `{}` is not of the same collections, queries and metrics in both; evaluate both alike",
                folders[0].display(),
                folder.display(),
                first.name
            )));
        }
    }
    let collections: Vec<CollectionScores> = (0..first.collections.len())
        .map(|at| {
            let of_runs: Vec<&CollectionScores> = rows.iter().map(|row| &row.collections[at]).collect();
            mean_scores(&of_runs, metrics)
        })
        .collect();
    let runs = rows.iter().map(|row| row.average.clone()).collect();
    Ok(Row { runs, ..Row::new(&first.name, &first.title, collections, metrics) })
}

fn same_queries(one: &Row, other: &Row, metrics: &[String]) -> bool {
    let same = |(one, other): (&CollectionScores, &CollectionScores)| {
        let same_values = |metric: &String| match (one.queries.get(metric), other.queries.get(metric)) {
            (Some(one), Some(other)) => one.keys().eq(other.keys()),
            _ => false,
        };
        one.name == other.name && metrics.iter().all(same_values)
    };
    one.collections.len() == other.collections.len()
        && one.collections.iter().zip(&other.collections).all(same)
}

/// The mean of runs that scored the same queries.
fn mean_scores(runs: &[&CollectionScores], metrics: &[String]) -> CollectionScores {
    let count = runs.len() as f64;
    let mean =
        |value: &dyn Fn(&CollectionScores) -> f64| runs.iter().map(|run| value(run)).sum::<f64>() / count;
    let queries_of = |metric: &String| {
        let queries = runs[0].queries[metric].keys();
        queries.map(|query| (query.clone(), mean(&|run| run.queries[metric][query]))).collect()
    };
    CollectionScores {
        name: runs[0].name.clone(),
        mean: metrics
            .iter()
            .map(|metric| (metric.clone(), mean(&|run| run.mean.get(metric).copied().unwrap_or_default())))
            .collect(),
        queries: metrics.iter().map(|metric| (metric.clone(), queries_of(metric))).collect(),
        without_expansion: runs.iter().map(|run| run.without_expansion).sum(),
        skipped: runs.iter().map(|run| run.skipped).sum(),
        mean_words: mean(&|run| run.mean_words),
    }
}

/// The settings in which recipes differ, recipe by recipe. Where a run's folder lies is no difference.
fn differing(recipes: &[&Value]) -> Vec<BTreeMap<String, Value>> {
    let flat: Vec<BTreeMap<String, Value>> = recipes
        .iter()
        .map(|recipe| {
            let mut settings = BTreeMap::new();
            flatten("", recipe, &mut settings);
            settings.remove("output");
            // Rows that not every run has are named as such.
            settings.remove("evaluation.arms");
            settings
        })
        .collect();
    let names: BTreeSet<&String> = flat.iter().flat_map(BTreeMap::keys).collect();
    let differs = |name: &&String| flat.iter().any(|settings| settings.get(*name) != flat[0].get(*name));
    let names: Vec<&String> = names.into_iter().filter(differs).collect();
    let value = |settings: &BTreeMap<String, Value>, name: &String| {
        (name.clone(), settings.get(name).cloned().unwrap_or(Value::Null))
    };
    flat.iter().map(|settings| names.iter().map(|name| value(settings, name)).collect()).collect()
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    let Some(parts) = value.as_object() else {
        into.insert(prefix.to_owned(), value.clone());
        return;
    };
    for (name, part) in parts {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        flatten(&name, part, into);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const METRIC: &str = "ndcg@10";

    fn row(name: &str, values: &[f64]) -> Row {
        let queries = values.iter().enumerate().map(|(n, value)| (format!("q{n}"), *value)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let scores = CollectionScores {
            name: "c".into(),
            mean: BTreeMap::from([(METRIC.to_owned(), mean)]),
            queries: BTreeMap::from([(METRIC.to_owned(), queries)]),
            skipped: 1,
            ..CollectionScores::default()
        };
        Row::new(name, &name.to_uppercase(), vec![scores], &[METRIC.to_owned()])
    }

    fn write(folder: &Path, seed: u64, rows: Vec<Row>) -> PathBuf {
        let folder = folder.join(seed.to_string());
        fs_err::create_dir_all(&folder).unwrap();
        let recipe = json!({"seed": 42, "output": seed, "contrastive": {"seed": seed, "epochs": 1.0}});
        let report = Report::new(recipe, rows, &[METRIC.to_owned()], 42).unwrap();
        report.write(&folder.join("report.json"), &folder.join("report.md")).unwrap();
        folder
    }

    #[test]
    fn a_querys_figure_is_the_mean_over_the_runs() {
        let root = tempfile::tempdir().unwrap();
        let query: Vec<f64> = (0..40).map(|n| f64::from(n % 2)).collect();
        let tuned = |by: f64| row("auto", &query.iter().map(|value| value / 2.0 + by).collect::<Vec<_>>());
        let folders = [
            write(root.path(), 1, vec![row("query", &query), tuned(0.5)]),
            write(root.path(), 2, vec![row("query", &query), tuned(0.4), row("ft", &query)]),
            write(root.path(), 3, vec![row("query", &query), tuned(0.3)]),
        ];
        let report = pool(&folders).unwrap();
        assert_eq!(report.left_out, ["ft"]);
        let seeds: Vec<_> = report.runs.iter().map(|run| run["contrastive.seed"].as_u64().unwrap()).collect();
        assert_eq!((seeds, report.runs[0].len()), (vec![1, 2, 3], 1), "{:?}", report.runs);
        let auto = &report.rows[1];
        assert!((auto.average[METRIC] - 0.65).abs() < 1e-12);
        assert!((auto.collections[0].queries[METRIC]["q1"] - 0.9).abs() < 1e-12);
        let compared = &report.comparisons[0];
        assert_eq!((compared.first.as_str(), compared.second.as_str()), ("auto", "query"));
        assert!((compared.comparison.difference - 0.15).abs() < 1e-12);
        assert_eq!((compared.comparison.wins, compared.comparison.losses), (20, 20));
        let page = report.page();
        for text in ["`contrastive.seed` 2", "| 65.00† | 65.00 ± 10.00 |", "left out: ft", "3 of 120 on c"]
        {
            assert!(page.contains(text), "{text} is not in {page}");
        }
    }

    #[test]
    fn soups_with_trainings_in_common_are_told() {
        let recipe = |seed: u64, soup: u64| json!({"seed": 1, "contrastive": {"seed": seed, "soup": soup}});
        let share = |recipes: &[Value]| share_trainings(&recipes.iter().collect::<Vec<_>>());
        assert!(share(&[recipe(42, 3), recipe(44, 3)]) && share(&[recipe(42, 3), recipe(43, 1)]));
        assert!(!share(&[recipe(42, 3), recipe(45, 3)]) && !share(&[recipe(42, 1), recipe(42, 1)]));
        let by_run = [json!({"seed": 7, "contrastive": {"soup": 2}}), recipe(8, 1)];
        assert!(share(&by_run), "without a seed of its own the training has the run's");

        let root = tempfile::tempdir().unwrap();
        let folders = [1, 2].map(|seed| write(root.path(), seed, vec![row("query", &[0.5, 1.0])]));
        let report = pool(&folders).unwrap();
        assert!(!report.page().contains("in common"));
        assert!(Report { shared_trainings: true, ..report }.page().contains("in common"));
    }

    #[test]
    fn runs_of_other_queries_and_folders_without_a_report_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let one = write(root.path(), 1, vec![row("query", &[0.5, 1.0])]);
        let other = write(root.path(), 2, vec![row("query", &[0.5, 1.0, 0.0])]);
        let refused = |folders: &[PathBuf]| pool(folders).unwrap_err().to_string();
        let message = refused(&[one.clone(), other.clone()]);
        assert!(message.contains("row `query` is not of the same collections"), "{message}");
        assert!(refused(std::slice::from_ref(&one)).contains("two run folders"));
        assert!(refused(&[one.clone(), root.path().join("none")]).contains("report.json"));
        pool(&[one.clone(), one.clone()])
            .unwrap()
            .write(&other.join("report.json"), &other.join("page"))
            .unwrap();
        let message = refused(&[one, other]);
        assert!(message.contains("of several runs already"), "{message}");
    }
}
