//! The weights of a BERT, whatever its tensors are called in the file.

use super::config::{BertConfig, Family};
use crate::{
    Result,
    folder::{Tensors, checkpoint_error},
};

/// y = x·Wᵀ + b.
pub(crate) struct Linear {
    /// Outputs × inputs, row by row.
    pub(crate) weight: Vec<f32>,
    /// One a row.
    pub(crate) bias: Vec<f32>,
}

/// The scale and shift of a layer norm.
pub(crate) struct Norm {
    /// Scale.
    pub(crate) weight: Vec<f32>,
    /// Shift.
    pub(crate) bias: Vec<f32>,
}

/// One transformer layer.
pub(crate) struct Layer {
    /// Query projection.
    pub(crate) query: Linear,
    /// Key projection.
    pub(crate) key: Linear,
    /// Value projection.
    pub(crate) value: Linear,
    /// What follows the heads.
    pub(crate) output: Linear,
    /// After the attention's residual.
    pub(crate) attention_norm: Norm,
    /// Hidden to intermediate.
    pub(crate) up: Linear,
    /// Intermediate to hidden.
    pub(crate) down: Linear,
    /// After the feed-forward's residual.
    pub(crate) output_norm: Norm,
}

/// All of it.
pub(crate) struct BertWeights {
    /// vocabulary × hidden.
    pub(crate) words: Vec<f32>,
    /// Longest text × hidden: the first row is the first token's, and token type 0 is added in.
    pub(crate) positions: Vec<f32>,
    /// After the embeddings.
    pub(crate) norm: Norm,
    /// First to last.
    pub(crate) layers: Vec<Layer>,
}

/// What a family calls the parts of a layer, relative to the layer.
pub(crate) struct Names {
    /// What stands before the layer's number.
    pub(crate) layer: &'static str,
    /// Query projection.
    pub(crate) query: &'static str,
    /// Key projection.
    pub(crate) key: &'static str,
    /// Value projection.
    pub(crate) value: &'static str,
    /// What follows the heads.
    pub(crate) output: &'static str,
    /// After the attention's residual.
    pub(crate) attention_norm: &'static str,
    /// Hidden to intermediate.
    pub(crate) up: &'static str,
    /// Intermediate to hidden.
    pub(crate) down: &'static str,
    /// After the feed-forward's residual.
    pub(crate) output_norm: &'static str,
}

const BERT: Names = Names {
    layer: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    output_norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    layer: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    output_norm: "output_layer_norm",
};

impl BertWeights {
    /// Reads the weights that `config` describes. Tensor names may carry the family's prefix (`bert.`, …), as in
    /// checkpoints with a task head, and layer norms may be called gamma and beta, as in the oldest.
    pub(crate) fn read(tensors: &Tensors, config: &BertConfig) -> Result<Self> {
        let source = Source::new(tensors, config)?;
        let hidden = config.hidden_size;
        let mut positions =
            source.read("embeddings.position_embeddings.weight", &[config.position_rows, hidden])?;
        positions.drain(..config.first_position * hidden);
        if config.token_types > 0 {
            let types =
                source.read("embeddings.token_type_embeddings.weight", &[config.token_types, hidden])?;
            for row in positions.chunks_exact_mut(hidden) {
                for (value, first_type) in row.iter_mut().zip(&types[..hidden]) {
                    *value += *first_type;
                }
            }
        }
        Ok(Self {
            words: source.read("embeddings.word_embeddings.weight", &[config.vocab_size, hidden])?,
            positions,
            norm: source.norm("embeddings.LayerNorm", hidden)?,
            layers: (0..config.layers).map(|index| source.layer(index, config)).collect::<Result<_>>()?,
        })
    }
}

struct Source<'a> {
    tensors: &'a Tensors,
    prefix: &'static str,
    names: &'static Names,
}

/// The prefix of the tensor names in this file (`bert.` or none, …), and what the family calls the parts of a layer.
pub(crate) fn naming(tensors: &Tensors, family: Family) -> Result<(&'static str, &'static Names)> {
    let (prefixes, names): (&[&'static str], _) = match family {
        Family::Bert => (&["", "bert."], &BERT),
        Family::Roberta => (&["", "roberta."], &BERT),
        Family::DistilBert => (&["", "distilbert."], &DISTILBERT),
    };
    let anchor = "embeddings.word_embeddings.weight";
    let prefix = prefixes.iter().find(|prefix| tensors.contains(&format!("{prefix}{anchor}")));
    let prefix = prefix.ok_or_else(|| {
        let detail = format!(
            "no tensor `{anchor}` (nor with the prefix `{}`); its model_type and weights differ",
            prefixes[1]
        );
        checkpoint_error(&tensors.files()[0], detail)
    })?;
    Ok((prefix, names))
}

impl<'a> Source<'a> {
    fn new(tensors: &'a Tensors, config: &BertConfig) -> Result<Self> {
        let (prefix, names) = naming(tensors, config.family)?;
        Ok(Self { tensors, prefix, names })
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.tensors.read(&format!("{}{name}", self.prefix), shape)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let old = self.tensors.contains(&format!("{}{name}.gamma", self.prefix));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        Ok(Norm {
            weight: self.read(&format!("{name}.{weight}"), &[width])?,
            bias: self.read(&format!("{name}.{bias}"), &[width])?,
        })
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        Ok(Linear {
            weight: self.read(&format!("{name}.weight"), &[outputs, inputs])?,
            bias: self.read(&format!("{name}.bias"), &[outputs])?,
        })
    }

    fn layer(&self, index: usize, config: &BertConfig) -> Result<Layer> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("{}.{index}.{part}", self.names.layer);
        Ok(Layer {
            query: self.linear(&name(self.names.query), hidden, hidden)?,
            key: self.linear(&name(self.names.key), hidden, hidden)?,
            value: self.linear(&name(self.names.value), hidden, hidden)?,
            output: self.linear(&name(self.names.output), hidden, hidden)?,
            attention_norm: self.norm(&name(self.names.attention_norm), hidden)?,
            up: self.linear(&name(self.names.up), intermediate, hidden)?,
            down: self.linear(&name(self.names.down), hidden, intermediate)?,
            output_norm: self.norm(&name(self.names.output_norm), hidden)?,
        })
    }
}
