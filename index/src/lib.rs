//! Documents and their vectors: a durable store, and what finds the nearest vectors in it.
//!
//! The crate knows vectors and ids. It must not know models: who made a vector is a name ([`IndexConfig::encoder_id`])
//! that is compared and nothing more. Everything is blocking and takes `&self` from any number of threads; async callers
//! use their runtime's blocking pool.
//!
//! Reading order: [`Index`] is the whole; [`document`] and [`filter`] are what comes in; the store is the truth, the
//! slab its vectors in memory; [`VectorIndex`] is the seam to search, with [`Exact`] and [`Hnsw`] behind it; a snapshot
//! saves the graph. What is on disk, the promises and the sizes:
#![doc = include_str!("../README.md")]

mod config;
pub mod document;
mod error;
mod exact;
mod field_value;
mod fields;
pub mod filter;
mod fusion;
mod hnsw;
mod index;
mod lexical;
mod maintenance;
mod permits;
mod recovery;
mod search;
mod slab;
mod snapshot;
mod store;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod vector;
mod vector_index;
mod writer;

pub use config::{IndexConfig, MAX_DIMENSION, MIN_LEXICAL_MEMORY_BYTES, Scalar};
pub use document::Document;
pub use error::{Error, Result};
pub use exact::Exact;
pub use field_value::{FieldValue, Number};
pub use filter::{Filter, FilterError};
pub use fusion::{Fused, Leg, LegPlace, reciprocal_rank_fusion};
pub use hnsw::{Hnsw, MAX_CANDIDATES};
pub use index::{GraphStats, Index, IndexStats, LexicalStats, SnapshotStats};
pub use lexical::Bm25;
pub use recovery::Recovery;
pub use search::{How, LexicalOutcome, LexicalRequest, MAX_TOP_K, SearchMode, SearchOutcome, SearchRequest};
pub use store::{StoreInfo, StoredDocument, clear_unfinished, inspect};
pub use vector::{F16_NORM_RANGE, Hit, NORM_RANGE};
pub use vector_index::{Allow, Image, VectorIndex};
pub use writer::UpsertOutcome;
