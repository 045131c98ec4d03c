//! The seam between documents and whatever finds the nearest vectors.

use roaring::RoaringTreemap;

use crate::error::Result;
use crate::vector::Hit;

/// Says of a key whether it may be found.
pub type Allow<'a> = &'a (dyn Fn(u64) -> bool + Sync);

/// The content of a [`VectorIndex`] in a form that a file can hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Every key inside, removed ones that are still inside too.
    pub keys: RoaringTreemap,
    /// What stored vectors were multiplied by.
    pub scale: f32,
    /// The implementation's own bytes.
    pub payload: Vec<u8>,
}

/// Finds vectors with the greatest inner product. All methods may be called from any number of threads at once.
pub trait VectorIndex: Send + Sync {
    /// Adds vectors under keys that were never used before (and are not `u64::MAX`).
    ///
    /// # Errors
    /// A vector of another dimension, not finite or without a length; a key in use. Then nothing is added.
    fn add(&self, vectors: &[(u64, &[f32])]) -> Result<()>;

    /// Removes keys and returns how many were there. Removed keys are never found again and never added again.
    fn remove(&self, keys: &[u64]) -> usize;

    /// Up to `top_k` allowed keys, best first. Approximate implementations consider at least `ef` candidates; their
    /// scores are those of their own (narrower) copies of the vectors, and beside an addition they may find fewer keys
    /// than there are.
    ///
    /// # Errors
    /// A query of another dimension, not finite or without a length; `allow` panicked.
    fn search(&self, query: &[f32], top_k: usize, ef: usize, allow: Option<Allow<'_>>) -> Result<Vec<Hit>>;

    /// The content as of now; additions wait meanwhile.
    ///
    /// # Errors
    /// The implementation could not be serialised.
    fn snapshot(&self) -> Result<Image>;

    /// How many keys can be found.
    fn len(&self) -> usize;

    /// Whether nothing can be found.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
