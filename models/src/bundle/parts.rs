//! From a manifest to the weights on this machine.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Ids, Manifest};
use crate::{
    Error, Result,
    encoder::checkpoint::Checkpoint,
    weights::{self, Role, weights_id},
};

/// Where a bundle's language model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpanderPlace {
    /// On a server.
    Remote {
        /// Its base URL.
        url: String,
        /// The model's name there.
        model: String,
    },
    /// On this machine.
    Local {
        /// A folder or a GGUF file.
        path: PathBuf,
        /// A folder with a LoRA adapter.
        adapter: Option<PathBuf>,
    },
}

/// The model's name that a server is asked for when the bundle doesn't say.
const REMOTE_MODEL: &str = "default";

/// The folder of the encoder, with its adapter merged into it (made in `models_dir` where it is missing). Blocks.
///
/// # Errors
/// When the weights are not there, damaged, or don't fit the adapter.
pub fn encoder_place(models_dir: &Path, folder: &Path, manifest: &Manifest) -> Result<PathBuf> {
    let part = &manifest.encoder;
    let base = base(models_dir, folder, manifest, &part.model, Role::Encoder)?;
    match &part.adapter {
        Some(adapter) => weights::adapted(models_dir, &base, &folder.join(adapter)),
        None => Ok(base),
    }
}

/// Where the language model is; none without one. Blocks.
///
/// # Errors
/// When the weights are not there or damaged.
pub fn expander_place(
    models_dir: &Path,
    folder: &Path,
    manifest: &Manifest,
) -> Result<Option<ExpanderPlace>> {
    let Some(part) = &manifest.expander else { return Ok(None) };
    if part.is_remote() {
        let model = part.remote_model.clone().unwrap_or_else(|| REMOTE_MODEL.into());
        return Ok(Some(ExpanderPlace::Remote { url: part.model.clone(), model }));
    }
    let path = base(models_dir, folder, manifest, &part.model, Role::Expander)?;
    let adapter = part.adapter.as_ref().map(|adapter| folder.join(adapter));
    Ok(Some(ExpanderPlace::Local { path, adapter }))
}

fn base(models_dir: &Path, folder: &Path, manifest: &Manifest, model: &str, role: Role) -> Result<PathBuf> {
    if manifest.owns_folder(model) {
        // An absolute path is never taken for a name in the store.
        let path = fs_err::canonicalize(folder.join(model))?;
        let spec = path
            .to_str()
            .ok_or_else(|| Error::Input(format!("{}: the path is not UTF-8; move it", path.display())))?;
        return Ok(weights::resolve(models_dir, spec, role)?.path);
    }
    Ok(weights::resolve(models_dir, model, role)?.path)
}

/// The ids of what the manifest's encoder and expander are on this machine. Hashes weights, where no manifest of the store
/// knows their hashes: blocks for seconds.
///
/// # Errors
/// When weights are not there, damaged, or don't fit an adapter.
pub fn identify(models_dir: &Path, folder: &Path, manifest: &Manifest) -> Result<Ids> {
    let encoder = Checkpoint::read(&encoder_place(models_dir, folder, manifest)?)?.id()?;
    let expander = match expander_place(models_dir, folder, manifest)? {
        None => None,
        Some(ExpanderPlace::Remote { model, .. }) => Some(model),
        Some(ExpanderPlace::Local { path, adapter: None }) => Some(weights_id(&path)?),
        Some(ExpanderPlace::Local { path, adapter: Some(adapter) }) => {
            Some(format!("{}+{}", weights_id(&path)?, weights_id(&adapter)?))
        }
    };
    Ok(Ids { encoder, expander })
}

/// The id of a bundle, `bundle-` and twelve digits of a SHA-256 over everything that changes an answer: the ids of its
/// models, prompt, gate and defaults. Equal bundles have equal ids, whatever they are called and wherever they come from.
///
/// # Errors
/// When the manifest has no ids yet.
pub fn bundle_id(manifest: &Manifest) -> Result<String> {
    let ids = manifest
        .ids
        .as_ref()
        .ok_or_else(|| Error::Input(format!("bundle `{}` has no ids yet; identify it", manifest.name)))?;
    let server = manifest.expander.as_ref().filter(|part| part.is_remote()).map(|part| part.model.as_str());
    let gate = manifest.gate.as_ref().and_then(|gate| manifest.files.get(gate)).map_or("", String::as_str);
    let defaults = serde_json::to_string(&manifest.defaults).unwrap_or_default();
    let expander = ids.expander.as_deref().unwrap_or("none");
    let mut hash = Sha256::new();
    for part in [&ids.encoder, expander, server.unwrap_or(""), manifest.prompt_text(), gate, &defaults] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hex: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Ok(format!("bundle-{hex}"))
}

/// Whether a loaded model's id has every part of the id that a manifest gives: an engine may load base and adapter as they
/// are (`base@1+adapter@2`) or merged (`base-1-adapted-2@3`).
pub fn same_parts(stated: &str, loaded: &str) -> bool {
    stated == loaded
        || stated.split('+').all(|part| part.rsplit_once('@').is_some_and(|(_, hash)| loaded.contains(hash)))
}

#[cfg(test)]
mod tests {
    use super::super::{Defaults, EncoderPart, ExpanderPart, write};
    use super::*;
    use crate::testing::tiny_bert;

    fn owned() -> (tempfile::TempDir, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        tiny_bert(&folder.path().join("encoder"), 1).unwrap();
        let encoder = EncoderPart { model: "encoder".into(), adapter: None };
        let mut manifest = Manifest::new("test", "2026-11-26T15:00:00Z", encoder, None);
        write(folder.path(), &mut manifest).unwrap();
        (folder, manifest)
    }

    #[test]
    fn a_folder_of_the_bundle_goes_before_a_name_in_the_store() {
        let (folder, manifest) = owned();
        let store = tempfile::tempdir().unwrap();
        tiny_bert(&store.path().join("encoder"), 2).unwrap();
        let place = encoder_place(store.path(), folder.path(), &manifest).unwrap();
        assert!(place.starts_with(fs_err::canonicalize(folder.path()).unwrap()), "{}", place.display());
        let ids = identify(store.path(), folder.path(), &manifest).unwrap();
        assert!(ids.encoder.starts_with("encoder@") && ids.expander.is_none(), "{ids:?}");
        let named = Manifest { files: Default::default(), ..manifest };
        let place = encoder_place(store.path(), folder.path(), &named).unwrap();
        assert_eq!(place, store.path().join("encoder"));
    }

    #[test]
    fn a_name_that_is_nowhere_says_so() {
        let (folder, mut manifest) = owned();
        manifest.encoder.model = "no-such-encoder".into();
        let error = identify(Path::new("no-store"), folder.path(), &manifest).unwrap_err().to_string();
        assert!(error.contains("no-such-encoder"), "{error}");
    }

    #[test]
    fn the_id_is_that_of_what_changes_answers() {
        let (_folder, mut manifest) = owned();
        assert!(bundle_id(&manifest).is_err(), "not identified yet");
        let part = ExpanderPart { model: "http://one/v1".into(), adapter: None, remote_model: None };
        manifest.expander = Some(part.clone());
        manifest.ids = Some(Ids { encoder: "a@1".into(), expander: Some("default".into()) });
        let id = bundle_id(&manifest).unwrap();
        assert!(id.starts_with("bundle-") && id.len() == 19, "{id}");
        let renamed = Manifest { name: "other".into(), created_at: "later".into(), ..manifest.clone() };
        assert_eq!(bundle_id(&renamed).unwrap(), id);
        let same_prompt = Manifest { prompt: Some(manifest.prompt_text().to_owned()), ..manifest.clone() };
        assert_eq!(bundle_id(&same_prompt).unwrap(), id);
        for other in [
            Manifest { prompt: Some("{}".into()), ..manifest.clone() },
            Manifest {
                defaults: Defaults { max_tokens: Some(48), ..Defaults::default() },
                ..manifest.clone()
            },
            Manifest {
                expander: Some(ExpanderPart { model: "http://two/v1".into(), ..part }),
                ..manifest.clone()
            },
        ] {
            assert_ne!(bundle_id(&other).unwrap(), id, "{other:?}");
        }
    }

    #[test]
    fn merged_or_beside_it_is_the_same_adapter() {
        assert!(same_parts("base@aaa+lora@bbb", "base@aaa+lora@bbb"));
        assert!(same_parts("base@aaa+lora@bbb", "base-aaa-adapted-bbb@ccc"));
        assert!(same_parts("default", "default"));
        assert!(!same_parts("base@aaa+lora@bbb", "base-aaa-adapted-ddd@ccc"));
        assert!(!same_parts("default", "other"));
    }
}
