//! A trainable BERT on a CPU: forward and backward over packed texts, written out by hand.

use super::{Bert, Layer, Packed, Pass};
use crate::{
    Error, Pooling, Result,
    trainable::{
        Gradients,
        cpu::{
            activation::{activate, activate_backward, bias_dropout, dropout},
            attention::{Attention, Projection, Projections},
            linear::{Context, add_gradient},
            memory::{Memory, Scratch},
            norm::{layer_norm, layer_norm_backward},
            rows::{add, column_sums, over_rows},
            view::View,
        },
        modules::Norm,
        options::Keep,
        seed::Mask,
    },
};

/// Places of a layer at which something is dropped; those of adapters are small numbers.
pub(super) const ATTENTION: u64 = 1 << 32;
pub(super) const AFTER_ATTENTION: u64 = ATTENTION + 1;
pub(super) const AFTER_FEED_FORWARD: u64 = ATTENTION + 2;
pub(super) const EMBEDDINGS: u64 = ATTENTION + 3;

/// What a forward pass has kept.
pub(super) struct Tape {
    packed: Packed,
    pass: Pass,
    embedding_sums: Option<Scratch>,
    layers: Vec<Kept>,
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
    /// The input of the norm after attention.
    attention_sums: Scratch,
    /// Its output.
    middle: Scratch,
    /// What the feed-forward's activation is applied to, without the bias.
    wide: Scratch,
    /// The input of the norm after the feed-forward.
    output_sums: Scratch,
}

impl Bert {
    /// The pooled vectors, one after the other.
    pub(super) fn embed_fused(
        &self,
        packed: &Packed,
        pooling: Pooling,
        pass: Pass,
        memory: &Memory,
    ) -> Result<(Vec<f32>, Tape)> {
        let (embedding_sums, mut states) = self.embeddings(packed, pass, memory)?;
        let mut tape = Tape { packed: packed.clone(), pass, embedding_sums: None, layers: Vec::new() };
        for (index, layer) in self.layers.iter().enumerate() {
            let context = Context { memory, pass: pass.of_layer(index), rows: packed.rows() };
            let (output, activations) = self.forward_layer(layer, packed, &states, context)?;
            let input = std::mem::replace(&mut states, output);
            match pass.keep {
                Keep::Nothing => {}
                Keep::LayerInputs => tape.layers.push(Kept { input, activations: None }),
                Keep::Activations => tape.layers.push(Kept { input, activations: Some(activations) }),
            }
        }
        if pass.keep != Keep::Nothing {
            tape.embedding_sums = Some(embedding_sums);
        }
        Ok((pool(packed, &states, self.config.hidden_size, pooling), tape))
    }

    /// Adds the gradients of all that trains.
    pub(super) fn backward_fused(
        &self,
        tape: Tape,
        vectors: &[f32],
        pooling: Pooling,
        memory: &Memory,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let Tape { packed, pass, embedding_sums, mut layers } = tape;
        let hidden = self.config.hidden_size;
        let Some(embedding_sums) = embedding_sums else {
            return Err(Error::Input("the forward pass kept nothing for a backward pass".into()));
        };
        if vectors.len() != packed.groups.len() * hidden {
            return Err(Error::Input(format!(
                "a gradient of {} numbers fits no batch of this size",
                vectors.len()
            )));
        }
        let mut gradient = memory.take(packed.rows() * hidden);
        unpool(&packed, vectors, &mut gradient, hidden, pooling);
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let context = Context { memory, pass: pass.of_layer(index), rows: packed.rows() };
            let Some(Kept { input, activations }) = layers.pop() else { break };
            let activations = match activations {
                Some(activations) => activations,
                None => self.forward_layer(layer, &packed, &input, context)?.1,
            };
            let wanted = index > 0 || self.words.trains.is_some();
            gradient = self.backward_layer(
                layer,
                &packed,
                &input,
                activations,
                gradient,
                wanted,
                context,
                gradients,
            )?;
        }
        if self.words.trains.is_some() {
            self.embeddings_backward(&packed, pass, gradient, &embedding_sums, gradients)?;
        }
        Ok(())
    }

    /// The sums of the embeddings, and their norm.
    fn embeddings(&self, packed: &Packed, pass: Pass, memory: &Memory) -> Result<(Scratch, Scratch)> {
        let hidden = self.config.hidden_size;
        let (words, positions) = (View::of(&self.words.tensor)?, View::of(&self.positions.tensor)?);
        let types = self.types.as_ref().map(|types| View::of(&types.tensor)).transpose()?;
        let mut sums = memory.take(packed.rows() * hidden);
        let mut word_rows = memory.take(packed.rows() * hidden);
        over_rows(&mut word_rows, hidden, |first, rows| {
            for (row, id) in rows.chunks_exact_mut(hidden).zip(&packed.ids[first..]) {
                row.copy_from_slice(&words[*id as usize * hidden..][..hidden]);
            }
        });
        over_rows(&mut sums, hidden, |first, rows| {
            for (row, position) in rows.chunks_exact_mut(hidden).zip(&packed.positions[first..]) {
                let position = self.config.first_position + *position as usize;
                row.copy_from_slice(&positions[position * hidden..][..hidden]);
                if let Some(types) = &types {
                    add(row, &types[..hidden]);
                }
            }
        });
        let mut states = memory.take(packed.rows() * hidden);
        self.norm_forward(&mut states, &mut sums, &vec![0.0; hidden], &word_rows, &self.norm)?;
        let context = Context { memory, pass, rows: packed.rows() };
        if let Some(mask) = context.mask(EMBEDDINGS, self.hidden_dropout) {
            bias_dropout(&mut states, &vec![0.0; hidden], mask);
        }
        Ok((sums, states))
    }

    fn embeddings_backward(
        &self,
        packed: &Packed,
        pass: Pass,
        mut gradient: Scratch,
        sums: &[f32],
        gradients: &mut Gradients,
    ) -> Result<()> {
        let hidden = self.config.hidden_size;
        let mask = pass.dropout.filter(|_| self.hidden_dropout > 0.0);
        if let Some(mask) = mask.map(|key| Mask::new(key.child(EMBEDDINGS), self.hidden_dropout)) {
            bias_dropout(&mut gradient, &vec![0.0; hidden], mask);
        }
        self.norm_backward(&mut gradient, sums, &self.norm, gradients)?;
        if let Some(index) = self.words.trains {
            let words = gradients.zeroed_memory(index);
            for (row, id) in gradient.chunks_exact(hidden).zip(&packed.ids) {
                add(&mut words[*id as usize * hidden..][..hidden], row);
            }
        }
        if let Some(index) = self.positions.trains {
            let positions = gradients.zeroed_memory(index);
            for (row, position) in gradient.chunks_exact(hidden).zip(&packed.positions) {
                let position = self.config.first_position + *position as usize;
                add(&mut positions[position * hidden..][..hidden], row);
            }
        }
        if let Some(index) = self.types.as_ref().and_then(|types| types.trains) {
            add(&mut gradients.zeroed_memory(index)[..hidden], &column_sums(&gradient, hidden));
        }
        Ok(())
    }

    fn attention<'a>(&'a self, packed: &'a Packed, context: Context<'_>) -> Attention<'a> {
        Attention {
            packed,
            heads: self.config.heads,
            kv_heads: self.config.heads,
            width: self.config.hidden_size / self.config.heads,
            causal: false,
            rotary: None,
            dropout: context.mask(ATTENTION, self.attention_dropout),
        }
    }

    fn forward_layer(
        &self,
        layer: &Layer,
        packed: &Packed,
        input: &[f32],
        context: Context<'_>,
    ) -> Result<(Scratch, Activations)> {
        let memory = context.memory;
        let query = layer.query.forward(input, context)?;
        let key = layer.key.forward(input, context)?;
        let value = layer.value.forward(input, context)?;
        let mut attended = memory.take(input.len());
        let biases = [layer.query.bias()?, layer.key.bias()?, layer.value.bias()?];
        let inputs = projections([&query, &key, &value], [&biases[0], &biases[1], &biases[2]]);
        self.attention(packed, context).forward(&mut attended, inputs, memory);
        let mut attention_sums = layer.output.forward(&attended, context)?;
        let mut middle = memory.take(input.len());
        let (bias, mask) =
            (layer.output.bias()?, context.mask(AFTER_ATTENTION, self.dropout_after_attention()));
        self.residual_norm(&mut middle, &mut attention_sums, &bias, input, &layer.attention_norm, mask)?;
        let wide = layer.up.forward(&middle, context)?;
        let mut activated = memory.take(wide.len());
        activate(&mut activated, &wide, &layer.up.bias()?, self.config.activation);
        let mut output_sums = layer.down.forward(&activated, context)?;
        drop(activated);
        let mut output = memory.take(input.len());
        let (bias, mask) = (layer.down.bias()?, context.mask(AFTER_FEED_FORWARD, self.hidden_dropout));
        self.residual_norm(&mut output, &mut output_sums, &bias, &middle, &layer.output_norm, mask)?;
        let activations =
            Activations { query, key, value, context: attended, attention_sums, middle, wide, output_sums };
        Ok((output, activations))
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_layer(
        &self,
        layer: &Layer,
        packed: &Packed,
        input: &[f32],
        kept: Activations,
        mut gradient: Scratch,
        wanted: bool,
        context: Context<'_>,
        gradients: &mut Gradients,
    ) -> Result<Scratch> {
        let memory = context.memory;
        self.norm_backward(&mut gradient, &kept.output_sums, &layer.output_norm, gradients)?;
        let mask = context.mask(AFTER_FEED_FORWARD, self.hidden_dropout);
        let dropped = self.dropped(&gradient, mask, memory);
        let mut activated = memory.take(kept.wide.len());
        activate(&mut activated, &kept.wide, &layer.up.bias()?, self.config.activation);
        let mut d_wide = memory.take(kept.wide.len());
        let d_down = dropped.as_deref().unwrap_or(&gradient);
        layer.down.backward(&activated, d_down, Some((&mut d_wide, false)), context, gradients)?;
        drop((activated, dropped));
        activate_backward(&mut d_wide, &kept.wide, &layer.up.bias()?, self.config.activation);
        layer.up.backward(&kept.middle, &d_wide, Some((&mut gradient, true)), context, gradients)?;
        drop(d_wide);

        self.norm_backward(&mut gradient, &kept.attention_sums, &layer.attention_norm, gradients)?;
        let mask = context.mask(AFTER_ATTENTION, self.dropout_after_attention());
        let dropped = self.dropped(&gradient, mask, memory);
        let mut d_context = memory.take(input.len());
        let d_output = dropped.as_deref().unwrap_or(&gradient);
        layer.output.backward(&kept.context, d_output, Some((&mut d_context, false)), context, gradients)?;
        let [mut d_query, mut d_key, mut d_value] = [(); 3].map(|()| memory.take(input.len()));
        let biases = [layer.query.bias()?, layer.key.bias()?, layer.value.bias()?];
        let inputs = projections([&kept.query, &kept.key, &kept.value], [&biases[0], &biases[1], &biases[2]]);
        let outputs = [&mut *d_query, &mut *d_key, &mut *d_value];
        self.attention(packed, context).backward(&d_context, inputs, outputs, memory);
        for (linear, d_output) in [(&layer.query, d_query), (&layer.key, d_key), (&layer.value, d_value)] {
            let d_input = wanted.then_some((&mut *gradient, true));
            linear.backward(input, &d_output, d_input, context, gradients)?;
        }
        Ok(gradient)
    }

    /// sums = dropout(sums + bias) + residual; out = LayerNorm(sums).
    fn residual_norm(
        &self,
        out: &mut [f32],
        sums: &mut [f32],
        bias: &[f32],
        residual: &[f32],
        norm: &Norm,
        mask: Option<Mask>,
    ) -> Result<()> {
        match mask {
            None => self.norm_forward(out, sums, bias, residual, norm),
            Some(mask) => {
                bias_dropout(sums, bias, mask);
                self.norm_forward(out, sums, &vec![0.0; bias.len()], residual, norm)
            }
        }
    }

    fn norm_forward(
        &self,
        out: &mut [f32],
        sums: &mut [f32],
        bias: &[f32],
        residual: &[f32],
        norm: &Norm,
    ) -> Result<()> {
        let weight = View::of(&norm.weight.tensor)?;
        let shift = norm.shift.as_ref().map(|shift| View::of(&shift.tensor)).transpose()?;
        let shift = shift.as_deref().unwrap_or_default();
        layer_norm(out, sums, bias, residual, &weight, shift, self.config.layer_norm_epsilon as f32);
        Ok(())
    }

    /// From the gradient of a norm's output to that of its input, in place.
    fn norm_backward(
        &self,
        gradient: &mut [f32],
        sums: &[f32],
        norm: &Norm,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let epsilon = self.config.layer_norm_epsilon as f32;
        let parameters = layer_norm_backward(gradient, sums, &View::of(&norm.weight.tensor)?, epsilon);
        let (weight, shift) = parameters.split_at(self.config.hidden_size);
        add_gradient(gradients, &norm.weight, weight);
        if let Some(of_norm) = &norm.shift {
            add_gradient(gradients, of_norm, shift);
        }
        Ok(())
    }

    fn dropped(&self, gradient: &[f32], mask: Option<Mask>, memory: &Memory) -> Option<Scratch> {
        let mask = mask?;
        let mut out = memory.take(gradient.len());
        dropout(&mut out, gradient, self.config.hidden_size, mask);
        Some(out)
    }
}

fn projections<'a>(rows: [&'a [f32]; 3], biases: [&'a [f32]; 3]) -> Projections<'a> {
    let projection = |part: usize| Projection { rows: rows[part], bias: biases[part] };
    Projections { query: projection(0), key: projection(1), value: projection(2) }
}

/// One vector a text: the mean of its rows, or the first.
fn pool(packed: &Packed, states: &[f32], hidden: usize, pooling: Pooling) -> Vec<f32> {
    let texts = packed.groups.iter().map(|group| &states[group.start * hidden..][..group.rows() * hidden]);
    texts.flat_map(|rows| crate::encoder::model::pool(rows, hidden, pooling)).collect()
}

/// The gradients of the rows, from those of the vectors.
fn unpool(packed: &Packed, vectors: &[f32], rows: &mut [f32], hidden: usize, pooling: Pooling) {
    for (group, vector) in packed.groups.iter().zip(vectors.chunks_exact(hidden)) {
        let rows = &mut rows[group.start * hidden..][..group.rows() * hidden];
        match pooling {
            Pooling::Mean => {
                let share = 1.0 / group.rows() as f32;
                for row in rows.chunks_exact_mut(hidden) {
                    row.iter_mut().zip(vector).for_each(|(out, value)| *out = *value * share);
                }
            }
            Pooling::Cls => {
                rows.fill(0.0);
                rows[..hidden].copy_from_slice(vector);
            }
        }
    }
}
