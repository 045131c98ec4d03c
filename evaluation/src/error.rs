use std::path::{Path, PathBuf};

/// What a function of this crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in an evaluation. A message names the input, what is wrong with it, and the remedy.
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
    /// A file or folder as a whole is missing, empty or not what was asked for.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and the remedy.
        detail: String,
    },
    /// An argument makes no sense (an unknown metric, systems that did not answer the same queries, …).
    #[error("{0}")]
    Input(String),
    /// A search server could not be reached, refused a request, or gave an answer of another form.
    #[error("{endpoint}: {detail}")]
    Server {
        /// Its base URL.
        endpoint: String,
        /// What it said, and the remedy.
        detail: String,
    },
    /// The server changed over to another bundle in the middle of a run, so that its figures would mix two systems.
    #[error(
        "the bundle changed from {before:?} to {after:?} in the middle of the run; its answers don't belong together. \
         Start again in an empty run folder while nothing is being activated"
    )]
    BundleChanged {
        /// The bundle of the earlier answers.
        before: String,
        /// The bundle of the later ones.
        after: String,
    },
    /// A file could not be read or written (the message names its path).
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Error {
    pub(crate) fn line(path: &Path, line: usize, detail: impl Into<String>) -> Self {
        Self::Line { path: path.to_owned(), line, detail: detail.into() }
    }

    pub(crate) fn file(path: &Path, detail: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), detail: detail.into() }
    }
}
