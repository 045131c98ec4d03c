//! Several collections in one test: an average over collections is compared by its per-query differences.
//!
//! The figure under test is the weighted mean over strata of the mean difference within each. The permutation test flips
//! the sign of each query's difference, as within one collection, and each difference counts with its stratum's weight over
//! the stratum's number of queries; so a collection of 50 queries counts as much as one of 5,000. The bootstrap draws
//! queries within each stratum. Both generalise over queries of these collections, not over collections.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Comparison, Options, check, compare_values, exact_p_value, mean, quantile, sampled_p_value};
use crate::{Error, Result};

/// The values of two systems on the same queries of one collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Stratum {
    /// Values of the first system.
    pub first: Vec<f64>,
    /// Values of the second system, in the same order.
    pub second: Vec<f64>,
    /// Share of the stratum in the average, above 0; shares are scaled so that they sum to 1.
    pub weight: f64,
}

/// Compares the weighted averages of two systems over several collections. `effect_size` is the difference over the root
/// of the weighted mean of the variances (n − 1) within the strata; wins, losses and ties are counted over all queries. With one
/// stratum this is [`compare_values`].
///
/// # Errors
/// When there is no stratum, a weight is not above 0, or [`compare_values`] would refuse a stratum.
pub fn compare_strata(strata: &[Stratum], options: &Options) -> Result<Comparison> {
    if let [only] = strata {
        return compare_values(&only.first, &only.second, options);
    }
    let total_weight: f64 = strata.iter().map(|stratum| stratum.weight).sum();
    if strata.is_empty() || strata.iter().any(|stratum| stratum.weight.is_nan() || stratum.weight <= 0.0) {
        return Err(Error::Input(
            "an average needs at least one collection, each with a weight above 0".into(),
        ));
    }
    let mut average = Average::default();
    let mut weighted = Vec::new();
    for stratum in strata {
        check(&stratum.first, &stratum.second, options)?;
        let weight = stratum.weight / total_weight;
        let differences: Vec<f64> = stratum.first.iter().zip(&stratum.second).map(|(a, b)| a - b).collect();
        let share = weight / differences.len() as f64;
        weighted.extend(differences.iter().map(|difference| difference * share));
        average.mean_first += weight * mean(&stratum.first);
        average.mean_second += weight * mean(&stratum.second);
        average.strata.push((weight, differences));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let exact = weighted.len() < usize::BITS as usize && 1usize << weighted.len() <= options.rounds;
    let p_value =
        if exact { exact_p_value(&weighted) } else { sampled_p_value(&weighted, options.rounds, &mut rng) };
    Ok(Comparison {
        queries: weighted.len(),
        mean_first: average.mean_first,
        mean_second: average.mean_second,
        difference: average.difference(),
        p_value,
        exact,
        effect_size: average.effect_size(),
        interval: average.interval(options, &mut rng),
        wins: weighted.iter().filter(|difference| **difference > 0.0).count(),
        losses: weighted.iter().filter(|difference| **difference < 0.0).count(),
        ties: weighted.iter().filter(|difference| **difference == 0.0).count(),
    })
}

#[derive(Default)]
struct Average {
    mean_first: f64,
    mean_second: f64,
    /// Weight (they sum to 1) and differences of each stratum.
    strata: Vec<(f64, Vec<f64>)>,
}

impl Average {
    fn difference(&self) -> f64 {
        self.strata.iter().map(|(weight, differences)| weight * mean(differences)).sum()
    }

    fn effect_size(&self) -> Option<f64> {
        let mut variance = 0.0;
        for (weight, differences) in &self.strata {
            if differences.len() < 2 {
                return None;
            }
            let center = mean(differences);
            let squares: f64 = differences.iter().map(|difference| (difference - center).powi(2)).sum();
            variance += weight * squares / (differences.len() - 1) as f64;
        }
        let deviation = variance.sqrt();
        (deviation > f64::EPSILON * self.difference().abs()).then(|| self.difference() / deviation)
    }

    fn interval(&self, options: &Options, rng: &mut ChaCha8Rng) -> (f64, f64) {
        let mut means = Vec::with_capacity(options.bootstrap_rounds);
        for _ in 0..options.bootstrap_rounds {
            let mut average = 0.0;
            for (weight, differences) in &self.strata {
                let mut sum = 0.0;
                for _ in 0..differences.len() {
                    sum += differences[rng.random_range(0..differences.len())];
                }
                average += weight * sum / differences.len() as f64;
            }
            means.push(average);
        }
        means.sort_by(f64::total_cmp);
        let tail = (1.0 - options.confidence) / 2.0;
        (quantile(&means, tail), quantile(&means, 1.0 - tail))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stratum(first: &[f64], second: &[f64], weight: f64) -> Stratum {
        Stratum { first: first.to_vec(), second: second.to_vec(), weight }
    }

    #[test]
    fn one_stratum_is_a_plain_comparison() {
        let (first, second) = ([0.2, 0.9, 0.4, 0.3], [0.1, 0.5, 0.6, 0.3]);
        let options = Options::default();
        let strata = [stratum(&first, &second, 3.0)];
        assert_eq!(
            compare_strata(&strata, &options).unwrap(),
            compare_values(&first, &second, &options).unwrap()
        );
    }

    #[test]
    fn a_small_collection_counts_as_much_as_a_large_one() {
        let strata = [stratum(&[1.0, 1.0], &[0.0, 0.0], 1.0), stratum(&[0.0; 8], &[0.5; 8], 1.0)];
        let comparison = compare_strata(&strata, &Options::default()).unwrap();
        assert_eq!((comparison.mean_first, comparison.mean_second, comparison.difference), (0.5, 0.25, 0.25));
        assert_eq!((comparison.wins, comparison.losses, comparison.queries), (2, 8, 10));
        assert!(comparison.exact);
        // Signs as seen sum to 0.25; by hand: the first stratum gives ±0.5 or 0, the second a binomial of ±1/32 steps.
        let mut extreme = 0;
        for (first_sum, first_count) in [(0.5, 1), (0.0, 2), (-0.5, 1)] {
            for (ups, ways) in [1, 8, 28, 56, 70, 56, 28, 8, 1].into_iter().enumerate() {
                let sum = first_sum + (2.0 * ups as f64 - 8.0) / 32.0;
                if f64::abs(sum) >= 0.25 - 1e-9 {
                    extreme += first_count * ways;
                }
            }
        }
        assert!((comparison.p_value - f64::from(extreme) / 1024.0).abs() < 1e-12, "{}", comparison.p_value);
    }

    #[test]
    fn what_is_refused() {
        let options = Options::default();
        assert!(compare_strata(&[], &options).is_err());
        let good = stratum(&[0.1, 0.2], &[0.2, 0.2], 1.0);
        for bad in
            [stratum(&[0.1], &[], 1.0), stratum(&[0.1], &[0.2], 0.0), stratum(&[0.1], &[0.2], f64::NAN)]
        {
            assert!(compare_strata(&[good.clone(), bad], &options).is_err());
        }
    }
}
