//! Contents by their SHA-256. A file is read again only when its length or its time of change differs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use expandr_models::weights::sha256_of_file;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::replace_file;
use crate::seed::hex;
use crate::{Error, Result};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    changed_ns: u128,
    sha256: String,
}

/// Hashes of files and folders, kept in a file of the run folder.
#[derive(Debug)]
pub(crate) struct Hashes {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    changed: bool,
}

impl Hashes {
    /// What `path` knows; nothing if it isn't there or can't be understood, for everything can be computed again.
    pub(crate) fn open(path: &Path) -> Self {
        let known = fs_err::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path: path.to_owned(), known: known.unwrap_or_default(), changed: false }
    }

    /// Writes down what was learnt.
    pub(crate) fn save(&mut self) -> Result<()> {
        if self.changed {
            let json = serde_json::to_vec(&self.known).map_err(|error| Error::Input(error.to_string()))?;
            replace_file(&self.path, &json)?;
            self.changed = false;
        }
        Ok(())
    }

    /// Of a file, or of a folder with everything below it: names and contents.
    pub(crate) fn of(&mut self, path: &Path) -> Result<String> {
        if !path.is_dir() {
            return self.of_file(path);
        }
        let mut hasher = Sha256::new();
        for file in files_below(path)? {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            let hash = self.of_file(&file)?;
            hasher.update(format!("{name}\0{hash}\n"));
        }
        Ok(hex(&hasher.finalize()))
    }

    /// Of a folder's names and lengths, without the contents.
    pub(crate) fn of_listing(&mut self, path: &Path) -> Result<String> {
        if !path.is_dir() {
            return self.of_file(path);
        }
        let mut hasher = Sha256::new();
        for file in files_below(path)? {
            let name = file.strip_prefix(path).unwrap_or(&file).to_string_lossy().into_owned();
            hasher.update(format!("{name}\0{}\n", fs_err::metadata(&file)?.len()));
        }
        Ok(hex(&hasher.finalize()))
    }

    fn of_file(&mut self, path: &Path) -> Result<String> {
        let absolute = fs_err::canonicalize(path)?;
        let metadata = fs_err::metadata(&absolute)?;
        let changed_ns = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let known = self.known.get(&absolute);
        if let Some(known) =
            known.filter(|known| known.bytes == metadata.len() && known.changed_ns == changed_ns)
        {
            return Ok(known.sha256.clone());
        }
        let sha256 = sha256_of_file(&absolute)?;
        let known = Known { bytes: metadata.len(), changed_ns, sha256: sha256.clone() };
        self.known.insert(absolute, known);
        self.changed = true;
        Ok(sha256)
    }
}

/// Every file below a folder, sorted; hidden ones are passed over.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
            if hidden {
                continue;
            }
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_and_names_count_and_are_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        fs_err::create_dir_all(made.join("deep")).unwrap();
        fs_err::write(made.join("a"), "1").unwrap();
        fs_err::write(made.join("deep/b"), "2").unwrap();
        let mut hashes = Hashes::open(&folder.path().join("hashes.json"));
        let first = hashes.of(&made).unwrap();
        let listing = hashes.of_listing(&made).unwrap();
        hashes.save().unwrap();
        assert_eq!(Hashes::open(&folder.path().join("hashes.json")).of(&made).unwrap(), first);

        fs_err::write(made.join("deep/b"), "33").unwrap();
        let second = hashes.of(&made).unwrap();
        assert_ne!(first, second);
        assert_ne!(hashes.of_listing(&made).unwrap(), listing);
        fs_err::rename(made.join("a"), made.join("c")).unwrap();
        assert_ne!(hashes.of(&made).unwrap(), second);
        assert!(hashes.of(&folder.path().join("gone")).is_err());
    }
}
