//! From a server's flags to the bundle that they describe.

use std::path::{Path, PathBuf};

use anyhow::Context;
use expandr_models::{
    bundle::{BUNDLE_FILE, EncoderPart, ExpanderPart, Manifest},
    gate::GATE_FILE,
    trainable::ADAPTER_FILES,
    weights::{self, Role, sha256_of_file},
};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::options::Models;
use crate::bundles::{Configured, ConfiguredModels, now};

/// The bundle that the flags describe. Blocks for a moment: adapters and gate are hashed.
///
/// # Errors
/// When what a flag names isn't there, or flags contradict each other.
pub(super) fn configured(models_dir: &Path, models: &Models) -> anyhow::Result<Configured> {
    if let Some(bundle) = &models.bundle {
        let manifest = Path::new(bundle).join(BUNDLE_FILE);
        let hash = manifest.is_file().then(|| sha256_of_file(&manifest)).transpose()?;
        let fingerprint = fingerprint(&json!({ "bundle": bundle, "manifest": hash }));
        return Ok(Configured { fingerprint, models: ConfiguredModels::Bundle(bundle.clone()) });
    }
    let mut files = Vec::new();
    let encoder = EncoderPart {
        model: spec(models_dir, &models.encoder)?,
        adapter: adapter("encoder-adapter", models.encoder_adapter.as_deref(), &mut files)?,
    };
    let expander = expander(models_dir, models, &mut files)?;
    let gate = match &models.gate {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(path.clone()),
        None => gate_beside(models_dir, expander.as_ref())?,
    };
    files.extend(gate.iter().map(|path| (GATE_FILE.to_owned(), path.clone())));
    let mut manifest = Manifest::new("configured", &now(), encoder, expander);
    manifest.gate = gate.map(|_| GATE_FILE.to_owned());
    let mut hashes = Vec::new();
    for (name, path) in &files {
        hashes.push((name.clone(), sha256_of_file(path)?));
    }
    let fingerprint = fingerprint(&json!({
        "encoder": manifest.encoder, "expander": manifest.expander, "files": hashes,
    }));
    Ok(Configured { fingerprint, models: ConfiguredModels::Models(Box::new(manifest), files) })
}

fn fingerprint(flags: &serde_json::Value) -> String {
    Sha256::digest(flags.to_string()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A name of the store or the hub as it is; a path absolute, so that it means the same wherever the server is started.
fn spec(models_dir: &Path, spec: &str) -> anyhow::Result<String> {
    let is_name = !spec.contains('/') && models_dir.join(spec).exists();
    if is_name || !Path::new(spec).exists() {
        return Ok(spec.to_owned());
    }
    let absolute = fs_err::canonicalize(spec)?;
    absolute
        .to_str()
        .map(str::to_owned)
        .with_context(|| format!("{}: the path is not UTF-8", absolute.display()))
}

fn expander(
    models_dir: &Path,
    models: &Models,
    files: &mut Vec<(String, PathBuf)>,
) -> anyhow::Result<Option<ExpanderPart>> {
    let given = &models.expander;
    let is_remote = given.starts_with("http://") || given.starts_with("https://");
    if models.expander_adapter.is_some() && (is_remote || given == "none") {
        anyhow::bail!(
            "--expander-adapter is for a language model in this process, and --expander is {given}; leave the adapter out, or \
             let that server load it"
        );
    }
    if given == "none" {
        return Ok(None);
    }
    if is_remote {
        let remote_model = Some(models.expander_model.clone());
        return Ok(Some(ExpanderPart { model: given.clone(), adapter: None, remote_model }));
    }
    let adapter = adapter("expander-adapter", models.expander_adapter.as_deref(), files)?;
    Ok(Some(ExpanderPart { model: spec(models_dir, given)?, adapter, remote_model: None }))
}

/// Adds an adapter's files to those that the bundle is to own; gives the folder's name in it.
fn adapter(
    name: &str,
    folder: Option<&Path>,
    files: &mut Vec<(String, PathBuf)>,
) -> anyhow::Result<Option<String>> {
    let Some(folder) = folder else { return Ok(None) };
    for file in ADAPTER_FILES {
        let path = folder.join(file);
        anyhow::ensure!(path.is_file(), "{}: missing; give a folder in PEFT's layout", path.display());
        files.push((format!("{name}/{file}"), path));
    }
    Ok(Some(name.to_owned()))
}

/// The gate that lies beside the expander's weights, if one does.
fn gate_beside(models_dir: &Path, expander: Option<&ExpanderPart>) -> anyhow::Result<Option<PathBuf>> {
    let Some(part) = expander.filter(|part| !part.is_remote()) else { return Ok(None) };
    let weights = weights::resolve(models_dir, &part.model, Role::Expander);
    let folder = weights.context("the expander can't be loaded")?.path;
    Ok(Some(folder.join(GATE_FILE)).filter(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use expandr_models::testing::tiny_bert;

    use super::*;

    fn describe(store: &Path, flags: &[&str]) -> anyhow::Result<(Configured, Manifest)> {
        let configured = configured(store, &Models::of_flags(flags)?)?;
        let ConfiguredModels::Models(manifest, _) = &configured.models else { anyhow::bail!("a bundle") };
        let manifest = Manifest::clone(manifest);
        Ok((configured, manifest))
    }

    fn store() -> tempfile::TempDir {
        let store = tempfile::tempdir().unwrap();
        let model = store.path().join("model");
        fs_err::create_dir(&model).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            fs_err::write(model.join(file), "{}").unwrap();
        }
        store
    }

    #[test]
    fn the_gate_beside_the_expander_is_found_unless_another_is_named() {
        let store = store();
        let gate = |flags: &[&str]| {
            let flags = [&["--expander", "model"], flags].concat();
            let (configured, manifest) = describe(store.path(), &flags).unwrap();
            let ConfiguredModels::Models(_, files) = configured.models else { panic!() };
            assert_eq!(manifest.gate.is_some(), !files.is_empty());
            files.into_iter().map(|(_, path)| path).next()
        };
        assert_eq!(gate(&[]), None, "there is none");
        let beside = store.path().join("model").join(GATE_FILE);
        fs_err::write(&beside, "{}").unwrap();
        assert_eq!(gate(&[]), Some(beside));
        let other = store.path().join("other.json");
        fs_err::write(&other, "{ }").unwrap();
        assert_eq!(gate(&["--gate", other.to_str().unwrap()]), Some(other));
        assert_eq!(gate(&["--gate", "none"]), None);
        assert_eq!(describe(store.path(), &["--expander", "none"]).unwrap().1.gate, None);
    }

    #[test]
    fn the_fingerprint_follows_what_the_flags_mean() {
        let store = store();
        let print = |flags: &[&str]| describe(store.path(), flags).unwrap().0.fingerprint;
        let first = print(&["--expander", "model"]);
        assert_eq!(
            print(&["--expander", "model", "--expander-concurrency", "3"]),
            first,
            "runs it otherwise"
        );
        assert_ne!(print(&["--expander", "none"]), first);
        assert_ne!(print(&["--expander", "model", "--encoder", "other"]), first);
        fs_err::write(store.path().join("model").join(GATE_FILE), "{}").unwrap();
        let with_gate = print(&["--expander", "model"]);
        assert_ne!(with_gate, first);
        fs_err::write(store.path().join("model").join(GATE_FILE), "{ }").unwrap();
        assert_ne!(print(&["--expander", "model"]), with_gate, "another gate in the same place");
    }

    #[test]
    fn paths_become_absolute_and_names_stay() {
        let store = store();
        let encoder = store.path().join("elsewhere");
        tiny_bert(&encoder, 1).unwrap();
        let flags = ["--expander", "model", "--encoder", encoder.to_str().unwrap()];
        let (_, manifest) = describe(store.path(), &flags).unwrap();
        assert_eq!(manifest.encoder.model, fs_err::canonicalize(&encoder).unwrap().to_str().unwrap());
        assert_eq!(manifest.expander.unwrap().model, "model");
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let store = store();
        let refused = |flags: &[&str]| describe(store.path(), flags).map(|_| ()).unwrap_err().to_string();
        let error = refused(&["--expander", "http://host/v1", "--expander-adapter", "x"]);
        assert!(error.contains("let that server load it"), "{error}");
        let error = refused(&["--expander", "model", "--expander-adapter", "no-such-folder"]);
        assert!(error.contains("PEFT"), "{error}");
        let error = refused(&["--bundle", "b", "--encoder", "e"]);
        assert!(error.contains("cannot be used with"), "{error}");
    }
}
