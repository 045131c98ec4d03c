//! A trainable decoder out of a checkpoint.

use candle_core::Device;

use super::{Layer, Network, TrainableOptions};
use crate::{
    Result,
    decoder::config::DecoderConfig,
    folder::Tensors,
    trainable::{
        Parameters, ZeroGradient,
        modules::{Linear, Loader},
    },
};

/// Reads the weights; what trains comes back beside the model.
pub(super) fn read(
    tensors: &Tensors,
    config: DecoderConfig,
    options: &TrainableOptions,
    device: &Device,
) -> Result<(Network, Parameters)> {
    let mut loader = Loader::new(tensors, options, device)?;
    let hidden = config.hidden;
    // Some files keep the model without its head, and then without the prefix.
    let prefix = if loader.contains("model.embed_tokens.weight") { "model." } else { "" };
    let table = [config.vocabulary, hidden];
    let words = loader.weight(&format!("{prefix}embed_tokens.weight"), &table, ZeroGradient::Never)?;
    let layers = (0..config.layers)
        .map(|index| layer(&mut loader, &config, prefix, &format!("layers.{index}.")))
        .collect::<Result<_>>()?;
    let norm = loader.norm(&format!("{prefix}norm"), hidden, false)?;
    let head = match config.tied {
        true => words.clone(),
        false => loader.weight("lm_head.weight", &table, ZeroGradient::Never)?,
    };
    Ok((Network { config, words, head, norm, layers }, loader.finish()?))
}

fn layer(loader: &mut Loader<'_>, config: &DecoderConfig, prefix: &str, part: &str) -> Result<Layer> {
    let (hidden, wide) = (config.hidden, config.intermediate);
    let (queries, keys) = (config.heads * config.head_width, config.kv_heads * config.head_width);
    let attention_norm = loader.norm(&format!("{prefix}{part}input_layernorm"), hidden, false)?;
    let feed_forward_norm = loader.norm(&format!("{prefix}{part}post_attention_layernorm"), hidden, false)?;
    let mut linear = |module: &str, outputs: usize, inputs: usize| -> Result<Linear> {
        let name = format!("{prefix}{part}{module}");
        let bias = loader.contains(&format!("{name}.bias"));
        loader.linear(&name, &format!("model.{part}{module}"), [outputs, inputs], bias, ZeroGradient::Never)
    };
    Ok(Layer {
        attention_norm,
        query: linear("self_attn.q_proj", queries, hidden)?,
        key: linear("self_attn.k_proj", keys, hidden)?,
        value: linear("self_attn.v_proj", keys, hidden)?,
        output: linear("self_attn.o_proj", hidden, queries)?,
        feed_forward_norm,
        gate: linear("mlp.gate_proj", wide, hidden)?,
        up: linear("mlp.up_proj", wide, hidden)?,
        down: linear("mlp.down_proj", hidden, wide)?,
    })
}
