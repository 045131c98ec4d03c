//! Drawing tokens with a seed per request, inside mistralrs' own loop.
//!
//! mistralrs has one random generator for all requests, so that a sample can't be repeated. It lets a request bring a
//! processor of logits, though: ours draws the token itself and leaves the engine, which decodes greedily, that one to
//! choose. The processor lives exactly as long as the engine's sequence, so it also counts the tokens and holds the place.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::Tensor;
use mistralrs::CustomLogitsProcessor;
use tokio::sync::oneshot;

use crate::expander::{Sampling, gate::Place};

/// The first sizes of the head of the distribution that are looked at for the nucleus.
const HEADS: [usize; 3] = [64, 1024, 16_384];

/// Rides along with a sequence in the engine.
pub(super) struct Rider {
    draw: Option<Mutex<Draw>>,
    tokens: Arc<AtomicUsize>,
    // Dropped in this order: the place is free when the news arrives.
    _place: Place,
    _gone: oneshot::Sender<()>,
}

impl Rider {
    /// A rider, the tokens that it has seen, and what resolves (with an error) when the engine has dropped the sequence.
    pub(super) fn new(sampling: &Sampling, place: Place) -> (Self, Arc<AtomicUsize>, oneshot::Receiver<()>) {
        let tokens = Arc::new(AtomicUsize::new(0));
        let (gone, is_gone) = oneshot::channel();
        let is_greedy = sampling.temperature <= 0.0;
        let draw = (!is_greedy).then(|| Mutex::new(Draw::new(sampling)));
        (Self { draw, tokens: Arc::clone(&tokens), _place: place, _gone: gone }, tokens, is_gone)
    }
}

impl CustomLogitsProcessor for Rider {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> candle_core::Result<Tensor> {
        self.tokens.fetch_add(1, Ordering::SeqCst);
        let Some(draw) = &self.draw else { return Ok(logits.clone()) };
        let mut chances = logits.to_vec1::<f32>()?;
        let drawn = draw.lock().unwrap_or_else(PoisonError::into_inner).token(&chances);
        let Some(drawn) = drawn else { candle_core::bail!("the model's logits are not finite") };
        chances.fill(0.0);
        chances[drawn] = 1.0;
        Tensor::from_vec(chances, logits.shape(), logits.device())
    }
}

/// Temperature and nucleus sampling with a generator of its own.
struct Draw {
    random: SplitMix64,
    temperature: f32,
    top_p: f32,
}

impl Draw {
    fn new(sampling: &Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self { random: SplitMix64(seed), temperature: sampling.temperature, top_p: sampling.top_p }
    }

    /// Draws from the smallest set of most likely tokens whose probabilities sum to `top_p`; none when nothing is
    /// likely (all logits infinite or not numbers).
    fn token(&mut self, logits: &[f32]) -> Option<usize> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        let weights: Vec<f32> =
            logits.iter().map(|logit| ((logit - largest) / self.temperature).exp()).collect();
        let total: f64 = weights.iter().copied().map(f64::from).sum();
        let drawn = self.random.unit();
        if self.top_p >= 1.0 {
            return Some(at_share((0..weights.len()).map(|id| (id, f64::from(weights[id]))), drawn * total));
        }
        let nucleus = nucleus(&weights, f64::from(self.top_p) * total);
        let mass: f64 = nucleus.iter().map(|id| f64::from(weights[*id])).sum();
        Some(at_share(nucleus.into_iter().map(|id| (id, f64::from(weights[id]))), drawn * mass))
    }
}

/// The most likely tokens, most likely first, until their weights reach `mass`. Sorts no more of them than it takes.
fn nucleus(weights: &[f32], mass: f64) -> Vec<usize> {
    let by_weight = |a: &usize, b: &usize| weights[*b].total_cmp(&weights[*a]).then(a.cmp(b));
    let mut ids: Vec<usize> = (0..weights.len()).collect();
    for size in HEADS.into_iter().filter(|size| *size < weights.len()).chain([weights.len()]) {
        if size < ids.len() {
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

/// Vigna's SplitMix64: small, and the same everywhere and for ever, which a seed is for.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1).
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(temperature: f32, top_p: f32, seed: u64) -> Draw {
        Draw::new(&Sampling { max_tokens: 1, temperature, top_p, seed: Some(seed) })
    }

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = SplitMix64(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| random.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
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
        let likely = weights.iter().filter(|weight| **weight == 1.0).count();
        let chosen = nucleus(&weights, 0.5 * likely as f64);
        assert_eq!(chosen.len(), likely.div_ceil(2));
        assert!(chosen.iter().all(|id| id % 997 == 3));
        assert_eq!(nucleus(&weights, 1e9).len(), weights.len());
        assert_eq!(nucleus(&[0.1, 0.7, 0.2], 0.69), [1]);
        assert_eq!(nucleus(&[0.1, 0.7, 0.2], 0.8), [1, 2]);
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
    }
}
