//! Is one system better than another, or was it luck? Paired tests over the per-query values of one metric.
//!
//! The test is the paper's: Fisher's randomisation (paired permutation) test on the mean difference, two-sided.
//! References: Smucker, Allan and Carterette, "A comparison of statistical significance tests for information
//! retrieval evaluation" (CIKM 2007); Holm, "A simple sequentially rejective multiple test procedure" (1979).

mod strata;

pub use strata::{Stratum, compare_strata};

use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{Error, Metric, Result, Scores};

/// How a comparison is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Random sign assignments; at least 10,000. When all of them are fewer (2^queries), all are tried instead and
    /// the p-value is exact.
    pub rounds: usize,
    /// Bootstrap samples for the interval; at least 1,000.
    pub bootstrap_rounds: usize,
    /// Coverage of the interval, between 0 and 1.
    pub confidence: f64,
    /// The same seed, inputs and version give the same figures on every machine.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 100_000, bootstrap_rounds: 10_000, confidence: 0.95, seed: 42 }
    }
}

/// One system against another on the same queries. Differences are first minus second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Paired queries.
    pub queries: usize,
    /// Mean of the first system.
    pub mean_first: f64,
    /// Mean of the second system.
    pub mean_second: f64,
    /// Mean difference.
    pub difference: f64,
    /// Probability, if the systems were interchangeable, of a mean difference at least this far from 0.
    pub p_value: f64,
    /// Whether all sign assignments were tried rather than a sample.
    pub exact: bool,
    /// Cohen's d of paired values: mean difference over the standard deviation (n − 1) of the differences. None when
    /// all differences are equal.
    pub effect_size: Option<f64>,
    /// Percentile bootstrap interval of the mean difference.
    pub interval: (f64, f64),
    /// Queries on which the first system is better.
    pub wins: usize,
    /// Queries on which the second system is better.
    pub losses: usize,
    /// Queries on which both are equal.
    pub ties: usize,
}

/// Compares two systems on one metric.
///
/// # Errors
/// When the metric was not computed for both, and when the two did not score the same queries.
pub fn compare(first: &Scores, second: &Scores, metric: Metric, options: &Options) -> Result<Comparison> {
    let (first, second) = match (first.values_of(metric), second.values_of(metric)) {
        (Some(first), Some(second)) => (first, second),
        _ => {
            return Err(Error::Input(format!(
                "{metric} was not computed for both systems; evaluate both with it"
            )));
        }
    };
    let differs = first.iter().zip(&second).find(|(a, b)| a.0 != b.0);
    if first.len() != second.len() || differs.is_some() {
        let example =
            differs.map_or(String::new(), |(a, b)| format!(" (first difference: {:?} and {:?})", a.0, b.0));
        return Err(Error::Input(format!(
            "the systems did not score the same queries: {} and {}{example}; a paired test needs both on one collection and split",
            first.len(),
            second.len()
        )));
    }
    let first: Vec<f64> = first.iter().map(|(_, value)| *value).collect();
    let second: Vec<f64> = second.iter().map(|(_, value)| *value).collect();
    compare_values(&first, &second, options)
}

/// Compares two systems by their values on the same queries in the same order.
///
/// # Errors
/// When the slices are empty, differ in length or hold a value that is not finite, and when an option is out of range.
pub fn compare_values(first: &[f64], second: &[f64], options: &Options) -> Result<Comparison> {
    check(first, second, options)?;
    let differences: Vec<f64> = first.iter().zip(second).map(|(a, b)| a - b).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let exact = differences.len() < usize::BITS as usize && 1usize << differences.len() <= options.rounds;
    let p_value = if exact {
        exact_p_value(&differences)
    } else {
        sampled_p_value(&differences, options.rounds, &mut rng)
    };
    Ok(Comparison {
        queries: differences.len(),
        mean_first: mean(first),
        mean_second: mean(second),
        difference: mean(&differences),
        p_value,
        exact,
        effect_size: effect_size(&differences),
        interval: bootstrap_interval(&differences, options, &mut rng),
        wins: differences.iter().filter(|difference| **difference > 0.0).count(),
        losses: differences.iter().filter(|difference| **difference < 0.0).count(),
        ties: differences.iter().filter(|difference| **difference == 0.0).count(),
    })
}

/// Holm's step-down correction: p-values adjusted for having tested them all, in the order given. Rejecting where the
/// adjusted value is below α keeps the chance of any false rejection below α.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut largest: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        let factor = (p_values.len() - rank) as f64;
        largest = largest.max(p_values[index] * factor).min(1.0);
        adjusted[index] = largest;
    }
    adjusted
}

fn check(first: &[f64], second: &[f64], options: &Options) -> Result<()> {
    let wrong = |detail: String| Err(Error::Input(detail));
    if first.len() != second.len() || first.is_empty() {
        return wrong(format!(
            "a paired test needs the same queries twice, got {} and {} values",
            first.len(),
            second.len()
        ));
    }
    if first.iter().chain(second).any(|value| !value.is_finite()) {
        return wrong("a value is not finite; score the runs again".into());
    }
    if options.rounds < 10_000 || options.bootstrap_rounds < 1_000 {
        return wrong(format!(
            "{} rounds and {} bootstrap rounds are too few; want at least 10,000 and 1,000",
            options.rounds, options.bootstrap_rounds
        ));
    }
    if !(options.confidence > 0.0 && options.confidence < 1.0) {
        return wrong(format!("confidence {} must lie between 0 and 1", options.confidence));
    }
    Ok(())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn effect_size(differences: &[f64]) -> Option<f64> {
    if differences.len() < 2 {
        return None;
    }
    let center = mean(differences);
    let squares: f64 = differences.iter().map(|difference| (difference - center).powi(2)).sum();
    let deviation = (squares / (differences.len() - 1) as f64).sqrt();
    (deviation > f64::EPSILON * center.abs()).then(|| center / deviation)
}

/// What counts as at least as extreme: sums are compared with a slack for rounding, since the same sum can come
/// out a little differently under another assignment of signs.
fn extreme(differences: &[f64]) -> impl Fn(f64) -> bool + use<> {
    let observed: f64 = differences.iter().sum::<f64>().abs();
    let scale: f64 = differences.iter().map(|difference| difference.abs()).sum();
    let threshold = observed - 1e-12 * scale;
    move |sum: f64| sum.abs() >= threshold
}

/// Tries every assignment of signs.
fn exact_p_value(differences: &[f64]) -> f64 {
    let is_extreme = extreme(differences);
    let assignments = 1u64 << differences.len();
    let mut count = 0u64;
    for signs in 0..assignments {
        let mut sum = 0.0;
        for (index, difference) in differences.iter().enumerate() {
            sum += if signs >> index & 1 == 0 { *difference } else { -*difference };
        }
        count += u64::from(is_extreme(sum));
    }
    count as f64 / assignments as f64
}

/// Draws assignments of signs at random. The observed one counts as one of them, so p is never 0.
fn sampled_p_value(differences: &[f64], rounds: usize, rng: &mut ChaCha8Rng) -> f64 {
    let is_extreme = extreme(differences);
    let nonzero: Vec<f64> = differences.iter().copied().filter(|difference| *difference != 0.0).collect();
    let mut count = 0usize;
    for _ in 0..rounds {
        let mut sum = 0.0;
        for chunk in nonzero.chunks(64) {
            let mut signs = rng.next_u64();
            for difference in chunk {
                sum += if signs & 1 == 0 { *difference } else { -*difference };
                signs >>= 1;
            }
        }
        count += usize::from(is_extreme(sum));
    }
    (count + 1) as f64 / (rounds + 1) as f64
}

fn bootstrap_interval(differences: &[f64], options: &Options, rng: &mut ChaCha8Rng) -> (f64, f64) {
    let count = differences.len();
    let mut means = Vec::with_capacity(options.bootstrap_rounds);
    for _ in 0..options.bootstrap_rounds {
        let mut sum = 0.0;
        for _ in 0..count {
            sum += differences[rng.random_range(0..count)];
        }
        means.push(sum / count as f64);
    }
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - options.confidence) / 2.0;
    (quantile(&means, tail), quantile(&means, 1.0 - tail))
}

/// Linear interpolation between the neighbours in a sorted, non-empty slice (numpy's default).
fn quantile(sorted: &[f64], fraction: f64) -> f64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (position - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_systems_do_not_differ() {
        let values = [0.5; 30];
        let comparison = compare_values(&values, &values, &Options::default()).unwrap();
        assert_eq!((comparison.p_value, comparison.effect_size, comparison.ties), (1.0, None, 30));
        assert_eq!(comparison.interval, (0.0, 0.0));
    }

    #[test]
    fn few_queries_give_an_exact_value() {
        // All five differences point one way: 2 of 32 sign assignments are as extreme.
        let comparison = compare_values(&[0.2, 0.3, 0.4, 0.5, 0.6], &[0.1; 5], &Options::default()).unwrap();
        assert!(comparison.exact);
        assert_eq!(comparison.p_value, 2.0 / 32.0);
        assert_eq!((comparison.wins, comparison.losses), (5, 0));
    }

    #[test]
    fn the_seed_decides_and_the_order_of_systems_does_not() {
        let first: Vec<f64> = (0..40).map(|index| f64::from(index * 7 % 11) / 11.0).collect();
        let second: Vec<f64> = (0..40).map(|index| f64::from(index * 5 % 13) / 13.0).collect();
        let options = Options::default();
        let comparison = compare_values(&first, &second, &options).unwrap();
        assert_eq!(comparison, compare_values(&first, &second, &options).unwrap());
        let swapped = compare_values(&second, &first, &options).unwrap();
        assert_eq!(comparison.p_value, swapped.p_value);
        assert_eq!(comparison.difference, -swapped.difference);
        let other = compare_values(&first, &second, &Options { seed: 7, ..options }).unwrap();
        assert_ne!(comparison.p_value, other.p_value);
        assert!((comparison.p_value - other.p_value).abs() < 0.01);
    }

    #[test]
    fn what_is_refused() {
        let options = Options::default();
        for (first, second, options) in [
            (&[0.1][..], &[0.1, 0.2][..], options),
            (&[][..], &[][..], options),
            (&[f64::NAN][..], &[0.1][..], options),
            (&[0.2][..], &[0.1][..], Options { rounds: 9_999, ..options }),
            (&[0.2][..], &[0.1][..], Options { confidence: 1.0, ..options }),
        ] {
            assert!(compare_values(first, second, &options).is_err());
        }
    }

    #[test]
    fn holm_keeps_the_order_and_stops_at_one() {
        let adjusted = holm(&[0.01, 0.04, 0.03, 0.8]);
        let expected = [0.04, 0.09, 0.09, 0.8];
        assert!(adjusted.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{adjusted:?}");
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }
}
