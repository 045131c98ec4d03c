//! Small deterministic doubles of both seams, for tests that need no weights.

mod encoder;

pub use encoder::*;
