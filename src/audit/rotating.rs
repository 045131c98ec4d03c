//! A file of lines that is begun anew when it is full: `audit.ndjson`, before that `audit.1.ndjson`, and so on.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use crate::files;

/// Full files that are kept.
const KEPT: usize = 8;

/// The file that is written.
pub(super) struct Rotating {
    path: PathBuf,
    file: fs_err::File,
    bytes: u64,
    limit_bytes: u64,
}

impl Rotating {
    /// Opens `path`, or makes it. It takes up to `limit_bytes`.
    pub(super) fn open(path: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        let mut file = files::append(path)?;
        files::sync_folder_of(path)?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            let mut reader = fs_err::File::open(path)?;
            reader.seek(SeekFrom::Start(bytes - 1))?;
            let mut last = [0];
            reader.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?; // killed in the middle of a line: the next one stands alone
                bytes += 1;
            }
        }
        Ok(Self { path: path.to_owned(), file, bytes, limit_bytes })
    }

    /// Adds a line; when this returns it is durable.
    pub(super) fn write(&mut self, line: &str) -> std::io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 + 1 > self.limit_bytes {
            self.rotate()?;
        }
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.bytes += line.len() as u64 + 1;
        self.file.sync_all()
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        let oldest = numbered(&self.path, KEPT);
        if oldest.exists() {
            fs_err::remove_file(&oldest)?;
        }
        for number in (1..KEPT).rev() {
            let from = numbered(&self.path, number);
            if from.exists() {
                fs_err::rename(&from, numbered(&self.path, number + 1))?;
            }
        }
        fs_err::rename(&self.path, numbered(&self.path, 1))?;
        self.file = files::append(&self.path)?;
        self.bytes = 0;
        files::sync_folder_of(&self.path)
    }

    /// The last `limit` lines, newest first.
    pub(super) fn last(&self, limit: usize) -> std::io::Result<Vec<String>> {
        let mut found = Vec::new();
        let older = (1..=KEPT).map(|number| numbered(&self.path, number)).filter(|path| path.exists());
        for path in std::iter::once(self.path.clone()).chain(older) {
            let wanted = limit - found.len();
            if wanted == 0 {
                break;
            }
            let mut lines = VecDeque::with_capacity(wanted.min(1024));
            for line in BufReader::new(fs_err::File::open(path)?).lines() {
                if lines.len() == wanted {
                    lines.pop_front();
                }
                lines.push_back(line?);
            }
            found.extend(lines.into_iter().rev());
        }
        Ok(found)
    }
}

/// `audit.ndjson` to `audit.3.ndjson`.
fn numbered(path: &Path, number: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}.{number}.{extension}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_files_are_kept_up_to_a_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.ndjson");
        let mut file = Rotating::open(&path, 100).unwrap();
        for i in 0..200 {
            file.write(&format!("line {i:04} {}", "x".repeat(20))).unwrap();
        }
        let sizes: Vec<u64> =
            fs_err::read_dir(folder.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).collect();
        assert_eq!(sizes.len(), KEPT + 1);
        assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        let last = file.last(10).unwrap();
        let numbers: Vec<&str> = last.iter().map(|line| &line[5..9]).collect();
        assert_eq!(numbers, ["0199", "0198", "0197", "0196", "0195", "0194", "0193", "0192", "0191", "0190"]);
        assert_eq!(file.last(1000).unwrap().len(), (KEPT + 1) * 3 - 1);
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.ndjson");
        fs_err::write(&path, "{\"whole\":1}\n{\"ha").unwrap();
        let mut file = Rotating::open(&path, 1000).unwrap();
        file.write("{\"next\":1}").unwrap();
        assert_eq!(file.last(1).unwrap(), ["{\"next\":1}"]);
        assert_eq!(fs_err::read_to_string(&path).unwrap().lines().count(), 3);
    }
}
