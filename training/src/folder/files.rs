//! Files that are whole or not there.

use std::fs::{File, TryLockError};
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use expandr_evaluation::lines::Lines;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Result};

/// Holds the run folder for this process until it is dropped.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// Takes the folder, which is made if need be.
    ///
    /// # Errors
    /// When another process holds it.
    pub(crate) fn take(folder: &Path) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        let path = folder.join(".lock");
        let file = fs_err::OpenOptions::new().create(true).append(true).open(&path)?.into_parts().0;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Input(format!(
                "{}: another run is at work in this folder; wait for it, or choose another with --out",
                folder.display()
            ))),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }
}

/// Writes a file beside its place and renames it when all of it is on the disk.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = LineFile::create(path)?;
    file.write_bytes(content)?;
    file.finish()
}

/// Puts a folder, synced, where another may be.
pub(crate) fn replace_folder(from: &Path, to: &Path) -> Result<()> {
    Ok(expandr_models::trainable::replace(from, to)?)
}

/// A file of lines that is written beside its place, and takes it when it is finished.
pub(crate) struct LineFile {
    path: PathBuf,
    temporary: PathBuf,
    writer: BufWriter<fs_err::File>,
    finished: bool,
}

impl LineFile {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.unfinished"));
        let writer = BufWriter::with_capacity(1 << 16, fs_err::File::create(&temporary)?);
        Ok(Self { path: path.to_owned(), temporary, writer, finished: false })
    }

    /// Appends a value as one line of JSON.
    pub(crate) fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(value).map_err(|error| Error::Input(error.to_string()))?;
        self.write_bytes(text.as_bytes())?;
        self.write_bytes(b"\n")
    }

    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.writer.write_all(bytes)?)
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        self.writer.flush()?;
        self.writer.get_ref().sync_all()?;
        fs_err::rename(&self.temporary, &self.path)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for LineFile {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody misses what was not finished; the next attempt writes over it anyway.
            let _ = fs_err::remove_file(&self.temporary);
        }
    }
}

/// The lines of a file of ours, parsed one by one.
pub(crate) struct JsonLines<T> {
    path: PathBuf,
    lines: Lines,
    kind: PhantomData<T>,
}

impl<T: DeserializeOwned> JsonLines<T> {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), lines: Lines::open(path)?, kind: PhantomData })
    }

    fn read(&mut self) -> Result<Option<T>> {
        match self.lines.next_line()? {
            None => Ok(None),
            Some((number, line)) => match serde_json::from_str(line) {
                Ok(value) => Ok(Some(value)),
                Err(error) => Err(Error::line(
                    &self.path,
                    number,
                    format!("not a line of this file ({error}); make it again, or mend the line"),
                )),
            },
        }
    }
}

impl<T: DeserializeOwned> Iterator for JsonLines<T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let lock = Lock::take(folder.path()).unwrap();
        assert!(Lock::take(folder.path()).unwrap_err().to_string().contains("another run is at work"));
        drop(lock);
        Lock::take(folder.path()).unwrap();
    }

    #[test]
    fn what_is_not_finished_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        replace_file(&path, b"1\n").unwrap();
        let mut file = LineFile::create(&path).unwrap();
        file.line(&2).unwrap();
        drop(file);
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "1\n");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
        let values: Result<Vec<u8>> = JsonLines::open(&path).unwrap().collect();
        assert_eq!(values.unwrap(), [1]);
        let texts: Result<Vec<String>> = JsonLines::open(&path).unwrap().collect();
        assert!(texts.unwrap_err().to_string().contains("a.jsonl:1: not a line of this file"));
    }
}
