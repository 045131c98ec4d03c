//! One version of (expander, encoder, index) that belong together.

use std::sync::Arc;

use expandr_index::Index;
use expandr_models::{Encoder, Expander, expander::PromptTemplate};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What answers searches: a language model, an encoder, an index of that encoder's vectors, and the prompt.
pub struct Bundle {
    /// Names the combination: equal parts give an equal id.
    pub id: Arc<str>,
    /// Φ.
    pub encoder: Arc<dyn Encoder>,
    /// Θ; none when the service runs without a language model.
    pub expander: Option<Arc<dyn Expander>>,
    /// The documents and their vectors.
    pub index: Arc<Index>,
    /// What the expander is asked.
    pub prompt: PromptTemplate,
}

/// What `/info` says about a bundle.
#[derive(Debug, Serialize)]
pub struct BundleInfo<'a> {
    id: &'a str,
    encoder: &'a expandr_models::EncoderInfo,
    expander: Option<&'a expandr_models::ExpanderInfo>,
    prompt: &'a str,
}

impl Bundle {
    /// Puts the parts together.
    pub fn new(
        encoder: Arc<dyn Encoder>,
        expander: Option<Arc<dyn Expander>>,
        index: Arc<Index>,
        prompt: PromptTemplate,
    ) -> Self {
        let mut hash = Sha256::new();
        let expander_id = expander.as_ref().map_or("none", |expander| expander.info().id.as_str());
        for part in [encoder.info().id.as_str(), expander_id, prompt.text()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self { id: format!("bundle-{hex}").into(), encoder, expander, index, prompt }
    }

    /// What `/info` says about it.
    pub fn info(&self) -> BundleInfo<'_> {
        BundleInfo {
            id: &self.id,
            encoder: self.encoder.info(),
            expander: self.expander.as_ref().map(|expander| expander.info()),
            prompt: self.prompt.text(),
        }
    }
}
