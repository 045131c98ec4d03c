//! Matrix products of linear layers. Weights are outputs × inputs; rows are tokens.

use crate::cpu::{Matrix, multiply_scaled};

/// out = scale · x · weightᵀ, added to what `out` holds when `add` is set: `rows × outputs`.
pub(crate) fn forward(out: &mut [f32], add: bool, x: &[f32], weight: &[f32], outputs: usize, scale: f32) {
    let inputs = weight.len() / outputs;
    let weight = Matrix::new(weight, outputs, inputs).transposed();
    multiply_scaled(out, add, Matrix::new(x, x.len() / inputs, inputs), weight, scale, threads());
}

/// The gradient of the input: dx = scale · dy · weight, added when `add` is set: `rows × inputs`.
pub(crate) fn input_gradient(
    dx: &mut [f32],
    add: bool,
    dy: &[f32],
    weight: &[f32],
    outputs: usize,
    scale: f32,
) {
    let inputs = weight.len() / outputs;
    let dy = Matrix::new(dy, dy.len() / outputs, outputs);
    multiply_scaled(dx, add, dy, Matrix::new(weight, outputs, inputs), scale, threads());
}

/// The gradient of the weight: dw = scale · dyᵀ · x, added when `add` is set: `outputs × inputs`.
pub(crate) fn weight_gradient(dw: &mut [f32], add: bool, dy: &[f32], x: &[f32], rows: usize, scale: f32) {
    let (outputs, inputs) = (dy.len() / rows, x.len() / rows);
    let dy = Matrix::new(dy, rows, outputs).transposed();
    multiply_scaled(dw, add, dy, Matrix::new(x, rows, inputs), scale, threads());
}

fn threads() -> usize {
    rayon::current_num_threads()
}
