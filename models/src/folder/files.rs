//! Reading a checkpoint's files, with errors that name them.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// An [`Error::Checkpoint`] about `path`.
pub(crate) fn checkpoint_error(path: &Path, detail: String) -> Error {
    Error::Checkpoint { path: path.to_path_buf(), detail }
}

/// Reads a JSON file that must exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<T> {
    read_json_if_there(path)?.ok_or_else(|| checkpoint_error(path, format!("the file is missing; {remedy}")))
}

/// Reads a JSON file that may be absent.
pub(crate) fn read_json_if_there<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        checkpoint_error(path, format!("not the JSON that is expected here ({e}); fetch the file again"))
    })
}
