//! Small deterministic doubles of both seams, for tests that need no weights.

mod conformance;
mod encoder;
mod expander;

pub use conformance::{Conformance, check_expander};
pub use encoder::*;
pub use expander::*;
