//! What is in the store.

use std::path::{Path, PathBuf};

use super::{
    manifest::{Manifest, sha256_of_file},
    registry::{DefaultWeights, Recipe, find},
    resolve::{CheckpointKind, kind_of},
};
use crate::Result;

/// Whether an entry of the store is as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verification {
    /// Every file has the hash of the manifest, or of the pin.
    Verified,
    /// Every file is there and has the length of the manifest; hashes were not computed.
    Complete,
    /// Nothing to compare with: put there by hand.
    Unknown,
    /// Not what it should be, and why.
    Damaged(String),
    /// Not there.
    Missing,
}

/// An entry of the store.
#[derive(Clone, Debug)]
pub struct StoredCheckpoint {
    /// Its folder or file name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What it is; none when that can't be told.
    pub kind: Option<CheckpointKind>,
    /// Its length, all files together.
    pub bytes: u64,
    /// Whether it is as it should be.
    pub verification: Verification,
}

/// What is in the store `models_dir`, by name; with `verify` every file is hashed. A missing store is empty.
///
/// # Errors
/// When the store can't be read.
pub fn list(models_dir: &Path, verify: bool) -> Result<Vec<StoredCheckpoint>> {
    let entries = match fs_err::read_dir(models_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let kind = kind_of(&path)?;
        let is_checkpoint = path.is_dir() || kind.is_some();
        if name.starts_with('.') || !is_checkpoint {
            continue;
        }
        let (verification, bytes) = check(&path, find(&name), verify)?;
        found.push(StoredCheckpoint { name, path, kind, bytes, verification });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Compares what is at `path` with its manifest, or with the pin when it is a single file of the default weights. Its
/// length comes back too.
pub(super) fn check(
    path: &Path,
    weights: Option<&DefaultWeights>,
    verify: bool,
) -> Result<(Verification, u64)> {
    let found = match fs_err::metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Verification::Missing, 0)),
        Err(error) => return Err(error.into()),
    };
    if !found.is_dir() {
        return Ok((check_file(path, weights, verify)?, found.len()));
    }
    let manifest = match Manifest::read(path) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return Ok((Verification::Unknown, length_of(path)?)),
        Err(error) => return Ok((Verification::Damaged(error.to_string()), length_of(path)?)),
    };
    let verification = match manifest.difference(path, verify)? {
        Some(detail) => Verification::Damaged(detail),
        None if verify => Verification::Verified,
        None => Verification::Complete,
    };
    Ok((verification, manifest.bytes()))
}

fn check_file(path: &Path, weights: Option<&DefaultWeights>, verify: bool) -> Result<Verification> {
    let Some(Recipe::File { sha256: pin, bytes, .. }) = weights.map(|weights| &weights.recipe) else {
        return Ok(Verification::Unknown);
    };
    let length = fs_err::metadata(path)?.len();
    if length != *bytes {
        return Ok(Verification::Damaged(format!("it has {length} bytes instead of {bytes}")));
    }
    if !verify {
        return Ok(Verification::Complete);
    }
    let found = sha256_of_file(path)?;
    if found == *pin {
        return Ok(Verification::Verified);
    }
    Ok(Verification::Damaged(format!("it hashes to {found} where {pin} is pinned")))
}

fn length_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        bytes +=
            if entry.file_type()?.is_dir() { length_of(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}
