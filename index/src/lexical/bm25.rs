//! BM25 as Lucene computes it (Robertson and Zaragoza 2009, without the constant factor k1 + 1, which changes no order),
//! with lengths that are not rounded.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The two parameters of BM25.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bm25 {
    /// How much further occurrences of a term add: 0 = nothing.
    pub k1: f32,
    /// How much long documents are held back: 0 = not at all, 1 = in proportion to their lengths.
    pub b: f32,
}

impl Default for Bm25 {
    /// k1 = 0.9 and b = 0.4, those of the BEIR and Anserini baselines.
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4 }
    }
}

/// A term's inverse document frequency: ln(1 + (N − n + 0.5) / (n + 0.5)), n of N documents holding it.
pub(crate) fn idf(holding: u64, documents: u64) -> f32 {
    let (holding, documents) = (holding as f64, documents as f64);
    ((documents - holding + 0.5) / (holding + 0.5)).ln_1p() as f32
}

/// What a term adds to a document's score, for one corpus.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saturation {
    constant: f32,
    per_length: f32,
}

impl Saturation {
    /// `average_length` is that of the corpus's documents, in terms.
    pub(crate) fn new(bm25: Bm25, average_length: f64) -> Self {
        let per_length =
            if average_length > 0.0 { f64::from(bm25.k1 * bm25.b) / average_length } else { 0.0 };
        Self { constant: bm25.k1 * (1.0 - bm25.b), per_length: per_length as f32 }
    }

    /// tf / (tf + k1 (1 − b + b · length / average length)).
    pub(crate) fn of(self, occurrences: u32, length: u32) -> f32 {
        let occurrences = occurrences as f32;
        occurrences / (occurrences + self.constant + self.per_length * length as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_terms_weigh_more_and_none_weighs_nothing() {
        assert!((idf(1, 10) - (1.0f32 + 9.5 / 1.5).ln()).abs() < 1e-6);
        assert!(idf(1, 10) > idf(2, 10) && idf(10, 10) > 0.0);
    }

    #[test]
    fn saturation_is_the_formula() {
        let (k1, b, average) = (0.9, 0.4, 20.0);
        let saturation = Saturation::new(Bm25 { k1, b }, f64::from(average));
        for (occurrences, length) in [(1, 1), (3, 20), (7, 200)] {
            let (tf, dl) = (occurrences as f32, length as f32);
            let expected = tf / (tf + k1 * (1.0 - b + b * dl / average));
            assert!((saturation.of(occurrences, length) - expected).abs() < 1e-6);
        }
        assert_eq!(Saturation::new(Bm25 { k1: 0.0, b: 1.0 }, 0.0).of(5, 3), 1.0);
    }
}
