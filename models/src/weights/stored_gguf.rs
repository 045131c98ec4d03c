//! A GGUF file as a checkpoint of the store.

use std::path::{Path, PathBuf};

use super::{
    convert::{About, convert_described},
    gguf::Gguf,
    registry::find,
    store::StoreLock,
};
use crate::{Error, Result};

/// What a manifest says where the file doesn't.
const UNSTATED: &str = "not stated in the file";

/// Converts the GGUF file at `gguf` ([`convert_gguf`](super::convert_gguf)) into the folder `name` of the store `models_dir`, so that the
/// batching decoder serves it and `expandr train` trains it. It appears whole or not at all. `name` is none for the
/// file's own, without `.gguf`. `progress` gets (tensors done, tensors in all). Blocks for seconds a GB.
///
/// # Errors
/// When the file is damaged or uses what can't be expressed, when `name` is taken, is one of the default weights' or
/// is no plain name, and when the disk refuses.
pub fn convert_into_store(
    gguf: &Path,
    models_dir: &Path,
    name: Option<&str>,
    progress: impl FnMut(usize, usize),
) -> Result<PathBuf> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => gguf.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
    };
    check_name(&name)?;
    let (licence, upstream) = stated(gguf)?;
    let lock = StoreLock::acquire(models_dir, || {
        tracing::warn!("waiting for another process that writes in the store")
    })?;
    let target = models_dir.join(&name);
    if target.symlink_metadata().is_ok() {
        return Err(Error::Input(format!(
            "{} is already there; give another name, or remove it",
            target.display()
        )));
    }
    let temporary = lock.temporary(&name)?;
    let made = temporary.path().join("made");
    convert_described(gguf, &made, &About { name: &name, licence: &licence, upstream: &upstream }, progress)?;
    lock.install(&made, &name)
}

fn check_name(name: &str) -> Result<()> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']);
    if !plain {
        return Err(Error::Input(format!(
            "`{name}` can't be a checkpoint's name: it is empty, begins with a dot or holds a slash"
        )));
    }
    if find(name).is_some() {
        return Err(Error::Input(format!("`{name}` is the name of default weights; give another one")));
    }
    Ok(())
}

/// Licence and origin, as the file has them.
fn stated(path: &Path) -> Result<(String, String)> {
    let gguf = Gguf::open(path)?;
    let first = |keys: &[&str]| {
        for key in keys {
            if let Some(text) = gguf.optional_text(key)? {
                return Ok(text.to_owned());
            }
        }
        Ok::<_, Error>(UNSTATED.to_owned())
    };
    let licence = first(&["general.license"])?;
    let upstream = first(&["general.source.url", "general.url", "general.name"])?;
    Ok((licence, upstream))
}
