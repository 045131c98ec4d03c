//! What the engines on a CPU are built from, encoder and decoder alike.
//!
//! - `dispatch`: choosing the instruction set at run time, and calling gemm.
//! - `math`: functions of numbers and rows that kernels are made of.
//! - `panels`: products with weights that are arranged once and used for ever, the same for every number of rows.
//! - `storage`: how those weights lie in memory.
//! - `simd`: the innermost loops of those products.
//! - `team`: threads for many short pieces of work.
//!
//! `dispatch`, `simd` and `team` have the crate's only `unsafe` code, each with what makes it safe for callers.

mod dispatch;
mod math;
mod panels;
mod simd;
mod storage;
mod team;

pub use self::storage::Precision;
pub(crate) use self::{
    dispatch::{Kernel, Matrix, dispatch, multiply, multiply_scaled},
    math::{exp, maximum, sum, sum_of_squares},
    panels::{Panels, Store, Tiles, product},
    simd::{Instructions, WIDTH, accumulate},
    team::Team,
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
