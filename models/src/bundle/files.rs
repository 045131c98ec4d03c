//! The files of a bundle: reading and writing the manifest, and proving what the bundle owns.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use super::{BUNDLE_FILE, Manifest, manifest::stays_inside};
use crate::{
    Error, Result,
    folder::{checkpoint_error, sync_folder},
    weights::sha256_of_file,
};

/// Reads the manifest of the bundle in `folder` and checks every member of it; the files are not looked at.
///
/// # Errors
/// When it is missing, not a manifest, of another format, or says what can't be.
pub fn read(folder: &Path) -> Result<Manifest> {
    let path = folder.join(BUNDLE_FILE);
    let bytes = match fs_err::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(checkpoint_error(folder, format!("it has no {BUNDLE_FILE}, so it is no bundle")));
        }
        Err(error) => return Err(error.into()),
    };
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| checkpoint_error(&path, format!("not a manifest of a bundle: {error}; mend it")))?;
    manifest.check().map_err(|detail| checkpoint_error(&path, detail))?;
    Ok(manifest)
}

/// Writes the manifest into `folder`, over the one that is there, whole or not at all, and durably. `files` becomes what
/// the folder holds now.
///
/// # Errors
/// When the manifest says what can't be, the folder holds links, or the disk fails.
pub fn write(folder: &Path, manifest: &mut Manifest) -> Result<()> {
    manifest.files = hashes(folder)?;
    let path = folder.join(BUNDLE_FILE);
    manifest.check().map_err(|detail| checkpoint_error(&path, detail))?;
    let mut text = serde_json::to_vec_pretty(manifest)
        .map_err(|error| checkpoint_error(&path, format!("can't be written: {error}")))?;
    text.push(b'\n');
    let mut file = tempfile::Builder::new();
    // As readable as the other files; a temporary file is its owner's alone by default.
    #[cfg(unix)]
    file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = file.tempfile_in(folder)?;
    file.write_all(&text)?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    sync_folder(folder)
}

/// Proves that `folder` holds exactly the files that the manifest says, with their hashes.
///
/// # Errors
/// The first file that is missing, differs, is a link, or that the manifest doesn't know.
pub fn prove(folder: &Path, manifest: &Manifest) -> Result<()> {
    for file in files_below(folder)? {
        if !manifest.files.contains_key(&file) {
            let detail =
                "the bundle's manifest doesn't know this file; take it away, or make the bundle anew";
            return Err(checkpoint_error(&folder.join(file), detail.into()));
        }
    }
    for (file, expected) in &manifest.files {
        let path = folder.join(file);
        if !path.is_file() {
            return Err(checkpoint_error(&path, "missing, and the bundle's manifest names it".into()));
        }
        let found = sha256_of_file(&path)?;
        if found != *expected {
            let detail = format!(
                "damaged or changed: its SHA-256 is {found}, and the bundle's manifest says {expected}; copy the \
                 bundle again"
            );
            return Err(checkpoint_error(&path, detail));
        }
    }
    Ok(())
}

/// Copies the files that the manifest names from `from` into `to`, which must exist. Nothing is proved or synced.
///
/// # Errors
/// When a file can't be copied.
pub fn copy_owned(from: &Path, manifest: &Manifest, to: &Path) -> Result<()> {
    for file in manifest.files.keys() {
        if !stays_inside(file) {
            return Err(Error::Input(format!("`{file}` is not a plain path inside the bundle")));
        }
        let target = to.join(file);
        if let Some(folder) = target.parent() {
            fs_err::create_dir_all(folder)?;
        }
        fs_err::copy(from.join(file), target)?;
    }
    Ok(())
}

/// Every file of the folder but the manifest, with its hash.
fn hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for file in files_below(folder)? {
        let hash = sha256_of_file(&folder.join(&file))?;
        hashes.insert(file, hash);
    }
    Ok(hashes)
}

/// Every file below `folder` but the manifest, relative, with forward slashes. A link is refused: what it leads to is not
/// the bundle's.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open: Vec<(PathBuf, String)> = vec![(folder.to_owned(), String::new())];
    while let Some((current, prefix)) = open.pop() {
        for entry in fs_err::read_dir(&current)? {
            let entry = entry?;
            let path = entry.path();
            let name = entry.file_name();
            let name = name
                .to_str()
                .ok_or_else(|| checkpoint_error(&path, "its name is not UTF-8; rename it".into()))?;
            let relative = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push((path, format!("{relative}/")));
            } else if !kind.is_file() {
                let detail = "a link or a special file, which a bundle may not have; copy the file itself";
                return Err(checkpoint_error(&path, detail.into()));
            } else if relative != BUNDLE_FILE {
                found.push(relative);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::EncoderPart;
    use super::*;

    fn bundle() -> (tempfile::TempDir, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir_all(folder.path().join("encoder/1_Pooling")).unwrap();
        fs_err::write(folder.path().join("encoder/1_Pooling/config.json"), "{}").unwrap();
        fs_err::write(folder.path().join("recipe.toml"), "seed = 1").unwrap();
        let encoder = EncoderPart { model: "encoder".into(), adapter: None };
        let mut manifest = Manifest::new("test", "2026-11-26T15:00:00Z", encoder, None);
        manifest.recipe = Some("recipe.toml".into());
        write(folder.path(), &mut manifest).unwrap();
        (folder, manifest)
    }

    fn proof(folder: &Path, manifest: &Manifest) -> String {
        prove(folder, manifest).unwrap_err().to_string()
    }

    #[cfg(unix)]
    #[test]
    fn the_manifest_is_as_readable_as_the_other_files() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, _) = bundle();
        let mode = |name: &str| fs_err::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode(BUNDLE_FILE), mode("recipe.toml"));
    }

    #[test]
    fn what_is_written_is_read_and_proved_wherever_it_is_copied() {
        let (folder, manifest) = bundle();
        assert_eq!(read(folder.path()).unwrap(), manifest);
        assert_eq!(
            manifest.files.keys().collect::<Vec<_>>(),
            ["encoder/1_Pooling/config.json", "recipe.toml"]
        );
        prove(folder.path(), &manifest).unwrap();
        let copy = tempfile::tempdir().unwrap();
        copy_owned(folder.path(), &manifest, copy.path()).unwrap();
        prove(copy.path(), &manifest).unwrap();
    }

    #[test]
    fn a_changed_a_missing_and_a_foreign_file_are_each_refused() {
        let (folder, manifest) = bundle();
        let recipe = folder.path().join("recipe.toml");
        fs_err::write(&recipe, "seed = 2").unwrap();
        let error = proof(folder.path(), &manifest);
        assert!(error.contains("recipe.toml") && error.contains("damaged or changed"), "{error}");
        fs_err::remove_file(&recipe).unwrap();
        assert!(proof(folder.path(), &manifest).contains("missing"));
        fs_err::write(&recipe, "seed = 1").unwrap();
        prove(folder.path(), &manifest).unwrap();
        fs_err::write(folder.path().join("encoder/extra.json"), "{}").unwrap();
        let error = proof(folder.path(), &manifest);
        assert!(error.contains("extra.json") && error.contains("doesn't know this file"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused() {
        let (folder, manifest) = bundle();
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("encoder/link")).unwrap();
        assert!(proof(folder.path(), &manifest).contains("a link"));
    }

    #[test]
    fn what_is_no_manifest_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let refused = || read(folder.path()).unwrap_err().to_string();
        assert!(refused().contains("no bundle.json"));
        for (text, expected) in [
            ("", "not a manifest"),
            ("{", "not a manifest"),
            (
                r#"{"format": 1, "name": "n", "created_at": "t", "encoder": {"model": "m"}, "x": 1}"#,
                "unknown",
            ),
            (r#"{"format": 9, "name": "n", "created_at": "t", "encoder": {"model": "m"}}"#, "`format` is 9"),
        ] {
            fs_err::write(folder.path().join(BUNDLE_FILE), text).unwrap();
            let error = refused();
            assert!(error.contains("bundle.json") && error.contains(expected), "{error}");
        }
    }
}
