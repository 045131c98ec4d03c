//! Where checkpoints come from.
