//! BERT on any of candle's devices: texts of a batch padded to the longest, with an attention mask. This is what
//! runs on a GPU; on a CPU [`super::packed`] is faster.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config, HiddenAct};

use super::{
    Pooling,
    bert::{BertWeights, Linear, Norm},
    config::{Activation, BertConfig},
    model::{BatchSize, TextModel, pool},
};
use crate::Result;

/// A BERT that embeds padded texts.
pub(crate) struct PaddedBert {
    model: BertModel,
    device: Device,
    pooling: Pooling,
    hidden: usize,
}

impl PaddedBert {
    /// Moves the weights to the device.
    pub(crate) fn new(
        weights: BertWeights,
        config: &BertConfig,
        pooling: Pooling,
        device: Device,
    ) -> Result<Self> {
        let tensors = named_tensors(weights, config, &device)?;
        let candle_config = Config {
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.layers,
            num_attention_heads: config.heads,
            intermediate_size: config.intermediate_size,
            hidden_act: match config.activation {
                Activation::Gelu => HiddenAct::Gelu,
                Activation::GeluTanh => HiddenAct::GeluApproximate,
                Activation::Relu => HiddenAct::Relu,
            },
            max_position_embeddings: config.longest_text(),
            type_vocab_size: 1,
            layer_norm_eps: config.layer_norm_epsilon,
            ..Config::default()
        };
        let model = BertModel::load(VarBuilder::from_tensors(tensors, DType::F32, &device), &candle_config)?;
        Ok(Self { model, device, pooling, hidden: config.hidden_size })
    }
}

/// The weights under the names that candle's BERT looks for. Token type 0 is within the positions already, so the
/// table of types is one row of zeros.
fn named_tensors(
    weights: BertWeights,
    config: &BertConfig,
    device: &Device,
) -> Result<HashMap<String, Tensor>> {
    let hidden = config.hidden_size;
    let mut tensors = HashMap::new();
    let mut put = |name: String, values: Vec<f32>, shape: &[usize]| -> Result<()> {
        tensors.insert(name, Tensor::from_vec(values, shape, device)?);
        Ok(())
    };
    put("embeddings.word_embeddings.weight".into(), weights.words, &[config.vocab_size, hidden])?;
    put("embeddings.position_embeddings.weight".into(), weights.positions, &[config.longest_text(), hidden])?;
    put("embeddings.token_type_embeddings.weight".into(), vec![0.0; hidden], &[1, hidden])?;
    let mut norms = vec![("embeddings.LayerNorm".to_owned(), weights.norm)];
    let mut linears: Vec<(String, Linear)> = Vec::new();
    for (index, layer) in weights.layers.into_iter().enumerate() {
        let name = |part: &str| format!("encoder.layer.{index}.{part}");
        linears.push((name("attention.self.query"), layer.query));
        linears.push((name("attention.self.key"), layer.key));
        linears.push((name("attention.self.value"), layer.value));
        linears.push((name("attention.output.dense"), layer.output));
        linears.push((name("intermediate.dense"), layer.up));
        linears.push((name("output.dense"), layer.down));
        norms.push((name("attention.output.LayerNorm"), layer.attention_norm));
        norms.push((name("output.LayerNorm"), layer.output_norm));
    }
    for (name, Linear { weight, bias }) in linears {
        let outputs = bias.len();
        let inputs = weight.len() / outputs;
        put(format!("{name}.weight"), weight, &[outputs, inputs])?;
        put(format!("{name}.bias"), bias, &[outputs])?;
    }
    for (name, Norm { weight, bias }) in norms {
        put(format!("{name}.weight"), weight, &[hidden])?;
        put(format!("{name}.bias"), bias, &[hidden])?;
    }
    Ok(tensors)
}

impl TextModel for PaddedBert {
    fn cost(&self, batch: BatchSize) -> usize {
        batch.texts * batch.longest
    }

    fn vectors(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let longest = texts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![vec![0.0; self.hidden]; texts.len()]);
        }
        let mut ids = vec![0u32; texts.len() * longest];
        let mut mask = vec![0u32; texts.len() * longest];
        for (row, text) in texts.iter().enumerate() {
            let start = row * longest;
            ids[start..start + text.len()].copy_from_slice(text);
            mask[start..start + text.len()].fill(1);
        }
        let shape = (texts.len(), longest);
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        let mask = Tensor::from_vec(mask, shape, &self.device)?;
        let states = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let vectors = match self.pooling {
            Pooling::Cls => states.narrow(1, 0, 1)?.squeeze(1)?,
            Pooling::Mean => {
                let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
                let sums = states.broadcast_mul(&mask)?.sum(1)?;
                sums.broadcast_div(&mask.sum(1)?.clamp(1.0, f64::from(u32::MAX))?)?
            }
        };
        let mut vectors = vectors.to_vec2::<f32>()?;
        for (vector, text) in vectors.iter_mut().zip(texts) {
            if text.is_empty() {
                *vector = pool(&[], self.hidden, self.pooling);
            }
        }
        Ok(vectors)
    }
}
