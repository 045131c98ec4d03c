use std::path::{Path, PathBuf};

/// What a function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in training. A message names the input, what is wrong with it, and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One line of a file is broken.
    #[error("{}:{line}: {detail}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it, and the remedy.
        detail: String,
    },
    /// A recipe can't be used: a setting that isn't there, of another type, or out of range.
    #[error("{}: {detail}", recipe.display())]
    Recipe {
        /// The recipe.
        recipe: PathBuf,
        /// What is wrong with it, and the remedy.
        detail: String,
    },
    /// A stage of a run can't go on: what it reads isn't there, or what it left was made with other settings.
    #[error("stage {stage}: {detail}")]
    Stage {
        /// Its name, with the arm if it isn't ExpandR's own.
        stage: String,
        /// What is wrong, and the remedy.
        detail: String,
    },
    /// An argument makes no sense (a share outside 0 to 1, similarities that are not numbers, …).
    #[error("{0}")]
    Input(String),
    /// A file can't be read, is not UTF-8, or is not a test collection.
    #[error(transparent)]
    Data(#[from] expandr_evaluation::Error),
    /// A language model or an encoder failed.
    #[error(transparent)]
    Models(#[from] expandr_models::Error),
    /// A training run can't begin or go on: its checkpoint is another run's, its loss is not a number, ….
    #[error("training: {0}")]
    Training(String),
    /// A file could not be read or written (the message names its path).
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn line(path: &Path, line: usize, detail: impl Into<String>) -> Self {
        Self::Line { path: path.to_owned(), line, detail: detail.into() }
    }
}
