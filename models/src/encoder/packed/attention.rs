//! Attention over packed texts: each token looks at the tokens of its own text only.

use super::kernels;
use crate::cpu::{Buffer, Matrix, Team, multiply};

/// Buffers of [`attend`].
#[derive(Default)]
pub(super) struct Scratch {
    /// One a head, or the first for all of them.
    heads: Vec<HeadScratch>,
    outputs: Buffer,
}

#[derive(Default)]
struct HeadScratch {
    query: Buffer,
    key: Buffer,
    value: Buffer,
    scores: Buffer,
    inverse_sums: Buffer,
    output: Buffer,
}

/// One text's piece of the packed matrices.
#[derive(Clone, Copy)]
struct Text<'a> {
    /// Its tokens' queries, keys and values: `length × 3·hidden`, without their bias.
    projections: &'a [f32],
    bias: &'a [f32],
    length: usize,
    hidden: usize,
    head_width: usize,
}

/// context = softmax(q·kᵀ / √width)·v for each head of each text. `projections` has a row of 3·hidden a token
/// (queries, keys, values; heads side by side within each), `bias` as much once, `context` a row of hidden a token.
pub(super) fn attend(
    context: &mut [f32],
    projections: &[f32],
    bias: &[f32],
    lengths: &[usize],
    heads: usize,
    scratch: &mut Scratch,
    team: &Team,
) {
    let hidden = bias.len() / 3;
    let head_width = hidden / heads;
    scratch.heads.resize_with(heads, HeadScratch::default);
    let (mut context, mut projections) = (context, projections);
    for &length in lengths {
        let (text_context, rest) = context.split_at_mut(length * hidden);
        let (text_projections, other_projections) = projections.split_at(length * 3 * hidden);
        (context, projections) = (rest, other_projections);
        if length == 0 {
            continue;
        }
        let text = Text { projections: text_projections, bias, length, hidden, head_width };
        if team.threads() == 1 {
            let scratch = &mut scratch.heads[0];
            for head in 0..heads {
                text.attend_head(head, scratch);
                text.write_head(head, text_context, scratch.output.get(length * head_width));
            }
            continue;
        }
        let outputs = scratch.outputs.get(length * hidden);
        let places = outputs.chunks_mut(length * head_width).zip(&mut scratch.heads);
        team.each(places.enumerate().collect(), |(head, (out, scratch))| {
            text.attend_head(head, scratch);
            out.copy_from_slice(scratch.output.get(length * head_width));
        });
        for (head, output) in outputs.chunks_exact(length * head_width).enumerate() {
            text.write_head(head, text_context, output);
        }
    }
}

impl Text<'_> {
    /// Leaves the head's output, `length × head_width`, in the scratch.
    fn attend_head(&self, head: usize, scratch: &mut HeadScratch) {
        let (length, width) = (self.length, self.head_width);
        let query = scratch.query.get(length * width);
        let key = scratch.key.get(length * width);
        let value = scratch.value.get(length * width);
        for (part, out) in [&mut *query, &mut *key, &mut *value].into_iter().enumerate() {
            let offset = part * self.hidden + head * width;
            kernels::gather_head(out, self.projections, 3 * self.hidden, offset, width, self.bias);
        }
        let scores = scratch.scores.get(length * length);
        multiply(scores, Matrix::new(query, length, width), Matrix::new(key, length, width).transposed(), 1);
        let inverse_sums = scratch.inverse_sums.get(length);
        kernels::exponentiate(scores, inverse_sums, 1.0 / (width as f32).sqrt());
        let output = scratch.output.get(length * width);
        multiply(output, Matrix::new(scores, length, length), Matrix::new(value, length, width), 1);
        kernels::scale_rows(output, width, inverse_sums);
    }

    fn write_head(&self, head: usize, context: &mut [f32], output: &[f32]) {
        kernels::scatter_head(context, self.hidden, head * self.head_width, self.head_width, output);
    }
}
