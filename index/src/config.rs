//! Settings of an index.

use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::lexical::Bm25;

/// Largest vector dimension.
pub const MAX_DIMENSION: usize = 16_384;

/// Least [`IndexConfig::lexical_memory_bytes`]: below it tantivy's writer does not work.
pub const MIN_LEXICAL_MEMORY_BYTES: usize = 32 * 1024 * 1024;

/// How the graph stores its copies of the vectors. The store, exact search and the final scores are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// Two bytes with f32's range: the default, as good as f32 for ranking candidates and the fastest on CPUs with bf16.
    #[default]
    Bf16,
    /// Four bytes.
    F32,
    /// Two bytes, narrow range: for vectors of about unit length.
    F16,
    /// One byte; each vector is scaled by itself, so the graph sees directions only. Recall ends near 0.95 before
    /// rescoring.
    I8,
}

impl Scalar {
    /// Bytes of one component.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::I8 => 1,
        }
    }
}

/// How to open an [`Index`](crate::Index). Start from [`IndexConfig::new`] and change what differs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IndexConfig {
    /// Names the encoder that makes the vectors; a store is tied to one.
    pub encoder_id: String,
    /// Components of a vector.
    pub dimension: usize,
    /// With fewer documents than this, or filters that match fewer, search is exact.
    pub exact_threshold: usize,
    /// Candidates that the graph search keeps and that are rescored in f32. More = better recall, slower.
    pub ef_search: usize,
    /// Links of a graph node (M); twice that on the lowest layer.
    pub connectivity: usize,
    /// Candidates considered when a node is linked.
    pub ef_construction: usize,
    /// Storage of the graph's vectors.
    pub scalar: Scalar,
    /// Searches that may be in the graph at once; more wait their turn.
    pub search_threads: usize,
    /// Threads that link a large batch into the graph. 1 makes graphs reproducible.
    pub build_threads: usize,
    /// Changed documents after which the graph is saved in the background; 0 = only on request and on close.
    pub snapshot_every: usize,
    /// Memory for the store's page cache, in bytes.
    pub cache_bytes: usize,
    /// Whether documents can be searched by their words; switching it off removes what is on disk for that.
    pub lexical: bool,
    /// BM25's parameters; changing them costs nothing.
    pub bm25: Bm25,
    /// Memory for documents on their way into the lexical index, in bytes: half for those that are not on disk yet, half for
    /// the writer. What belongs to the documents on disk comes on top, about 16 bytes each.
    pub lexical_memory_bytes: usize,
}

impl IndexConfig {
    /// Defaults for an encoder.
    pub fn new(encoder_id: impl Into<String>, dimension: usize) -> Self {
        let cores = available_parallelism().map_or(2, usize::from);
        Self {
            encoder_id: encoder_id.into(),
            dimension,
            exact_threshold: 10_000,
            ef_search: 64,
            connectivity: 16,
            ef_construction: 128,
            scalar: Scalar::default(),
            search_threads: cores.max(2),
            build_threads: cores,
            snapshot_every: 50_000,
            cache_bytes: 64 * 1024 * 1024,
            lexical: true,
            bm25: Bm25::default(),
            lexical_memory_bytes: 64 * 1024 * 1024,
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] names the setting, its value and its range.
    pub fn validate(&self) -> Result<()> {
        if self.encoder_id.is_empty() || self.encoder_id.len() > 1024 {
            return Err(Error::InvalidConfig("encoder_id must have 1 to 1024 bytes".into()));
        }
        let ranges = [
            ("dimension", self.dimension, 1, MAX_DIMENSION),
            ("ef_search", self.ef_search, 1, crate::hnsw::MAX_CANDIDATES),
            ("connectivity", self.connectivity, 2, 256),
            ("ef_construction", self.ef_construction, 8, 4096),
            ("search_threads", self.search_threads, 1, 1024),
            ("build_threads", self.build_threads, 1, 1024),
            ("lexical_memory_bytes", self.lexical_memory_bytes, MIN_LEXICAL_MEMORY_BYTES, 4 << 30),
        ];
        for (name, value, low, high) in ranges {
            if !(low..=high).contains(&value) {
                return Err(Error::InvalidConfig(format!("{name} is {value}; choose {low} to {high}")));
            }
        }
        let Bm25 { k1, b } = self.bm25;
        if !(0.0..=100.0).contains(&k1) {
            return Err(Error::InvalidConfig(format!("bm25.k1 is {k1}; choose 0 to 100")));
        }
        if !(0.0..=1.0).contains(&b) {
            return Err(Error::InvalidConfig(format!("bm25.b is {b}; choose 0 to 1")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        IndexConfig::new("e", 384).validate().unwrap();
        for broken in [
            IndexConfig::new("", 384),
            IndexConfig::new("e", 0),
            IndexConfig::new("e", MAX_DIMENSION + 1),
            IndexConfig { ef_search: 0, ..IndexConfig::new("e", 4) },
            IndexConfig { connectivity: 1, ..IndexConfig::new("e", 4) },
            IndexConfig { search_threads: 0, ..IndexConfig::new("e", 4) },
            IndexConfig { lexical_memory_bytes: 1 << 20, ..IndexConfig::new("e", 4) },
            IndexConfig { bm25: Bm25 { k1: f32::NAN, b: 0.4 }, ..IndexConfig::new("e", 4) },
            IndexConfig { bm25: Bm25 { k1: 0.9, b: 1.1 }, ..IndexConfig::new("e", 4) },
        ] {
            assert!(matches!(broken.validate(), Err(Error::InvalidConfig(_))), "{broken:?}");
        }
    }
}
