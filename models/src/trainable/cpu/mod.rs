//! The arithmetic of training on a CPU, forward and backward, on slices.
//!
//! candle's own backward pass allocates and adds a zero for every gradient, on one thread, and computes the gradients of
//! frozen weights as well; that costs as much as the products do. So on a CPU the layers are written out by hand over
//! these pieces. All sums are taken in an order that does not depend on the number of threads, so that a run can be
//! repeated bit for bit.
//!
//! - `kernel`: compiling loops once per instruction set. `rows`: sharing rows out among threads.
//! - `memory`: buffers that are used again. `view`: tensors as slices.
//! - `products`: matrix products; `linear`: layers of them, with adapters. `activation`, `norm`, `head`: functions of rows. `attention`, `rotary`.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod head;
mod kernel;
pub(super) mod linear;
pub(super) mod memory;
pub(super) mod norm;
pub(super) mod products;
pub(super) mod rotary;
pub(super) mod rows;
pub(super) mod view;
