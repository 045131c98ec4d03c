//! One version of (expander, encoder, index) that belong together.

use std::sync::Arc;

use expandr_index::Index;
use expandr_models::{
    Encoder, Expander,
    bundle::Defaults,
    expander::PromptTemplate,
    gate::{Gate, TrainedOn},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

/// What answers searches: a language model, an encoder, an index of that encoder's vectors, and the prompt.
pub struct Bundle {
    /// Names the combination: equal parts give an equal id. Of a registered bundle, the id under which it is registered.
    pub id: Arc<str>,
    /// Φ.
    pub encoder: Arc<dyn Encoder>,
    /// Θ; none when the service runs without a language model.
    pub expander: Option<Arc<dyn Expander>>,
    /// The documents and their vectors.
    pub index: Arc<Index>,
    /// What the expander is asked.
    pub prompt: PromptTemplate,
    /// Whether to expand, for searches that leave it to the service; none: they are refused.
    pub gate: Option<Arc<Gate>>,
    /// What people call it.
    pub name: Arc<str>,
    /// What a search gets that doesn't say, where the server's flags don't say either.
    pub defaults: Defaults,
    /// The URL of the server that runs the expander, if it is one.
    pub remote: Option<String>,
}

/// What `/info` says about a bundle.
#[derive(Debug, Serialize, ToSchema)]
pub struct BundleInfo<'a> {
    /// Names the combination.
    id: &'a str,
    /// What people call it.
    name: &'a str,
    /// What embeds.
    encoder: &'a expandr_models::EncoderInfo,
    /// What writes passages; null: nothing does.
    expander: Option<&'a expandr_models::ExpanderInfo>,
    /// What the expander is asked, `{}` being the query.
    prompt: &'a str,
    /// What decides in mode `auto`; null: `auto` is refused.
    gate: Option<GateInfo<'a>>,
}

/// What `/info` says about a gate.
#[derive(Debug, Serialize, ToSchema)]
struct GateInfo<'a> {
    /// Names the gate.
    id: String,
    /// The encoder that it was fitted for.
    encoder: &'a str,
    /// The expander that it was fitted for.
    expander: Option<&'a str>,
    /// The query's share that it was fitted for.
    query_weight: f64,
    /// Whether it was fitted for passages that are embedded behind their query, as one text.
    joint_encoding: bool,
    /// What a predicted gain must be above; null: this gate never expands.
    threshold: Option<f64>,
    /// What it was fitted on.
    trained_on: &'a TrainedOn,
}

impl Bundle {
    /// Puts the parts together.
    pub fn new(
        encoder: Arc<dyn Encoder>,
        expander: Option<Arc<dyn Expander>>,
        index: Arc<Index>,
        prompt: PromptTemplate,
    ) -> Self {
        let mut bundle = Self {
            id: "".into(),
            encoder,
            expander,
            index,
            prompt,
            gate: None,
            name: "".into(),
            defaults: Defaults::default(),
            remote: None,
        };
        bundle.id = bundle.digest();
        bundle
    }

    /// Puts a gate in; the bundle is then another one.
    #[must_use]
    pub fn with_gate(mut self, gate: Gate) -> Self {
        self.gate = Some(Arc::new(gate));
        self.id = self.digest();
        self
    }

    fn digest(&self) -> Arc<str> {
        let expander = self.expander.as_ref().map_or("none", |expander| expander.info().id.as_str());
        let mut parts =
            vec![self.encoder.info().id.clone(), expander.to_owned(), self.prompt.text().to_owned()];
        parts.extend(self.gate.as_ref().map(|gate| gate.id()));
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let digest = hash.finalize();
        let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("bundle-{hex}").into()
    }

    /// What `/info` says about it.
    pub fn info(&self) -> BundleInfo<'_> {
        BundleInfo {
            id: &self.id,
            name: &self.name,
            encoder: self.encoder.info(),
            expander: self.expander.as_ref().map(|expander| expander.info()),
            prompt: self.prompt.text(),
            gate: self.gate.as_deref().map(|gate| GateInfo {
                id: gate.id(),
                encoder: gate.encoder(),
                expander: gate.expander(),
                query_weight: gate.query_weight(),
                joint_encoding: gate.joint_encoding(),
                threshold: gate.threshold(),
                trained_on: gate.trained_on(),
            }),
        }
    }
}
