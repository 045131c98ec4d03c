//! Folders that appear under their final name whole, or not at all.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// A folder in the making, beside the place where it will stand. Dropped before [`NewFolder::finish`] it vanishes.
#[derive(Debug)]
pub struct NewFolder {
    path: PathBuf,
    target: PathBuf,
}

impl NewFolder {
    /// Begins a folder that will be called `target`. What a killed process left of the same folder is removed, so only
    /// one process may make it at a time.
    ///
    /// # Errors
    /// When the folder around it can't be written.
    pub fn create(target: &Path) -> Result<Self> {
        let name = target.file_name().ok_or_else(|| {
            Error::Input(format!("{} is no name for a new folder; give a path with a name", target.display()))
        })?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs_err::create_dir_all(parent)?;
        let path = parent.join(format!(".tmp-{}", name.to_string_lossy()));
        remove_any(&path)?;
        fs_err::create_dir(&path)?;
        Ok(Self { path, target: target.to_path_buf() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes everything durable and gives the folder its name; one that has it already is replaced.
    ///
    /// # Errors
    /// When the disk fails; the old folder is then still there.
    pub fn finish(self) -> Result<()> {
        replace(&self.path, &self.target)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if let Err(error) = remove_any(&self.path) {
            tracing::warn!("a temporary folder could not be removed: {error}");
        }
    }
}

/// Puts `finished` (a file or folder on the same disk, complete) in the place of `target`, syncing it first. A folder
/// that is there already is moved away first and removed afterwards.
///
/// # Errors
/// When the disk fails.
pub fn replace(finished: &Path, target: &Path) -> Result<()> {
    sync_tree(finished)?;
    let parent = finished.parent().unwrap_or(Path::new("."));
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let aside = parent.join(format!(".tmp-old-{name}"));
    remove_any(&aside)?;
    if fs_err::symlink_metadata(target).is_ok() {
        fs_err::rename(target, &aside)?;
    }
    fs_err::rename(finished, target)?;
    sync_folder(parent)?;
    if let Some(folder) = target.parent().filter(|folder| !folder.as_os_str().is_empty() && *folder != parent)
    {
        sync_folder(folder)?;
    }
    remove_any(&aside)
}

/// Removes a file or folder, if it is there.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    match fs_err::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(fs_err::remove_dir_all(path)?),
        Ok(_) => Ok(fs_err::remove_file(path)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn sync_tree(path: &Path) -> Result<()> {
    if !fs_err::metadata(path)?.is_dir() {
        return Ok(fs_err::File::open(path)?.sync_all()?);
    }
    for entry in fs_err::read_dir(path)? {
        sync_tree(&entry?.path())?;
    }
    sync_folder(path)
}

/// Makes the folder's entries durable, where the system can.
///
/// # Errors
/// When the disk fails.
pub fn sync_folder(path: &Path) -> Result<()> {
    if cfg!(unix) {
        fs_err::File::open(path)?.sync_all().map_err(Error::from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_appears_whole_replaces_another_and_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        for content in ["one", "two"] {
            let folder = NewFolder::create(&target).unwrap();
            fs_err::write(folder.path().join("file"), content).unwrap();
            folder.finish().unwrap();
            assert_eq!(fs_err::read_to_string(target.join("file")).unwrap(), content);
        }
        let given_up = NewFolder::create(&target).unwrap();
        fs_err::write(given_up.path().join("file"), "three").unwrap();
        drop(given_up);
        assert_eq!(fs_err::read_to_string(target.join("file")).unwrap(), "two");
        assert_eq!(fs_err::read_dir(parent.path()).unwrap().count(), 1);
    }
}
