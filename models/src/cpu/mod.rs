//! What the engines on a CPU are built from, encoder and decoder alike.
//!
//! - `dispatch`: the crate's only `unsafe` code: choosing the instruction set at run time, the innermost loop of products,
//!   and calling gemm.
//! - `math`: functions of numbers and rows that kernels are made of.
//! - `panels`: products with weights that are arranged once and used for ever, the same for every number of rows.

mod dispatch;
mod math;
mod panels;

pub(crate) use self::{
    dispatch::{Instructions, Kernel, Matrix, WIDTH, accumulate, dispatch, multiply, multiply_scaled},
    math::{exp, maximum, sum, sum_of_squares},
    panels::{Panels, Store, Tiles, product},
};

/// Memory that is used again; what it holds at first is whatever was left there.
#[derive(Default)]
pub(crate) struct Buffer(Vec<f32>);

impl Buffer {
    pub(crate) fn get(&mut self, length: usize) -> &mut [f32] {
        if self.0.len() < length {
            self.0.resize(length, 0.0);
        }
        &mut self.0[..length]
    }
}
