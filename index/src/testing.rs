//! Deterministic helpers for tests: an index in a temporary directory, and vectors from a seed.

use std::ops::Deref;

use crate::{Document, Index, IndexConfig, Result};

/// An index that is deleted with its directory when dropped.
pub struct TemporaryIndex {
    // Declared, so dropped, before its directory.
    index: Index,
    directory: tempfile::TempDir,
}

impl TemporaryIndex {
    /// An empty index for vectors of one dimension. One build thread: equal calls build equal graphs.
    ///
    /// # Errors
    /// The temporary directory can't be used.
    pub fn new(dimension: usize) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let config =
            IndexConfig { build_threads: 1, snapshot_every: 0, ..IndexConfig::new("testing", dimension) };
        Ok(Self { index: Index::open(directory.path(), config)?, directory })
    }

    /// Where it lies.
    pub fn path(&self) -> &std::path::Path {
        self.directory.path()
    }
}

impl Deref for TemporaryIndex {
    type Target = Index;

    fn deref(&self) -> &Index {
        &self.index
    }
}

/// A document with an id, a text and no metadata.
pub fn document(id: impl Into<String>, text: impl Into<String>) -> Document {
    Document { id: id.into(), title: String::new(), text: text.into(), metadata: serde_json::Map::new() }
}

/// A vector of unit length that depends on nothing but the seed.
pub fn unit_vector(seed: u64, dimension: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        // splitmix64
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let vector: Vec<f32> = (0..dimension).map(|_| next()).collect();
    let length = crate::vector::norm(&vector).max(1e-6) as f32;
    vector.into_iter().map(|value| value / length).collect()
}
