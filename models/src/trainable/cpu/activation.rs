//! Activations and dropout.

use super::{
    kernel::kernel,
    rows::{over_rows, over_two, part},
};
use crate::{
    cpu::exp,
    encoder::config::Activation,
    trainable::seed::{Mask, RowMask},
};

/// Φ(x) and its density, with the error function of Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_7) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let bell = exp(-z * z);
    let tail = 0.5 * poly * bell;
    (if x < 0.0 { tail } else { 1.0 - tail }, 0.398_942_3 * bell)
}

/// A gate σ(2z) of the tanh approximation of gelu, and the derivative of 2z.
#[inline(always)]
fn tanh_gate(x: f32) -> (f32, f32) {
    let z = 0.797_884_6 * (x + 0.044_715 * x * x * x);
    let gate = 1.0 - 1.0 / (exp(2.0 * z) + 1.0);
    (gate, 1.595_769 * (1.0 + 0.134_145 * x * x))
}

#[inline(always)]
fn apply(out: &mut [f32], x: &[f32], bias: &[f32], function: impl Fn(f32) -> f32) {
    let width = bias.len();
    for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        for ((out, x), bias) in out.iter_mut().zip(x).zip(bias) {
            *out = function(*x + *bias);
        }
    }
}

#[inline(always)]
fn apply_backward(gradient: &mut [f32], x: &[f32], bias: &[f32], derivative: impl Fn(f32) -> f32) {
    let width = bias.len();
    for (gradient, x) in gradient.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
        for ((gradient, x), bias) in gradient.iter_mut().zip(x).zip(bias) {
            *gradient *= derivative(*x + *bias);
        }
    }
}

kernel! {
    fn activate_block(out: &mut [f32], x: &[f32], bias: &[f32], activation: Activation) {
        match activation {
            Activation::Gelu => apply(out, x, bias, |x| x * normal(x).0),
            Activation::GeluTanh => apply(out, x, bias, |x| x * tanh_gate(x).0),
            Activation::Relu => apply(out, x, bias, |x| if x < 0.0 { 0.0 } else { x }),
        }
    }
}

kernel! {
    fn activate_backward_block(gradient: &mut [f32], x: &[f32], bias: &[f32], activation: Activation) {
        match activation {
            Activation::Gelu => apply_backward(gradient, x, bias, |x| {
                let (share, density) = normal(x);
                share + x * density
            }),
            Activation::GeluTanh => apply_backward(gradient, x, bias, |x| {
                let (gate, slope) = tanh_gate(x);
                gate + x * gate * (1.0 - gate) * slope
            }),
            Activation::Relu => apply_backward(gradient, x, bias, |x| if x > 0.0 { 1.0 } else { 0.0 }),
        }
    }
}

/// out = activation(x + bias).
pub(crate) fn activate(out: &mut [f32], x: &[f32], bias: &[f32], activation: Activation) {
    let width = bias.len();
    over_rows(out, width, |first, block| {
        let x = part(x, width, first, block.len() / width);
        activate_block(block, x, bias, activation);
    });
}

/// From the gradient of activation(x + bias) to that of x.
pub(crate) fn activate_backward(gradient: &mut [f32], x: &[f32], bias: &[f32], activation: Activation) {
    let width = bias.len();
    over_rows(gradient, width, |first, block| {
        let x = part(x, width, first, block.len() / width);
        activate_backward_block(block, x, bias, activation);
    });
}

kernel! {
    fn gate_block(out: &mut [f32], gate: &[f32], up: &[f32]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = *gate / (1.0 + exp(-*gate)) * *up;
        }
    }
}

kernel! {
    // In: the gradient of the output in `d_gate`. Out: the gradients of both inputs.
    fn gate_backward_block(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32]) {
        for (((d_gate, d_up), gate), up) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up) {
            let sigmoid = 1.0 / (1.0 + exp(-*gate));
            let silu = *gate * sigmoid;
            *d_up = *d_gate * silu;
            *d_gate *= *up * (sigmoid + silu * (1.0 - sigmoid));
        }
    }
}

/// out = silu(gate) ∘ up (SwiGLU).
pub(crate) fn gate(out: &mut [f32], gate: &[f32], up: &[f32], width: usize) {
    over_rows(out, width, |first, block| {
        let rows = block.len() / width;
        gate_block(block, part(gate, width, first, rows), part(up, width, first, rows));
    });
}

/// From the gradient of silu(gate) ∘ up, which is in `d_gate`, to those of `gate` and `up`.
pub(crate) fn gate_backward(d_gate: &mut [f32], d_up: &mut [f32], gate: &[f32], up: &[f32], width: usize) {
    over_two((d_gate, width), (d_up, width), |first, d_gate, d_up| {
        let rows = d_gate.len() / width;
        gate_backward_block(d_gate, d_up, part(gate, width, first, rows), part(up, width, first, rows));
    });
}

kernel! {
    fn dropout_row(out: &mut [f32], x: &[f32], mask: RowMask) {
        for (column, (out, x)) in out.iter_mut().zip(x).enumerate() {
            *out = *x * mask.factor(column);
        }
    }
}

kernel! {
    fn dropout_in_place_row(row: &mut [f32], bias: &[f32], mask: RowMask) {
        for (column, (value, bias)) in row.iter_mut().zip(bias).enumerate() {
            *value = (*value + *bias) * mask.factor(column);
        }
    }
}

kernel! {
    fn dropout_add_row(sum: &mut [f32], x: &[f32], mask: RowMask) {
        for (column, (sum, x)) in sum.iter_mut().zip(x).enumerate() {
            *sum += *x * mask.factor(column);
        }
    }
}

/// out = dropout(x). Its backward pass is the same function of the gradient.
pub(crate) fn dropout(out: &mut [f32], x: &[f32], width: usize, mask: Mask) {
    over_rows(out, width, |first, block| {
        let x = part(x, width, first, block.len() / width);
        for (index, (out, x)) in block.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            dropout_row(out, x, mask.row(first + index));
        }
    });
}

/// x = dropout(x + bias).
pub(crate) fn bias_dropout(x: &mut [f32], bias: &[f32], mask: Mask) {
    let width = bias.len();
    over_rows(x, width, |first, block| {
        for (index, row) in block.chunks_exact_mut(width).enumerate() {
            dropout_in_place_row(row, bias, mask.row(first + index));
        }
    });
}

/// sum += dropout(x).
pub(crate) fn add_dropout(sum: &mut [f32], x: &[f32], width: usize, mask: Mask) {
    over_rows(sum, width, |first, block| {
        let x = part(x, width, first, block.len() / width);
        for (index, (sum, x)) in block.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            dropout_add_row(sum, x, mask.row(first + index));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares an activation's backward pass with differences of its forward pass.
    fn check(activation: Activation) {
        let x: Vec<f32> = (-400..400).map(|i| i as f32 / 80.0 + 1e-3).collect();
        let bias = [0.25f32; 8];
        let step = 1e-2f32;
        let forward = |shift: f32| {
            let moved: Vec<f32> = x.iter().map(|x| x + shift).collect();
            let mut out = vec![0.0; x.len()];
            activate(&mut out, &moved, &bias, activation);
            out
        };
        let (above, below) = (forward(step), forward(-step));
        let mut gradient = vec![2.0; x.len()];
        activate_backward(&mut gradient, &x, &bias, activation);
        for i in 0..x.len() {
            let numeric = (above[i] - below[i]) / step;
            assert!(
                (gradient[i] - numeric).abs() < 1e-3,
                "{activation:?} at {}: {} {numeric}",
                x[i],
                gradient[i]
            );
        }
    }

    #[test]
    fn backward_passes_are_the_derivatives() {
        check(Activation::Gelu);
        check(Activation::GeluTanh);
        let mut gradient = [1.0, 1.0];
        activate_backward(&mut gradient, &[-1.0, 1.0], &[0.0, 0.0], Activation::Relu);
        assert_eq!(gradient, [0.0, 1.0]);
    }

    #[test]
    fn a_gate_and_its_backward_pass() {
        let (a, b) = ([0.7f32, -1.3], [0.4f32, 2.0]);
        let value = |a: f64, b: f64| a / (1.0 + (-a).exp()) * b;
        let mut out = [0.0; 2];
        gate(&mut out, &a, &b, 2);
        let (mut da, mut db) = ([3.0f32; 2], [0.0f32; 2]);
        gate_backward(&mut da, &mut db, &a, &b, 2);
        for i in 0..2 {
            let (x, y, h) = (f64::from(a[i]), f64::from(b[i]), 1e-5);
            assert!((f64::from(out[i]) - value(x, y)).abs() < 1e-6);
            let numeric = 3.0 * (value(x + h, y) - value(x - h, y)) / (2.0 * h);
            assert!((f64::from(da[i]) - numeric).abs() < 1e-5);
            let numeric = 3.0 * (value(x, y + h) - value(x, y - h)) / (2.0 * h);
            assert!((f64::from(db[i]) - numeric).abs() < 1e-5);
        }
    }

    #[test]
    fn dropout_keeps_the_mean_and_its_three_forms_agree() {
        let mask = Mask::new(crate::trainable::seed::Key::new(3), 0.25);
        let x = vec![1.0f32; 200 * 64];
        let mut out = vec![0.0; x.len()];
        dropout(&mut out, &x, 64, mask);
        let mean = out.iter().sum::<f32>() / x.len() as f32;
        assert!((mean - 1.0).abs() < 0.02, "{mean}");
        let mut with_bias = vec![0.5f32; x.len()];
        bias_dropout(&mut with_bias, &[0.5; 64], mask);
        assert_eq!(with_bias, out);
        let mut sum = vec![0.0; x.len()];
        add_dropout(&mut sum, &x, 64, mask);
        assert_eq!(sum, out);
    }
}
