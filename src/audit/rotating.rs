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
        if let Err(error) = self.file.write_all(format!("{line}\n").as_bytes()) {
            self.file.set_len(self.bytes)?; // half a line would spoil the next one
            return Err(error);
        }
        self.bytes += line.len() as u64 + 1;
        self.file.sync_all()
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        // Opened before anything is moved or removed, for that may fail.
        let next = self.path.with_extension("next");
        let file = files::append(&next)?;
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
        if self.path.exists() {
            fs_err::rename(&self.path, numbered(&self.path, 1))?;
        }
        fs_err::rename(&next, &self.path)?;
        self.file = file;
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
            for line in BufReader::new(fs_err::File::open(path)?).split(b'\n') {
                if lines.len() == wanted {
                    lines.pop_front();
                }
                // A line that was cut within a character is no reason to hide the others.
                lines.push_back(String::from_utf8_lossy(&line?).into_owned());
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

    #[test]
    fn a_line_cut_within_a_character_does_not_hide_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.ndjson");
        let mut torn = "{\"name\":\"caf\u{e9}".to_owned().into_bytes();
        torn.pop();
        fs_err::write(&path, torn).unwrap();
        let mut file = Rotating::open(&path, 1000).unwrap();
        file.write("{\"next\":1}").unwrap();
        assert_eq!(file.last(1).unwrap(), ["{\"next\":1}"]);
        assert_eq!(file.last(10).unwrap().len(), 2);
    }

    #[test]
    fn a_rotation_that_fails_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.ndjson");
        let mut file = Rotating::open(&path, 60).unwrap();
        let line = |i: usize| format!("line {i:04} {}", "x".repeat(40));
        (0..4).for_each(|i| file.write(&line(i)).unwrap());
        // In the way of the new file.
        let next = path.with_extension("next");
        fs_err::create_dir(&next).unwrap();
        (0..20).for_each(|_| assert!(file.write(&line(9)).is_err()));
        assert_eq!(file.last(100).unwrap(), [line(3), line(2), line(1), line(0)]);
        fs_err::remove_dir(&next).unwrap();
        file.write(&line(4)).unwrap();
        assert_eq!(file.last(2).unwrap(), [line(4), line(3)]);
    }
}
