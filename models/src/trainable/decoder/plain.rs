//! A trainable decoder by candle's own operations.

use candle_core::{D, DType, Device, Tensor};

use super::{CompletionBatch, Layer, Network, Packed, Pass};
use crate::{
    Error, Result,
    trainable::{
        Gradients, Parameters,
        cpu::rotary::Rotary,
        options::Keep,
        plain::{
            Graph, Kept,
            attention::{Heads, Padded},
            backward_layers, backward_to_parameters,
            ops::{linear, product, rms_norm, rows},
            run_layers,
        },
    },
};

/// Rows whose logits are held at a time.
const HEAD_ROWS: usize = 512;

/// What a forward pass has kept.
pub(super) struct Tape {
    batch: CompletionBatch,
    pass: Pass,
    /// The embeddings with their graph.
    embeddings: Tensor,
    layers: Vec<Kept>,
    angles: Angles,
    /// The last layer's output.
    states: Tensor,
}

/// Cosines and sines of padded rows: groups × 1 × longest × half.
struct Angles {
    cos: Tensor,
    sin: Tensor,
    padded: Padded,
}

impl Network {
    /// The targets' log-probabilities.
    pub(super) fn log_probabilities_plain(
        &self,
        batch: &CompletionBatch,
        pass: Pass,
        rotary: &Rotary,
    ) -> Result<(Vec<f32>, Tape)> {
        let embeddings = rows(&self.words, &batch.packed.ids)?;
        let angles = Angles::new(&batch.packed, rotary, self.words.tensor.device())?;
        let run = |index: usize, layer: &Layer, states: &Tensor| {
            self.layer_plain(layer, states, &angles, pass.of_layer(index))
        };
        let (states, layers) = run_layers(&self.layers, embeddings.detach(), pass.keep, run)?;
        let mut values = Vec::with_capacity(batch.targets());
        for start in (0..batch.targets()).step_by(HEAD_ROWS) {
            let end = (start + HEAD_ROWS).min(batch.targets());
            let chunk = self.head_plain(&states, &batch.rows[start..end], &batch.targets[start..end])?;
            values.extend(chunk.to_vec1::<f32>()?);
        }
        let states = if pass.keep == Keep::Nothing { states.narrow(0, 0, 0)? } else { states };
        Ok((values, Tape { batch: batch.clone(), pass, embeddings, layers, angles, states }))
    }

    /// Adds the gradients of all that trains.
    pub(super) fn backward_plain(
        &self,
        tape: Tape,
        targets: &[f32],
        parameters: &Parameters,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let batch = &tape.batch;
        if targets.len() != batch.targets() {
            return Err(Error::Input(format!("{} gradients for {} targets", targets.len(), batch.targets())));
        }
        if tape.layers.is_empty() {
            return Err(Error::Input("the forward pass kept nothing for a backward pass".into()));
        }
        let mut gradient = tape.states.zeros_like()?;
        for start in (0..targets.len()).step_by(HEAD_ROWS) {
            let end = (start + HEAD_ROWS).min(targets.len());
            let graph = Graph::run(&tape.states, |states| {
                self.head_plain(states, &batch.rows[start..end], &batch.targets[start..end])
            })?;
            let chunk = Tensor::from_slice(&targets[start..end], end - start, tape.states.device())?;
            gradient = (gradient + graph.backward(&chunk, parameters, gradients)?)?;
        }
        let run = |index: usize, layer: &Layer, states: &Tensor| {
            self.layer_plain(layer, states, &tape.angles, tape.pass.of_layer(index))
        };
        let gradient = backward_layers(&self.layers, tape.layers, gradient, parameters, gradients, run)?;
        if self.words.trains.is_some() {
            backward_to_parameters(&tape.embeddings, &gradient, parameters, gradients)?;
        }
        Ok(())
    }

    fn layer_plain(&self, layer: &Layer, input: &Tensor, angles: &Angles, pass: Pass) -> Result<Tensor> {
        let config = &self.config;
        let heads = Heads { queries: config.heads, keys: config.kv_heads, width: config.head_width };
        let epsilon = f64::from(config.norm_epsilon);
        let normal = rms_norm(input, &layer.attention_norm, epsilon)?;
        let project =
            |part, heads| angles.padded.spread(&linear(&normal, part, pass)?, heads, config.head_width);
        let query = angles.turn(&project(&layer.query, heads.queries)?)?;
        let key = angles.turn(&project(&layer.key, heads.keys)?)?;
        let value = project(&layer.value, heads.keys)?;
        let context = angles.padded.attend([&query, &key, &value], heads, pass, (0, 0.0))?;
        let middle = (linear(&context, &layer.output, pass)? + input)?;
        let normal = rms_norm(&middle, &layer.feed_forward_norm, epsilon)?;
        let gated = (linear(&normal, &layer.gate, pass)?.silu()? * linear(&normal, &layer.up, pass)?)?;
        Ok((linear(&gated, &layer.down, pass)? + middle)?)
    }

    /// The log-probabilities of `targets` in these rows, f32.
    fn head_plain(&self, states: &Tensor, places: &[u32], targets: &[u32]) -> Result<Tensor> {
        let device = states.device();
        let places = Tensor::from_slice(places, places.len(), device)?;
        let states =
            rms_norm(&states.index_select(&places, 0)?, &self.norm, f64::from(self.config.norm_epsilon))?;
        let logits = product(&states, &self.head)?.to_dtype(DType::F32)?;
        let targets = Tensor::from_slice(targets, (targets.len(), 1), device)?;
        Ok(candle_nn::ops::log_softmax(&logits, D::Minus1)?.gather(&targets, 1)?.squeeze(1)?)
    }
}

impl Angles {
    fn new(packed: &Packed, rotary: &Rotary, device: &Device) -> Result<Self> {
        let padded = Padded::new(packed, true, device)?;
        let (cos, sin) = rotary.tables();
        let half = cos.len() / rotary.positions().max(1);
        let table = |values: &[f32]| -> Result<Tensor> {
            let rows = packed.positions.iter();
            let rows: Vec<f32> = rows.flat_map(|p| &values[*p as usize * half..][..half]).copied().collect();
            padded.spread(&Tensor::from_vec(rows, (packed.rows(), half), device)?, 1, half)
        };
        Ok(Self { cos: table(cos)?, sin: table(sin)?, padded })
    }

    /// Turns queries or keys (groups × heads × longest × width) by their positions.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (cos, sin) = (self.cos.to_dtype(x.dtype())?, self.sin.to_dtype(x.dtype())?);
        let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
        let turned_high = (low.broadcast_mul(&sin)? + high.broadcast_mul(&cos)?)?;
        Ok(Tensor::cat(&[turned_low, turned_high], D::Minus1)?.contiguous()?)
    }
}
