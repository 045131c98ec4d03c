//! Tests of the service as a whole.
//!
//! - `service`: the real router and pipeline over doubles of encoder and expander; no weights.
//! - `ranking`: its rankings and what it says about expansions, over the same doubles.
//! - `gate`: expansion `auto`, over the same doubles.
//! - `changeover`: from one bundle to another, over the same doubles; what a crash leaves. `doubles`: their models.
//! - `bundles`: the same with the real binary and real weights, under load and killed at random moments.
//! - `end_to_end`: the real binary with the real default weights.
//! - `kill`: the real binary, killed in the middle of writes.
//! - `train`: the smoke recipe from pairs to a served pair of models, killed on its way.

mod bundles;
mod changeover;
mod doubles;
mod end_to_end;
mod gate;
mod kill;
mod process;
mod ranking;
mod service;
mod train;
