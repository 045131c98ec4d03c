//! Checkpoints with an adapter merged into them, made once and kept in the store.

use std::path::{Path, PathBuf};

use super::{resolve::weights_id, store::StoreLock};
use crate::{
    Error, Result,
    encoder::checkpoint::Checkpoint,
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
    if is_current(base, &target) {
        return Ok(target);
    }
    let _lock = StoreLock::acquire(models_dir, || ())?;
    if !is_current(base, &target) {
        tracing::info!(base = %base.display(), adapter = %adapter.display(), "merging an adapter");
        merge_adapter(base, &AdapterFile::read(adapter)?, &target)?;
    }
    Ok(target)
}

/// Whether what was merged earlier still is what merging would make. The folder's name says so of the weights, but not of the
/// files that say how an encoder's texts become vectors (pooling, prefixes, lengths).
fn is_current(base: &Path, target: &Path) -> bool {
    target.is_dir()
        && match (Checkpoint::read(base), Checkpoint::read(target)) {
            (Ok(base), Ok(target)) => base.settings == target.settings,
            // No encoder: there are no such files.
            (Err(_), _) => true,
            (Ok(_), Err(_)) => false,
        }
}

/// Name and hash of a weights id.
fn parts(id: &str) -> (String, String) {
    let (name, hash) = id.rsplit_once('@').unwrap_or((id, ""));
    (name.to_owned(), hash.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::{
        testing::tiny_bert,
        trainable::{AdapterTask, LoraSettings},
    };

    #[test]
    fn what_was_merged_is_made_anew_when_the_bases_settings_change() {
        let folder = tempfile::tempdir().unwrap();
        let (base, adapter, store) =
            (folder.path().join("base"), folder.path().join("adapter"), folder.path().join("store"));
        tiny_bert(&base, 1).unwrap();
        let [down, up] = ["A", "B"]
            .map(|letter| format!("base_model.model.encoder.layer.0.output.dense.lora_{letter}.weight"));
        let ones = |rows, columns| Tensor::ones((rows, columns), DType::F32, &Device::Cpu).unwrap();
        let settings = LoraSettings {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            target_modules: vec!["all-linear".into()],
            rank_stabilised: false,
        };
        let tensors = HashMap::from([(down, ones(1, 64)), (up, ones(32, 1))]);
        let file =
            AdapterFile { settings, task: AdapterTask::FeatureExtraction, base: "base".into(), tensors };
        file.write(&adapter).unwrap();
        fs_err::create_dir_all(&store).unwrap();
        let made = adapted(&store, &base, &adapter).unwrap();
        // A mark shows whether the folder is still the same one.
        let mark = made.join("mark");
        fs_err::write(&mark, "").unwrap();
        assert_eq!(adapted(&store, &base, &adapter).unwrap(), made);
        assert!(mark.exists());
        fs_err::write(base.join("expandr.json"), r#"{"query_prefix": "query: "}"#).unwrap();
        assert_eq!(adapted(&store, &base, &adapter).unwrap(), made);
        assert!(!mark.exists());
        assert_eq!(Checkpoint::read(&made).unwrap().settings.query_prefix, "query: ");
    }
}
