//! One step: some tokens of some sequences through all layers.

use std::path::Path;

use super::{
    adapter::Scratch,
    attention::{self, Heads, Place},
    cache::{Cache, Shape},
    config::DecoderConfig,
    kernels,
    weights::{How, Layer, Linear, Weights},
};
use crate::{
    Result,
    cpu::{Buffer, Precision, Store, Team, Tiles, product},
    trainable::AdapterFile,
};

/// A decoder and its buffers.
pub(super) struct Model {
    pub(super) config: DecoderConfig,
    weights: Weights,
    pub(super) team: Team,
}

/// The next tokens of one sequence.
pub(super) struct Part<'a> {
    /// What came before; the step adds the tokens to it.
    pub(super) cache: &'a mut Cache,
    pub(super) tokens: &'a [u32],
    /// Whether the logits after the last of them are wanted.
    pub(super) wants_logits: bool,
}

/// Buffers of a step; they grow to the largest step seen.
#[derive(Default)]
pub(super) struct Workspace {
    states: Buffer,
    projections: Buffer,
    context: Buffer,
    gate_up: Buffer,
    rotations: Buffer,
    last: Buffer,
    logits: Buffer,
    tiles: Tiles,
    scratch: Scratch,
}

/// Where each row of a step belongs: index of its part, position in its sequence.
type Rows = [(usize, usize)];

impl Model {
    pub(super) fn read(
        folder: &Path,
        config: DecoderConfig,
        precision: Precision,
        adapter: Option<&AdapterFile>,
        team: Team,
    ) -> Result<Self> {
        let weights = Weights::read(folder, &config, How { precision, team: &team, adapter })?;
        Ok(Self { config, weights, team })
    }

    /// Bytes that the weights take.
    pub(super) fn bytes(&self) -> usize {
        self.weights.bytes()
    }

    pub(super) fn shape(&self) -> Shape {
        Shape::new(&self.config)
    }

    /// Adds each part's tokens to its cache. Returns a row of `vocabulary` logits for each part that wants them, in
    /// order.
    pub(super) fn step<'w>(&self, parts: &mut [Part<'_>], workspace: &'w mut Workspace) -> &'w mut [f32] {
        let hidden = self.config.hidden;
        let mut rows = Vec::new();
        for (index, part) in parts.iter_mut().enumerate() {
            part.cache.reserve(part.tokens.len());
            rows.extend((0..part.tokens.len()).map(|offset| (index, part.cache.length() + offset)));
        }
        let states = workspace.states.get(rows.len() * hidden);
        let tokens = parts.iter().flat_map(|part| part.tokens);
        for (row, token) in states.chunks_exact_mut(hidden).zip(tokens) {
            self.weights.words.copy_row(*token as usize, row);
        }
        let pairs = self.config.frequencies.len();
        let rotations = workspace.rotations.get(rows.len() * 2 * pairs);
        for (row, (_, position)) in rotations.chunks_exact_mut(2 * pairs).zip(&rows) {
            kernels::rotation(&self.config.frequencies, *position, row);
        }
        for (index, layer) in self.weights.layers.iter().enumerate() {
            self.attention(index, layer, parts, &rows, workspace);
            self.feed_forward(layer, rows.len(), workspace);
        }
        for part in parts.iter_mut() {
            part.cache.advance(part.tokens.len());
        }
        self.logits(parts, workspace)
    }

    /// states += output(attention(norm(states))).
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        parts: &mut [Part<'_>],
        rows: &Rows,
        workspace: &mut Workspace,
    ) {
        let config = &self.config;
        let Workspace { states, projections, context, rotations, tiles, scratch, .. } = workspace;
        let states = states.get(rows.len() * config.hidden);
        self.norm_into(tiles, states, &layer.attention_norm);
        let (queries, keys) = (config.heads * config.head_width, config.kv_heads * config.head_width);
        let stride = queries + 2 * keys;
        let projections = projections.get(rows.len() * stride);
        self.linear(projections, tiles, &layer.projections, Store::Replace, scratch);
        let turn = config.frequencies.len() * 2;
        let rotations = rotations.get(rows.len() * turn);
        let scale = 1.0 / (config.head_width as f32).sqrt();
        let turned = projections.chunks_exact_mut(stride).zip(rotations.chunks_exact(turn));
        for ((projections, rotation), (part, position)) in turned.zip(rows) {
            let (query, rest) = projections.split_at_mut(queries);
            let (key, value) = rest.split_at_mut(keys);
            kernels::rotate(query, config.head_width, rotation, scale);
            kernels::rotate(key, config.head_width, rotation, 1.0);
            parts[*part].cache.write(index, *position, key, value);
        }
        let places: Vec<Place<'_>> = rows
            .iter()
            .map(|(part, position)| Place { cache: &*parts[*part].cache, position: *position })
            .collect();
        let context = context.get(rows.len() * queries);
        let heads = Heads { count: config.heads, kv_count: config.kv_heads, width: config.head_width };
        attention::attend(context, projections, stride, &places, index, heads, &self.team);
        tiles.fill(rows.len(), queries, &self.team, |row, out| {
            out.copy_from_slice(&context[row * queries..(row + 1) * queries]);
        });
        self.linear(states, tiles, &layer.output, Store::Add, scratch);
    }

    /// states += down(silu(gate(norm(states))) · up(norm(states))).
    fn feed_forward(&self, layer: &Layer, rows: usize, workspace: &mut Workspace) {
        let wide = self.config.intermediate;
        let Workspace { states, gate_up, tiles, scratch, .. } = workspace;
        let states = states.get(rows * self.config.hidden);
        self.norm_into(tiles, states, &layer.feed_forward_norm);
        let gate_up = gate_up.get(rows * 2 * wide);
        self.linear(gate_up, tiles, &layer.gate_up, Store::Replace, scratch);
        tiles.fill(rows, wide, &self.team, |row, out| {
            let (gate, up) = gate_up[row * 2 * wide..(row + 1) * 2 * wide].split_at(wide);
            kernels::gated(out, gate, up);
        });
        self.linear(states, tiles, &layer.down, Store::Add, scratch);
    }

    fn logits<'w>(&self, parts: &[Part<'_>], workspace: &'w mut Workspace) -> &'w mut [f32] {
        let (hidden, vocabulary) = (self.config.hidden, self.config.vocabulary);
        let total: usize = parts.iter().map(|part| part.tokens.len()).sum();
        let states = &*workspace.states.get(total * hidden);
        let wanted = parts.iter().filter(|part| part.wants_logits).count();
        let last = workspace.last.get(wanted * hidden);
        let (mut end, mut next) = (0, 0);
        for part in parts {
            end += part.tokens.len();
            if part.wants_logits {
                last[next * hidden..][..hidden].copy_from_slice(&states[(end - 1) * hidden..end * hidden]);
                next += 1;
            }
        }
        self.norm_into(&mut workspace.tiles, last, &self.weights.norm);
        let logits = workspace.logits.get(wanted * vocabulary);
        let head = self.weights.head.as_ref().unwrap_or(&self.weights.words);
        product(logits, &mut workspace.tiles, head, Store::Replace, &self.team);
        logits
    }

    fn norm_into(&self, tiles: &mut Tiles, states: &[f32], weight: &[f32]) {
        let hidden = self.config.hidden;
        tiles.fill(states.len() / hidden, hidden, &self.team, |row, out| {
            kernels::rms_norm(out, &states[row * hidden..][..hidden], weight, self.config.norm_epsilon);
        });
    }

    fn linear(&self, out: &mut [f32], rows: &mut Tiles, layer: &Linear, store: Store, scratch: &mut Scratch) {
        product(out, rows, &layer.weight, store, &self.team);
        kernels::add_bias(out, &layer.bias);
        if let Some(adapter) = &layer.adapter {
            adapter.add(out, rows, rows.rows(), scratch, &self.team);
        }
    }
}
