//! tantivy's folder with checksums where tantivy has none: its two small files, which are replaced as a whole and say
//! what the other files mean, get one at their end. The other files have tantivy's own.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tantivy::Directory;
use tantivy::directory::error::{DeleteError, LockError, OpenReadError, OpenWriteError};
use tantivy::directory::{
    DirectoryLock, FileHandle, Lock, MmapDirectory, WatchCallback, WatchHandle, WritePtr,
};

#[derive(Clone, Debug)]
pub(crate) struct SealedDirectory(MmapDirectory);

impl SealedDirectory {
    pub(crate) fn open(path: &Path) -> tantivy::Result<Self> {
        Ok(Self(MmapDirectory::open(path)?))
    }
}

impl Directory for SealedDirectory {
    fn get_file_handle(&self, path: &Path) -> Result<Arc<dyn FileHandle>, OpenReadError> {
        let file = self.0.get_file_handle(path)?;
        // tantivy computes with the length of the footer before it looks at it.
        if file.len() < 8 {
            return Err(broken(path, "it is shorter than its footer"));
        }
        Ok(file)
    }

    fn delete(&self, path: &Path) -> Result<(), DeleteError> {
        self.0.delete(path)
    }

    fn exists(&self, path: &Path) -> Result<bool, OpenReadError> {
        self.0.exists(path)
    }

    fn open_write(&self, path: &Path) -> Result<WritePtr, OpenWriteError> {
        self.0.open_write(path)
    }

    fn atomic_read(&self, path: &Path) -> Result<Vec<u8>, OpenReadError> {
        let mut content = self.0.atomic_read(path)?;
        let Some((data, seal)) = content.split_last_chunk::<4>() else {
            return Err(broken(path, "it is shorter than its checksum"));
        };
        if crc32fast::hash(data) != u32::from_le_bytes(*seal) {
            return Err(broken(path, "its checksum differs"));
        }
        content.truncate(content.len() - 4);
        Ok(content)
    }

    fn atomic_write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        self.0.atomic_write(path, &[data, &crc32fast::hash(data).to_le_bytes()].concat())
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.sync_directory()
    }

    fn acquire_lock(&self, lock: &Lock) -> Result<DirectoryLock, LockError> {
        self.0.acquire_lock(lock)
    }

    fn watch(&self, callback: WatchCallback) -> tantivy::Result<WatchHandle> {
        self.0.watch(callback)
    }
}

fn broken(path: &Path, what: &str) -> OpenReadError {
    OpenReadError::wrap_io_error(io::Error::new(io::ErrorKind::InvalidData, what), path.to_owned())
}
