//! BERT on a CPU without padding: the tokens of all texts lie one after the other in one matrix, so that no
//! arithmetic is spent on padding and no mask is needed. Only attention looks at where a text begins and ends.
//!
//! The buffers between the steps belong to a [`Workspace`] and are used again, because allocating them anew for every
//! batch costs as much as a quarter of the time.

mod attention;
mod kernels;

use rayon::prelude::*;

use super::{
    Pooling,
    bert::{BertWeights, Linear, Norm},
    config::BertConfig,
    model::{self, BatchSize, TextModel},
};
use crate::{
    Error, Result,
    cpu::{Buffer, Matrix, multiply},
};

/// Rows that go through both feed-forward matrices at a time, so that what lies between them (four times as wide
/// as a hidden state) stays in the processor's cache.
const FEED_FORWARD_ROWS: usize = 256;

/// A share of the work this close to the whole is not worth a thread of its own.
const LARGEST_SHARE: f64 = 0.75;

/// A BERT that embeds packed texts.
pub(crate) struct PackedBert {
    model: Model,
    workspaces: Vec<Workspace>,
    pool: rayon::ThreadPool,
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

/// Buffers of one forward pass; they grow to the largest batch seen.
#[derive(Default)]
struct Workspace {
    hidden: Buffer,
    residual: Buffer,
    projections: Buffer,
    context: Buffer,
    intermediate: Buffer,
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
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("encoder-{index}"))
            .build()
            .map_err(|e| Error::Engine {
                what: "encoder",
                detail: format!("its threads don't start: {e}"),
            })?;
        let layers = weights.layers.into_iter().map(|layer| Layer {
            projections: Linear {
                weight: [layer.query.weight, layer.key.weight, layer.value.weight].concat(),
                bias: [layer.query.bias, layer.key.bias, layer.value.bias].concat(),
            },
            output: layer.output,
            attention_norm: layer.attention_norm,
            up: layer.up,
            down: layer.down,
            output_norm: layer.output_norm,
        });
        let layers = layers.collect();
        let BertWeights { words, positions, norm, .. } = weights;
        Ok(Self {
            model: Model { config, pooling, words, positions, norm, layers },
            workspaces: (0..threads).map(|_| Workspace::default()).collect(),
            pool,
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
        let Self { model, workspaces, pool } = self;
        let threads = workspaces.len();
        let shares = share_out(texts, threads);
        let total: usize = texts.iter().map(|ids| ids.len()).sum();
        let largest =
            shares.iter().map(|share| share.iter().map(|&i| texts[i].len()).sum()).max().unwrap_or(0usize);
        if threads == 1 || largest as f64 > LARGEST_SHARE * total as f64 {
            return Ok(pool.install(|| model.forward(texts, &mut workspaces[0], threads)));
        }
        let mut vectors = vec![Vec::new(); texts.len()];
        let done: Vec<_> = pool.install(|| {
            let shares = shares.par_iter().with_max_len(1);
            let run = |(share, workspace): (&Vec<usize>, &mut Workspace)| {
                let texts: Vec<&[u32]> = share.iter().map(|&index| texts[index]).collect();
                model.forward(&texts, workspace, 1)
            };
            shares.zip(workspaces.par_iter_mut().with_max_len(1)).map(run).collect()
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
    /// The vectors of `texts`, not normalised, with `threads` threads of the current pool.
    fn forward(&self, texts: &[&[u32]], workspace: &mut Workspace, threads: usize) -> Vec<Vec<f32>> {
        let hidden = self.config.hidden_size;
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let tokens = lengths.iter().sum::<usize>();
        self.embed(texts, workspace.hidden.get(tokens * hidden));
        for layer in &self.layers {
            let states = workspace.hidden.get(tokens * hidden);
            let projections = workspace.projections.get(tokens * 3 * hidden);
            linear(projections, states, &layer.projections, threads);
            let context = workspace.context.get(tokens * hidden);
            let bias = &layer.projections.bias;
            attention::attend(
                context,
                projections,
                bias,
                &lengths,
                self.config.heads,
                &mut workspace.attention,
                threads,
            );
            let residual = workspace.residual.get(tokens * hidden);
            linear(residual, context, &layer.output, threads);
            self.residual_norm(residual, &layer.output.bias, states, &layer.attention_norm, threads);
            let step = if threads == 1 { FEED_FORWARD_ROWS } else { tokens.max(1) };
            for (states, residual) in states.chunks_mut(step * hidden).zip(residual.chunks(step * hidden)) {
                self.feed_forward(states, residual, layer, &mut workspace.intermediate, threads);
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
        buffer: &mut Buffer,
        threads: usize,
    ) {
        let width = self.config.intermediate_size;
        let intermediate = buffer.get(states.len() / self.config.hidden_size * width);
        linear(intermediate, residual, &layer.up, threads);
        over_rows(intermediate, width, threads, |_, rows| {
            kernels::bias_activation(rows, &layer.up.bias, self.config.activation);
        });
        linear(states, intermediate, &layer.down, threads);
        self.residual_norm(states, &layer.down.bias, residual, &layer.output_norm, threads);
    }

    fn residual_norm(&self, rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm, threads: usize) {
        let epsilon = self.config.layer_norm_epsilon as f32;
        over_rows(rows, self.config.hidden_size, threads, |offset, rows| {
            kernels::residual_norm(rows, bias, &residual[offset..offset + rows.len()], norm, epsilon);
        });
    }
}

/// out = rows · weightᵀ; the bias is left to the step that follows, which reads every number anyway.
fn linear(out: &mut [f32], rows: &[f32], layer: &Linear, threads: usize) {
    let outputs = layer.bias.len();
    let inputs = layer.weight.len() / outputs;
    let count = rows.len() / inputs;
    let weight = Matrix::new(&layer.weight, outputs, inputs).transposed();
    multiply(out, Matrix::new(rows, count, inputs), weight, threads);
}

/// Calls `work` with blocks of rows and their offsets, in parallel where there are threads and enough rows.
fn over_rows(rows: &mut [f32], width: usize, threads: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let count = rows.len() / width;
    if threads == 1 || count < 16 {
        return work(0, rows);
    }
    let block = count.div_ceil(threads) * width;
    rows.par_chunks_mut(block).enumerate().for_each(|(index, rows)| work(index * block, rows));
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
            over_rows(&mut rows, 3, threads, |offset, block| {
                for (index, value) in block.iter_mut().enumerate() {
                    *value += (offset + index) as f32;
                }
            });
            assert!(rows.iter().enumerate().all(|(index, value)| *value == index as f32));
        }
    }
}
