//! What a comparison shows: the one structure that Markdown, JSON and HTML are written from. Its JSON is described in
//! `docs/evaluation.md`; values are fractions there (0.645) and hundredths in the tables for people (64.50).

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::paper::PaperReport;
use crate::quality::Quality;
use crate::significance::Comparison;

/// The whole.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Names this form of JSON.
    pub form: &'static str,
    /// Whether some run has answers without the expansion that was asked for.
    pub degraded: bool,
    /// What a reader must know before the figures: degraded runs first.
    pub warnings: Vec<String>,
    /// What could not be shown, and how to get it.
    pub notes: Vec<String>,
    /// The system that the others are compared with.
    pub baseline: String,
    /// How the tests were made.
    pub statistics: Statistics,
    /// The systems, in the order of the columns.
    pub systems: Vec<SystemReport>,
    /// A table a metric.
    pub tables: Vec<Table>,
    /// By collection and system other than the baseline, on the first metric.
    pub changes: Vec<Change>,
    /// By collection and system with expansions.
    pub quality: Vec<QualityReport>,
    /// t-SNE maps, where an endpoint gave vectors.
    pub maps: Vec<Map>,
    /// The paper's figures beside ours, where asked for.
    pub paper: Option<PaperReport>,
    /// Every value of every query, by collection.
    pub per_query: Vec<PerQuery>,
}

/// How the tests were made.
#[derive(Clone, Debug, Serialize)]
pub struct Statistics {
    /// The test in words.
    pub test: &'static str,
    /// The correction in words.
    pub correction: &'static str,
    /// The handling of the average row in words.
    pub average: &'static str,
    /// Marks are set where the corrected p-value is below this.
    pub alpha: f64,
    /// Random sign assignments.
    pub rounds: usize,
    /// Bootstrap samples.
    pub bootstrap_rounds: usize,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Of the random numbers.
    pub seed: u64,
}

/// One system and its runs.
#[derive(Clone, Debug, Serialize)]
pub struct SystemReport {
    /// Its name.
    pub name: String,
    /// Its runs.
    pub runs: Vec<RunReport>,
}

/// One run folder.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The collection.
    pub collection: String,
    /// Which judgments.
    pub split: String,
    /// Where the run is.
    pub folder: String,
    /// The bundle that answered.
    pub bundle: String,
    /// Queries that it scored.
    pub queries: usize,
    /// Answers without the expansion that was asked for.
    pub degraded_queries: usize,
    /// The same by reason, as in `metrics.json`.
    pub degraded_by_reason: Value,
    /// Documents that the server had; null where it didn't say.
    pub documents: Option<u64>,
    /// What was asked: `settings.json`.
    pub settings: Value,
}

/// One metric: collections down, systems across (the paper's Table 2).
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The metric.
    pub metric: String,
    /// A row a collection.
    pub rows: Vec<TableRow>,
    /// Mean of the rows in which every system has a value, each with the same weight; none when they are fewer than two.
    pub average: Option<TableRow>,
}

/// One row.
#[derive(Clone, Debug, Serialize)]
pub struct TableRow {
    /// The collection, the group, or `average`.
    pub name: String,
    /// The collections that it is the mean of; of the average, the rows.
    pub collections: Vec<String>,
    /// Queries in all.
    pub queries: usize,
    /// A cell a system.
    pub cells: Vec<Cell>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// The system.
    pub system: String,
    /// Its mean; none where it has no run.
    pub mean: Option<f64>,
    /// Whether no system of the row is better (as printed).
    pub best: bool,
    /// Whether some answers behind it are without the expansion that was asked for.
    pub degraded: bool,
    /// Whether it differs from the baseline significantly.
    pub mark: Mark,
    /// Against the baseline; none for the baseline itself.
    pub comparison: Option<Compared>,
}

/// A comparison with the baseline. Differences are this system minus the baseline.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The test.
    #[serde(flatten)]
    pub comparison: Comparison,
    /// The p-value after Holm's correction over the systems of the row.
    pub p_holm: f64,
}

/// Significance at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// No significant difference, or nothing to compare with.
    None,
    /// Significantly better than the baseline.
    Better,
    /// Significantly worse than the baseline.
    Worse,
}

impl Mark {
    /// As it stands behind a figure.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Better => "†",
            Self::Worse => "▼",
        }
    }
}

/// What a system changes query by query on one collection.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The collection.
    pub collection: String,
    /// The system.
    pub system: String,
    /// The metric.
    pub metric: String,
    /// Queries on which it is better than the baseline.
    pub wins: usize,
    /// Queries on which it is worse.
    pub losses: usize,
    /// Queries without a difference.
    pub ties: usize,
    /// All differences, largest gain first.
    pub differences: Vec<f64>,
    /// The queries that lose most.
    pub largest_losses: Vec<QueryChange>,
    /// The queries that gain most.
    pub largest_gains: Vec<QueryChange>,
}

/// One query, with what is needed to see why it changed.
#[derive(Clone, Debug, Serialize)]
pub struct QueryChange {
    /// Its id.
    pub id: String,
    /// Its text.
    pub query: String,
    /// The baseline's value.
    pub baseline: f64,
    /// The system's value.
    pub system: f64,
    /// System minus baseline.
    pub difference: f64,
    /// What became of the system's expansion.
    pub expansion_status: String,
    /// The passages that the system searched with.
    pub expansions: Vec<String>,
    /// The passages that the baseline searched with.
    pub baseline_expansions: Vec<String>,
    /// The relevant documents; empty where the collection is not at hand.
    pub gold: Vec<GoldDocument>,
    /// The baseline's first documents.
    pub baseline_first: Vec<FirstDocument>,
    /// The system's first documents.
    pub system_first: Vec<FirstDocument>,
}

/// A relevant document and where the two systems rank it.
#[derive(Clone, Debug, Serialize)]
pub struct GoldDocument {
    /// Its id.
    pub id: String,
    /// Its title, or its first words; none where the corpus lacks it.
    pub title: Option<String>,
    /// Its grade.
    pub grade: i32,
    /// The baseline's rank, from 1; none where it is not in the list.
    pub baseline_rank: Option<usize>,
    /// The system's rank, from 1; none where it is not in the list.
    pub system_rank: Option<usize>,
}

/// One of the first documents of a list.
#[derive(Clone, Debug, Serialize)]
pub struct FirstDocument {
    /// Its id.
    pub id: String,
    /// Its title, or its first words; none where the collection is not at hand.
    pub title: Option<String>,
    /// Whether it is relevant; none where the collection is not at hand.
    pub relevant: Option<bool>,
}

/// How good the expansions of a system are on one collection.
#[derive(Clone, Debug, Serialize)]
pub struct QualityReport {
    /// The collection.
    pub collection: String,
    /// The system.
    pub system: String,
    /// The figures.
    #[serde(flatten)]
    pub quality: Quality,
    /// Share of the ten best raw hits among the ten best expanded ones, mean over queries.
    pub raw_overlap_at_10: Option<f64>,
    /// `recorded` by the server, or the name of the raw system whose run was taken.
    pub raw_overlap_source: Option<String>,
}

/// Queries, expansions and gold documents in a plane (the paper's Figure 2).
#[derive(Clone, Debug, Serialize)]
pub struct Map {
    /// The collection.
    pub collection: String,
    /// The system.
    pub system: String,
    /// The sampled queries.
    pub points: Vec<MapPoint>,
    /// Mean cosine of query and gold document in the full space.
    pub cosine_query_gold: f64,
    /// Mean cosine of expansion and gold document.
    pub cosine_expansion_gold: f64,
    /// Mean cosine of the averaged vector, which is what was searched with, and gold document.
    pub cosine_average_gold: f64,
    /// Mean cosine of query and expansion.
    pub cosine_query_expansion: f64,
}

/// One query in the plane.
#[derive(Clone, Debug, Serialize)]
pub struct MapPoint {
    /// The query's id.
    pub id: String,
    /// Where the query is.
    pub query: [f64; 2],
    /// Where its expansion is (of several, the first).
    pub expansion: [f64; 2],
    /// Where its relevant document is (of several, the one with the highest grade, then the first by id).
    pub gold: [f64; 2],
}

/// Every value of one metric on one collection.
#[derive(Clone, Debug, Serialize)]
pub struct PerQuery {
    /// The collection.
    pub collection: String,
    /// Which judgments.
    pub split: String,
    /// The metric.
    pub metric: String,
    /// By query: by system.
    pub values: BTreeMap<String, BTreeMap<String, f64>>,
    /// Queries that are left out for every system: by system, what it lacks.
    pub left_out: BTreeMap<String, Vec<String>>,
}
