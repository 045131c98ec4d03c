//! Checkpoints with an adapter merged into them, made once and kept in the store.

use std::path::{Path, PathBuf};

use super::{resolve::weights_id, store::StoreLock};
use crate::{
    Error, Result,
    trainable::{AdapterFile, merge_adapter},
};

/// The checkpoint `base` with the LoRA adapter of the folder `adapter` (PEFT's layout) merged into it: a folder of the
/// store `models_dir`, named after both, which is made where it is missing. Blocks for seconds.
///
/// # Errors
/// When the adapter belongs to another model, when base is not a folder, and when the disk refuses.
pub fn adapted(models_dir: &Path, base: &Path, adapter: &Path) -> Result<PathBuf> {
    if !base.is_dir() {
        return Err(Error::Input(format!(
            "{}: an adapter can only be merged into a folder (Hugging Face or sentence-transformers layout)",
            base.display()
        )));
    }
    let id = weights_id(base)?;
    let (_, adapter_hash) = parts(&weights_id(adapter)?);
    let (name, hash) = parts(&id);
    let target = models_dir.join(format!("{name}-{hash}-adapted-{adapter_hash}"));
    // It appears whole or not at all.
    if target.is_dir() {
        return Ok(target);
    }
    let _lock = StoreLock::acquire(models_dir, || ())?;
    if !target.is_dir() {
        tracing::info!(base = %base.display(), adapter = %adapter.display(), "merging an adapter");
        merge_adapter(base, &AdapterFile::read(adapter)?, &target)?;
    }
    Ok(target)
}

/// Name and hash of a weights id.
fn parts(id: &str) -> (String, String) {
    let (name, hash) = id.rsplit_once('@').unwrap_or((id, ""));
    (name.to_owned(), hash.to_owned())
}
