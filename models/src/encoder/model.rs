//! What every architecture and device offers to the batching thread, and the steps that they share.

use super::Pooling;
use crate::Result;

/// A model that turns token ids into vectors. It belongs to one thread.
pub(crate) trait TextModel: Send {
    /// What a batch costs, in tokens computed.
    fn cost(&self, batch: BatchSize) -> usize;

    /// One pooled vector a text, not normalised. A text has at most as many ids as the model has positions, and each
    /// is within the vocabulary.
    fn vectors(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>>;
}

/// How large a batch of texts is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct BatchSize {
    /// Number of texts.
    pub(crate) texts: usize,
    /// Sum of their lengths.
    pub(crate) tokens: usize,
    /// Length of the longest.
    pub(crate) longest: usize,
}

impl BatchSize {
    /// With one more text of this length.
    pub(crate) fn with(self, length: usize) -> Self {
        Self { texts: self.texts + 1, tokens: self.tokens + length, longest: self.longest.max(length) }
    }
}

/// One vector from a text's hidden states (`tokens × hidden`); zeros for a text without tokens, as in
/// sentence-transformers.
pub(crate) fn pool(states: &[f32], hidden: usize, pooling: Pooling) -> Vec<f32> {
    let mut vector = vec![0.0; hidden];
    let rows = states.chunks_exact(hidden);
    let count = rows.len().max(1);
    match pooling {
        Pooling::Cls => {
            if let Some(first) = states.chunks_exact(hidden).next() {
                vector.copy_from_slice(first);
            }
        }
        Pooling::Mean => {
            for row in rows {
                for (sum, value) in vector.iter_mut().zip(row) {
                    *sum += *value;
                }
            }
            let scale = 1.0 / count as f32;
            vector.iter_mut().for_each(|value| *value *= scale);
        }
    }
    vector
}

/// Divides a vector by its L2 norm; a zero vector stays zero.
pub(crate) fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|value| *value /= norm);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_by_mean_or_first_token() {
        let states = [1.0, 2.0, 3.0, 6.0];
        assert_eq!(pool(&states, 2, Pooling::Mean), [2.0, 4.0]);
        assert_eq!(pool(&states, 2, Pooling::Cls), [1.0, 2.0]);
        assert_eq!(pool(&[], 2, Pooling::Mean), [0.0, 0.0]);
        assert_eq!(pool(&[], 2, Pooling::Cls), [0.0, 0.0]);
    }

    #[test]
    fn normalises_to_length_one_and_leaves_zero_alone() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0; 3];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 3]);
    }
}
