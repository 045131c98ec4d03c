//! From what an operator wrote to a path that a loader can open.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    gguf_header, hub,
    list::{Verification, check},
    manifest::{MANIFEST_FILE, Manifest, hex, sha256_of_file},
    registry::find,
};
use crate::{Error, Result, trainable::ADAPTER_FILES};

/// What a checkpoint is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To turn texts into vectors.
    Encoder,
    /// To write passages.
    Expander,
}

/// What is found on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    /// `config.json`, `tokenizer.json` and safetensors.
    HuggingFace,
    /// The same with `modules.json`, which says how texts become vectors.
    SentenceTransformers,
    /// One file with weights, tokenizer and chat template.
    Gguf,
}

/// Where a checkpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// A folder, or a GGUF file.
    pub path: PathBuf,
    /// What it is.
    pub kind: CheckpointKind,
}

/// Finds the checkpoint that `spec` means: a name in the store `models_dir`, a local folder, a `.gguf` file, or a hub id
/// (`organisation/name`, with `@revision` if wanted), in this order. A hub id is downloaded into the hub's own cache, or taken from there when
/// the network is closed. What the store holds is compared with its manifest (lengths, not hashes).
/// Blocking: from async code, call it on a blocking thread.
///
/// # Errors
/// When nothing is found, or what is found is damaged, incomplete or of no use in that role.
pub fn resolve(models_dir: &Path, spec: &str, role: Role) -> Result<Resolved> {
    let resolved = locate(models_dir, spec)?;
    let refuse = |detail: &str| Err(Error::Checkpoint { path: resolved.path.clone(), detail: detail.into() });
    match (role, resolved.kind) {
        (Role::Encoder, CheckpointKind::Gguf) => {
            return refuse(
                "a GGUF file can't be an encoder; give a sentence-transformers or Hugging Face directory",
            );
        }
        (Role::Expander, CheckpointKind::SentenceTransformers) => {
            return refuse("this is an encoder (it has modules.json); give a language model");
        }
        _ => {}
    }
    if resolved.kind != CheckpointKind::Gguf {
        complete(&resolved.path)?;
    }
    Ok(resolved)
}

fn locate(models_dir: &Path, spec: &str) -> Result<Resolved> {
    if spec.trim().is_empty() {
        return Err(Error::Input(
            "a checkpoint's name is empty; give a name in the store, a path or a hub id".into(),
        ));
    }
    let is_name = Path::new(spec).components().count() == 1 && !spec.starts_with('.');
    if is_name && let Some(stored) = stored(models_dir, spec)? {
        return Ok(stored);
    }
    let path = Path::new(spec);
    if path.exists() {
        let kind = kind_of(path)?.ok_or_else(|| Error::Checkpoint {
            path: path.to_path_buf(),
            detail: "neither a folder with config.json nor a GGUF file".into(),
        })?;
        return Ok(Resolved { path: path.to_path_buf(), kind });
    }
    if let Some(id) = hub::HubId::parse(spec) {
        let path = hub::fetch(&id)?;
        let kind = kind_of(&path)?.unwrap_or(CheckpointKind::HuggingFace);
        return Ok(Resolved { path, kind });
    }
    let remedy = match find(spec) {
        Some(_) => {
            format!("the default weights `{spec}` are not in {} yet: pull them first", models_dir.display())
        }
        None => format!(
            "`{spec}` is neither a name in {}, nor a folder or file, nor a hub id (organisation/name)",
            models_dir.display()
        ),
    };
    Err(Error::Weights(remedy))
}

fn stored(models_dir: &Path, name: &str) -> Result<Option<Resolved>> {
    let path = models_dir.join(name);
    match check(&path, find(name), false)? {
        (Verification::Missing, _) => return Ok(None),
        (Verification::Damaged(detail), _) => {
            return Err(Error::Checkpoint { path, detail: format!("damaged: {detail}; pull it again") });
        }
        _ => {}
    }
    Ok(kind_of(&path)?.map(|kind| Resolved { path, kind }))
}

/// What is at `path`; none when it is no checkpoint.
pub(super) fn kind_of(path: &Path) -> Result<Option<CheckpointKind>> {
    if path.is_dir() {
        return Ok(if path.join("modules.json").is_file() {
            Some(CheckpointKind::SentenceTransformers)
        } else if path.join("config.json").is_file() {
            Some(CheckpointKind::HuggingFace)
        } else {
            None
        });
    }
    let is_gguf = path.is_file() && gguf_header::has_magic(path)?;
    Ok(is_gguf.then_some(CheckpointKind::Gguf))
}

/// Refuses a folder that lacks its tokenizer or any of its weights.
pub(super) fn complete(folder: &Path) -> Result<()> {
    let missing = |detail: String| Err(Error::Checkpoint { path: folder.to_path_buf(), detail });
    for file in ["config.json", "tokenizer.json"] {
        if !folder.join(file).is_file() {
            return missing(format!("{file} is missing; fetch the whole checkpoint"));
        }
    }
    let weights = weight_files(folder)?;
    if weights.is_empty() {
        let remedy = if folder.join("pytorch_model.bin").is_file() {
            "it has weights as pytorch_model.bin only: convert them to safetensors (`save_pretrained` of transformers \
             writes it)"
        } else {
            "it has no weights (model.safetensors); fetch the whole checkpoint"
        };
        return missing(remedy.into());
    }
    if let Some(absent) = weights.iter().find(|file| !folder.join(file).is_file()) {
        return missing(format!("{absent} is missing; fetch the whole checkpoint"));
    }
    Ok(())
}

/// The weights' file names: one, or the shards that the index names (there or not).
fn weight_files(folder: &Path) -> Result<Vec<String>> {
    if folder.join("model.safetensors").is_file() {
        return Ok(vec!["model.safetensors".into()]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(Vec::new());
    }
    let broken =
        |detail: &str| Error::Checkpoint { path: index.clone(), detail: format!("{detail}; fetch it again") };
    let json: serde_json::Value = serde_json::from_str(&fs_err::read_to_string(&index)?)
        .map_err(|error| broken(&format!("not JSON ({error})")))?;
    let map = json["weight_map"].as_object().ok_or_else(|| broken("it has no `weight_map`"))?;
    let mut files: Vec<String> = map.values().filter_map(|file| file.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

/// Names a language model's weights: `<folder or file name>@<first 12 hex digits of a sha256>`, over the weights,
/// tokenizer, chat template and configuration. Hashes are taken from the manifest where there is one.
///
/// # Errors
/// When a file can't be read.
pub fn weights_id(path: &Path) -> Result<String> {
    let path = fs_err::canonicalize(path)?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if path.is_file() {
        return Ok(format!("{name}@{}", &sha256_of_file(&path)?[..12]));
    }
    let manifest = if path.join(MANIFEST_FILE).is_file() { Manifest::read(&path)? } else { None };
    let mut files = weight_files(&path)?;
    let others = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    for file in others.into_iter().chain(ADAPTER_FILES) {
        if path.join(file).is_file() {
            files.push(file.into());
        }
    }
    let mut hasher = Sha256::new();
    for file in files {
        let known =
            manifest.as_ref().and_then(|manifest| manifest.files.iter().find(|entry| entry.path == file));
        let hash = match known {
            Some(entry) => entry.sha256.clone(),
            None => sha256_of_file(&path.join(&file))?,
        };
        hasher.update(format!("{file} {hash}\n"));
    }
    Ok(format!("{name}@{}", &hex(&hasher.finalize())[..12]))
}

/// Names the weights of `base` with the LoRA adapter of the folder `adapter` beside them: both ids, joined by `+`.
///
/// # Errors
/// As [`weights_id`].
pub fn adapted_id(base: &Path, adapter: &Path) -> Result<String> {
    Ok(format!("{}+{}", weights_id(base)?, weights_id(adapter)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            fs_err::write(folder.path().join(file), "{}").unwrap();
        }
        folder
    }

    fn error(spec: &Path, role: Role) -> String {
        resolve(Path::new("no-store"), spec.to_str().unwrap(), role).unwrap_err().to_string()
    }

    #[test]
    fn folders_are_told_apart_and_incomplete_ones_refused() {
        let whole = folder_with(&["config.json", "tokenizer.json", "model.safetensors"]);
        let resolved =
            resolve(Path::new("no-store"), whole.path().to_str().unwrap(), Role::Expander).unwrap();
        assert_eq!(resolved.kind, CheckpointKind::HuggingFace);
        assert!(
            error(folder_with(&["config.json", "model.safetensors"]).path(), Role::Encoder)
                .contains("tokenizer.json is missing")
        );
        assert!(
            error(folder_with(&["config.json", "tokenizer.json"]).path(), Role::Encoder)
                .contains("no weights")
        );
        let torch = folder_with(&["config.json", "tokenizer.json", "pytorch_model.bin"]);
        assert!(error(torch.path(), Role::Encoder).contains("convert them to safetensors"));
        let encoder = folder_with(&["config.json", "tokenizer.json", "model.safetensors", "modules.json"]);
        assert!(error(encoder.path(), Role::Expander).contains("this is an encoder"));
        assert!(error(folder_with(&[]).path(), Role::Expander).contains("neither a folder with config.json"));
    }

    #[test]
    fn a_missing_shard_is_named() {
        let folder = folder_with(&["config.json", "tokenizer.json", "model-1.safetensors"]);
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        fs_err::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        assert!(error(folder.path(), Role::Encoder).contains("model-2.safetensors is missing"));
    }

    #[test]
    fn a_gguf_file_is_no_encoder() {
        let folder = folder_with(&[]);
        let path = folder.path().join("x.gguf");
        fs_err::write(&path, b"GGUF\x03\0\0\0").unwrap();
        assert!(error(&path, Role::Encoder).contains("can't be an encoder"));
        let resolved = resolve(Path::new("no-store"), path.to_str().unwrap(), Role::Expander).unwrap();
        assert_eq!(resolved.kind, CheckpointKind::Gguf);
    }

    #[test]
    fn names_that_mean_nothing_get_the_remedy() {
        assert!(error(Path::new("all-minilm-l6-v2"), Role::Encoder).contains("pull them first"));
        assert!(error(Path::new("no-such-model"), Role::Encoder).contains("neither a name"));
        assert!(error(Path::new(" "), Role::Encoder).contains("empty"));
    }

    #[test]
    fn the_id_follows_the_weights() {
        let folder = folder_with(&["config.json", "tokenizer.json", "model.safetensors"]);
        let before = weights_id(folder.path()).unwrap();
        assert_eq!(before, weights_id(folder.path()).unwrap());
        fs_err::write(folder.path().join("model.safetensors"), "other").unwrap();
        assert_ne!(before, weights_id(folder.path()).unwrap());
        assert_eq!(before.rsplit_once('@').unwrap().1.len(), 12);
    }
}
