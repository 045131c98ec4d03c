//! A trainable BERT by candle's own operations.

use candle_core::{DType, Device, Tensor};

use super::{
    Bert, Layer, Packed, Pass,
    fused::{AFTER_ATTENTION, AFTER_FEED_FORWARD, ATTENTION, EMBEDDINGS},
};
use crate::{
    Pooling, Result,
    encoder::config::Activation,
    trainable::{
        Gradients, Parameters,
        plain::{
            Kept,
            attention::{Heads, Padded},
            backward_layers, backward_to_parameters,
            ops::{dropout, layer_norm, linear, rows},
            run_layers,
        },
    },
};

/// What a forward pass has kept.
pub(super) struct Tape {
    packed: Packed,
    pass: Pass,
    /// The embeddings with their graph.
    embeddings: Tensor,
    layers: Vec<Kept>,
    /// texts × rows: what each row contributes to each vector.
    shares: Tensor,
}

impl Bert {
    /// The pooled vectors, texts × hidden, f32.
    pub(super) fn embed_plain(
        &self,
        packed: &Packed,
        pooling: Pooling,
        pass: Pass,
    ) -> Result<(Tensor, Tape)> {
        let device = self.words.tensor.device();
        let embeddings = self.embeddings_plain(packed, pass)?;
        let padded = Padded::new(packed, false, device)?;
        let run = |index: usize, layer: &Layer, states: &Tensor| {
            self.layer_plain(layer, states, &padded, pass.of_layer(index))
        };
        let (states, layers) = run_layers(&self.layers, embeddings.detach(), pass.keep, run)?;
        let shares = shares(packed, pooling, device)?;
        let vectors = shares.matmul(&states.to_dtype(DType::F32)?)?;
        Ok((vectors, Tape { packed: packed.clone(), pass, embeddings, layers, shares }))
    }

    /// Adds the gradients of all that trains.
    pub(super) fn backward_plain(
        &self,
        tape: Tape,
        vectors: &Tensor,
        parameters: &Parameters,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let device = self.words.tensor.device();
        let padded = Padded::new(&tape.packed, false, device)?;
        let run = |index: usize, layer: &Layer, states: &Tensor| {
            self.layer_plain(layer, states, &padded, tape.pass.of_layer(index))
        };
        let gradient = tape.shares.t()?.matmul(&vectors.detach())?;
        let gradient = backward_layers(&self.layers, tape.layers, gradient, parameters, gradients, run)?;
        if self.words.trains.is_some() {
            backward_to_parameters(&tape.embeddings, &gradient, parameters, gradients)?;
        }
        Ok(())
    }

    fn embeddings_plain(&self, packed: &Packed, pass: Pass) -> Result<Tensor> {
        let first = self.config.first_position as u32;
        let positions: Vec<u32> = packed.positions.iter().map(|position| first + position).collect();
        let mut sum = (rows(&self.words, &packed.ids)? + rows(&self.positions, &positions)?)?;
        if let Some(types) = &self.types {
            sum = (sum + rows(types, &vec![0; packed.rows()])?)?;
        }
        let normal = layer_norm(&sum, &self.norm, self.config.layer_norm_epsilon)?;
        dropout(&normal, pass, EMBEDDINGS, self.hidden_dropout)
    }

    fn layer_plain(&self, layer: &Layer, input: &Tensor, padded: &Padded, pass: Pass) -> Result<Tensor> {
        let config = &self.config;
        let width = config.hidden_size / config.heads;
        let heads = Heads { queries: config.heads, keys: config.heads, width };
        let project = |part| padded.spread(&linear(input, part, pass)?, config.heads, width);
        let (query, key, value) = (project(&layer.query)?, project(&layer.key)?, project(&layer.value)?);
        let context =
            padded.attend([&query, &key, &value], heads, pass, (ATTENTION, self.attention_dropout))?;
        let output = linear(&context, &layer.output, pass)?;
        let output = dropout(&output, pass, AFTER_ATTENTION, self.dropout_after_attention())?;
        let middle = layer_norm(&(output + input)?, &layer.attention_norm, config.layer_norm_epsilon)?;
        let wide = linear(&middle, &layer.up, pass)?;
        let activated = match config.activation {
            Activation::Gelu => wide.gelu_erf()?,
            Activation::GeluTanh => wide.gelu()?,
            Activation::Relu => wide.relu()?,
        };
        let output = linear(&activated, &layer.down, pass)?;
        let output = dropout(&output, pass, AFTER_FEED_FORWARD, self.hidden_dropout)?;
        layer_norm(&(output + middle)?, &layer.output_norm, config.layer_norm_epsilon)
    }
}

/// What each row contributes to each text's vector.
fn shares(packed: &Packed, pooling: Pooling, device: &Device) -> Result<Tensor> {
    let (texts, rows) = (packed.groups.len(), packed.rows());
    let mut shares = vec![0f32; texts * rows];
    for (text, group) in packed.groups.iter().enumerate() {
        let out = &mut shares[text * rows + group.start..][..group.rows()];
        match pooling {
            Pooling::Mean => out.fill(1.0 / group.rows() as f32),
            Pooling::Cls => out[0] = 1.0,
        }
    }
    Ok(Tensor::from_vec(shares, (texts, rows), device)?)
}
