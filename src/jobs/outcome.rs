//! What an evaluation showed: the figures of a bundle, and of another beside them.

use std::collections::BTreeMap;

use expandr_evaluation::significance;
use serde::{Deserialize, Serialize};

/// A bundle on its collections, against another one if that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationOutcome {
    /// What is compared.
    pub metric: String,
    /// The bundle.
    pub candidate: String,
    /// The one that it is compared with.
    pub against: Option<String>,
    /// Each collection by itself.
    pub collections: Vec<CollectionOutcome>,
    /// The average over the collections that decide, each counting alike; none without another bundle.
    pub average: Option<Compared>,
    /// Those collections.
    pub decided_on: Vec<String>,
}

/// One collection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CollectionOutcome {
    /// Its name.
    pub name: String,
    /// Which judgments.
    pub split: String,
    /// Queries that were asked.
    pub queries: usize,
    /// What the bundle reached.
    pub candidate: SideOutcome,
    /// What the other one reached.
    pub against: Option<SideOutcome>,
    /// Both beside each other.
    pub compared: Option<Compared>,
}

/// One bundle on one collection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SideOutcome {
    /// Mean of the metric.
    pub mean: f64,
    /// Means of the usual metrics.
    pub means: BTreeMap<String, f64>,
    /// Answers without the expansion that was asked for.
    pub degraded: usize,
    /// Why.
    pub reasons: BTreeMap<String, usize>,
    /// Answers by what became of their expansion.
    pub expansions: BTreeMap<String, usize>,
    /// Expansions that a budget cut.
    pub cut: usize,
}

/// The bundle less the other one, query by query (two-sided paired permutation test).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Pairs.
    pub queries: usize,
    /// Mean of the bundle.
    pub candidate: f64,
    /// Mean of the other one.
    pub against: f64,
    /// Mean difference.
    pub difference: f64,
    /// Probability of a difference at least as far from 0 if both were alike.
    pub p_value: f64,
    /// 95 % of the bootstrap's differences.
    pub interval: [f64; 2],
    /// Queries on which the bundle is better.
    pub wins: usize,
    /// Worse.
    pub losses: usize,
    /// Equal.
    pub ties: usize,
}

impl From<significance::Comparison> for Compared {
    fn from(comparison: significance::Comparison) -> Self {
        Self {
            queries: comparison.queries,
            candidate: comparison.mean_first,
            against: comparison.mean_second,
            difference: comparison.difference,
            p_value: comparison.p_value,
            interval: [comparison.interval.0, comparison.interval.1],
            wins: comparison.wins,
            losses: comparison.losses,
            ties: comparison.ties,
        }
    }
}
