//! Drawing tokens: temperature, nucleus, and a generator with a seed per request.
//!
//! The engines in this process share it, so that the same logits and the same seed draw the same token in each. The
//! generator is ChaCha, which gives the same numbers on every machine and in every version.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Sampling;
use crate::cpu::{Kernel, dispatch, exp, maximum};

/// The first sizes of the head of the distribution that are looked at for the nucleus.
const HEADS: [usize; 3] = [64, 1024, 16_384];
/// Numbers that are added up or compared side by side.
const LANES: usize = 16;

/// Temperature and nucleus sampling with a generator of its own.
pub(crate) struct Draw {
    random: ChaCha8Rng,
    temperature: f32,
    top_p: f32,
}

impl Draw {
    pub(crate) fn new(sampling: &Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            temperature: sampling.temperature,
            top_p: sampling.top_p,
        }
    }

    /// Draws from the smallest set of most likely tokens whose probabilities sum to `top_p`; at temperature 0 the most
    /// likely token, the first of equals. None when nothing is likely (all logits infinite or not numbers).
    pub(crate) fn token(&mut self, logits: &[f32]) -> Option<usize> {
        let largest = dispatch(Largest(logits))?;
        if self.temperature <= 0.0 {
            return logits.iter().position(|logit| *logit == largest);
        }
        let mut weights = logits.to_vec();
        let total =
            dispatch(Weigh { weights: &mut weights, largest, scale: (1.0 / self.temperature).min(f32::MAX) });
        let drawn = self.random.random::<f64>();
        if self.top_p >= 1.0 {
            return Some(at_share((0..weights.len()).map(|id| (id, f64::from(weights[id]))), drawn * total));
        }
        let nucleus = nucleus(&weights, total, f64::from(self.top_p));
        let mass: f64 = nucleus.iter().map(|id| f64::from(weights[*id])).sum();
        Some(at_share(nucleus.into_iter().map(|id| (id, f64::from(weights[id]))), drawn * mass))
    }
}

/// The largest logit; none when it is infinite, or when there are no numbers among them.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = Option<f32>;

    #[inline(always)]
    fn run(self) -> Option<f32> {
        let mut numbers = [true; LANES];
        let chunks = self.0.as_chunks::<LANES>();
        for chunk in chunks.0 {
            for (is_number, logit) in numbers.iter_mut().zip(chunk) {
                *is_number &= !logit.is_nan();
            }
        }
        let is_number = numbers.iter().all(|is_number| *is_number) && !chunks.1.iter().any(|l| l.is_nan());
        Some(maximum(self.0)).filter(|largest| is_number && largest.is_finite())
    }
}

/// Turns logits into weights, exp((logit - largest) · scale), and sums them.
struct Weigh<'a> {
    weights: &'a mut [f32],
    largest: f32,
    scale: f32,
}

impl Kernel for Weigh<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        for weight in self.weights.iter_mut() {
            *weight = exp((*weight - self.largest) * self.scale);
        }
        let mut sums = [0.0; LANES];
        let chunks = self.weights.as_chunks::<LANES>();
        for chunk in chunks.0 {
            for (sum, weight) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(*weight);
            }
        }
        sums.iter().sum::<f64>() + chunks.1.iter().copied().map(f64::from).sum::<f64>()
    }
}

/// The most likely tokens, most likely first, until their weights reach the share `top_p` of `total`.
///
/// All tokens below `total` · (1 - `top_p`) / count together have less than what may be left out, so that the rest, which
/// are few, have enough; and of them no more are sorted than it takes.
fn nucleus(weights: &[f32], total: f64, top_p: f64) -> Vec<usize> {
    let by_weight = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let (least, mass) = (total * (1.0 - top_p) / weights.len() as f64, top_p * total);
    let mut ids: Vec<usize> = (0..weights.len()).filter(|id| f64::from(weights[*id]) >= least).collect();
    let count = ids.len();
    for size in HEADS.into_iter().filter(|size| *size < count).chain([count]) {
        if size < count {
            ids.select_nth_unstable_by(size, by_weight);
        }
        let head = &mut ids[..size];
        head.sort_unstable_by(by_weight);
        let mut sum = 0.0;
        let end = head.iter().position(|id| {
            sum += f64::from(weights[*id]);
            sum >= mass
        });
        if let Some(end) = end {
            ids.truncate(end + 1);
            return ids;
        }
    }
    // Rounding may leave the sum of all a hair below the mass.
    ids
}

/// The token in whose share `point` falls.
fn at_share(shares: impl Iterator<Item = (usize, f64)>, point: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for (id, weight) in shares {
        if weight > 0.0 {
            last = id;
            sum += weight;
            if point < sum {
                break;
            }
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(temperature: f32, top_p: f32, seed: u64) -> Draw {
        Draw::new(&Sampling { max_tokens: 1, temperature, top_p, seed: Some(seed) })
    }

    #[test]
    fn samples_follow_the_distribution() {
        let logits = [0.0, 1.0, 2.0, f32::NEG_INFINITY];
        for temperature in [0.5, 1.0, 2.0] {
            let mut draw = draw(temperature, 1.0, 7);
            let mut counts = [0_usize; 4];
            for _ in 0..20_000 {
                counts[draw.token(&logits).unwrap()] += 1;
            }
            let weights: Vec<f32> = logits.iter().map(|logit| (logit / temperature).exp()).collect();
            let total: f32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let share = *count as f32 / 20_000.0;
                assert!((share - weight / total).abs() < 0.015, "{share} {}", weight / total);
            }
        }
    }

    #[test]
    fn the_nucleus_is_the_smallest_set_that_reaches_top_p() {
        let weights: Vec<f32> = (0..50_000).map(|id| if id % 997 == 3 { 1.0 } else { 1e-9 }).collect();
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let likely = weights.iter().filter(|weight| **weight == 1.0).count();
        let chosen = nucleus(&weights, total, 0.5);
        assert_eq!(chosen.len(), likely.div_ceil(2));
        assert!(chosen.iter().all(|id| id % 997 == 3));
        assert_eq!(nucleus(&weights, total, 1.0).len(), weights.len());
        assert_eq!(nucleus(&[0.1, 0.7, 0.2], 1.0, 0.69), [1]);
        assert_eq!(nucleus(&[0.1, 0.7, 0.2], 1.0, 0.8), [1, 2]);
        assert_eq!(nucleus(&[1.0; 3000], 3000.0, 0.5).len(), 1500);
        let mut draw = draw(1.0, 0.6, 3);
        assert!((0..200).all(|_| draw.token(&[0.0, 5.0, 1.0]) == Some(1)));
    }

    #[test]
    fn a_seed_repeats_and_broken_logits_are_refused() {
        let logits: Vec<f32> = (0..100).map(|id| (id % 7) as f32).collect();
        let series = |seed| {
            let mut draw = draw(1.0, 0.9, seed);
            (0..50).map(|_| draw.token(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(series(1), series(1));
        assert_ne!(series(1), series(2));
        assert_eq!(draw(1.0, 0.9, 1).token(&[f32::NAN, 1.0]), None);
        assert_eq!(draw(1.0, 0.9, 1).token(&[f32::NEG_INFINITY]), None);
        let mut many = vec![1.0; 40];
        many[37] = 3.0;
        assert_eq!(draw(0.0, 1.0, 1).token(&many), Some(37));
        many[2] = 3.0;
        assert_eq!(draw(0.0, 1.0, 1).token(&many), Some(2), "the first of equals");
        many[11] = f32::NAN;
        assert_eq!(draw(0.0, 1.0, 1).token(&many), None);
    }
}
