//! Which queries train the expander, which the retriever, and which are kept to choose settings by.
//!
//! Every query and every pair has a number drawn for it from the seed; the smallest come first. So the parts don't
//! depend on the order of the sources, and only numbers are held in memory.

use serde::{Deserialize, Serialize};

use crate::pairs::{Part, Split};
use crate::seed::draw;

/// How many queries go where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartSettings {
    /// Queries of the DPO part, as far as there are as many.
    pub dpo_queries: usize,
    /// The share of them kept for development.
    pub dpo_dev_share: f64,
    /// At most so many queries of the retriever part; none takes all that the DPO part leaves.
    pub retriever_queries: Option<usize>,
    /// The share of them kept for development.
    pub retriever_dev_share: f64,
    /// Whether the DPO part's queries train the retriever as well.
    pub share_queries: bool,
}

/// The numbers drawn for one pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// The position of its source.
    pub source: usize,
    /// For the pair.
    pub pair: u64,
    /// For its query.
    pub query: u64,
}

impl Drawn {
    /// Draws for a pair. `query_id` must be [`crate::pairs::query_id`] of its query.
    pub fn new(seed: u64, source: usize, query_id: &str, positive: &str) -> Self {
        Self {
            source,
            pair: draw(seed, &["pair", query_id, positive]),
            query: draw(seed, &["part", query_id]),
        }
    }
}

/// What becomes of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is used.
    In(Part, Split),
    /// Its source has more pairs than its limit.
    OverLimit,
    /// There are more queries than the parts want.
    Surplus,
}

/// The plan: where each pair goes.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The largest number that is still within its source's limit.
    limits: Vec<u64>,
    /// The numbers of all queries within the limits, sorted.
    queries: Vec<u64>,
    /// Ends of the ranges of `queries`: DPO dev, DPO train, retriever dev, retriever train.
    ends: [usize; 4],
    share_queries: bool,
}

impl Parts {
    /// Plans for pairs of sources of which each has a limit or none.
    pub fn plan(drawn: &[Drawn], limits: &[Option<usize>], settings: &PartSettings) -> Self {
        let limits: Vec<u64> = limits
            .iter()
            .enumerate()
            .map(|(source, limit)| {
                let of_source = drawn.iter().filter(|drawn| drawn.source == source);
                largest_within(of_source.map(|drawn| drawn.pair).collect(), *limit)
            })
            .collect();
        let within = drawn.iter().filter(|drawn| drawn.pair <= limits[drawn.source]);
        let mut queries: Vec<u64> = within.map(|drawn| drawn.query).collect();
        queries.sort_unstable();
        queries.dedup();

        let share = |count: usize, share: f64| (count as f64 * share).round() as usize;
        let dpo = settings.dpo_queries.min(queries.len());
        let mut rest = queries.len() - dpo;
        if let Some(limit) = settings.retriever_queries {
            let shared = if settings.share_queries { dpo } else { 0 };
            rest = rest.min(limit.saturating_sub(shared));
        }
        let ends = [
            share(dpo, settings.dpo_dev_share),
            dpo,
            dpo + share(rest, settings.retriever_dev_share),
            dpo + rest,
        ];
        Self { limits, queries, ends, share_queries: settings.share_queries }
    }

    /// Where a pair goes.
    pub fn place(&self, drawn: &Drawn) -> Place {
        if drawn.pair > self.limits[drawn.source] {
            return Place::OverLimit;
        }
        let Ok(position) = self.queries.binary_search(&drawn.query) else { return Place::OverLimit };
        let expander = if self.share_queries { Part::Both } else { Part::Dpo };
        let [dpo_dev, dpo, retriever_dev, retriever] = self.ends;
        match position {
            position if position < dpo_dev => Place::In(expander, Split::Dev),
            position if position < dpo => Place::In(expander, Split::Train),
            position if position < retriever_dev => Place::In(Part::Retriever, Split::Dev),
            position if position < retriever => Place::In(Part::Retriever, Split::Train),
            _ => Place::Surplus,
        }
    }
}

fn largest_within(mut numbers: Vec<u64>, limit: Option<usize>) -> u64 {
    match limit {
        Some(limit) if limit < numbers.len() && limit > 0 => *numbers.select_nth_unstable(limit - 1).1,
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// 200 queries with two pairs each, in two sources.
    fn drawn(seed: u64) -> Vec<Drawn> {
        let mut drawn = Vec::new();
        for query in 0..200 {
            for positive in ["one", "two"] {
                drawn.push(Drawn::new(seed, query % 2, &format!("{query:016x}"), positive));
            }
        }
        drawn
    }

    fn settings() -> PartSettings {
        PartSettings {
            dpo_queries: 50,
            dpo_dev_share: 0.1,
            retriever_queries: None,
            retriever_dev_share: 0.2,
            share_queries: false,
        }
    }

    fn counts(drawn: &[Drawn], limits: &[Option<usize>], settings: &PartSettings) -> BTreeMap<String, usize> {
        let parts = Parts::plan(drawn, limits, settings);
        let mut counts = BTreeMap::new();
        for pair in drawn {
            *counts.entry(format!("{:?}", parts.place(pair))).or_default() += 1;
        }
        counts
    }

    fn expected(counts: &[(&str, usize)]) -> BTreeMap<String, usize> {
        counts.iter().map(|(place, count)| ((*place).to_owned(), *count)).collect()
    }

    #[test]
    fn parts_have_the_sizes_asked_for_and_queries_stay_together() {
        let drawn = drawn(1);
        let found = counts(&drawn, &[None, None], &settings());
        let wanted = [
            ("In(Dpo, Dev)", 10),
            ("In(Dpo, Train)", 90),
            ("In(Retriever, Dev)", 60),
            ("In(Retriever, Train)", 240),
        ];
        assert_eq!(found, expected(&wanted));
        let parts = Parts::plan(&drawn, &[None, None], &settings());
        assert!(drawn.chunks(2).all(|pairs| parts.place(&pairs[0]) == parts.place(&pairs[1])));
    }

    #[test]
    fn limits_and_sharing() {
        let found = counts(&drawn(1), &[Some(10), None], &settings());
        assert_eq!(found["OverLimit"], 190);
        let limited = PartSettings { retriever_queries: Some(60), ..settings() };
        assert_eq!(counts(&drawn(1), &[None, None], &limited)["Surplus"], 180);
        let shared = PartSettings { share_queries: true, ..limited };
        let wanted = [
            ("In(Both, Dev)", 10),
            ("In(Both, Train)", 90),
            ("In(Retriever, Dev)", 4),
            ("In(Retriever, Train)", 16),
            ("Surplus", 280),
        ];
        assert_eq!(counts(&drawn(1), &[None, None], &shared), expected(&wanted));
    }

    #[test]
    fn the_seed_decides_and_the_order_does_not() {
        let places = |seed: u64, reversed: bool| {
            let mut drawn = drawn(seed);
            if reversed {
                drawn.reverse();
            }
            let parts = Parts::plan(&drawn, &[Some(30), Some(50)], &settings());
            let mut places: Vec<(u64, Place)> = Vec::new();
            for (index, _) in drawn.iter().enumerate() {
                let pair = if reversed { drawn[drawn.len() - 1 - index] } else { drawn[index] };
                places.push((pair.pair, parts.place(&pair)));
            }
            places
        };
        assert_eq!(places(1, false), places(1, true));
        let kinds =
            |places: Vec<(u64, Place)>| places.into_iter().map(|(_, place)| place).collect::<Vec<_>>();
        assert_ne!(kinds(places(1, false)), kinds(places(2, false)));
    }

    #[test]
    fn fewer_queries_than_wanted_are_all_taken() {
        let greedy = PartSettings { dpo_queries: 1000, dpo_dev_share: 0.0, ..settings() };
        assert_eq!(counts(&drawn(1), &[None, None], &greedy), expected(&[("In(Dpo, Train)", 400)]));
    }
}
