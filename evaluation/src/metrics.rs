//! Metrics as trec_eval computes them: the same gains, the same discounts, the same ties.
//!
//! Reference: trec_eval 9 (<https://github.com/usnistgov/trec_eval>), by way of pytrec_eval; the parity test holds
//! the two together to 1e-6.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use crate::{Error, Hit, Qrels, Result, Run};

/// A measure of one ranked list. `cut` is how many of the best documents count; without one the whole list does.
/// Its name is written and read as `ndcg@10`, `recall@100`, `mrr@10`, `map`, `p@5`, `success@1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Metric {
    /// What is measured.
    pub kind: MetricKind,
    /// How many of the best documents count.
    pub cut: Option<usize>,
}

/// What a [`Metric`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MetricKind {
    /// Discounted cumulated gain over that of the ideal ranking; the gain is the grade itself (linear), the
    /// discount log2(rank + 1), negative grades gain nothing (trec_eval `ndcg_cut`, `ndcg`).
    Ndcg,
    /// Relevant documents found, of all relevant ones (`recall`).
    Recall,
    /// One over the rank of the first relevant document (`recip_rank`).
    Mrr,
    /// Mean over all relevant documents of the precision at their ranks, 0 for those not found (`map`, `map_cut`).
    Map,
    /// Relevant documents among the first `cut`, of `cut` (`P`).
    Precision,
    /// 1 when a relevant document is found (`success`).
    Success,
}

impl Metric {
    /// nDCG@10, the paper's main figure.
    pub const NDCG_10: Self = Self { kind: MetricKind::Ndcg, cut: Some(10) };
    /// Recall@100, the paper's second figure.
    pub const RECALL_100: Self = Self { kind: MetricKind::Recall, cut: Some(100) };

    /// What a report shows unless told otherwise.
    pub fn defaults() -> Vec<Self> {
        use MetricKind::{Map, Mrr, Ndcg, Precision, Recall, Success};
        let at = |kind, cut| Self { kind, cut: Some(cut) };
        vec![
            Self::NDCG_10,
            Self::RECALL_100,
            at(Mrr, 10),
            Self { kind: Map, cut: None },
            at(Precision, 10),
            at(Success, 1),
            at(Ndcg, 100),
            at(Recall, 10),
        ]
    }

    /// The value for one ranked list, between 0 and 1.
    fn score(self, ranking: &Ranking) -> f64 {
        let cut = self.cut.unwrap_or(usize::MAX);
        let grades = &ranking.grades[..ranking.grades.len().min(cut)];
        let relevant = |grade: &&i32| **grade >= ranking.relevance_level;
        let found = grades.iter().filter(relevant).count() as f64;
        let total = ranking.relevant as f64;
        if ranking.relevant == 0 && self.kind != MetricKind::Ndcg {
            return 0.0;
        }
        match self.kind {
            MetricKind::Ndcg => {
                let ideal = discounted_gain(&ranking.ideal[..ranking.ideal.len().min(cut)]);
                if ideal > 0.0 { discounted_gain(grades) / ideal } else { 0.0 }
            }
            MetricKind::Recall => found / total,
            MetricKind::Mrr => {
                let first = grades.iter().position(|grade| *grade >= ranking.relevance_level);
                first.map_or(0.0, |index| 1.0 / (index + 1) as f64)
            }
            MetricKind::Map => {
                let mut sum = 0.0;
                let mut found_so_far = 0.0;
                for (index, grade) in grades.iter().enumerate() {
                    if *grade >= ranking.relevance_level {
                        found_so_far += 1.0;
                        sum += found_so_far / (index + 1) as f64;
                    }
                }
                sum / total
            }
            MetricKind::Precision => {
                let depth = self.cut.unwrap_or(ranking.grades.len());
                if depth == 0 { 0.0 } else { found / depth as f64 }
            }
            MetricKind::Success => f64::from(found > 0.0),
        }
    }
}

fn discounted_gain(grades: &[i32]) -> f64 {
    let mut sum = 0.0;
    for (index, grade) in grades.iter().enumerate() {
        if *grade > 0 {
            sum += f64::from(*grade) / ((index + 2) as f64).log2();
        }
    }
    sum
}

impl MetricKind {
    fn name(self) -> &'static str {
        match self {
            Self::Ndcg => "ndcg",
            Self::Recall => "recall",
            Self::Mrr => "mrr",
            Self::Map => "map",
            Self::Precision => "p",
            Self::Success => "success",
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cut {
            Some(cut) => write!(f, "{}@{cut}", self.kind.name()),
            None => f.write_str(self.kind.name()),
        }
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            Error::Input(format!(
                "unknown metric {text:?}; known: ndcg, recall, mrr, map, p and success, each with @ and a positive depth \
                 if wanted, e.g. ndcg@10"
            ))
        };
        let (name, cut) = match text.split_once('@') {
            Some((name, cut)) => {
                (name, Some(cut.parse::<usize>().ok().filter(|cut| *cut > 0).ok_or_else(unknown)?))
            }
            None => (text, None),
        };
        let kind = match name.to_ascii_lowercase().as_str() {
            "ndcg" => MetricKind::Ndcg,
            "recall" => MetricKind::Recall,
            "mrr" => MetricKind::Mrr,
            "map" => MetricKind::Map,
            "p" | "precision" => MetricKind::Precision,
            "success" => MetricKind::Success,
            _ => return Err(unknown()),
        };
        Ok(Self { kind, cut })
    }
}

/// What trec_eval leaves to flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Lowest grade that counts as relevant for the binary measures (trec_eval `-l`). nDCG uses the grades.
    pub relevance_level: i32,
    /// Judged queries without a list count as 0 in the mean (trec_eval `-c`), so that a system can't gain by not
    /// answering. pytrec_eval, and so BEIR, leaves them out.
    pub missing_count_as_zero: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { relevance_level: 1, missing_count_as_zero: true }
    }
}

/// The figures of one run on one collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// The columns.
    pub metrics: Vec<Metric>,
    /// A row a query, one value a metric.
    pub per_query: BTreeMap<String, Vec<f64>>,
    /// Mean over `per_query`, one value a metric; 0 when there is no query.
    pub mean: Vec<f64>,
    /// Judged queries that the run has no list for.
    pub missing: Vec<String>,
    /// Queries of the run without judgments; they don't count.
    pub unjudged: Vec<String>,
}

impl Scores {
    /// The mean of one metric; none when it was not asked for.
    pub fn mean_of(&self, metric: Metric) -> Option<f64> {
        Some(self.mean[self.column(metric)?])
    }

    /// The values of one metric by query, in the order of the queries' names; none when it was not asked for.
    pub fn values_of(&self, metric: Metric) -> Option<Vec<(&str, f64)>> {
        let column = self.column(metric)?;
        Some(self.per_query.iter().map(|(query, values)| (query.as_str(), values[column])).collect())
    }

    fn column(&self, metric: Metric) -> Option<usize> {
        self.metrics.iter().position(|candidate| *candidate == metric)
    }
}

/// Scores a run against judgments.
pub fn evaluate(qrels: &Qrels, run: &Run, metrics: &[Metric], options: &Options) -> Scores {
    let mut per_query = BTreeMap::new();
    let mut missing = Vec::new();
    let no_judgments = HashMap::new();
    for query in qrels.queries() {
        let hits = run.hits(query);
        if hits.is_none() {
            missing.push(query.to_owned());
            if !options.missing_count_as_zero {
                continue;
            }
        }
        let judgments = qrels.judgments(query).unwrap_or(&no_judgments);
        let ranking = Ranking::new(hits.unwrap_or_default(), judgments, options.relevance_level);
        let values = metrics.iter().map(|metric| metric.score(&ranking)).collect();
        per_query.insert(query.to_owned(), values);
    }
    let unjudged =
        run.queries().filter(|query| qrels.judgments(query).is_none()).map(str::to_owned).collect();
    let mean = means(&per_query, metrics.len());
    Scores { metrics: metrics.to_vec(), per_query, mean, missing, unjudged }
}

fn means(per_query: &BTreeMap<String, Vec<f64>>, columns: usize) -> Vec<f64> {
    let mut sums = vec![0.0; columns];
    for values in per_query.values() {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
    let queries = per_query.len().max(1) as f64;
    sums.into_iter().map(|sum| sum / queries).collect()
}

/// The grades of one list in rank order (unjudged: 0), beside what an ideal list would hold.
struct Ranking {
    grades: Vec<i32>,
    ideal: Vec<i32>,
    relevant: usize,
    relevance_level: i32,
}

impl Ranking {
    fn new(hits: &[Hit], judgments: &HashMap<String, i32>, relevance_level: i32) -> Self {
        let grades = hits.iter().map(|hit| judgments.get(&hit.id).copied().unwrap_or(0)).collect();
        let mut ideal: Vec<i32> = judgments.values().copied().filter(|grade| *grade > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        let relevant = judgments.values().filter(|grade| **grade >= relevance_level).count();
        Self { grades, ideal, relevant, relevance_level }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one_query(hits: &[(&str, f32)], judgments: &[(&str, i32)], metric: &str) -> f64 {
        let mut qrels = Qrels::default();
        for (document, grade) in judgments {
            qrels.insert("q", document, *grade).unwrap();
        }
        let mut run = Run::new();
        run.insert("q", hits.iter().map(|(id, score)| Hit { id: (*id).into(), score: *score }).collect())
            .unwrap();
        let metric: Metric = metric.parse().unwrap();
        evaluate(&qrels, &run, &[metric], &Options::default()).mean_of(metric).unwrap()
    }

    #[test]
    fn values_worked_out_by_hand() {
        let hits = [("a", 3.0), ("b", 2.0), ("c", 1.0)];
        let judgments = [("b", 2), ("c", 1), ("z", 1)];
        let close = |metric: &str, expected: f64| {
            let value = one_query(&hits, &judgments, metric);
            assert!((value - expected).abs() < 1e-12, "{metric}: {value} != {expected}");
        };
        let gain = 2.0 / 3f64.log2() + 1.0 / 4f64.log2();
        let ideal = 2.0 + 1.0 / 3f64.log2() + 1.0 / 4f64.log2();
        close("ndcg", gain / ideal);
        close("ndcg@2", (2.0 / 3f64.log2()) / (2.0 + 1.0 / 3f64.log2()));
        close("recall@2", 1.0 / 3.0);
        close("mrr@10", 0.5);
        close("mrr@1", 0.0);
        close("map", (0.5 + 2.0 / 3.0) / 3.0);
        close("p@10", 0.2);
        close("success@1", 0.0);
        close("success@2", 1.0);
    }

    #[test]
    fn a_missing_query_counts_as_zero_unless_told_otherwise() {
        let mut qrels = Qrels::default();
        qrels.insert("q1", "a", 1).unwrap();
        qrels.insert("q2", "a", 1).unwrap();
        let mut run = Run::new();
        run.insert("q1", vec![Hit { id: "a".into(), score: 1.0 }]).unwrap();
        run.insert("other", Vec::new()).unwrap();
        let scores = evaluate(&qrels, &run, &[Metric::NDCG_10], &Options::default());
        assert_eq!((scores.mean[0], scores.missing.as_slice()), (0.5, ["q2".to_owned()].as_slice()));
        assert_eq!(scores.unjudged, ["other"]);
        let as_beir = Options { missing_count_as_zero: false, ..Options::default() };
        assert_eq!(evaluate(&qrels, &run, &[Metric::NDCG_10], &as_beir).mean[0], 1.0);
    }

    #[test]
    fn names_round_trip_and_nonsense_is_refused() {
        for name in ["ndcg@10", "recall@100", "mrr", "map", "p@5", "success@1"] {
            assert_eq!(name.parse::<Metric>().unwrap().to_string(), name);
        }
        for name in ["ndcg@0", "ndcg@", "ndcg@-1", "bleu", ""] {
            assert!(name.parse::<Metric>().unwrap_err().to_string().contains("unknown metric"), "{name}");
        }
    }

    proptest! {
        /// Whatever the list: values lie in 0..=1, and the ideal order has an nDCG of 1.
        #[test]
        fn values_are_fractions(grades in prop::collection::vec(-2i32..5, 1..30), cut in 1usize..40) {
            let ids: Vec<String> = (0..grades.len()).map(|index| format!("d{index}")).collect();
            let judgments: Vec<(&str, i32)> = ids.iter().map(String::as_str).zip(grades.iter().copied()).collect();
            let in_order: Vec<(&str, f32)> = ids.iter().enumerate().map(|(index, id)| (id.as_str(), -(index as f32))).collect();
            for kind in ["ndcg", "recall", "mrr", "map", "p", "success"] {
                for name in [kind.to_owned(), format!("{kind}@{cut}")] {
                    let value = one_query(&in_order, &judgments, &name);
                    prop_assert!((0.0..=1.0 + 1e-12).contains(&value), "{name} = {value}");
                }
            }
            let ideal: Vec<(&str, f32)> = judgments.iter().map(|(id, grade)| (*id, *grade as f32)).collect();
            let best = one_query(&ideal, &judgments, &format!("ndcg@{cut}"));
            let expected = if grades.iter().any(|grade| *grade > 0) { 1.0 } else { 0.0 };
            prop_assert!((best - expected).abs() < 1e-12);
        }
    }
}
