//! `expandr-manifest.json`: what a checkpoint folder of the store holds, and where it came from.

use std::{
    io::Read,
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// The manifest's file name inside a checkpoint folder.
pub const MANIFEST_FILE: &str = "expandr-manifest.json";

/// The layout of the manifest; raised when its meaning changes.
const FORMAT: u32 = 1;

/// What a checkpoint folder holds, with a hash of every file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The layout of this file.
    pub format: u32,
    /// The folder's name in the store.
    pub name: String,
    /// The licence of the weights (SPDX).
    pub licence: String,
    /// Where the weights were first published.
    pub upstream: String,
    /// Where these files came from.
    pub source: Source,
    /// Every file but the manifest, sorted by path.
    pub files: Vec<ManifestFile>,
}

/// Where a checkpoint's files came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Copied out of a package of the Python package index.
    Package {
        /// The package.
        package: String,
        /// Its version.
        version: String,
    },
    /// Converted from a GGUF file.
    Gguf {
        /// The file's name.
        file: String,
        /// The file's hash.
        sha256: String,
    },
}

/// One file of a checkpoint folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Relative to the folder, with forward slashes.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Hashes every file under `folder` and describes it.
    ///
    /// # Errors
    /// When a file can't be read or a name is not UTF-8.
    pub(super) fn describe(
        folder: &Path,
        name: &str,
        licence: &str,
        upstream: &str,
        source: Source,
    ) -> Result<Self> {
        let mut files = Vec::new();
        for path in files_below(folder)? {
            if path == MANIFEST_FILE {
                continue;
            }
            let full = folder.join(&path);
            let bytes = fs_err::metadata(&full)?.len();
            files.push(ManifestFile { sha256: sha256_of_file(&full)?, path, bytes });
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            format: FORMAT,
            name: name.into(),
            licence: licence.into(),
            upstream: upstream.into(),
            source,
            files,
        })
    }

    /// Reads the manifest of `folder`; none when it has none.
    ///
    /// # Errors
    /// When there is one that can't be read or understood.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST_FILE);
        let text = match fs_err::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let manifest: Self = serde_json::from_str(&text).map_err(|error| Error::Checkpoint {
            path: path.clone(),
            detail: format!("not a manifest this version understands ({error}); pull the weights again"),
        })?;
        if manifest.format != FORMAT {
            return Err(Error::Checkpoint {
                path,
                detail: format!(
                    "manifest format {} where this version understands {FORMAT}; pull the weights again",
                    manifest.format
                ),
            });
        }
        Ok(Some(manifest))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).map_err(|e| Error::Weights(e.to_string()))?;
        text.push('\n');
        Ok(fs_err::write(folder.join(MANIFEST_FILE), text)?)
    }

    /// Compares the folder with the manifest: every file there, of its length and, when `hashes`, of its hash.
    /// The message of the first difference comes back, none when there is none.
    ///
    /// # Errors
    /// When a file is there and can't be read.
    pub fn difference(&self, folder: &Path, hashes: bool) -> Result<Option<String>> {
        for file in &self.files {
            let relative = Path::new(&file.path);
            if relative.components().any(|part| !matches!(part, Component::Normal(_))) {
                return Ok(Some(format!("the manifest names `{}`, which is outside the folder", file.path)));
            }
            let path = folder.join(relative);
            match fs_err::metadata(&path) {
                Ok(found) if found.len() != file.bytes => {
                    return Ok(Some(format!(
                        "{} has {} bytes instead of {}",
                        file.path,
                        found.len(),
                        file.bytes
                    )));
                }
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(Some(format!("{} is missing", file.path)));
                }
                Err(error) => return Err(error.into()),
            }
            if hashes && sha256_of_file(&path)? != file.sha256 {
                return Ok(Some(format!("{} does not have the hash in the manifest", file.path)));
            }
        }
        Ok(None)
    }

    /// The length of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The SHA-256 of a file, lower-case hexadecimal.
///
/// # Errors
/// When it can't be read.
pub fn sha256_of_file(path: &Path) -> Result<String> {
    let mut file = fs_err::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every regular file below `folder`, relative, with forward slashes.
fn files_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![folder.to_path_buf()];
    while let Some(current) = open.pop() {
        for entry in fs_err::read_dir(&current)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() {
                open.push(path);
                continue;
            }
            let relative = path.strip_prefix(folder).unwrap_or(&path);
            let parts: Option<Vec<&str>> =
                relative.components().map(|part| part.as_os_str().to_str()).collect();
            let parts = parts.ok_or_else(|| Error::Checkpoint {
                path: path.clone(),
                detail: "the file's name is not UTF-8; rename it".into(),
            })?;
            found.push(parts.join("/"));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn describe(folder: &Path) -> Manifest {
        let source = Source::Package { package: "p".into(), version: "1".into() };
        Manifest::describe(folder, "n", "MIT", "u", source).unwrap()
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        fs_err::create_dir(folder.join("sub")).unwrap();
        fs_err::write(folder.join("sub/a.json"), "abc").unwrap();
        fs_err::write(folder.join("b.bin"), "12345").unwrap();
        let manifest = describe(folder);
        manifest.write(folder).unwrap();
        let manifest = Manifest::read(folder).unwrap().unwrap();
        assert_eq!(
            manifest.files.iter().map(|file| file.path.as_str()).collect::<Vec<_>>(),
            ["b.bin", "sub/a.json"]
        );
        assert_eq!(
            manifest.files[1].sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(manifest.difference(folder, true).unwrap(), None);

        fs_err::write(folder.join("b.bin"), "12346").unwrap();
        assert_eq!(manifest.difference(folder, false).unwrap(), None);
        assert!(manifest.difference(folder, true).unwrap().unwrap().contains("b.bin does not have the hash"));
        fs_err::write(folder.join("b.bin"), "1234").unwrap();
        assert!(manifest.difference(folder, false).unwrap().unwrap().contains("4 bytes instead of 5"));
        fs_err::remove_file(folder.join("b.bin")).unwrap();
        assert!(manifest.difference(folder, false).unwrap().unwrap().contains("missing"));
    }

    #[test]
    fn a_foreign_manifest_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), None);
        fs_err::write(folder.path().join(MANIFEST_FILE), "{}").unwrap();
        assert!(Manifest::read(folder.path()).unwrap_err().to_string().contains("pull the weights again"));
    }
}
