//! Runs beside each other: who is better, is it luck, on which queries, and why.
//!
//! Run folders of `expandr eval` are sorted by collection and system; every system is compared with one of them, the
//! baseline. The [`Report`] holds everything; [`markdown`], [`html`] and its JSON show it.
//!
//! In reading order: `run_folder` and `name` (what a folder says), `grid` (which belongs where, over which queries), `tables`
//! (means and tests), `changes` (query by query), `sources` (what the collections' files add), `expansions` (quality), `map`
//! (vectors in the plane), then the writers.

mod changes;
mod expansions;
mod grid;
mod html;
mod map;
mod markdown;
mod name;
mod plots;
mod report;
mod run_folder;
mod sources;
mod tables;
mod words;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

pub use grid::RunArgument;
pub use html::html;
pub use markdown::{markdown, summary};
pub use report::{
    Cell, Change, Compared, FirstDocument, GoldDocument, Map, MapPoint, Mark, PerQuery, QualityReport,
    QueryChange, Report, RunReport, Statistics, SystemReport, Table, TableRow,
};
pub use run_folder::{QueryExpansion, RunFolder};

use grid::{Grid, Member};
use sources::Source;

use crate::client::Endpoint;
use crate::paper::{Match, PaperReport};
use crate::{Error, Metric, Result, metrics, significance};

/// How runs are compared.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The system that the others are compared with; none takes that of the first folder.
    pub baseline: Option<String>,
    /// The tables' metrics; changes by query are of the first.
    pub metrics: Vec<Metric>,
    /// Marks are set where the corrected p-value is below this.
    pub alpha: f64,
    /// Rounds and seed of the tests.
    pub significance: significance::Options,
    /// The folder that holds the collections by name: for titles, gold documents, BLEU and metrics that the runs lack.
    pub collections: Option<PathBuf>,
    /// How many of the largest gains and losses are shown.
    pub worst: usize,
    /// Queries a t-SNE map.
    pub map_queries: usize,
    /// Whether the paper's figures are added.
    pub paper: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self {
            baseline: None,
            metrics: vec![Metric::NDCG_10, Metric::RECALL_100],
            alpha: 0.05,
            significance: significance::Options::default(),
            collections: None,
            worst: 10,
            map_queries: 30,
            paper: false,
        }
    }
}

impl CompareOptions {
    fn check(&self) -> Result<()> {
        if self.metrics.is_empty() {
            return Err(Error::Input("no metric to compare; name at least one, e.g. ndcg@10".into()));
        }
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            return Err(Error::Input(format!("alpha {} must lie between 0 and 1, e.g. 0.05", self.alpha)));
        }
        Ok(())
    }
}

/// Compares runs. With an endpoint, vectors for the t-SNE maps are fetched from it.
///
/// # Errors
/// When a folder is no finished run, two runs have the same place, the baseline is unknown, runs of one collection are over
/// different queries, an option is out of range, or the server refuses.
pub async fn compare(
    runs: &[RunArgument],
    options: &CompareOptions,
    endpoint: Option<&Endpoint>,
) -> Result<Report> {
    options.check()?;
    let mut grid = Grid::read(runs)?;
    let baseline = baseline(&grid, options)?;
    let mut notes = Vec::new();
    let mut sources = open_sources(&mut grid, options, &mut notes)?;
    add_metrics(&mut grid, &sources, options)?;
    let changes = changes(&grid, &mut sources, baseline, options)?;
    let mut tables = Vec::new();
    for metric in &options.metrics {
        tables.push(tables::table(&grid, baseline, *metric, options)?);
    }
    notes.extend(rows_without_average(&tables));
    let maps = match endpoint {
        Some(endpoint) => map::maps(&grid, &sources, endpoint, options, &mut notes).await?,
        None => {
            notes.push(
                "no --endpoint was given, so there are no t-SNE maps (they need vectors from /embed)".into(),
            );
            Vec::new()
        }
    };
    let mut warnings = degraded_runs(&grid);
    let degraded = !warnings.is_empty();
    let systems = systems(&grid, &mut warnings);
    warnings.extend(std::mem::take(&mut grid.warnings));
    Ok(Report {
        form: "expandr-comparison/1",
        degraded,
        warnings,
        notes,
        baseline: grid.systems[baseline].clone(),
        statistics: statistics(options),
        systems,
        tables,
        changes,
        quality: expansions::quality(&grid, &sources, baseline),
        maps,
        paper: options.paper.then(|| PaperReport::new(paper_matches(&grid))),
        per_query: per_query(&grid, options)?,
    })
}

/// Which rows the averages leave out.
fn rows_without_average(tables: &[Table]) -> Option<String> {
    let table = tables.first()?;
    let averaged = table.average.as_ref().map_or(&[][..], |average| &average.collections);
    let left_out: Vec<&str> = table
        .rows
        .iter()
        .map(|row| row.name.as_str())
        .filter(|name| !averaged.iter().any(|row| row == name))
        .collect();
    (table.rows.len() > 1 && !left_out.is_empty()).then(|| {
        format!("not in the average, because not every system has a figure there: {}", left_out.join(", "))
    })
}

fn baseline(grid: &Grid, options: &CompareOptions) -> Result<usize> {
    let Some(name) = &options.baseline else { return Ok(0) };
    let found = grid.systems.iter().position(|system| system == name);
    found.ok_or_else(|| {
        Error::Input(format!("no system is called {name:?}; the systems are: {}", grid.systems.join(", ")))
    })
}

/// A collection a member of the grid, in the grid's order.
type Sources = Vec<Option<Source>>;

fn open_sources(grid: &mut Grid, options: &CompareOptions, notes: &mut Vec<String>) -> Result<Sources> {
    let folder = options.collections.as_deref();
    if folder.is_none() {
        notes.push("no --collections were given, so there are no titles, gold documents and BLEU".into());
    }
    let mut sources = Vec::new();
    let Grid { rows, warnings, .. } = grid;
    for member in rows.iter().flat_map(|row| &row.members) {
        sources.push(Source::open(folder, member, notes, warnings)?);
    }
    Ok(sources)
}

fn members(grid: &Grid) -> impl Iterator<Item = &Member> {
    grid.rows.iter().flat_map(|row| &row.members)
}

/// Scores run.trec where metrics.json lacks a metric and the collection is at hand.
fn add_metrics(grid: &mut Grid, sources: &Sources, options: &CompareOptions) -> Result<()> {
    let Grid { rows, warnings, .. } = grid;
    let members = rows.iter_mut().flat_map(|row| &mut row.members);
    for (member, source) in members.zip(sources) {
        let Some(source) = source else { continue };
        for run in member.runs.iter_mut().flatten() {
            let lacking: Vec<Metric> = options
                .metrics
                .iter()
                .copied()
                .filter(|metric| !run.scores.metrics.contains(metric))
                .collect();
            if lacking.is_empty() {
                continue;
            }
            let depth = run.settings["top_k"].as_u64().map_or(usize::MAX, |depth| depth as usize);
            for metric in lacking.iter().filter(|metric| metric.cut > Some(depth)) {
                warnings.push(format!(
                    "{metric} looks deeper than {} goes, whose lists end after {depth} hits: it is that of the first {depth}",
                    run.path.display()
                ));
            }
            let scoring = metrics::Options {
                relevance_level: source.relevance_level,
                missing_count_as_zero: run.metrics["missing_count_as_zero"] != false,
            };
            let added = metrics::evaluate(&source.collection.qrels, &run.run, &lacking, &scoring);
            for (query, values) in &mut run.scores.per_query {
                let row = added.per_query.get(query).ok_or_else(|| {
                    Error::Input(format!(
                        "{}: query {query:?} has no judgments in {}",
                        run.path.display(),
                        source.collection.corpus_path().display()
                    ))
                })?;
                values.extend(row);
            }
            run.scores.metrics.extend(lacking);
            run.scores.mean.extend(added.mean);
        }
    }
    Ok(())
}

fn changes(
    grid: &Grid,
    sources: &mut Sources,
    baseline: usize,
    options: &CompareOptions,
) -> Result<Vec<Change>> {
    let mut all = Vec::new();
    for (member, source) in members(grid).zip(sources) {
        let mut found = Vec::new();
        for (system, name) in grid.systems.iter().enumerate() {
            if system == baseline {
                continue;
            }
            let change = changes::change(member, (system, name), baseline, options.metrics[0], options)?;
            found.extend(change.map(|change| (system, change)));
        }
        if let Some(source) = source {
            let wanted: HashSet<String> =
                found.iter().flat_map(|(_, change)| changes::documents_of(change)).collect();
            source.load_documents(wanted)?;
            for (system, change) in &mut found {
                if let (Some(run), Some(base)) = (member.run(*system), member.run(baseline)) {
                    changes::add_documents(change, run, base, source);
                }
            }
        }
        all.extend(found.into_iter().map(|(_, change)| change));
    }
    Ok(all)
}

fn degraded_runs(grid: &Grid) -> Vec<String> {
    let mut warnings = Vec::new();
    for member in members(grid) {
        for (system, run) in grid.systems.iter().zip(&member.runs) {
            let Some(run) = run else { continue };
            let degraded = run.degraded_queries();
            if degraded > 0 {
                warnings.push(format!(
                    "DEGRADED: {system:?} on {} answered {degraded} of {} queries without the expansion that was asked for \
                     ({}); these are not the figures of expanded retrieval",
                    member.collection,
                    run.expansions.len(),
                    run.metrics["degraded_by_reason"]
                ));
            }
        }
    }
    warnings
}

fn systems(grid: &Grid, warnings: &mut Vec<String>) -> Vec<SystemReport> {
    let mut systems = Vec::new();
    for (system, name) in grid.systems.iter().enumerate() {
        let mut runs = Vec::new();
        let mut bundles: Vec<&str> = Vec::new();
        for member in members(grid) {
            let Some(run) = member.run(system) else { continue };
            if !bundles.contains(&run.bundle()) {
                bundles.push(run.bundle());
            }
            runs.push(RunReport {
                collection: run.collection.clone(),
                split: run.split.clone(),
                folder: run.path.display().to_string(),
                bundle: run.bundle().to_owned(),
                queries: run.scores.per_query.len(),
                degraded_queries: run.degraded_queries(),
                degraded_by_reason: run.metrics["degraded_by_reason"].clone(),
                documents: run.documents(),
                settings: run.settings.clone(),
            });
        }
        if bundles.len() > 1 {
            warnings.push(format!("{name:?} has runs of several bundles: {}", bundles.join(", ")));
        }
        systems.push(SystemReport { name: name.clone(), runs });
    }
    systems
}

fn statistics(options: &CompareOptions) -> Statistics {
    Statistics {
        test: "paired two-sided permutation test (Fisher randomisation) on the mean difference over queries",
        correction: "Holm, over the systems of one row of one table",
        average: "mean of the rows in which every system has a value, each row with the same weight; its test flips the signs of \
                  per-query differences within each collection and weighs a difference by its collection's share over its \
                  number of queries; the bootstrap draws queries within each collection. It generalises over queries, not \
                  over collections",
        alpha: options.alpha,
        rounds: options.significance.rounds,
        bootstrap_rounds: options.significance.bootstrap_rounds,
        confidence: options.significance.confidence,
        seed: options.significance.seed,
    }
}

/// Groups count with all their members' documents and queries.
fn paper_matches(grid: &Grid) -> Vec<Match> {
    let mut matches = Vec::new();
    for row in &grid.rows {
        let mut documents = Some(0);
        for member in &row.members {
            let run = member.runs.iter().flatten().next();
            documents = documents.zip(run.and_then(RunFolder::documents)).map(|(sum, more)| sum + more);
        }
        let queries = row.members.iter().map(|member| member.queries.len()).sum();
        matches.extend(Match::of(&row.name, documents, queries));
    }
    matches
}

fn per_query(grid: &Grid, options: &CompareOptions) -> Result<Vec<PerQuery>> {
    let mut all = Vec::new();
    for member in members(grid) {
        for metric in &options.metrics {
            let mut by_query: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
            for (system, name) in grid.systems.iter().enumerate() {
                let values = tables::values(member, system, *metric)?.unwrap_or_default();
                for (query, value) in member.queries.iter().zip(values) {
                    by_query.entry(query.clone()).or_default().insert(name.clone(), value);
                }
            }
            all.push(PerQuery {
                collection: member.collection.clone(),
                split: member.split.clone(),
                metric: metric.to_string(),
                values: by_query,
                left_out: member.left_out.clone(),
            });
        }
    }
    Ok(all)
}

/// Writes `compare.md`, `compare.json` and `compare.html` into a folder, which is created if it is missing.
///
/// # Errors
/// When a file can't be written.
pub fn write(report: &Report, folder: &Path) -> Result<()> {
    fs_err::create_dir_all(folder)?;
    let json = serde_json::to_vec_pretty(report).map_err(std::io::Error::from)?;
    fs_err::write(folder.join("compare.json"), json)?;
    fs_err::write(folder.join("compare.md"), markdown(report))?;
    fs_err::write(folder.join("compare.html"), html(report)?)?;
    Ok(())
}
