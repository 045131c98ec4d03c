//! Arithmetic on vectors: which ones are acceptable, and the inner product that every score is made with.

use std::cmp::Ordering;
use std::ops::RangeInclusive;

use serde::Serialize;

use crate::error::{Error, Result};

/// Lengths (Euclidean norms) that are accepted: any two such vectors have a finite inner product in f32, also after the
/// graph's scaling.
pub const NORM_RANGE: RangeInclusive<f64> = 1e-9..=1e9;
/// The same for a graph that stores f16.
pub const F16_NORM_RANGE: RangeInclusive<f64> = 1e-3..=6e4;

/// One found document.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Hit {
    /// The document's key: unique for ever, a changed document gets a new one.
    pub key: u64,
    /// Inner product of the query's and the document's vector.
    pub score: f32,
}

impl Hit {
    /// The order of answers: higher scores first, among equals the older key first.
    pub fn rank(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.key.cmp(&other.key))
    }
}

/// Checks a vector's dimension, that each component is finite, and that it has a length in [`NORM_RANGE`].
///
/// Infinite, NaN and zero vectors are refused because a graph that holds one answers wrongly for others.
pub(crate) fn validate(vector: &[f32], dimension: usize, input: impl FnOnce() -> String) -> Result<()> {
    validate_within(vector, dimension, &NORM_RANGE, input)
}

/// [`validate`] with another range of lengths.
pub(crate) fn validate_within(
    vector: &[f32],
    dimension: usize,
    norms: &RangeInclusive<f64>,
    input: impl FnOnce() -> String,
) -> Result<()> {
    let reason = if vector.len() != dimension {
        format!(
            "the vector has {} components, this index holds {dimension}; embed with the index's own encoder",
            vector.len()
        )
    } else if let Some(position) = vector.iter().position(|value| !value.is_finite()) {
        format!("component {position} of the vector is {}; every component must be finite", vector[position])
    } else if !norms.contains(&norm(vector)) {
        format!(
            "the vector's length is {:e}, it must lie in {:e} to {:e} (a zero vector has no direction to search in)",
            norm(vector),
            norms.start(),
            norms.end()
        )
    } else {
        return Ok(());
    };
    Err(Error::InvalidVector { input: input(), reason })
}

/// Euclidean length.
pub(crate) fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum::<f64>().sqrt()
}

/// Inner product. Sixteen independent sums, so that the compiler can use vector registers; the order of summation is
/// fixed, so equal inputs give equal bits on every path.
pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
    const LANES: usize = 16;
    let (left_chunks, left_rest) = left.as_chunks::<LANES>();
    let (right_chunks, right_rest) = right.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in left_chunks.iter().zip(right_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(a, b)| a * b).sum();
    // Adding zero turns -0.0 into 0.0, which `total_cmp` would tell apart.
    sums[0] + rest + 0.0
}

/// The best `limit` hits of a stream of hits.
pub(crate) struct TopHits {
    limit: usize,
    // The worst kept hit is on top.
    heap: std::collections::BinaryHeap<Worst>,
}

struct Worst(Hit);

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.rank(&other.0)
    }
}
impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Worst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Worst {}

impl TopHits {
    /// Callers clamp `limit` to what can be found.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, heap: std::collections::BinaryHeap::with_capacity(limit + 1) }
    }

    pub(crate) fn push(&mut self, hit: Hit) {
        if self.heap.len() < self.limit {
            self.heap.push(Worst(hit));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && hit.rank(&worst.0) == Ordering::Less
        {
            *worst = Worst(hit);
        }
    }

    /// Whether a hit with this score might be kept.
    pub(crate) fn would_take(&self, score: f32) -> bool {
        self.heap.len() < self.limit || self.heap.peek().is_some_and(|worst| score >= worst.0.score)
    }

    /// Best first.
    pub(crate) fn into_sorted(self) -> Vec<Hit> {
        self.heap.into_sorted_vec().into_iter().map(|worst| worst.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn unusable_vectors_are_refused() {
        let check = |vector: &[f32]| validate(vector, 2, || "v".into());
        check(&[3.0, -4.0]).unwrap();
        check(&[1e-8, 0.0]).unwrap();
        for bad in [
            &[0.0, 0.0][..],
            &[f32::NAN, 1.0],
            &[1.0, f32::INFINITY],
            &[f32::NEG_INFINITY, 1.0],
            &[1e-40, 0.0],
            &[1e30, 1e30],
            &[1.0],
            &[1.0, 2.0, 3.0],
            &[],
        ] {
            assert!(check(bad).unwrap_err().is_invalid_input(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn dot_agrees_with_double_precision(pairs in prop::collection::vec((-1.0f32..1.0, -1.0f32..1.0), 1..200)) {
            let (left, right): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let exact: f64 = left.iter().zip(&right).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            prop_assert!((f64::from(dot(&left, &right)) - exact).abs() < 1e-4);
            prop_assert_eq!(dot(&left, &right).to_bits(), dot(&right, &left).to_bits());
        }

        #[test]
        fn top_hits_are_the_sorted_prefix(scores in prop::collection::vec(-3i8..3, 0..60), limit in 0usize..20) {
            let mut hits: Vec<Hit> =
                scores.iter().enumerate().map(|(key, &score)| Hit { key: key as u64, score: score.into() }).collect();
            let mut top = TopHits::new(limit);
            hits.iter().rev().for_each(|&hit| top.push(hit));
            hits.sort_by(Hit::rank);
            hits.truncate(limit);
            prop_assert_eq!(top.into_sorted(), hits);
        }
    }
}
