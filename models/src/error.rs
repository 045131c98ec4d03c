use std::path::PathBuf;

/// What a function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with models. A message names the input, what is wrong with it, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A checkpoint folder or file is missing, incomplete or of an unsupported kind.
    #[error("{path}: {detail}")]
    Checkpoint {
        /// The folder or file.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        detail: String,
    },
    /// The caller's input can't be processed (an empty batch, a text the tokenizer refuses, …).
    #[error("{0}")]
    Input(String),
    /// Every place is taken and the queue is full; try again later.
    #[error("{what} is overloaded: {detail}")]
    Overloaded {
        /// `encoder` or `expander`.
        what: &'static str,
        /// How many wait, and the limit.
        detail: String,
    },
    /// The engine behind a seam failed: a tensor operation, a worker that ended, a remote server's error.
    #[error("{what} failed: {detail}")]
    Engine {
        /// The engine's name.
        what: &'static str,
        /// What it said.
        detail: String,
    },
    /// Weights could not be fetched, verified or converted.
    #[error("weights: {0}")]
    Weights(String),
    /// A file could not be read or written (the message names its path).
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
