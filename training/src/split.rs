//! A seeded split into training and development pairs.

use std::collections::BTreeSet;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::pairs::{Pair, normalize};
use crate::{Error, Result};

/// Pairs to train on, and pairs to choose settings by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// To train on.
    pub train: Vec<Pair>,
    /// To choose settings by.
    pub dev: Vec<Pair>,
}

/// Puts `dev_share` of the queries (rounded, and all pairs of each) into the development part. The same pairs, in
/// whatever order, the same share and the same seed give the same parts; within a part the given order stays.
///
/// # Errors
/// When `dev_share` is not at least 0 and below 1.
pub fn split(pairs: Vec<Pair>, dev_share: f64, seed: u64) -> Result<Split> {
    if !(0.0..1.0).contains(&dev_share) {
        return Err(Error::Input(format!("development share {dev_share} must be at least 0 and below 1")));
    }
    let distinct: BTreeSet<String> = pairs.iter().map(|pair| normalize(&pair.query)).collect();
    let mut queries: Vec<String> = distinct.into_iter().collect();
    queries.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    queries.truncate((queries.len() as f64 * dev_share).round() as usize);
    let dev_queries: BTreeSet<String> = queries.into_iter().collect();
    let (dev, train) = pairs.into_iter().partition(|pair| dev_queries.contains(&normalize(&pair.query)));
    Ok(Split { train, dev })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs() -> Vec<Pair> {
        let pair = |query: usize, positive: usize| Pair {
            query: format!("query {query}"),
            positive: format!("passage {positive}"),
            negatives: Vec::new(),
            label: None,
            source: "s".into(),
        };
        (0..200).map(|number| pair(number / 2, number)).collect()
    }

    #[test]
    fn queries_stay_together_and_the_seed_decides() {
        let first = split(pairs(), 0.1, 1).unwrap();
        assert_eq!((first.train.len(), first.dev.len()), (180, 20));
        let dev: BTreeSet<&str> = first.dev.iter().map(|pair| pair.query.as_str()).collect();
        assert!(first.train.iter().all(|pair| !dev.contains(pair.query.as_str())));
        let mut reversed = pairs();
        reversed.reverse();
        let again = split(reversed, 0.1, 1).unwrap();
        assert_eq!(dev, again.dev.iter().map(|pair| pair.query.as_str()).collect());
        assert_ne!(first, split(pairs(), 0.1, 2).unwrap());
    }

    #[test]
    fn shares_out_of_range_are_refused() {
        assert!(split(pairs(), 0.0, 1).unwrap().dev.is_empty());
        for share in [-0.1, 1.0, f64::NAN] {
            assert!(split(pairs(), share, 1).is_err(), "{share}");
        }
    }
}
