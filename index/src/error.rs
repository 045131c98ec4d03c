//! What can go wrong, in words that name the input, the problem and the remedy.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the index. Cheap to clone, because writers that share one commit share its outcome.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A document that can't be stored. The caller's mistake.
    #[error("document {id:?}: {reason}")]
    InvalidDocument {
        /// The document's id, shortened when it is long.
        id: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A vector that can't be stored or searched with. The caller's mistake.
    #[error("{input}: {reason}")]
    InvalidVector {
        /// Which vector.
        input: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A filter that can't be understood. The caller's mistake.
    #[error("filter: {0}")]
    InvalidFilter(#[from] crate::FilterError),
    /// A search parameter out of its range. The caller's mistake.
    #[error("search: {0}")]
    InvalidSearch(String),
    /// A configuration value out of its range. The operator's mistake.
    #[error("index configuration: {0}")]
    InvalidConfig(String),
    /// The store holds vectors of another encoder or of another dimension.
    #[error(
        "the index in {dir} holds {documents} documents embedded by encoder {stored_encoder:?} ({stored_dimension} dimensions), \
         but encoder {encoder:?} ({dimension} dimensions) was asked for; use that encoder, choose another index \
         directory, or embed the documents anew into an empty one"
    )]
    OtherEncoder {
        /// The index directory.
        dir: PathBuf,
        /// How many documents it holds.
        documents: u64,
        /// The encoder that embedded them.
        stored_encoder: String,
        /// That encoder's dimension.
        stored_dimension: usize,
        /// The encoder that was asked for.
        encoder: String,
        /// Its dimension.
        dimension: usize,
    },
    /// Another process, or another part of this one, has the index open.
    #[error("the index in {0} is open elsewhere; stop that process or choose another directory")]
    InUse(PathBuf),
    /// The store was written by a newer or a foreign program.
    #[error(
        "the store {path} has format {found}, this program reads format {expected}; use the program that wrote it"
    )]
    OtherFormat {
        /// The store file.
        path: PathBuf,
        /// The format found in it.
        found: String,
        /// The format that this program reads.
        expected: u32,
    },
    /// The store contradicts itself. It is the truth, so nothing repairs it silently.
    #[error(
        "the store is damaged: {0}; restore the index directory from a backup or ingest the documents anew"
    )]
    Corrupt(String),
    /// The embedded store failed.
    #[error("store: {0}; check the disk's free space and its health, then restart")]
    Store(Arc<redb::Error>),
    /// A file could not be read or written; the message names its path.
    #[error("{0}")]
    Io(Arc<std::io::Error>),
    /// The graph refused an operation.
    #[error("graph: {0}")]
    Graph(String),
    /// Lexical search was asked for, but the index was opened without it.
    #[error(
        "lexical search is switched off; switch it on in the index's configuration, and its index is built from the store"
    )]
    LexicalOff,
    /// The lexical index failed. It is derived from the store, and is built anew from it.
    #[error("lexical index: {0}; it is built anew from the store, try again later")]
    Lexical(String),
    /// The index was closed; only reads are served.
    #[error("the index is closed for writing")]
    Closed,
}

impl Error {
    /// Whether the request itself was wrong, so that sending it again can't help.
    pub fn is_invalid_input(&self) -> bool {
        matches!(
            self,
            Self::InvalidDocument { .. }
                | Self::InvalidVector { .. }
                | Self::InvalidFilter(_)
                | Self::InvalidSearch(_)
                | Self::LexicalOff
        )
    }

    pub(crate) fn document(id: &str, reason: impl Into<String>) -> Self {
        Self::InvalidDocument { id: shorten(id), reason: reason.into() }
    }

    pub(crate) fn lexical(error: impl std::fmt::Display) -> Self {
        Self::Lexical(error.to_string())
    }

    pub(crate) fn store(error: impl Into<redb::Error>) -> Self {
        Self::Store(Arc::new(error.into()))
    }

    /// Whether the disk failed under the store.
    pub(crate) fn is_of_the_disk(&self) -> bool {
        matches!(self, Self::Store(error) if matches!(**error, redb::Error::Io(_) | redb::Error::PreviousIo))
    }

    pub(crate) fn open(error: redb::DatabaseError, dir: &Path) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse(dir.to_owned()),
            other => Self::store(other),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// At most 64 characters of text that came from outside.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
