//! Taking what was made elsewhere: a whole bundle, or a part that takes its place in a copy of the active one.

use std::path::{Path, PathBuf};

use expandr_models::bundle::{self, BUNDLE_FILE, EncoderPart, ExpanderPart, ExpansionDefault, Manifest};
use serde_json::{Value, json};

use super::{
    accept::import_path,
    attempt::{Attempt, Broken},
    queue::disk,
    record::now,
    request::{Import, Imported},
    retrain::activate,
};
use crate::http::problem::{Code, Problem};

/// A job of kind import.
pub(super) async fn run(attempt: &Attempt, import: &Import) -> Result<Value, Broken> {
    attempt.stages(1 + u64::from(import.activate));
    attempt.stage("import", "asked for");
    let id = match attempt.memory().candidate {
        Some(id) => id,
        None => take(attempt, import).await?,
    };
    attempt.stage_done();
    let activation = if import.activate { Some(activate(attempt, &id).await?) } else { None };
    Ok(json!({"bundle": id, "activation": activation}))
}

async fn take(attempt: &Attempt, import: &Import) -> Result<String, Broken> {
    let path = import_path(&attempt.jobs, &import.path).map_err(|detail| Problem::field("/path", detail))?;
    let host = attempt.host();
    let folder = if import.what == Imported::Bundle {
        path
    } else {
        let active = host.active_bundle();
        let base = host.bundle_folder(&active).ok_or_else(|| {
            Problem::new(Code::NotFound, format!("the folder of the active bundle `{active}` is not there"))
        })?;
        let out = attempt.folder.join("bundle");
        let (what, made) = (import.what, out.clone());
        let name = import.name.clone().unwrap_or_else(|| attempt.id.clone());
        let assembled =
            tokio::task::spawn_blocking(move || assemble(&base, &active, what, &path, &made, &name));
        assembled.await.map_err(|error| disk(&error))?.map_err(|error| {
            Problem::new(Code::InvalidRequest, format!("the bundle can't be put together: {error}"))
        })?;
        out
    };
    let id = attempt.wait(host.import(&folder, import.name.as_deref())).await?;
    let candidate = id.clone();
    attempt.remember(move |memory| memory.candidate = Some(candidate)).await?;
    if import.what != Imported::Bundle {
        fs_err::remove_dir_all(folder)?;
    }
    Ok(id)
}

const ENCODER: &str = "encoder";
const ENCODER_ADAPTER: &str = "encoder-adapter";
const EXPANDER: &str = "expander";
const EXPANDER_ADAPTER: &str = "expander-adapter";

/// A bundle like the one in `base`, with one part replaced. What was learnt for the replaced part (the gate, the query's weight) is left
/// out where it no longer fits.
fn assemble(
    base: &Path,
    parent: &str,
    what: Imported,
    part: &Path,
    out: &Path,
    name: &str,
) -> Result<(), expandr_models::Error> {
    if out.exists() {
        fs_err::remove_dir_all(out)?;
    }
    fs_err::create_dir_all(out)?;
    let old = bundle::read(base)?;
    let mut manifest = Manifest { name: name.to_owned(), created_at: now(), ids: None, ..old.clone() };
    manifest.parents = vec![parent.to_owned()];
    (manifest.recipe, manifest.evaluation) = (None, None);
    manifest.data.clear();
    let place = replace(&mut manifest, what)?;
    // Files of the old bundle that nothing names any more stay behind.
    let mut kept: Vec<&str> = vec![&manifest.encoder.model];
    kept.extend(manifest.encoder.adapter.as_deref());
    if let Some(expander) = &manifest.expander {
        kept.push(&expander.model);
        kept.extend(expander.adapter.as_deref());
    }
    kept.extend(manifest.gate.as_deref());
    kept.retain(|name| *name != place);
    let stays = |file: &str| kept.iter().any(|name| file == *name || file.starts_with(&format!("{name}/")));
    let files =
        old.files.iter().filter(|(file, _)| stays(file)).map(|(file, hash)| (file.clone(), hash.clone()));
    let carried = Manifest { files: files.collect(), ..old.clone() };
    bundle::copy_owned(base, &carried, out)?;
    copy_folder(part, &out.join(place))?;
    bundle::write(out, &mut manifest)
}

/// Names the new part in the manifest; gives its folder.
fn replace(manifest: &mut Manifest, what: Imported) -> Result<&'static str, expandr_models::Error> {
    let input = |detail: &str| expandr_models::Error::Input(detail.to_owned());
    match what {
        Imported::Bundle => Err(input("a bundle is not a part of one")),
        Imported::Encoder | Imported::EncoderAdapter => {
            // Cosines of another encoder mean something else.
            manifest.gate = None;
            manifest.defaults.query_weight = None;
            if manifest.defaults.expansion == Some(ExpansionDefault::Auto) {
                manifest.defaults.expansion = None;
            }
            if what == Imported::EncoderAdapter {
                manifest.encoder.adapter = Some(ENCODER_ADAPTER.to_owned());
                return Ok(ENCODER_ADAPTER);
            }
            manifest.encoder = EncoderPart { model: ENCODER.to_owned(), adapter: None };
            Ok(ENCODER)
        }
        Imported::Expander => {
            manifest.expander =
                Some(ExpanderPart { model: EXPANDER.to_owned(), adapter: None, remote_model: None });
            Ok(EXPANDER)
        }
        Imported::ExpanderAdapter => match &mut manifest.expander {
            Some(expander) if !expander.is_remote() => {
                expander.adapter = Some(EXPANDER_ADAPTER.to_owned());
                Ok(EXPANDER_ADAPTER)
            }
            _ => Err(input(
                "the active bundle has no language model in this process that an adapter could be for",
            )),
        },
    }
}

/// Copies plain files and folders.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut open: Vec<(PathBuf, PathBuf)> = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = open.pop() {
        fs_err::create_dir_all(&to)?;
        for entry in fs_err::read_dir(&from)? {
            let entry = entry?;
            let (path, target) = (entry.path(), to.join(entry.file_name()));
            if entry.file_name() == BUNDLE_FILE {
                continue;
            }
            // Through links: checkpoints of the hub's cache are made of them.
            if fs_err::metadata(&path)?.is_dir() {
                open.push((path, target));
            } else {
                fs_err::copy(&path, &target)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_takes_its_place_and_what_no_longer_fits_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (base, part, out) =
            (folder.path().join("base"), folder.path().join("part"), folder.path().join("out"));
        for (path, text) in
            [("base/encoder/config.json", "old"), ("base/gate.json", "{}"), ("part/config.json", "new")]
        {
            let path = folder.path().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, text).unwrap();
        }
        fs_err::create_dir_all(base.join("expander-adapter")).unwrap();
        fs_err::write(base.join("expander-adapter/adapter_config.json"), "{}").unwrap();
        let encoder = EncoderPart { model: "encoder".into(), adapter: None };
        let expander = ExpanderPart {
            model: "smollm2".into(),
            adapter: Some("expander-adapter".into()),
            remote_model: None,
        };
        let mut manifest = Manifest::new("old", "2026-11-26T15:00:00Z", encoder, Some(expander));
        manifest.gate = Some("gate.json".into());
        manifest.defaults.query_weight = Some(0.6);
        bundle::write(&base, &mut manifest).unwrap();

        assemble(&base, "bundle-1", Imported::Encoder, &part, &out, "new").unwrap();
        let made = bundle::read(&out).unwrap();
        bundle::prove(&out, &made).unwrap();
        assert_eq!(fs_err::read_to_string(out.join("encoder/config.json")).unwrap(), "new");
        assert_eq!(
            (made.gate, made.defaults.query_weight, made.parents),
            (None, None, vec!["bundle-1".to_owned()])
        );
        assert_eq!(made.expander.unwrap().adapter.as_deref(), Some("expander-adapter"));
        assert_eq!(
            made.files.keys().collect::<Vec<_>>(),
            ["encoder/config.json", "expander-adapter/adapter_config.json"]
        );

        assemble(&base, "bundle-1", Imported::Expander, &part, &out, "new").unwrap();
        let made = bundle::read(&out).unwrap();
        assert_eq!(made.gate.as_deref(), Some("gate.json"), "it belongs to the encoder");
        assert_eq!(fs_err::read_to_string(out.join("encoder/config.json")).unwrap(), "old");
        assert!(!out.join("expander-adapter").exists(), "another model's adapter is of no use");
    }
}
