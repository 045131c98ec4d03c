//! Files that are whole or not there: written under a temporary name, synced, renamed. What is written here may hold what
//! users asked, so that only the service's own account may read it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use fs_err::os::unix::fs::OpenOptionsExt;
use uuid::Uuid;

/// The end of a temporary name.
pub const PARTIAL: &str = ".partial";

/// Makes a new file that others can't read.
///
/// # Errors
/// When there is one already, or the disk refuses.
pub fn create(path: &Path) -> std::io::Result<fs_err::File> {
    fs_err::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Opens a file for appending; makes it, unreadable for others, if it isn't there.
///
/// # Errors
/// When the disk refuses.
pub fn append(path: &Path) -> std::io::Result<fs_err::File> {
    fs_err::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A name of its own beside `path` for what will become `path`.
pub fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}{PARTIAL}", Uuid::new_v4()));
    name.into()
}

/// Puts a finished, synced file in its place. When this returns, a power cut can't undo it.
///
/// # Errors
/// When the disk refuses; the old file is then still there.
pub fn install(finished: &Path, path: &Path) -> std::io::Result<()> {
    fs_err::rename(finished, path)?;
    sync_folder_of(path)
}

/// Makes the names in the folder of `path` durable.
///
/// # Errors
/// When the disk refuses.
pub fn sync_folder_of(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => fs_err::File::open(folder)?.sync_all(),
        _ => fs_err::File::open(".")?.sync_all(),
    }
}

/// Writes a whole file in place of what is there.
///
/// # Errors
/// When the disk refuses; the old file is then still there.
pub fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let partial = partial(path);
    let written = create(&partial).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    let installed = written.and_then(|()| install(&partial, path));
    if installed.is_err() {
        let _ = fs_err::remove_file(&partial);
    }
    installed
}

/// A file that is removed when it was not put in place.
pub struct Partial(pub PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes what a killed process left half-written in `folder`.
///
/// # Errors
/// When the disk refuses.
pub fn remove_partials(folder: &Path) -> std::io::Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(PARTIAL) {
            fs_err::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_leftovers_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"two");
        fs_err::write(partial(&path), b"half").unwrap();
        remove_partials(folder.path()).unwrap();
        let left: Vec<_> = fs_err::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a.json"]);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(
            fs_err::metadata(&path).unwrap().permissions().mode() & 0o077,
            0,
            "others may not read it"
        );
    }
}
