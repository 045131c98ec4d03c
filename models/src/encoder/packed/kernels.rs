//! Element-wise and row-wise kernels: plain loops that the compiler turns into vector code.
//!
//! Sums use several accumulators, because one would chain every addition to the one before.

use crate::{
    cpu::{Kernel, dispatch, exp, maximum, sum, sum_of_squares},
    encoder::{bert::Norm, config::Activation},
};

/// x·Φ(x) with the error function of Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let half_tail = 0.5 * poly * exp(-z * z); // Φ(-|x|)
    x * if x < 0.0 { half_tail } else { 1.0 - half_tail }
}

/// The tanh approximation of x·Φ(x) (`gelu_new`), with tanh(z) = 1 - 2 / (e²ᶻ + 1).
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let z = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    x * (1.0 - 1.0 / (exp(2.0 * z) + 1.0))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x } // NaN stays NaN, and is noticed
}

#[inline(always)]
fn layer_norm(row: &mut [f32], norm: &Norm, epsilon: f32) {
    let count = row.len() as f32;
    let mean = sum(row) / count;
    for value in row.iter_mut() {
        *value -= mean;
    }
    let scale = 1.0 / (sum_of_squares(row) / count + epsilon).sqrt();
    for ((value, weight), bias) in row.iter_mut().zip(&norm.weight).zip(&norm.bias) {
        *value = *value * scale * *weight + *bias;
    }
}

/// rows = activation(rows + bias), a row as long as the bias.
pub(super) fn bias_activation(rows: &mut [f32], bias: &[f32], activation: Activation) {
    struct Op<'a>(&'a mut [f32], &'a [f32], Activation);
    impl Op<'_> {
        #[inline(always)]
        fn each(self, function: impl Fn(f32) -> f32) {
            for row in self.0.chunks_exact_mut(self.1.len()) {
                for (value, bias) in row.iter_mut().zip(self.1) {
                    *value = function(*value + *bias);
                }
            }
        }
    }
    impl Kernel for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            match self.2 {
                Activation::Gelu => self.each(gelu),
                Activation::GeluTanh => self.each(gelu_tanh),
                Activation::Relu => self.each(relu),
            }
        }
    }
    dispatch(Op(rows, bias, activation));
}

/// rows = LayerNorm(rows + bias + residual), a row as long as the bias.
pub(super) fn residual_norm(rows: &mut [f32], bias: &[f32], residual: &[f32], norm: &Norm, epsilon: f32) {
    struct Op<'a>(&'a mut [f32], &'a [f32], &'a [f32], &'a Norm, f32);
    impl Kernel for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            let width = self.1.len();
            for (row, residual) in self.0.chunks_exact_mut(width).zip(self.2.chunks_exact(width)) {
                for ((value, bias), residual) in row.iter_mut().zip(self.1).zip(residual) {
                    *value += *bias + *residual;
                }
                layer_norm(row, self.3, self.4);
            }
        }
    }
    dispatch(Op(rows, bias, residual, norm, epsilon));
}

/// rows = LayerNorm(words[id] + positions[0, 1, 2, …]) for the ids of one text.
pub(super) fn embed(
    rows: &mut [f32],
    ids: &[u32],
    words: &[f32],
    positions: &[f32],
    norm: &Norm,
    epsilon: f32,
) {
    struct Op<'a>(&'a mut [f32], &'a [u32], &'a [f32], &'a [f32], &'a Norm, f32);
    impl Kernel for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            let width = self.4.weight.len();
            let rows = self.0.chunks_exact_mut(width);
            for ((row, &id), position) in rows.zip(self.1).zip(self.3.chunks_exact(width)) {
                let word = &self.2[id as usize * width..(id as usize + 1) * width];
                for ((value, word), position) in row.iter_mut().zip(word).zip(position) {
                    *value = *word + *position;
                }
                layer_norm(row, self.4, self.5);
            }
        }
    }
    dispatch(Op(rows, ids, words, positions, norm, epsilon));
}

/// Replaces each row of attention scores by exp(scale · (score - row maximum)) and puts one over the row's sum
/// into `inverse_sums`: a softmax whose division is left for the (smaller) product with the values.
pub(super) fn exponentiate(scores: &mut [f32], inverse_sums: &mut [f32], scale: f32) {
    struct Op<'a>(&'a mut [f32], &'a mut [f32], f32);
    impl Kernel for Op<'_> {
        type Output = ();
        #[inline(always)]
        fn run(self) {
            let width = self.0.len() / self.1.len();
            for (row, inverse) in self.0.chunks_exact_mut(width).zip(self.1) {
                let max = maximum(row);
                for value in row.iter_mut() {
                    *value = exp((*value - max) * self.2);
                }
                *inverse = 1.0 / sum(row);
            }
        }
    }
    dispatch(Op(scores, inverse_sums, scale));
}

/// Copies `width` columns from `offset` on out of rows that are `source_width` long, adding the bias.
pub(super) fn gather_head(
    out: &mut [f32],
    source: &[f32],
    source_width: usize,
    offset: usize,
    width: usize,
    bias: &[f32],
) {
    let bias = &bias[offset..offset + width];
    for (out, row) in out.chunks_exact_mut(width).zip(source.chunks_exact(source_width)) {
        for ((out, value), bias) in out.iter_mut().zip(&row[offset..offset + width]).zip(bias) {
            *out = *value + *bias;
        }
    }
}

/// The reverse of [`gather_head`], without a bias.
pub(super) fn scatter_head(out: &mut [f32], out_width: usize, offset: usize, width: usize, source: &[f32]) {
    for (out, row) in out.chunks_exact_mut(out_width).zip(source.chunks_exact(width)) {
        out[offset..offset + width].copy_from_slice(row);
    }
}

/// Multiplies each row by its factor.
pub(super) fn scale_rows(rows: &mut [f32], width: usize, factors: &[f32]) {
    for (row, factor) in rows.chunks_exact_mut(width).zip(factors) {
        for value in row {
            *value *= *factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference error function in f64: its Taylor series, good for |x| ≤ 5.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / n as f64;
            sum += term / (2 * n + 1) as f64;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn activations_match_their_definitions() {
        for i in -500..=500 {
            let x = i as f32 / 100.0;
            let wide = x as f64;
            let exact = wide * 0.5 * (1.0 + erf(wide / 2f64.sqrt()));
            assert!((gelu(x) as f64 - exact).abs() < 1e-6, "gelu({x})");
            let z = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let approximate = 0.5 * wide * (1.0 + z.tanh());
            assert!((gelu_tanh(x) as f64 - approximate).abs() < 1e-6, "gelu_tanh({x})");
        }
        for x in [40.0f32, -40.0, 1e4, -1e4] {
            assert!((gelu(x) - x.max(0.0)).abs() < 1e-6);
            assert!((gelu_tanh(x) - x.max(0.0)).abs() < 1e-6);
        }
        assert_eq!((relu(-1.0), relu(2.0)), (0.0, 2.0));
    }

    #[test]
    fn exponentiate_is_a_softmax_without_its_division() {
        for width in [1, 2, 31, 33, 100] {
            let scores: Vec<f32> =
                (0..width * width).map(|i| ((i * 7919) % 101) as f32 / 10.0 - 5.0).collect();
            let (mut out, mut inverse) = (scores.clone(), vec![0.0; width]);
            exponentiate(&mut out, &mut inverse, 0.5);
            for (row, (out, inverse)) in scores.chunks(width).zip(out.chunks(width).zip(&inverse)) {
                let truth: Vec<f64> = row.iter().map(|s| (*s as f64 * 0.5).exp()).collect();
                let total: f64 = truth.iter().sum();
                for (value, truth) in out.iter().zip(&truth) {
                    assert!(((value * inverse) as f64 - truth / total).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn norms_have_mean_zero_and_variance_one() {
        let norm = Norm { weight: vec![1.0; 70], bias: vec![0.0; 70] };
        let mut rows: Vec<f32> = (0..140).map(|i| ((i * 31) % 17) as f32).collect();
        let residual = vec![0.5; 140];
        residual_norm(&mut rows, &[1.0; 70], &residual, &norm, 1e-12);
        for row in rows.chunks(70) {
            assert!(row.iter().sum::<f32>().abs() < 1e-4);
            assert!((row.iter().map(|v| v * v).sum::<f32>() / 70.0 - 1.0).abs() < 1e-4);
        }
    }
}
