//! Tests of the service as a whole.
//!
//! - `service`: the real router and pipeline over doubles of encoder and expander; no weights.
//! - `end_to_end`: the real binary with the real default weights.
//! - `kill`: the real binary, killed in the middle of writes.

mod end_to_end;
mod kill;
mod process;
mod service;
