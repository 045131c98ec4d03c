//! The encoder Φ: texts in, vectors out.
//!
//! [`load`] reads a checkpoint and starts an encoder in this process. In reading order:
//!
//! - `local`: the encoder and its threads; `queue`: who asked and what waits; `pace`: how long that will take; `tokenize`:
//!   texts to ids.
//! - `checkpoint`: what a folder says; `config`, `bert`: architecture, weights.
//! - `model`: what the threads know of a model; `packed`: on a CPU, without padding; `padded`: on a GPU.

pub(crate) mod bert;
pub(crate) mod checkpoint;
pub(crate) mod config;
mod local;
pub(crate) mod model;
mod packed;
mod padded;
mod queue;
#[cfg(test)]
mod tests;
pub(crate) mod tokenize;

pub use local::{EncoderOptions, load};

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Result;

/// What a text is, for checkpoints that want a prefix (E5's `query: ` and `passage: `, …). The prefix itself
/// belongs to the checkpoint's configuration, never to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TextKind {
    /// A query as the client sent it.
    Query,
    /// A document, or an expansion (which stands in for one).
    Document,
}

/// Which of the encoder's queues a request joins. Interactive work goes first, so that a bulk ingest does not
/// make searches wait for more than the micro-batch in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for the answer of a search.
    Interactive,
    /// Ingestion and other work that may wait.
    Bulk,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean over all tokens, special tokens included (sentence-transformers' `mean`).
    Mean,
    /// The first token (`cls`).
    Cls,
}

/// What an encoder says about itself.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct EncoderInfo {
    /// Names the weights and everything that changes vectors: `<folder name>@<first 12 hex digits of a sha256>`
    /// over weights, tokenizer, pooling, normalisation, prefixes and maximum length. Vectors of different ids
    /// never meet in one index.
    pub id: String,
    /// Components of a vector.
    pub dimension: usize,
    /// Longest text in tokens, special tokens included; longer texts are cut.
    pub max_length: usize,
    /// How hidden states become one vector.
    pub pooling: Pooling,
    /// Whether the checkpoint itself ends with L2 normalisation.
    pub normalize: bool,
    /// What is put before a query.
    pub query_prefix: String,
    /// What is put before a document.
    pub document_prefix: String,
    /// Where it runs, e.g. `cpu` or `cuda:0`.
    pub device: String,
}

/// Turns texts into vectors. Implementations queue and batch inside; callers just await.
#[async_trait]
pub trait Encoder: Send + Sync {
    /// What this encoder is.
    fn info(&self) -> &EncoderInfo;

    /// Embeds `texts`, in order: one vector of [`EncoderInfo::dimension`] finite components a text, as the
    /// checkpoint defines it (normalised or not). An empty text is allowed; an empty batch gives an empty answer.
    ///
    /// # Errors
    /// [`Error::Overloaded`](crate::Error::Overloaded) when the queue is full, [`Error::Engine`](crate::Error::Engine)
    /// when inference fails.
    async fn encode(&self, kind: TextKind, priority: Priority, texts: Vec<String>) -> Result<Vec<Vec<f32>>>;

    /// Texts that wait or are being encoded now.
    fn queued(&self) -> usize;

    /// How long the texts of searches that wait now will keep the encoder busy, judging by how fast it was lately. Zero from
    /// an encoder that can't say.
    fn expected_wait(&self) -> Duration {
        Duration::ZERO
    }
}
