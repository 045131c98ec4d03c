//! Attention over packed sequences, forward and backward.
//!
//! The weights are computed anew in the backward pass, which costs one small product and saves the memory of
//! `heads × tokens²`. A unit of work is a group of rows with one head of keys and values; its numbers are gathered into
//! contiguous scratch, so that units write to memory of their own.

use rayon::prelude::*;

use super::{kernel::kernel, memory::Memory, norm::dot, rotary::Rotary};
use crate::{
    cpu::{Buffer, Matrix, exp, maximum, multiply, sum},
    trainable::{
        packing::{Group, Packed, Segment},
        seed::Mask,
    },
};

/// What an attention layer is.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// Which rows see which.
    pub(crate) packed: &'a Packed,
    /// Heads of the queries.
    pub(crate) heads: usize,
    /// Heads of keys and values; each serves `heads / kv_heads` heads of queries.
    pub(crate) kv_heads: usize,
    /// Components of a head.
    pub(crate) width: usize,
    /// Whether a row sees no later row of its segment.
    pub(crate) causal: bool,
    /// Turns queries and keys by their positions.
    pub(crate) rotary: Option<&'a Rotary>,
    /// Dropout of the weights.
    pub(crate) dropout: Option<Mask>,
}

/// A projection: a row a token, heads side by side, without the bias (which may be empty).
#[derive(Clone, Copy)]
pub(crate) struct Projection<'a> {
    pub(crate) rows: &'a [f32],
    pub(crate) bias: &'a [f32],
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Projections<'a> {
    pub(crate) query: Projection<'a>,
    pub(crate) key: Projection<'a>,
    pub(crate) value: Projection<'a>,
}

/// One unit of work.
#[derive(Clone, Copy)]
struct Unit<'a> {
    group: &'a Group,
    positions: &'a [u32],
    kv_head: usize,
    /// Its number, by which dropout tells units apart.
    index: usize,
}

/// Buffers of one thread.
#[derive(Default)]
struct Workspace {
    keys: Buffer,
    values: Buffer,
    queries: Buffer,
    segment_keys: Buffer,
    segment_values: Buffer,
    weights: Buffer,
    dropped: Buffer,
    outputs: Buffer,
    gradients: Buffer,
    d_weights: Buffer,
    d_queries: Buffer,
    d_segment: Buffer,
    d_keys: Buffer,
    d_values: Buffer,
}

impl Attention<'_> {
    /// Query heads a key head.
    fn sharing(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn units<'a>(&self, packed: &'a Packed) -> Vec<Unit<'a>> {
        let groups = packed.groups.iter();
        let units = groups.flat_map(|group| {
            let positions = &packed.positions[group.start..group.start + group.rows()];
            (0..self.kv_heads).map(move |kv_head| Unit { group, positions, kv_head, index: 0 })
        });
        units.enumerate().map(|(index, unit)| Unit { index, ..unit }).collect()
    }

    /// context = softmax(q·kᵀ / √width)·v, a row of `heads · width` a token.
    pub(crate) fn forward(&self, context: &mut [f32], inputs: Projections<'_>, memory: &Memory) {
        let block = self.sharing() * self.width;
        let units = self.units(self.packed);
        let mut outputs = memory.take(context.len());
        let blocks = split(&mut outputs, units.iter().map(|unit| unit.group.rows() * block));
        units.par_iter().zip(blocks).for_each_init(Workspace::default, |workspace, (unit, out)| {
            self.forward_unit(*unit, inputs, out, workspace);
        });
        self.scatter(context, &outputs, block, 0, self.sharing());
    }

    /// The gradients of queries, keys and values (all before bias and turning, which don't change them) from that of
    /// the context.
    pub(crate) fn backward(
        &self,
        d_context: &[f32],
        inputs: Projections<'_>,
        outputs: [&mut [f32]; 3],
        memory: &Memory,
    ) {
        let block = (self.sharing() + 2) * self.width;
        let units = self.units(self.packed);
        let mut gradients = memory.take(units.iter().map(|unit| unit.group.rows() * block).sum());
        let blocks = split(&mut gradients, units.iter().map(|unit| unit.group.rows() * block));
        units.par_iter().zip(blocks).for_each_init(Workspace::default, |workspace, (unit, out)| {
            self.backward_unit(*unit, inputs, d_context, out, workspace);
        });
        let [d_query, d_key, d_value] = outputs;
        self.scatter(d_query, &gradients, block, 0, self.sharing());
        self.scatter(d_key, &gradients, block, self.sharing(), 1);
        self.scatter(d_value, &gradients, block, self.sharing() + 1, 1);
    }

    /// From units' blocks (a row of `block` numbers a token) to rows with all heads side by side. Each unit has
    /// `heads` heads from `first` on.
    fn scatter(&self, out: &mut [f32], units: &[f32], block: usize, first: usize, heads: usize) {
        let row = heads * self.kv_heads * self.width;
        let groups = &self.packed.groups;
        let outs = split(out, groups.iter().map(|group| group.rows() * row));
        let (from, to) = (first * self.width, (first + heads) * self.width);
        groups.par_iter().zip(outs).for_each(|(group, out)| {
            let rows = group.rows();
            let units = &units[group.start * block * self.kv_heads..][..rows * block * self.kv_heads];
            for (kv_head, unit) in units.chunks_exact(rows * block).enumerate() {
                for (out, values) in out.chunks_exact_mut(row).zip(unit.chunks_exact(block)) {
                    out[kv_head * (to - from)..(kv_head + 1) * (to - from)]
                        .copy_from_slice(&values[from..to]);
                }
            }
        });
    }

    fn forward_unit(
        &self,
        unit: Unit<'_>,
        inputs: Projections<'_>,
        out: &mut [f32],
        workspace: &mut Workspace,
    ) {
        let (width, sharing) = (self.width, self.sharing());
        let Workspace {
            keys, values, queries, segment_keys, segment_values, weights, dropped, outputs, ..
        } = workspace;
        let rows = unit.group.rows();
        let keys = self.gather_keys(unit, inputs, keys.get(rows * width));
        let values = self.gather_values(unit, inputs, values.get(rows * width));
        for segment in unit.group.segments() {
            let (count, seen) = (segment.rows * sharing, segment.prefix + segment.rows);
            let queries = self.gather_queries(unit, segment, inputs, queries.get(count * width));
            let keys = seen_rows(keys, segment, width, segment_keys);
            let values = seen_rows(values, segment, width, segment_values);
            let weights = weights.get(count * seen);
            self.weights(segment, queries, keys, weights);
            let weights = self.drop_weights(unit, segment, weights, dropped);
            let outputs = outputs.get(count * width);
            multiply(outputs, Matrix::new(weights, count, seen), Matrix::new(values, seen, width), 1);
            for (index, output) in outputs.chunks_exact(width).enumerate() {
                let (head, row) = (index / segment.rows, segment.start + index % segment.rows);
                out[(row * sharing + head) * width..][..width].copy_from_slice(output);
            }
        }
    }

    fn backward_unit(
        &self,
        unit: Unit<'_>,
        inputs: Projections<'_>,
        d_context: &[f32],
        out: &mut [f32],
        workspace: &mut Workspace,
    ) {
        let (width, sharing) = (self.width, self.sharing());
        let rows = unit.group.rows();
        let Workspace { keys, values, queries, segment_keys, segment_values, weights, dropped, .. } =
            workspace;
        let Workspace { gradients, d_weights, d_queries, d_segment, d_keys, d_values, .. } = workspace;
        let keys = self.gather_keys(unit, inputs, keys.get(rows * width));
        let values = self.gather_values(unit, inputs, values.get(rows * width));
        let (d_keys, d_values) = (d_keys.get(rows * width), d_values.get(rows * width));
        d_keys.fill(0.0);
        d_values.fill(0.0);
        let block = (sharing + 2) * width;
        for segment in unit.group.segments() {
            let (count, seen) = (segment.rows * sharing, segment.prefix + segment.rows);
            let queries = self.gather_queries(unit, segment, inputs, queries.get(count * width));
            let gradients = self.gather_gradients(unit, segment, d_context, gradients.get(count * width));
            let keys = seen_rows(keys, segment, width, segment_keys);
            let values = seen_rows(values, segment, width, segment_values);
            let weights = weights.get(count * seen);
            self.weights(segment, queries, keys, weights);
            let d_weights = d_weights.get(count * seen);
            let transposed_values = Matrix::new(values, seen, width).transposed();
            multiply(d_weights, Matrix::new(gradients, count, width), transposed_values, 1);
            let gradients = Matrix::new(gradients, count, width);

            let used = self.drop_weights(unit, segment, weights, dropped);
            let d_segment = d_segment.get(seen * width);
            multiply(d_segment, Matrix::new(used, count, seen).transposed(), gradients, 1);
            add_seen(d_values, d_segment, segment, width);

            self.drop_gradients(unit, segment, d_weights);
            softmax_backward(d_weights, weights, seen, 1.0 / (width as f32).sqrt());
            let d_scores = Matrix::new(d_weights, count, seen);
            let d_queries = d_queries.get(count * width);
            multiply(d_queries, d_scores, Matrix::new(keys, seen, width), 1);
            multiply(d_segment, d_scores.transposed(), Matrix::new(queries, count, width), 1);
            add_seen(d_keys, d_segment, segment, width);

            for (index, d_query) in d_queries.chunks_exact_mut(width).enumerate() {
                let (head, row) = (index / segment.rows, segment.start + index % segment.rows);
                if let Some(rotary) = self.rotary {
                    rotary.turn_back(d_query, unit.positions[row] as usize);
                }
                out[row * block + head * width..][..width].copy_from_slice(d_query);
            }
        }
        let rows = d_keys.chunks_exact_mut(width).zip(d_values.chunks_exact(width));
        for (row, (d_key, d_value)) in rows.enumerate() {
            if let Some(rotary) = self.rotary {
                rotary.turn_back(d_key, unit.positions[row] as usize);
            }
            let out = &mut out[row * block + sharing * width..(row + 1) * block];
            out[..width].copy_from_slice(d_key);
            out[width..].copy_from_slice(d_value);
        }
    }

    fn gather_keys<'b>(&self, unit: Unit<'_>, inputs: Projections<'_>, out: &'b mut [f32]) -> &'b mut [f32] {
        let row_width = self.kv_heads * self.width;
        for (row, out) in out.chunks_exact_mut(self.width).enumerate() {
            let start = unit.kv_head * self.width;
            gather(out, inputs.key, (unit.group.start + row) * row_width, start);
            if let Some(rotary) = self.rotary {
                rotary.turn(out, unit.positions[row] as usize);
            }
        }
        out
    }

    fn gather_values<'b>(
        &self,
        unit: Unit<'_>,
        inputs: Projections<'_>,
        out: &'b mut [f32],
    ) -> &'b mut [f32] {
        let row_width = self.kv_heads * self.width;
        for (row, out) in out.chunks_exact_mut(self.width).enumerate() {
            gather(out, inputs.value, (unit.group.start + row) * row_width, unit.kv_head * self.width);
        }
        out
    }

    /// The segment's queries: all rows of the first head, then of the second, ….
    fn gather_queries<'b>(
        &self,
        unit: Unit<'_>,
        segment: Segment,
        inputs: Projections<'_>,
        out: &'b mut [f32],
    ) -> &'b mut [f32] {
        let row_width = self.heads * self.width;
        for (index, out) in out.chunks_exact_mut(self.width).enumerate() {
            let (head, row) = (index / segment.rows, segment.start + index % segment.rows);
            let start = (unit.kv_head * self.sharing() + head) * self.width;
            gather(out, inputs.query, (unit.group.start + row) * row_width, start);
            if let Some(rotary) = self.rotary {
                rotary.turn(out, unit.positions[row] as usize);
            }
        }
        out
    }

    fn gather_gradients<'b>(
        &self,
        unit: Unit<'_>,
        segment: Segment,
        d_context: &[f32],
        out: &'b mut [f32],
    ) -> &'b mut [f32] {
        let row_width = self.heads * self.width;
        for (index, out) in out.chunks_exact_mut(self.width).enumerate() {
            let (head, row) = (index / segment.rows, segment.start + index % segment.rows);
            let start = (unit.kv_head * self.sharing() + head) * self.width;
            out.copy_from_slice(&d_context[(unit.group.start + row) * row_width + start..][..self.width]);
        }
        out
    }

    /// softmax(queries · keysᵀ / √width), zero where a row does not see.
    fn weights(&self, segment: Segment, queries: &[f32], keys: &[f32], out: &mut [f32]) {
        let (count, seen) = (segment.rows * self.sharing(), segment.prefix + segment.rows);
        let keys = Matrix::new(keys, seen, self.width).transposed();
        multiply(out, Matrix::new(queries, count, self.width), keys, 1);
        let scale = 1.0 / (self.width as f32).sqrt();
        // The first row of each head sees one row of the segment when attention is causal, else all.
        let first = if self.causal { segment.prefix + 1 } else { seen };
        softmax(out, seen, segment.rows, first, scale);
    }

    fn drop_weights<'b>(
        &self,
        unit: Unit<'_>,
        segment: Segment,
        weights: &'b [f32],
        dropped: &'b mut Buffer,
    ) -> &'b [f32] {
        let Some(mask) = self.dropout else { return weights };
        let dropped = dropped.get(weights.len());
        dropped.copy_from_slice(weights);
        self.mask_rows(unit, segment, mask, dropped);
        dropped
    }

    fn drop_gradients(&self, unit: Unit<'_>, segment: Segment, d_weights: &mut [f32]) {
        if let Some(mask) = self.dropout {
            self.mask_rows(unit, segment, mask, d_weights);
        }
    }

    fn mask_rows(&self, unit: Unit<'_>, segment: Segment, mask: Mask, weights: &mut [f32]) {
        let first = unit.index * self.packed.rows() + segment.start;
        let seen = segment.prefix + segment.rows;
        for (index, row) in weights.chunks_exact_mut(seen).enumerate() {
            let (head, row_index) = (index / segment.rows, index % segment.rows);
            let mask = mask.row((first + row_index) * self.sharing() + head);
            for (column, weight) in row.iter_mut().enumerate() {
                *weight *= mask.factor(column);
            }
        }
    }
}

/// One head's numbers of one token, with the bias.
#[inline(always)]
fn gather(out: &mut [f32], projection: Projection<'_>, row_start: usize, start: usize) {
    let width = out.len();
    out.copy_from_slice(&projection.rows[row_start + start..][..width]);
    if !projection.bias.is_empty() {
        for (value, bias) in out.iter_mut().zip(&projection.bias[start..start + width]) {
            *value += *bias;
        }
    }
}

/// The rows that a segment sees, in one piece.
fn seen_rows<'b>(rows: &'b [f32], segment: Segment, width: usize, buffer: &'b mut Buffer) -> &'b [f32] {
    let own = &rows[segment.start * width..][..segment.rows * width];
    let prefix = segment.prefix * width;
    if segment.prefix == segment.start {
        return &rows[..prefix + own.len()];
    }
    let buffer = buffer.get(prefix + own.len());
    buffer[..prefix].copy_from_slice(&rows[..prefix]);
    buffer[prefix..].copy_from_slice(own);
    buffer
}

/// The reverse of [`seen_rows`]: adds to each row what a segment has for it.
fn add_seen(sums: &mut [f32], values: &[f32], segment: Segment, width: usize) {
    let (prefix, own) = values.split_at(segment.prefix * width);
    super::rows::add(&mut sums[..prefix.len()], prefix);
    super::rows::add(&mut sums[segment.start * width..][..own.len()], own);
}

kernel! {
    // Rows come in runs of `run`; the first of a run sees `first` columns, each later one (where `first` is less than
    // all) one more.
    fn softmax(rows: &mut [f32], width: usize, run: usize, first: usize, scale: f32) {
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            let (seen, unseen) = row.split_at_mut((first + index % run).min(width));
            let max = maximum(seen);
            for value in seen.iter_mut() {
                *value = exp((*value - max) * scale);
            }
            let inverse = 1.0 / sum(seen);
            for value in seen {
                *value *= inverse;
            }
            unseen.fill(0.0);
        }
    }
}

kernel! {
    fn softmax_backward(gradients: &mut [f32], weights: &[f32], width: usize, scale: f32) {
        for (gradient, weight) in gradients.chunks_exact_mut(width).zip(weights.chunks_exact(width)) {
            let mean = dot(gradient, weight);
            for (gradient, weight) in gradient.iter_mut().zip(weight) {
                *gradient = *weight * (*gradient - mean) * scale;
            }
        }
    }
}

/// Cuts a slice into consecutive pieces of these lengths.
fn split(mut values: &mut [f32], lengths: impl Iterator<Item = usize>) -> Vec<&mut [f32]> {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = values.split_at_mut(length);
        pieces.push(piece);
        values = rest;
    }
    pieces
}
