//! The store's folder: one writer at a time, and nothing half-written under a final name.

use std::{
    fs::TryLockError,
    path::{Path, PathBuf},
};

use crate::{
    Result,
    folder::{remove_any, replace},
};

const LOCK_FILE: &str = ".lock";
const TEMPORARY_PREFIX: &str = ".tmp-";

/// The right to write in the store, held until dropped (and given back by the system when the process dies).
#[derive(Debug)]
pub(super) struct StoreLock {
    folder: PathBuf,
    _file: fs_err::File,
}

impl StoreLock {
    /// Waits until no other process writes in `folder` (made when missing); `on_wait` is called once before waiting.
    /// What a killed process left behind is removed.
    pub(super) fn acquire(folder: &Path, on_wait: impl FnOnce()) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        let file = fs_err::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                on_wait();
                file.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let lock = Self { folder: folder.to_path_buf(), _file: file };
        lock.remove_leftovers()?;
        Ok(lock)
    }

    /// A new, empty, hidden folder of the store; what is still in it when it is dropped is removed.
    pub(super) fn temporary(&self, name: &str) -> Result<TemporaryFolder> {
        let path = self.folder.join(format!("{TEMPORARY_PREFIX}{name}"));
        remove_any(&path)?;
        fs_err::create_dir(&path)?;
        Ok(TemporaryFolder { path })
    }

    /// Puts `finished` (a file or folder of this store, complete) in the place of `name`, syncing it first. A folder that
    /// is there already is moved away first and removed afterwards.
    pub(super) fn install(&self, finished: &Path, name: &str) -> Result<PathBuf> {
        let target = self.folder.join(name);
        replace(finished, &target)?;
        Ok(target)
    }

    fn remove_leftovers(&self) -> Result<()> {
        for entry in fs_err::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                remove_any(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// See [`StoreLock::temporary`].
#[derive(Debug)]
pub(super) struct TemporaryFolder {
    path: PathBuf,
}

impl TemporaryFolder {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = remove_any(&self.path) {
            tracing::warn!("a temporary folder could not be removed: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_waits_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        let first = StoreLock::acquire(folder.path(), || panic!("nobody else is there")).unwrap();
        fs_err::create_dir(folder.path().join(".tmp-dead")).unwrap();
        let path = folder.path().to_path_buf();
        let (waits, waited) = std::sync::mpsc::channel();
        let second = std::thread::spawn(move || {
            StoreLock::acquire(&path, || waits.send(()).unwrap()).unwrap();
            assert!(!path.join(".tmp-dead").exists());
        });
        waited.recv().unwrap();
        assert!(folder.path().join(".tmp-dead").exists());
        drop(first);
        second.join().unwrap();
    }

    #[test]
    fn install_replaces_a_folder_whole() {
        let folder = tempfile::tempdir().unwrap();
        let store = StoreLock::acquire(folder.path(), || ()).unwrap();
        for content in ["one", "two"] {
            let temporary = store.temporary("x").unwrap();
            let made = temporary.path().join("made");
            fs_err::create_dir(&made).unwrap();
            fs_err::write(made.join("file"), content).unwrap();
            let installed = store.install(&made, "name").unwrap();
            assert_eq!(fs_err::read_to_string(installed.join("file")).unwrap(), content);
        }
        let mut names: Vec<_> =
            fs_err::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".lock", "name"]);
    }
}
