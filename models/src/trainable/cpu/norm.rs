//! Layer norm and RMS norm.

use super::{
    kernel::kernel,
    rows::{over_rows, over_rows_summing, over_two, part},
};
use crate::cpu::{sum, sum_of_squares};

/// The sum of x·y.
#[inline(always)]
pub(super) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    let (x, y) = (x.chunks_exact(32), y.chunks_exact(32));
    let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in x.zip(y) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += *x * *y;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

/// The sum of x·y·z.
#[inline(always)]
fn dot3(x: &[f32], y: &[f32], z: &[f32]) -> f32 {
    let mut lanes = [0f32; 32];
    let (x, y, z) = (x.chunks_exact(32), y.chunks_exact(32), z.chunks_exact(32));
    let rest = x.remainder().iter().zip(y.remainder()).zip(z.remainder());
    let rest: f32 = rest.map(|((x, y), z)| x * y * z).sum();
    for ((x, y), z) in x.zip(y).zip(z) {
        for (((lane, x), y), z) in lanes.iter_mut().zip(x).zip(y).zip(z) {
            *lane += *x * *y * *z;
        }
    }
    lanes.iter().sum::<f32>() + rest
}

kernel! {
    // sums += bias + residual; out = LayerNorm(sums).
    fn layer_norm_block(
        out: &mut [f32], sums: &mut [f32], bias: &[f32], residual: &[f32], weight: &[f32], shift: &[f32], epsilon: f32,
    ) {
        let width = weight.len();
        let rows = out.chunks_exact_mut(width).zip(sums.chunks_exact_mut(width)).zip(residual.chunks_exact(width));
        for ((out, row), residual) in rows {
            for ((value, bias), residual) in row.iter_mut().zip(bias).zip(residual) {
                *value += *bias + *residual;
            }
            let mean = sum(row) / width as f32;
            for (out, value) in out.iter_mut().zip(row.iter()) {
                *out = *value - mean;
            }
            let scale = 1.0 / (sum_of_squares(out) / width as f32 + epsilon).sqrt();
            for ((out, weight), shift) in out.iter_mut().zip(weight).zip(shift) {
                *out = *out * scale * *weight + *shift;
            }
        }
    }
}

kernel! {
    // In: the norm's input in `sums`, the gradient of its output in `gradient`. Out: the gradient of its input in
    // `gradient`; the gradients of weight and shift are added to `parameters`.
    fn layer_norm_backward_block(
        gradient: &mut [f32], sums: &[f32], weight: &[f32], epsilon: f32, parameters: &mut [f32], normal: &mut [f32],
    ) {
        let width = weight.len();
        let (d_weight, d_shift) = parameters.split_at_mut(width);
        for (gradient, row) in gradient.chunks_exact_mut(width).zip(sums.chunks_exact(width)) {
            let mean = sum(row) / width as f32;
            for (normal, value) in normal.iter_mut().zip(row) {
                *normal = *value - mean;
            }
            let scale = 1.0 / (sum_of_squares(normal) / width as f32 + epsilon).sqrt();
            let columns = gradient.iter_mut().zip(normal.iter_mut()).zip(weight);
            for (((gradient, normal), weight), (d_weight, d_shift)) in
                columns.zip(d_weight.iter_mut().zip(d_shift.iter_mut()))
            {
                *normal *= scale;
                *d_weight += *gradient * *normal;
                *d_shift += *gradient;
                *gradient *= *weight;
            }
            let mean = sum(gradient) / width as f32;
            let slope = dot(gradient, normal) / width as f32;
            for (gradient, normal) in gradient.iter_mut().zip(normal.iter()) {
                *gradient = (*gradient - mean - *normal * slope) * scale;
            }
        }
    }
}

kernel! {
    fn rms_norm_block(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
        let width = weight.len();
        for (out, x) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            let scale = 1.0 / (sum_of_squares(x) / width as f32 + epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = *x * scale * *weight;
            }
        }
    }
}

kernel! {
    // In: the gradient of the output in `gradient`. The gradient of the input is added to `dx`, that of the weight to
    // `d_weight`.
    fn rms_norm_backward_block(
        dx: &mut [f32], gradient: &[f32], x: &[f32], weight: &[f32], epsilon: f32, d_weight: &mut [f32],
    ) {
        let width = weight.len();
        let rows = dx.chunks_exact_mut(width).zip(gradient.chunks_exact(width)).zip(x.chunks_exact(width));
        for ((dx, gradient), x) in rows {
            let scale = 1.0 / (sum_of_squares(x) / width as f32 + epsilon).sqrt();
            let slope = dot3(gradient, weight, x) * scale * scale / width as f32;
            for ((dx, gradient), (x, weight)) in dx.iter_mut().zip(gradient).zip(x.iter().zip(weight)) {
                *dx += scale * (*gradient * *weight - *x * slope);
            }
            for ((d_weight, gradient), x) in d_weight.iter_mut().zip(gradient).zip(x) {
                *d_weight += *gradient * *x * scale;
            }
        }
    }
}

/// sums += bias + residual; out = LayerNorm(sums) ∘ weight + shift.
pub(crate) fn layer_norm(
    out: &mut [f32],
    sums: &mut [f32],
    bias: &[f32],
    residual: &[f32],
    weight: &[f32],
    shift: &[f32],
    epsilon: f32,
) {
    let width = weight.len();
    over_two((out, width), (sums, width), |first, out, sums| {
        let residual = part(residual, width, first, out.len() / width);
        layer_norm_block(out, sums, bias, residual, weight, shift, epsilon);
    });
}

/// From the gradient of a layer norm's output to that of its input (`sums`), in place. The gradient of the weight comes
/// back, followed by that of the shift.
pub(crate) fn layer_norm_backward(
    gradient: &mut [f32],
    sums: &[f32],
    weight: &[f32],
    epsilon: f32,
) -> Vec<f32> {
    let width = weight.len();
    over_rows_summing(gradient, width, 2 * width, |first, block, parameters| {
        let sums = part(sums, width, first, block.len() / width);
        layer_norm_backward_block(block, sums, weight, epsilon, parameters, &mut vec![0.0; width]);
    })
}

/// out = x / rms(x) ∘ weight.
pub(crate) fn rms_norm(out: &mut [f32], x: &[f32], weight: &[f32], epsilon: f32) {
    let width = weight.len();
    over_rows(out, width, |first, block| {
        rms_norm_block(block, part(x, width, first, block.len() / width), weight, epsilon);
    });
}

/// Adds the gradient of an RMS norm's input to `dx`, from that of its output. The gradient of the weight comes back.
pub(crate) fn rms_norm_backward(
    dx: &mut [f32],
    gradient: &[f32],
    x: &[f32],
    weight: &[f32],
    epsilon: f32,
) -> Vec<f32> {
    let width = weight.len();
    over_rows_summing(dx, width, width, |first, block, d_weight| {
        let rows = block.len() / width;
        let (gradient, x) = (part(gradient, width, first, rows), part(x, width, first, rows));
        rms_norm_backward_block(block, gradient, x, weight, epsilon, d_weight);
    })
}
