//! The language model's head: from hidden states to the log-probabilities of given tokens, without ever holding the
//! logits of more than a few rows.

use rayon::prelude::*;

use super::{kernel::kernel, memory::Memory, products};
use crate::cpu::{exp, maximum, sum};

/// Rows whose logits are held at a time.
const ROWS: usize = 128;

/// The log-probability of `targets[i]` in row i, for `hidden` of `targets.len() × width` and a weight of
/// `vocabulary × width`. When `slopes` (of hidden's shape) is given, it receives the gradients of each row's
/// log-probability with respect to its hidden state: while the probabilities are at hand they cost one product, and the
/// backward pass is then a multiplication by a number a row.
pub(crate) fn log_probabilities(
    hidden: &[f32],
    weight: &[f32],
    targets: &[u32],
    mut slopes: Option<&mut [f32]>,
    memory: &Memory,
) -> Vec<f32> {
    let width = hidden.len() / targets.len().max(1);
    let vocabulary = weight.len() / width.max(1);
    let mut found = Vec::with_capacity(targets.len());
    for (chunk, targets) in targets.chunks(ROWS).enumerate() {
        let range = chunk * ROWS * width..(chunk * ROWS + targets.len()) * width;
        let mut logits = memory.take(targets.len() * vocabulary);
        products::forward(&mut logits, false, &hidden[range.clone()], weight, vocabulary, 1.0);
        let rows = logits.par_chunks_mut(vocabulary).zip(targets);
        let keep = slopes.is_some();
        let values = rows.map(|(row, target)| {
            let mut value = 0.0;
            log_probability(row, *target as usize, keep.then_some(1.0), &mut value);
            value
        });
        found.extend(values.collect::<Vec<f32>>());
        if let Some(slopes) = &mut slopes {
            products::input_gradient(&mut slopes[range], false, &logits, weight, vocabulary, 1.0);
        }
    }
    found
}

/// The gradient of the weight, when that of row i's log-probability is `gradients[i]`; added when `add` is set.
pub(crate) fn weight_gradient(
    d_weight: &mut [f32],
    mut add: bool,
    hidden: &[f32],
    weight: &[f32],
    targets: &[u32],
    gradients: &[f32],
    memory: &Memory,
) {
    let width = hidden.len() / targets.len().max(1);
    let vocabulary = weight.len() / width.max(1);
    for (chunk, (targets, gradients)) in targets.chunks(ROWS).zip(gradients.chunks(ROWS)).enumerate() {
        let hidden = &hidden[chunk * ROWS * width..(chunk * ROWS + targets.len()) * width];
        let mut logits = memory.take(targets.len() * vocabulary);
        products::forward(&mut logits, false, hidden, weight, vocabulary, 1.0);
        let rows = logits.par_chunks_mut(vocabulary).zip(targets.par_iter().zip(gradients));
        rows.for_each(|(row, (target, gradient))| {
            log_probability(row, *target as usize, Some(*gradient), &mut 0.0);
        });
        products::weight_gradient(d_weight, add, &logits, hidden, targets.len(), 1.0);
        add = true;
    }
}

kernel! {
    // The log-probability of `target` goes to `found`. With `slope`, the logits become the gradients of
    // slope · log-probability with respect to them: slope · (1 for the target - probability).
    fn log_probability(row: &mut [f32], target: usize, slope: Option<f32>, found: &mut f32) {
        let max = maximum(row);
        let logit = row[target];
        let Some(slope) = slope else {
            let mut total = 0.0;
            for chunk in row.chunks_mut(256) {
                for value in chunk.iter_mut() {
                    *value = exp(*value - max);
                }
                total += sum(chunk);
            }
            *found = logit - max - total.ln();
            return;
        };
        for value in row.iter_mut() {
            *value = exp(*value - max);
        }
        let total = sum(row);
        let scale = -slope / total;
        for value in row.iter_mut() {
            *value *= scale;
        }
        row[target] += slope;
        *found = logit - max - total.ln();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_and_their_gradients() {
        let (width, vocabulary) = (3, 7);
        let number = |i: usize| ((i * 7919) % 97) as f32 / 40.0 - 1.0;
        let hidden: Vec<f32> = (0..2 * width).map(number).collect();
        let weight: Vec<f32> = (0..vocabulary * width).map(|i| number(i + 50)).collect();
        let targets = [4u32, 0];
        let memory = Memory::default();
        let find =
            |hidden: &[f32], weight: &[f32]| log_probabilities(hidden, weight, &targets, None, &memory);
        let mut slopes = vec![0.0; hidden.len()];
        let found = log_probabilities(&hidden, &weight, &targets, Some(&mut slopes), &memory);
        assert_eq!(found.len(), 2);
        let logits: Vec<f64> = (0..vocabulary)
            .map(|v| (0..width).map(|i| f64::from(hidden[i]) * f64::from(weight[v * width + i])).sum())
            .collect();
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        assert!((f64::from(found[0]) - (logits[4] - total.ln())).abs() < 1e-6);

        let h = 1e-2;
        for i in 0..hidden.len() {
            let (mut above, mut below) = (hidden.clone(), hidden.clone());
            above[i] += h;
            below[i] -= h;
            let numeric = (find(&above, &weight)[i / width] - find(&below, &weight)[i / width]) / (2.0 * h);
            assert!((slopes[i] - numeric).abs() < 1e-3, "{} {numeric}", slopes[i]);
        }
        let mut d_weight = vec![1.0; weight.len()];
        weight_gradient(&mut d_weight, true, &hidden, &weight, &targets, &[2.0, -1.0], &memory);
        for i in 0..weight.len() {
            let (mut above, mut below) = (weight.clone(), weight.clone());
            above[i] += h;
            below[i] -= h;
            let (a, b) = (find(&hidden, &above), find(&hidden, &below));
            let numeric = (2.0 * (a[0] - b[0]) - (a[1] - b[1])) / (2.0 * h);
            assert!((d_weight[i] - 1.0 - numeric).abs() < 2e-3, "{} {numeric}", d_weight[i]);
        }
    }
}
