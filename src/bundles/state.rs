//! `active.json`: which bundle is active. It is the only file whose renaming changes what a server answers with.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use expandr_models::trainable::sync_folder;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

const FILE: &str = "active.json";
const FORMAT: u32 = 1;

/// What `active.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The layout of the file.
    pub(super) format: u32,
    /// The bundle that answers.
    pub(super) active: String,
    /// The one before it.
    pub(super) previous: Option<String>,
    /// What the server was configured with when it last followed its flags.
    pub(super) configured: ConfiguredState,
    /// Encoder id → folder below `indexes/`.
    pub(super) indexes: BTreeMap<String, String>,
}

/// A configuration, and the bundle that it describes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfiguredState {
    /// A hash of the flags that describe a bundle.
    pub(super) fingerprint: String,
    /// The bundle's id.
    pub(super) bundle: String,
}

/// The file, and what it says.
pub(super) struct StateFile {
    path: PathBuf,
    state: Mutex<State>,
}

impl State {
    /// A server's first state.
    pub(super) fn first(configured: ConfiguredState, indexes: BTreeMap<String, String>) -> Self {
        Self { format: FORMAT, active: configured.bundle.clone(), previous: None, configured, indexes }
    }

    /// Makes `bundle` the active one.
    pub(super) fn activate(&mut self, bundle: &str) {
        if self.active != bundle {
            self.previous = Some(std::mem::replace(&mut self.active, bundle.to_owned()));
        }
    }
}

impl StateFile {
    /// Reads the file in `root`; none when there is none yet.
    ///
    /// # Errors
    /// When it can't be read or understood.
    pub(super) fn read(root: &Path) -> anyhow::Result<Option<Self>> {
        let path = root.join(FILE);
        let bytes = match fs_err::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let remedy = "put the file of a backup in its place, or delete it: the server then starts with the bundle \
                      that its flags describe, and keeps the documents in indexes/";
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|error| anyhow::anyhow!("{}: not readable ({error}); {remedy}", path.display()))?;
        anyhow::ensure!(
            state.format == FORMAT,
            "{}: format {}, and this version understands {FORMAT}; {remedy}",
            path.display(),
            state.format
        );
        Ok(Some(Self { path, state: Mutex::new(state) }))
    }

    /// Writes a first file.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn create(root: &Path, state: State) -> std::io::Result<Self> {
        let file = Self { path: root.join(FILE), state: Mutex::new(state) };
        let first = file.get();
        file.write(&first)?;
        Ok(file)
    }

    /// What it says now.
    pub(super) fn get(&self) -> State {
        self.state.lock().clone()
    }

    /// Changes it, durably; when this fails, nothing has changed.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) -> std::io::Result<()> {
        let mut state = self.state.lock();
        let mut changed = state.clone();
        change(&mut changed);
        if changed != *state {
            self.write(&changed)?;
            *state = changed;
        }
        Ok(())
    }

    fn write(&self, state: &State) -> std::io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let mut text = serde_json::to_vec_pretty(state).map_err(std::io::Error::other)?;
        text.push(b'\n');
        let unfinished = self.path.with_extension("json.unfinished");
        let mut file = fs_err::File::create(&unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs_err::rename(&unfinished, &self.path)?;
        // It is in place now, for this process and every later one, so it must not be called a failure any more.
        if let Err(error) = sync_folder(folder) {
            tracing::error!(%error, "active.json is in place, but may not outlive a loss of power");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first() -> State {
        let configured = ConfiguredState { fingerprint: "f".into(), bundle: "bundle-a".into() };
        State::first(configured, BTreeMap::new())
    }

    #[test]
    fn what_is_changed_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        assert!(StateFile::read(folder.path()).unwrap().is_none());
        let file = StateFile::create(folder.path(), first()).unwrap();
        file.change(|state| state.activate("bundle-b")).unwrap();
        let read = StateFile::read(folder.path()).unwrap().unwrap().get();
        assert_eq!((read.active.as_str(), read.previous.as_deref()), ("bundle-b", Some("bundle-a")));
        file.change(|state| state.activate("bundle-b")).unwrap();
        assert_eq!(file.get().previous.as_deref(), Some("bundle-a"), "it was active already");
    }

    #[test]
    fn an_unfinished_file_is_not_looked_at_and_a_damaged_one_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::create(folder.path(), first()).unwrap();
        fs_err::write(folder.path().join("active.json.unfinished"), "{\"form").unwrap();
        assert_eq!(StateFile::read(folder.path()).unwrap().unwrap().get(), file.get());
        for damaged in ["", "{", "{\"format\": 1}", "[]"] {
            fs_err::write(folder.path().join(FILE), damaged).unwrap();
            let error = StateFile::read(folder.path()).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains("active.json") && error.contains("delete it"), "{error}");
        }
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = StateFile::create(folder.path(), first()).unwrap();
        fs_err::create_dir(folder.path().join("active.json.unfinished")).unwrap();
        assert!(file.change(|state| state.activate("bundle-b")).is_err());
        assert_eq!(file.get().active, "bundle-a");
        assert_eq!(StateFile::read(folder.path()).unwrap().unwrap().get().active, "bundle-a");
    }
}
