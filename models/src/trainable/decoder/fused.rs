//! A trainable decoder on a CPU: forward and backward over packed sequences, written out by hand.

use std::sync::Arc;

use super::{CompletionBatch, Layer, Network, Packed, Pass};
use crate::{
    Error, Result,
    trainable::{
        Gradients,
        cpu::{
            activation::{gate, gate_backward},
            attention::{Attention, Projection, Projections},
            head,
            linear::{Context, add_gradient},
            memory::{Memory, Scratch},
            norm::{rms_norm, rms_norm_backward},
            rotary::Rotary,
            rows::{add, over_rows},
            view::View,
        },
        modules::{Linear, Norm},
        options::Keep,
    },
};

/// What a forward pass has kept.
pub(super) struct Tape {
    batch: CompletionBatch,
    pass: Pass,
    rotary: Arc<Rotary>,
    layers: Vec<Kept>,
    head: Option<HeadActivations>,
}

/// What it has kept of a layer.
struct Kept {
    input: Scratch,
    activations: Option<Activations>,
}

/// What a layer's backward pass needs besides its input.
struct Activations {
    query: Scratch,
    key: Scratch,
    value: Scratch,
    context: Scratch,
    /// After the attention's residual.
    middle: Scratch,
    gate: Scratch,
    up: Scratch,
}

/// What the head's backward pass needs.
struct HeadActivations {
    /// The last layer's output.
    states: Scratch,
    /// The normed states of the rows that predict, for a head that trains.
    predicting: Option<Scratch>,
    /// The gradients of log-probabilities with respect to these states.
    slopes: Scratch,
}

impl Network {
    /// The targets' log-probabilities.
    pub(super) fn log_probabilities_fused(
        &self,
        batch: &CompletionBatch,
        pass: Pass,
        rotary: Arc<Rotary>,
        memory: &Memory,
    ) -> Result<(Vec<f32>, Tape)> {
        let packed = &batch.packed;
        let hidden = self.config.hidden;
        let mut tape = Tape { batch: batch.clone(), pass, rotary, layers: Vec::new(), head: None };
        let mut states = memory.take(packed.rows() * hidden);
        {
            let words = View::of(&self.words.tensor)?;
            over_rows(&mut states, hidden, |first, rows| {
                for (row, id) in rows.chunks_exact_mut(hidden).zip(&packed.ids[first..]) {
                    row.copy_from_slice(&words[*id as usize * hidden..][..hidden]);
                }
            });
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let context = Context { memory, pass: pass.of_layer(index), rows: packed.rows() };
            let (output, activations) = self.forward_layer(layer, packed, &states, &tape.rotary, context)?;
            let input = std::mem::replace(&mut states, output);
            match pass.keep {
                Keep::Nothing => {}
                Keep::LayerInputs => tape.layers.push(Kept { input, activations: None }),
                Keep::Activations => tape.layers.push(Kept { input, activations: Some(activations) }),
            }
        }
        let values = self.forward_head(states, &mut tape, memory)?;
        Ok((values, tape))
    }

    /// Adds the gradients of all that trains.
    pub(super) fn backward_fused(
        &self,
        tape: Tape,
        targets: &[f32],
        memory: &Memory,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Tape { batch, pass, rotary, mut layers, head } = tape;
        let Some(head) = head else {
            return Err(Error::Input("the forward pass kept nothing for a backward pass".into()));
        };
        if targets.len() != batch.targets() {
            return Err(Error::Input(format!("{} gradients for {} targets", targets.len(), batch.targets())));
        }
        let packed = &batch.packed;
        let mut gradient = self.backward_head(head, &batch, targets, memory, gradients)?;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let context = Context { memory, pass: pass.of_layer(index), rows: packed.rows() };
            let Some(Kept { input, activations }) = layers.pop() else { break };
            let activations = match activations {
                Some(activations) => activations,
                None => self.forward_layer(layer, packed, &input, &rotary, context)?.1,
            };
            let wanted = index > 0 || self.words.trains.is_some();
            let attention = self.attention(packed, &rotary);
            gradient = self.backward_layer(
                layer,
                attention,
                &input,
                activations,
                gradient,
                wanted,
                context,
                gradients,
            )?;
        }
        if let Some(index) = self.words.trains {
            let hidden = self.config.hidden;
            let words = gradients.zeroed_memory(index);
            for (row, id) in gradient.chunks_exact(hidden).zip(&packed.ids) {
                add(&mut words[*id as usize * hidden..][..hidden], row);
            }
        }
        Ok(())
    }

    fn attention<'a>(&'a self, packed: &'a Packed, rotary: &'a Rotary) -> Attention<'a> {
        Attention {
            packed,
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            width: self.config.head_width,
            causal: true,
            rotary: Some(rotary),
            dropout: None,
        }
    }

    fn forward_layer(
        &self,
        layer: &Layer,
        packed: &Packed,
        input: &[f32],
        rotary: &Rotary,
        context: Context<'_>,
    ) -> Result<(Scratch, Activations)> {
        let memory = context.memory;
        let mut normal = memory.take(input.len());
        self.norm_forward(&mut normal, input, &layer.attention_norm)?;
        let query = layer.query.forward(&normal, context)?;
        let key = layer.key.forward(&normal, context)?;
        let value = layer.value.forward(&normal, context)?;
        let mut attended = memory.take(query.len());
        let biases = [layer.query.bias()?, layer.key.bias()?, layer.value.bias()?];
        let inputs = projections([&query, &key, &value], [&biases[0], &biases[1], &biases[2]]);
        self.attention(packed, rotary).forward(&mut attended, inputs, memory);
        let mut middle = forward_with_bias(&layer.output, &attended, context)?;
        add_rows(&mut middle, input, self.config.hidden);
        self.norm_forward(&mut normal, &middle, &layer.feed_forward_norm)?;
        let gate_in = forward_with_bias(&layer.gate, &normal, context)?;
        let up = forward_with_bias(&layer.up, &normal, context)?;
        drop(normal);
        let mut gated = memory.take(up.len());
        gate(&mut gated, &gate_in, &up, self.config.intermediate);
        let mut output = forward_with_bias(&layer.down, &gated, context)?;
        add_rows(&mut output, &middle, self.config.hidden);
        Ok((output, Activations { query, key, value, context: attended, middle, gate: gate_in, up }))
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_layer(
        &self,
        layer: &Layer,
        attention: Attention<'_>,
        input: &[f32],
        kept: Activations,
        mut gradient: Scratch,
        wanted: bool,
        context: Context<'_>,
        gradients: &mut Gradients,
    ) -> Result<Scratch> {
        let (memory, wide) = (context.memory, self.config.intermediate);
        let mut gated = memory.take(kept.up.len());
        gate(&mut gated, &kept.gate, &kept.up, wide);
        let mut d_gate = memory.take(kept.up.len());
        layer.down.backward(&gated, &gradient, Some((&mut d_gate, false)), context, gradients)?;
        let mut d_up = gated;
        gate_backward(&mut d_gate, &mut d_up, &kept.gate, &kept.up, wide);
        let mut normal = memory.take(input.len());
        self.norm_forward(&mut normal, &kept.middle, &layer.feed_forward_norm)?;
        let mut d_normal = memory.take(input.len());
        layer.gate.backward(&normal, &d_gate, Some((&mut d_normal, false)), context, gradients)?;
        layer.up.backward(&normal, &d_up, Some((&mut d_normal, true)), context, gradients)?;
        drop((d_gate, d_up));
        self.norm_backward(&mut gradient, &d_normal, &kept.middle, &layer.feed_forward_norm, gradients)?;

        let mut d_context = memory.take(kept.context.len());
        layer.output.backward(&kept.context, &gradient, Some((&mut d_context, false)), context, gradients)?;
        let [mut d_query, mut d_key, mut d_value] =
            [&kept.query, &kept.key, &kept.value].map(|values| memory.take(values.len()));
        let biases = [layer.query.bias()?, layer.key.bias()?, layer.value.bias()?];
        let inputs = projections([&kept.query, &kept.key, &kept.value], [&biases[0], &biases[1], &biases[2]]);
        attention.backward(&d_context, inputs, [&mut d_query, &mut d_key, &mut d_value], memory);
        self.norm_forward(&mut normal, input, &layer.attention_norm)?;
        let parts = [(&layer.query, d_query), (&layer.key, d_key), (&layer.value, d_value)];
        // A norm that trains needs the gradient of its output even where nobody wants that of its input.
        let wanted = wanted || layer.attention_norm.weight.trains.is_some();
        for (part, (linear, d_output)) in parts.into_iter().enumerate() {
            let d_input = wanted.then_some((&mut *d_normal, part > 0));
            linear.backward(&normal, &d_output, d_input, context, gradients)?;
        }
        if wanted {
            self.norm_backward(&mut gradient, &d_normal, input, &layer.attention_norm, gradients)?;
        }
        Ok(gradient)
    }

    /// The log-probabilities from the last layer's output.
    fn forward_head(&self, states: Scratch, tape: &mut Tape, memory: &Memory) -> Result<Vec<f32>> {
        let hidden = self.config.hidden;
        let batch = &tape.batch;
        let mut normal = memory.take(states.len());
        self.norm_forward(&mut normal, &states, &self.norm)?;
        let mut predicting = memory.take(batch.targets() * hidden);
        for (row, place) in predicting.chunks_exact_mut(hidden).zip(&batch.rows) {
            row.copy_from_slice(&normal[*place as usize * hidden..][..hidden]);
        }
        drop(normal);
        let head = View::of(&self.head.tensor)?;
        if tape.pass.keep == Keep::Nothing {
            return Ok(head::log_probabilities(&predicting, &head, &batch.targets, None, memory));
        }
        let mut slopes = memory.take(predicting.len());
        let found = head::log_probabilities(&predicting, &head, &batch.targets, Some(&mut slopes), memory);
        let predicting = self.head.trains.map(|_| predicting);
        tape.head = Some(HeadActivations { states, predicting, slopes });
        Ok(found)
    }

    /// The gradient of the last layer's output.
    fn backward_head(
        &self,
        kept: HeadActivations,
        batch: &CompletionBatch,
        targets: &[f32],
        memory: &Memory,
        gradients: &mut Gradients,
    ) -> Result<Scratch> {
        let hidden = self.config.hidden;
        if let (Some(index), Some(predicting)) = (self.head.trains, &kept.predicting) {
            let head = View::of(&self.head.tensor)?;
            let (d_head, add) = gradients.memory(index);
            head::weight_gradient(d_head, add, predicting, &head, &batch.targets, targets, memory);
        }
        let mut d_normal = memory.take(kept.states.len());
        d_normal.fill(0.0);
        let rows = kept.slopes.chunks_exact(hidden).zip(&batch.rows).zip(targets);
        for ((slope, place), target) in rows {
            let out = &mut d_normal[*place as usize * hidden..][..hidden];
            out.iter_mut().zip(slope).for_each(|(out, slope)| *out += *slope * *target);
        }
        let mut gradient = memory.take(kept.states.len());
        gradient.fill(0.0);
        self.norm_backward(&mut gradient, &d_normal, &kept.states, &self.norm, gradients)?;
        Ok(gradient)
    }

    fn norm_forward(&self, out: &mut [f32], x: &[f32], norm: &Norm) -> Result<()> {
        rms_norm(out, x, &View::of(&norm.weight.tensor)?, self.config.norm_epsilon);
        Ok(())
    }

    /// Adds the gradient of a norm's input to `dx`.
    fn norm_backward(
        &self,
        dx: &mut [f32],
        gradient: &[f32],
        x: &[f32],
        norm: &Norm,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let weight = View::of(&norm.weight.tensor)?;
        let d_weight = rms_norm_backward(dx, gradient, x, &weight, self.config.norm_epsilon);
        add_gradient(gradients, &norm.weight, &d_weight);
        Ok(())
    }
}

fn projections<'a>(rows: [&'a [f32]; 3], biases: [&'a [f32]; 3]) -> Projections<'a> {
    let projection = |part: usize| Projection { rows: rows[part], bias: biases[part] };
    Projections { query: projection(0), key: projection(1), value: projection(2) }
}

/// A linear layer, with the bias that some checkpoints have where most have none.
fn forward_with_bias(layer: &Linear, x: &[f32], context: Context<'_>) -> Result<Scratch> {
    let mut y = layer.forward(x, context)?;
    let bias = layer.bias()?;
    if !bias.is_empty() {
        over_rows(&mut y, bias.len(), |_, rows| {
            rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, &bias));
        });
    }
    Ok(y)
}

/// sums += values, row by row.
fn add_rows(sums: &mut [f32], values: &[f32], width: usize) {
    over_rows(sums, width, |first, rows| add(rows, &values[first * width..][..rows.len()]));
}
