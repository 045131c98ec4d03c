//! Tests of the service as a whole.
//!
//! - `service`: the real router and pipeline over doubles of encoder and expander; no weights.
//! - `ranking`: its rankings and what it says about expansions, over the same doubles.
//! - `gate`: expansion `auto`, over the same doubles.
//! - `changeover`: from one bundle to another, over the same doubles; what a crash leaves. `doubles`: their models.
//! - `bundles`: the same with the real binary and real weights, under load and killed at random moments.
//! - `feedback`, `administration`: feedback, datasets and audit, over the same doubles.
//! - `commands`: the commands of operators, against a mock of the admin routes.
//! - `end_to_end`: the real binary with the real default weights.
//! - `kill`, `kill_operations`: the real binary, killed in the middle of writes: documents; feedback and datasets.
//! - `train`: the smoke recipe from pairs to a served pair of models, killed on its way.

mod administration;
mod bundles;
mod changeover;
mod commands;
mod doubles;
mod end_to_end;
mod feedback;
mod gate;
mod kill;
mod kill_operations;
mod process;
mod ranking;
mod service;
mod train;
