//! `config.json` and `generation_config.json`: which architecture a checkpoint has, and its sizes.

use std::path::Path;

use serde::Deserialize;

use crate::{
    Result,
    folder::{checkpoint_error, read_json, read_json_if_there},
};

/// The architectures that this decoder runs. The one place where `model_type` is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `llama`.
    Llama,
    /// `qwen2`: the same layers, with biases on queries, keys and values.
    Qwen2,
}

/// The sizes of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DecoderConfig {
    pub(crate) family: Family,
    pub(crate) vocabulary: usize,
    pub(crate) hidden: usize,
    /// Components between the feed-forward matrices.
    pub(crate) intermediate: usize,
    pub(crate) layers: usize,
    /// Attention heads of the queries; a multiple of `kv_heads`.
    pub(crate) heads: usize,
    /// Attention heads of keys and values.
    pub(crate) kv_heads: usize,
    /// Components of a head; even.
    pub(crate) head_width: usize,
    /// The longest text, in tokens.
    pub(crate) context: usize,
    /// Added to the mean square in norms.
    pub(crate) norm_epsilon: f32,
    /// For each pair of a head's components, by how much a position turns it (rotary embeddings).
    pub(crate) frequencies: Vec<f64>,
    /// Whether the output matrix is the embedding table.
    pub(crate) tied: bool,
    /// Tokens that end a passage.
    pub(crate) end_tokens: Vec<u32>,
}

impl DecoderConfig {
    /// Reads the folder's `config.json` and, where there is one, `generation_config.json`.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let raw: RawConfig = read_json(&path, "copy it from the model that the checkpoint was made from")?;
        let generation: Option<RawGeneration> = read_json_if_there(&folder.join("generation_config.json"))?;
        raw.check(generation.unwrap_or_default(), &path)
    }
}

/// Whether the folder's `config.json` names an architecture that this decoder runs.
pub(crate) fn is_supported(folder: &Path) -> bool {
    DecoderConfig::read(folder).is_ok()
}

/// `config.json` as Hugging Face's transformers writes it.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: Option<String>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    /// Newer files have both of the former here.
    rope_parameters: Option<RawRope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    eos_token_id: TokenIds,
}

#[derive(Default, Deserialize)]
struct RawGeneration {
    #[serde(default)]
    eos_token_id: TokenIds,
}

/// One id, several, or none.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    #[default]
    None,
    One(u32),
    Several(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            Self::None => Vec::new(),
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

#[derive(Clone, Default, Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl RawConfig {
    fn check(self, generation: RawGeneration, path: &Path) -> Result<DecoderConfig> {
        let family = match self.model_type.as_deref() {
            Some("llama") => Family::Llama,
            Some("qwen2") => Family::Qwen2,
            other => {
                let found = other.map_or("no `model_type`".to_owned(), |m| format!("`model_type` {m:?}"));
                let detail = format!(
                    "{found} is not supported by the batched engine; use a checkpoint of type llama or qwen2, or the \
                     engine mistralrs"
                );
                return Err(checkpoint_error(path, detail));
            }
        };
        let wrong = |detail: String| checkpoint_error(path, detail);
        let need = |value: Option<usize>, name: &str| {
            value.filter(|v| *v > 0).ok_or_else(|| {
                wrong(format!("`{name}` is missing or 0; give the value that the weights have"))
            })
        };
        if let Some(other) = self.hidden_act.as_deref().filter(|name| *name != "silu") {
            return Err(wrong(format!(
                "`hidden_act` {other:?} is not supported; use a checkpoint with silu"
            )));
        }
        if self.use_sliding_window {
            return Err(wrong(
                "`use_sliding_window` is not supported; use the engine mistralrs for it".into(),
            ));
        }
        let hidden = need(self.hidden_size, "hidden_size")?;
        let heads = need(self.num_attention_heads, "num_attention_heads")?;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads).max(1);
        let head_width = self.head_dim.unwrap_or(hidden / heads);
        if !heads.is_multiple_of(kv_heads) || head_width == 0 || !head_width.is_multiple_of(2) {
            return Err(wrong(format!(
                "{heads} heads, {kv_heads} of them for keys, of {head_width} components do not fit together; give the \
                 values that the weights have"
            )));
        }
        let mut end_tokens = generation.eos_token_id.into_vec();
        end_tokens.extend(self.eos_token_id.into_vec());
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let rope = self.rope_parameters.or(self.rope_scaling).unwrap_or_default();
        let theta = rope.rope_theta.or(self.rope_theta).unwrap_or(10_000.0);
        Ok(DecoderConfig {
            family,
            vocabulary: need(self.vocab_size, "vocab_size")?,
            hidden,
            intermediate: need(self.intermediate_size, "intermediate_size")?,
            layers: need(self.num_hidden_layers, "num_hidden_layers")?,
            heads,
            kv_heads,
            head_width,
            context: need(self.max_position_embeddings, "max_position_embeddings")?,
            norm_epsilon: self.rms_norm_eps.unwrap_or(1e-6) as f32,
            frequencies: rope.frequencies(theta, head_width).map_err(wrong)?,
            tied: self.tie_word_embeddings,
            end_tokens,
        })
    }
}

impl RawRope {
    /// θ^(−2i/width) for each pair of components, scaled as the checkpoint wants it (transformers'
    /// `modeling_rope_utils`).
    fn frequencies(&self, theta: f64, head_width: usize) -> std::result::Result<Vec<f64>, String> {
        let plain = (0..head_width / 2).map(|i| theta.powf(-(2.0 * i as f64) / head_width as f64));
        let need = |value: Option<f64>, name: &str| {
            value.filter(|v| *v > 0.0).ok_or_else(|| {
                format!(
                    "the rope scaling's `{name}` is missing; give the value that the model was trained with"
                )
            })
        };
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(plain.collect()),
            Some("linear") => {
                let factor = need(self.factor, "factor")?;
                Ok(plain.map(|frequency| frequency / factor).collect())
            }
            Some("llama3") => {
                let factor = need(self.factor, "factor")?;
                let low = need(self.low_freq_factor, "low_freq_factor")?;
                let high = need(self.high_freq_factor, "high_freq_factor")?;
                let length = need(self.original_max_position_embeddings, "original_max_position_embeddings")?;
                Ok(plain.map(|frequency| llama3_scaled(frequency, factor, low, high, length)).collect())
            }
            Some(other) => {
                Err(format!("rope scaling {other:?} is not supported; use default, linear or llama3"))
            }
        }
    }
}

/// Llama 3.1's scaling: slow components are slowed down by `factor`, fast ones stay, those between are blended.
fn llama3_scaled(frequency: f64, factor: f64, low: f64, high: f64, trained_length: f64) -> f64 {
    let wavelength = 2.0 * std::f64::consts::PI / frequency;
    if wavelength < trained_length / high {
        return frequency;
    }
    if wavelength > trained_length / low {
        return frequency / factor;
    }
    let smooth = (trained_length / wavelength - low) / (high - low);
    (1.0 - smooth) * frequency / factor + smooth * frequency
}
