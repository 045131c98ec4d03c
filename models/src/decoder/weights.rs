//! The weights of a decoder, arranged for products.

use std::path::Path;

use super::{adapter::Adapter, config::DecoderConfig};
use crate::{
    Error, Result,
    cpu::{Panels, Precision, Team},
    folder::{Tensors, checkpoint_error},
    trainable::AdapterFile,
};

/// x·Wᵀ + b, and what an adapter adds.
pub(super) struct Linear {
    pub(super) weight: Panels,
    /// One an output, or none at all.
    pub(super) bias: Vec<f32>,
    pub(super) adapter: Option<Adapter>,
}

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    /// Queries, keys and values in one product.
    pub(super) projections: Linear,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Vec<f32>,
    /// Gate and up in one product.
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

pub(super) struct Weights {
    /// The embedding table; when it is tied, the output matrix too.
    pub(super) words: Panels,
    /// The output matrix where it is not the embedding table.
    pub(super) head: Option<Panels>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
}

/// How weights are arranged, and by whom.
#[derive(Clone, Copy)]
pub(super) struct How<'a> {
    pub(super) precision: Precision,
    pub(super) team: &'a Team,
    /// Stays beside the weights, which keep their precision.
    pub(super) adapter: Option<&'a AdapterFile>,
}

impl Weights {
    pub(super) fn read(folder: &Path, config: &DecoderConfig, how: How<'_>) -> Result<Self> {
        let tensors = Tensors::open(folder)?;
        let hidden = config.hidden;
        // Some files keep the model without its head, and then without the prefix.
        let prefix = if tensors.contains("model.embed_tokens.weight") { "model." } else { "" };
        let table = |name: &str| {
            let weight = tensors.read(name, &[config.vocabulary, hidden])?;
            Ok::<_, crate::Error>(Panels::new(&weight, hidden, how.precision, how.team))
        };
        let words = table(&format!("{prefix}embed_tokens.weight"))?;
        let head = if config.tied { None } else { Some(table("lm_head.weight")?) };
        let layers: Vec<Layer> = (0..config.layers)
            .map(|layer| Layer::read(&tensors, config, how, &format!("{prefix}layers.{layer}.")))
            .collect::<Result<_>>()?;
        if let Some(adapter) = how.adapter {
            check_modules(adapter, &layers, folder)?;
        }
        let norm = tensors.read(&format!("{prefix}norm.weight"), &[hidden])?;
        let unknown = format!("{prefix}layers.{}.", config.layers);
        if tensors.contains(&format!("{unknown}input_layernorm.weight")) {
            let detail =
                format!("it has tensors of a layer {}, and config.json says {0} layers", config.layers);
            return Err(checkpoint_error(folder, detail + "; they belong to different models"));
        }
        Ok(Self { words, head, layers, norm })
    }

    /// Bytes that the matrices take.
    pub(super) fn bytes(&self) -> usize {
        let linears: usize = self.layers.iter().flat_map(Layer::linears).map(Linear::bytes).sum();
        linears + self.words.bytes() + self.head.as_ref().map_or(0, Panels::bytes)
    }
}

/// An adapter of another model must not be half used.
fn check_modules(adapter: &AdapterFile, layers: &[Layer], folder: &Path) -> Result<()> {
    let used = layers.iter().flat_map(Layer::linears).filter_map(|linear| linear.adapter.as_ref());
    let used: usize = used.map(|adapter| adapter.modules).sum();
    let modules = adapter.modules();
    if used < modules.len() {
        return Err(Error::Input(format!(
            "the adapter has {} modules (such as `{}`), and only {used} of them are linear layers of {}; it belongs to \
             another model ({})",
            modules.len(),
            modules[0],
            folder.display(),
            adapter.base
        )));
    }
    Ok(())
}

impl Layer {
    fn linears(&self) -> [&Linear; 4] {
        [&self.projections, &self.output, &self.gate_up, &self.down]
    }

    fn read(tensors: &Tensors, config: &DecoderConfig, how: How<'_>, prefix: &str) -> Result<Self> {
        let (hidden, wide) = (config.hidden, config.intermediate);
        let queries = config.heads * config.head_width;
        let keys = config.kv_heads * config.head_width;
        let norm = |name: &str| tensors.read(&format!("{prefix}{name}.weight"), &[hidden]);
        let linear =
            |parts: &[(&str, usize)], inputs: usize| Linear::read(tensors, how, prefix, parts, inputs);
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            projections: linear(
                &[("self_attn.q_proj", queries), ("self_attn.k_proj", keys), ("self_attn.v_proj", keys)],
                hidden,
            )?,
            output: linear(&[("self_attn.o_proj", hidden)], queries)?,
            feed_forward_norm: norm("post_attention_layernorm")?,
            gate_up: linear(&[("mlp.gate_proj", wide), ("mlp.up_proj", wide)], hidden)?,
            down: linear(&[("mlp.down_proj", hidden)], wide)?,
        })
    }
}

impl Linear {
    /// The matrices of `parts` (name, outputs) one below the other.
    fn read(
        tensors: &Tensors,
        how: How<'_>,
        prefix: &str,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> Result<Self> {
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        let has_bias = parts.iter().any(|(name, _)| tensors.contains(&format!("{prefix}{name}.bias")));
        for (name, outputs) in parts {
            weight.extend(tensors.read(&format!("{prefix}{name}.weight"), &[*outputs, inputs])?);
            if has_bias {
                bias.extend(tensors.read(&format!("{prefix}{name}.bias"), &[*outputs])?);
            }
        }
        let adapter = match how.adapter {
            Some(file) => Adapter::read(file, prefix, parts, inputs, how.team)?,
            None => None,
        };
        Ok(Self { weight: Panels::new(&weight, inputs, how.precision, how.team), bias, adapter })
    }

    fn bytes(&self) -> usize {
        self.weight.bytes() + self.adapter.as_ref().map_or(0, Adapter::bytes)
    }
}
