//! A trainable BERT out of a checkpoint.

use candle_core::Device;
use serde::Deserialize;

use super::{Bert, Layer, TrainableOptions};
use crate::{
    Result,
    encoder::{
        bert::{Names, naming},
        checkpoint::Checkpoint,
        config::{Architecture, BertConfig},
    },
    folder::read_json,
    trainable::{
        Parameters, ZeroGradient,
        modules::{Linear, Loader},
    },
};

/// The dropout that a model was trained with; transformers' defaults where config.json is silent.
#[derive(Deserialize)]
struct Dropout {
    #[serde(alias = "dropout")]
    hidden_dropout_prob: Option<f32>,
    #[serde(alias = "attention_dropout")]
    attention_probs_dropout_prob: Option<f32>,
}

/// Reads the weights; what trains comes back beside the model.
pub(super) fn read(
    checkpoint: &Checkpoint,
    options: &TrainableOptions,
    device: &Device,
) -> Result<(Bert, Parameters)> {
    let Architecture::Bert(config) = &checkpoint.architecture;
    let (prefix, names) = naming(&checkpoint.tensors, config.family)?;
    let folder = checkpoint.tokenizer.parent().unwrap_or(&checkpoint.folder);
    let dropout: Dropout = read_json(&folder.join("config.json"), "fetch the checkpoint again")?;
    let mut loader = Loader::new(&checkpoint.tensors, options, device)?;
    let hidden = config.hidden_size;
    let name = |part: &str| format!("{prefix}embeddings.{part}");
    let never = ZeroGradient::Never;
    let words = loader.weight(&name("word_embeddings.weight"), &[config.vocab_size, hidden], never)?;
    let positions =
        loader.weight(&name("position_embeddings.weight"), &[config.position_rows, hidden], never)?;
    let types = match config.token_types {
        0 => None,
        types => Some(loader.weight(&name("token_type_embeddings.weight"), &[types, hidden], never)?),
    };
    let norm = loader.norm(&name("LayerNorm"), hidden, true)?;
    let layers = (0..config.layers)
        .map(|index| layer(&mut loader, config, prefix, &format!("{}.{index}.", names.layer), names))
        .collect::<Result<_>>()?;
    let bert = Bert {
        config: config.clone(),
        hidden_dropout: options.dropout.unwrap_or(dropout.hidden_dropout_prob.unwrap_or(0.1)),
        attention_dropout: options.dropout.unwrap_or(dropout.attention_probs_dropout_prob.unwrap_or(0.1)),
        words,
        positions,
        types,
        norm,
        layers,
    };
    Ok((bert, loader.finish()?))
}

fn layer(
    loader: &mut Loader<'_>,
    config: &BertConfig,
    prefix: &str,
    module: &str,
    names: &Names,
) -> Result<Layer> {
    let (hidden, wide) = (config.hidden_size, config.intermediate_size);
    let mut linear =
        |part: &str, outputs: usize, inputs: usize, bias_gradient: ZeroGradient| -> Result<Linear> {
            let module = format!("{module}{part}");
            loader.linear(&format!("{prefix}{module}"), &module, [outputs, inputs], true, bias_gradient)
        };
    let never = ZeroGradient::Never;
    let query = linear(names.query, hidden, hidden, never)?;
    let key = linear(names.key, hidden, hidden, ZeroGradient::Always)?;
    let value = linear(names.value, hidden, hidden, never)?;
    let output = linear(names.output, hidden, hidden, never)?;
    let up = linear(names.up, wide, hidden, never)?;
    let down = linear(names.down, hidden, wide, never)?;
    let mut norm = |part: &str| loader.norm(&format!("{prefix}{module}{part}"), hidden, true);
    let attention_norm = norm(names.attention_norm)?;
    let output_norm = norm(names.output_norm)?;
    Ok(Layer { query, key, value, output, attention_norm, up, down, output_norm })
}
