//! The seam to everything that needs tensors: loading models and training them.
//!
//! The runner decides what is to be done, and keeps the books; a [`Steps`] does it. Every job names the files that it
//! reads, so that it may as well be done elsewhere by other tools.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use expandr_evaluation::{Collection, Run};
use expandr_models::Encoder;
use expandr_models::weights::Role;
use serde_json::Value;

use crate::Result;
use crate::progress::StepProgress;
use crate::recipe::{ContrastiveSettings, DpoSettings, WarmUpSettings};
use crate::writer::Writer;

/// A model to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// As the recipe calls it: a name in the models folder, a folder, or a hub id.
    Named(String),
    /// A folder that this run has made.
    Made(PathBuf),
    /// A language model that this run has made of another and an adapter.
    Adapted {
        /// The other one.
        base: Box<Self>,
        /// The adapter's folder, PEFT layout.
        adapter: PathBuf,
        /// The folder where both are one model: other numbers than the base's, which may need more bits.
        merged: PathBuf,
    },
}

/// Where a trainer works.
pub struct Places<'a> {
    /// Its own folder, which an interrupted attempt leaves as it was: checkpoints.
    pub work: &'a Path,
    /// An empty folder for the outcome. It takes its final name when the job returns.
    pub out: &'a Path,
    /// Lines of JSON are added to this file: what happened, step by step.
    pub log: &'a Path,
}

/// Supervised training of a language model on gold passages.
pub struct WarmUpJob<'a> {
    /// The language model's folder.
    pub base: &'a Path,
    /// Lines {"prompt", "completion"} in TRL's conversational layout.
    pub train: &'a Path,
    /// The same, for development; may have no line.
    pub dev: &'a Path,
    /// How.
    pub settings: &'a WarmUpSettings,
    /// The job's seed.
    pub seed: u64,
    /// The outcome is an adapter in PEFT layout.
    pub places: Places<'a>,
    /// Where progress is told.
    pub progress: StepProgress<'a>,
}

/// Direct preference optimisation of a language model.
pub struct DpoJob<'a> {
    /// The language model's folder; it is the reference model, too.
    pub base: &'a Path,
    /// preferences.jsonl ([`crate::preference::PreferenceLine`]).
    pub train: &'a Path,
    /// preferences.dev.jsonl; may have no line.
    pub dev: &'a Path,
    /// How.
    pub settings: &'a DpoSettings,
    /// The job's seed.
    pub seed: u64,
    /// The outcome is an adapter in PEFT layout.
    pub places: Places<'a>,
    /// Where progress is told.
    pub progress: StepProgress<'a>,
}

/// Merging an adapter into its language model.
pub struct MergeJob<'a> {
    /// The language model's folder.
    pub base: &'a Path,
    /// The adapter's folder, PEFT layout.
    pub adapter: &'a Path,
    /// An empty folder for the outcome: Hugging Face layout, tokenizer and chat template included.
    pub out: &'a Path,
}

/// Contrastive training of an encoder.
pub struct ContrastiveJob<'a> {
    /// The encoder's folder.
    pub base: &'a Path,
    /// examples.jsonl ([`crate::example::ExampleLine`]).
    pub train: &'a Path,
    /// examples.dev.jsonl; may have no line.
    pub dev: &'a Path,
    /// How.
    pub settings: &'a ContrastiveSettings,
    /// The job's seed.
    pub seed: u64,
    /// The outcome is an encoder in sentence-transformers layout, adapters merged.
    pub places: Places<'a>,
    /// Where progress is told.
    pub progress: StepProgress<'a>,
}

/// Does what needs tensors. Jobs return what is to be said of them (losses, margins, times) as a JSON object.
#[async_trait]
pub trait Steps: Send + Sync {
    /// The folder of a model that the recipe names.
    ///
    /// # Errors
    /// When it isn't there.
    fn locate(&self, model: &str, role: Role) -> Result<PathBuf>;

    /// Loads a language model to generate with, or connects to the server that has it.
    async fn writer(&self, model: &Model) -> Result<Arc<dyn Writer>>;

    /// Loads an encoder.
    async fn encoder(&self, model: &Model) -> Result<Arc<dyn Encoder>>;

    /// Trains on gold passages.
    async fn warm_up(&self, job: &WarmUpJob<'_>) -> Result<Value>;

    /// Trains on preferences.
    async fn dpo(&self, job: &DpoJob<'_>) -> Result<Value>;

    /// Merges an adapter.
    async fn merge(&self, job: &MergeJob<'_>) -> Result<Value>;

    /// Trains an encoder.
    async fn contrastive(&self, job: &ContrastiveJob<'_>) -> Result<Value>;

    /// A lexical run (BM25) over a collection for the report's orientation; none where there is no such search.
    async fn lexical(&self, _collection: &Collection, _depth: usize) -> Result<Option<Run>> {
        Ok(None)
    }
}
