//! The weights of a decoder, arranged for products.

use std::path::Path;

use super::config::DecoderConfig;
use crate::{
    Result,
    cpu::{Panels, Precision, Team},
    folder::{Tensors, checkpoint_error},
};

/// x·Wᵀ + b.
pub(super) struct Linear {
    pub(super) weight: Panels,
    /// One an output, or none at all.
    pub(super) bias: Vec<f32>,
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
        let layers = (0..config.layers)
            .map(|layer| Layer::read(&tensors, config, how, &format!("{prefix}layers.{layer}.")))
            .collect::<Result<_>>()?;
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
        let linears = self.layers.iter().flat_map(|layer| {
            [&layer.projections, &layer.output, &layer.gate_up, &layer.down].map(|linear| &linear.weight)
        });
        linears.chain([&self.words]).chain(&self.head).map(Panels::bytes).sum()
    }
}

impl Layer {
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
        Ok(Self { weight: Panels::new(&weight, inputs, how.precision, how.team), bias })
    }
}
