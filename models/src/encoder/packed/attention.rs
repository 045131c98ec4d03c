//! Attention over packed texts: each token looks at the tokens of its own text only.

use super::kernels;
use crate::cpu::{Buffer, Matrix, Team, multiply};

/// Rows of scores at a time: those of a text of thousands of tokens would take gigabytes.
const MOST_ROWS: usize = 512;

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
        let output = scratch.output.get(length * width);
        for (query, output) in query.chunks(MOST_ROWS * width).zip(output.chunks_mut(MOST_ROWS * width)) {
            let rows = query.len() / width;
            let scores = scratch.scores.get(rows * length);
            let keys = Matrix::new(key, length, width).transposed();
            multiply(scores, Matrix::new(query, rows, width), keys, 1);
            let inverse_sums = scratch.inverse_sums.get(rows);
            kernels::exponentiate(scores, inverse_sums, 1.0 / (width as f32).sqrt());
            multiply(output, Matrix::new(scores, rows, length), Matrix::new(value, length, width), 1);
            kernels::scale_rows(output, width, inverse_sums);
        }
    }

    fn write_head(&self, head: usize, context: &mut [f32], output: &[f32]) {
        kernels::scatter_head(context, self.hidden, head * self.head_width, self.head_width, output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_longer_than_the_rows_at_a_time_is_attended_whole() {
        let (heads, width, length) = (2, 4, MOST_ROWS + 70);
        let hidden = heads * width;
        let projections: Vec<f32> =
            (0..length * 3 * hidden).map(|n| ((n * 37 % 101) as f32 - 50.0) / 40.0).collect();
        let bias: Vec<f32> = (0..3 * hidden).map(|n| n as f32 / 50.0).collect();
        for threads in [1, 2] {
            let team = Team::new(threads, "test").unwrap();
            let mut context = vec![0.0; length * hidden];
            attend(&mut context, &projections, &bias, &[length], heads, &mut Scratch::default(), &team);
            let value = |token: usize, part: usize, head: usize, n: usize| {
                let column = part * hidden + head * width + n;
                f64::from(projections[token * 3 * hidden + column] + bias[column])
            };
            for (token, head) in [(0, 0), (MOST_ROWS - 1, 1), (MOST_ROWS, 0), (length - 1, 1)] {
                let score = |other: usize| {
                    let product: f64 =
                        (0..width).map(|n| value(token, 0, head, n) * value(other, 1, head, n)).sum();
                    (product / (width as f64).sqrt()).exp()
                };
                let sum: f64 = (0..length).map(score).sum();
                for n in 0..width {
                    let mean: f64 = (0..length).map(|other| score(other) * value(other, 2, head, n)).sum();
                    let found = f64::from(context[token * hidden + head * width + n]);
                    assert!((found - mean / sum).abs() < 1e-5, "{token} {head} {n}: {found}, {}", mean / sum);
                }
            }
        }
    }
}
