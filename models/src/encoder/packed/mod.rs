//! BERT on a CPU without padding: the tokens of all texts lie one after the other in one matrix, so that no
//! arithmetic is spent on padding and no mask is needed. Only attention looks at where a text begins and ends.
//!
//! The buffers between the steps belong to a [`Workspace`] and are used again, because allocating them anew for every
//! batch costs as much as a quarter of the time. The weights are arranged once ([`Panels`]): a query has a dozen tokens, for
//! which a general matrix product spends three quarters of its time on arranging them. And so a text's vector is the same
//! bits alone and in any company.

mod attention;
mod kernels;

use super::{
    Pooling,
    bert::{self, BertWeights, Norm},
    config::BertConfig,
    model::{self, BatchSize, TextModel},
};
use crate::{
    Error, Result,
    cpu::{Buffer, Panels, Precision, Store, Team, Tiles, product},
};

/// Rows that go through both feed-forward matrices at a time, so that what lies between them (four times as wide
/// as a hidden state) stays in the processor's cache.
const FEED_FORWARD_ROWS: usize = 256;

/// A share of the work this close to the whole is not worth a thread of its own.
const LARGEST_SHARE: f64 = 0.75;

/// A BERT that embeds packed texts.
pub(crate) struct PackedBert {
    model: Model,
    /// One a thread.
    workspaces: Vec<Workspace>,
    team: Team,
    /// A thread of the team, when each works by itself.
    alone: Team,
}

struct Model {
    config: BertConfig,
    pooling: Pooling,
    words: Vec<f32>,
    positions: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
}

struct Layer {
    /// Queries, keys and values in one product: 3·hidden outputs.
    projections: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
}

/// y = x·Wᵀ + b.
struct Linear {
    weight: Panels,
    /// One an output.
    bias: Vec<f32>,
}

/// Buffers of one forward pass; they grow to the largest batch seen.
#[derive(Default)]
struct Workspace {
    hidden: Buffer,
    residual: Buffer,
    projections: Buffer,
    context: Buffer,
    intermediate: Buffer,
    tiles: Tiles,
    attention: attention::Scratch,
}

impl PackedBert {
    /// Arranges the weights, and starts `threads` threads.
    pub(crate) fn new(
        weights: BertWeights,
        config: BertConfig,
        pooling: Pooling,
        threads: usize,
    ) -> Result<Self> {
        let start = |threads| {
            Team::new(threads, "encoder").map_err(|e| Error::Engine {
                what: "encoder",
                detail: format!("its threads don't start: {e}"),
            })
        };
        let (team, alone) = (start(threads)?, start(1)?);
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let arrange = |linear: bert::Linear, inputs: usize| Linear {
            weight: Panels::new(&linear.weight, inputs, Precision::Exact, &team),
            bias: linear.bias,
        };
        let layers = weights.layers.into_iter().map(|layer| {
            let projections = bert::Linear {
                weight: [layer.query.weight, layer.key.weight, layer.value.weight].concat(),
                bias: [layer.query.bias, layer.key.bias, layer.value.bias].concat(),
            };
            Layer {
                projections: arrange(projections, hidden),
                output: arrange(layer.output, hidden),
                attention_norm: layer.attention_norm,
                up: arrange(layer.up, hidden),
                down: arrange(layer.down, intermediate),
                output_norm: layer.output_norm,
            }
        });
        let layers = layers.collect();
        let BertWeights { words, positions, norm, .. } = weights;
        Ok(Self {
            model: Model { config, pooling, words, positions, norm, layers },
            workspaces: (0..threads).map(|_| Workspace::default()).collect(),
            team,
            alone,
        })
    }
}

impl TextModel for PackedBert {
    fn cost(&self, batch: BatchSize) -> usize {
        batch.tokens
    }

    /// Shares the texts out among the threads, each of which takes its share through all layers. When there are too
    /// few texts for that, the threads work together on each step.
    fn vectors(&mut self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        let Self { model, workspaces, team, alone } = self;
        let shares = share_out(texts, team.threads());
        let total: usize = texts.iter().map(|ids| ids.len()).sum();
        let largest =
            shares.iter().map(|share| share.iter().map(|&i| texts[i].len()).sum()).max().unwrap_or(0usize);
        if team.threads() == 1 || largest as f64 > LARGEST_SHARE * total as f64 {
            return Ok(model.forward(texts, &mut workspaces[0], team));
        }
        let mut vectors = vec![Vec::new(); texts.len()];
        let mut done = vec![Vec::new(); shares.len()];
        let work: Vec<_> = shares.iter().zip(workspaces).zip(&mut done).collect();
        team.each(work, |((share, workspace), done)| {
            let texts: Vec<&[u32]> = share.iter().map(|&index| texts[index]).collect();
            *done = model.forward(&texts, workspace, alone);
        });
        for (share, share_vectors) in shares.iter().zip(done) {
            for (&index, vector) in share.iter().zip(share_vectors) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }
}

/// Indices of the texts, in as many shares as there are threads, of about the same number of tokens: from the longest
/// to the shortest, each to the share that has least.
fn share_out(texts: &[&[u32]], threads: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&index| std::cmp::Reverse(texts[index].len()));
    let mut shares = vec![(0usize, Vec::new()); threads];
    for index in order {
        if let Some((tokens, share)) = shares.iter_mut().min_by_key(|(tokens, _)| *tokens) {
            *tokens += texts[index].len();
            share.push(index);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

impl Model {
    /// The vectors of `texts`, not normalised, by the threads of `team`.
    fn forward(&self, texts: &[&[u32]], workspace: &mut Workspace, team: &Team) -> Vec<Vec<f32>> {
        let hidden = self.config.hidden_size;
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let tokens = lengths.iter().sum::<usize>();
        self.embed(texts, workspace.hidden.get(tokens * hidden));
        for layer in &self.layers {
            let states = workspace.hidden.get(tokens * hidden);
            let projections = workspace.projections.get(tokens * 3 * hidden);
            linear(projections, states, &layer.projections, &mut workspace.tiles, team);
            let context = workspace.context.get(tokens * hidden);
            let bias = &layer.projections.bias;
            attention::attend(
                context,
                projections,
                bias,
                &lengths,
                self.config.heads,
                &mut workspace.attention,
                team,
            );
            let residual = workspace.residual.get(tokens * hidden);
            linear(residual, context, &layer.output, &mut workspace.tiles, team);
            self.residual_norm(residual, &layer.output.bias, states, &layer.attention_norm, team);
            let step = if team.threads() == 1 { FEED_FORWARD_ROWS } else { tokens.max(1) };
            for (states, residual) in states.chunks_mut(step * hidden).zip(residual.chunks(step * hidden)) {
                let (buffer, tiles) = (&mut workspace.intermediate, &mut workspace.tiles);
                self.feed_forward(states, residual, layer, (buffer, tiles), team);
            }
        }
        let mut states = &*workspace.hidden.get(tokens * hidden);
        let mut vectors = Vec::with_capacity(texts.len());
        for length in lengths {
            let (text, rest) = states.split_at(length * hidden);
            vectors.push(model::pool(text, hidden, self.pooling));
            states = rest;
        }
        vectors
    }

    fn embed(&self, texts: &[&[u32]], mut out: &mut [f32]) {
        for ids in texts {
            let (rows, rest) = out.split_at_mut(ids.len() * self.config.hidden_size);
            let epsilon = self.config.layer_norm_epsilon as f32;
            kernels::embed(rows, ids, &self.words, &self.positions, &self.norm, epsilon);
            out = rest;
        }
    }

    /// states = LayerNorm(residual + down(activation(up(residual)))).
    fn feed_forward(
        &self,
        states: &mut [f32],
        residual: &[f32],
        layer: &Layer,
        (buffer, tiles): (&mut Buffer, &mut Tiles),
        team: &Team,
    ) {
        let width = self.config.intermediate_size;
        let intermediate = buffer.get(states.len() / self.config.hidden_size * width);
        linear(intermediate, residual, &layer.up, tiles, team);
        over_rows(intermediate, width, team, |_, rows| {
            kernels::bias_activation(rows, &layer.up.bias, self.config.activation);
        });
        linear(states, intermediate, &layer.down, tiles, team);
        self.residual_norm(states, &layer.down.bias, residual, &layer.output_norm, team);
    }

    fn residual_norm(&self, rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm, team: &Team) {
        let epsilon = self.config.layer_norm_epsilon as f32;
        over_rows(rows, self.config.hidden_size, team, |offset, rows| {
            kernels::residual_norm(rows, bias, &residual[offset..offset + rows.len()], norm, epsilon);
        });
    }
}

/// out = rows · weightᵀ; the bias is left to the step that follows, which reads every number anyway.
fn linear(out: &mut [f32], rows: &[f32], layer: &Linear, tiles: &mut Tiles, team: &Team) {
    let inputs = layer.weight.inputs();
    tiles.fill(rows.len() / inputs, inputs, team, |index, row| {
        row.copy_from_slice(&rows[index * inputs..(index + 1) * inputs]);
    });
    product(out, tiles, &layer.weight, Store::Replace, team);
}

/// Calls `work` with blocks of rows and their offsets, by the whole team where there are enough rows.
fn over_rows(rows: &mut [f32], width: usize, team: &Team, work: impl Fn(usize, &mut [f32]) + Sync) {
    let count = rows.len() / width;
    if team.threads() == 1 || count < 16 {
        return work(0, rows);
    }
    let block = count.div_ceil(team.threads()) * width;
    team.each(rows.chunks_mut(block).enumerate().collect(), |(index, rows)| work(index * block, rows));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_balanced_and_complete() {
        let ids = vec![0u32; 100];
        let texts: Vec<&[u32]> = [50, 10, 40, 3, 0, 7].iter().map(|&length| &ids[..length]).collect();
        let shares = share_out(&texts, 2);
        let tokens: Vec<usize> = shares.iter().map(|s| s.iter().map(|&i| texts[i].len()).sum()).collect();
        assert_eq!(tokens, [57, 53]);
        let mut all: Vec<usize> = shares.concat();
        all.sort();
        assert_eq!(all, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn rows_are_visited_once_whatever_the_threads() {
        for threads in [1, 2, 3] {
            let mut rows = vec![0.0; 50 * 3];
            over_rows(&mut rows, 3, &Team::new(threads, "test").unwrap(), |offset, block| {
                for (index, value) in block.iter_mut().enumerate() {
                    *value += (offset + index) as f32;
                }
            });
            assert!(rows.iter().enumerate().all(|(index, value)| *value == index as f32));
        }
    }
}
