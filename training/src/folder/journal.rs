//! Lines that are finished one by one, in whatever order, and survive a kill.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::LineFile;
use crate::seed::fingerprint;
use crate::{Error, Result};

/// A line of a journal: JSON with the members `id` and `of`, a fingerprint of everything that it was made from. A line
/// is good as long as its `of` is the one that is asked for.
pub(crate) trait JournalLine: Serialize {
    fn id(&self) -> &str;
    fn of(&self) -> &str;
}

/// What every line has.
#[derive(Deserialize)]
struct Head {
    id: String,
    of: String,
}

/// An append-only file of lines with an index in memory (32 bytes a line).
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: fs_err::File,
    end: u64,
    index: HashMap<u128, (u64, u32)>,
}

impl Journal {
    /// Opens or makes a journal. A last line that a kill has torn is dropped.
    ///
    /// # Errors
    /// When the file can't be read, or a line in its middle is broken.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let file = fs_err::OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut journal = Self { path: path.to_owned(), file, end: 0, index: HashMap::new() };
        journal.read_index()?;
        Ok(journal)
    }

    fn read_index(&mut self) -> Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, fs_err::File::open(&self.path)?);
        let mut line = Vec::new();
        let mut number = 0;
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if length == 0 {
                return Ok(());
            }
            number += 1;
            let whole = line.ends_with(b"\n");
            match serde_json::from_slice::<Head>(&line) {
                Ok(head) if whole => {
                    self.index.insert(key(&head.id, &head.of), (self.end, length as u32));
                    self.end += length as u64;
                }
                // A kill can tear the last line only.
                _ if reader.fill_buf()?.is_empty() => {
                    self.file.set_len(self.end)?;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) => {
                    let detail = format!("broken ({error}); remove the line, and its work is done again");
                    return Err(Error::line(&self.path, number, detail));
                }
            }
        }
    }

    /// Whether there is a good line.
    pub(crate) fn has(&self, id: &str, of: &str) -> bool {
        self.index.contains_key(&key(id, of))
    }

    /// Appends a line; when this returns, a kill of the process no longer takes it away.
    pub(crate) fn append(&mut self, line: &impl JournalLine) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).map_err(|error| Error::Input(error.to_string()))?;
        bytes.push(b'\n');
        self.file.write_all(&bytes)?;
        self.index.insert(key(line.id(), line.of()), (self.end, bytes.len() as u32));
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Takes over the lines of a finished file, as far as they are lines of a journal.
    pub(crate) fn import(&mut self, path: &Path) -> Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, fs_err::File::open(path)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let Ok(head) = serde_json::from_slice::<Head>(&line) else { continue };
            if line.ends_with(b"\n") && !self.has(&head.id, &head.of) {
                self.file.write_all(&line)?;
                self.index.insert(key(&head.id, &head.of), (self.end, line.len() as u32));
                self.end += line.len() as u64;
            }
        }
    }

    /// Copies the line of a query to a file, as it stands.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn copy(&mut self, id: &str, of: &str, to: &mut LineFile) -> Result<()> {
        let Some((start, length)) = self.index.get(&key(id, of)).copied() else {
            return Err(Error::Input(format!(
                "{}: no line for {id:?}; run the stage again",
                self.path.display()
            )));
        };
        let mut bytes = vec![0; length as usize];
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_exact(&mut bytes)?;
        to.write_bytes(&bytes)
    }
}

/// A finished file of lines with an id, any of which can be read.
#[derive(Debug)]
pub(crate) struct LineIndex {
    path: PathBuf,
    file: Mutex<fs_err::File>,
    index: HashMap<u128, (u64, u32)>,
}

#[derive(Deserialize)]
struct Identified {
    id: String,
}

impl LineIndex {
    /// Reads where the lines are (32 bytes a line in memory). Of lines with the same id the first counts.
    ///
    /// # Errors
    /// When the file can't be read, or a line has no id.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 16, fs_err::File::open(path)?);
        let mut index = HashMap::new();
        let (mut line, mut start, mut number) = (Vec::new(), 0, 0);
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            if length == 0 {
                break;
            }
            number += 1;
            if !line.trim_ascii().is_empty() {
                let head: Identified = serde_json::from_slice(&line).map_err(|error| {
                    Error::line(path, number, format!("no line with an id ({error}); make the file again"))
                })?;
                index.entry(fingerprint(&[&head.id])).or_insert((start, length as u32));
            }
            start += length as u64;
        }
        Ok(Self { path: path.to_owned(), file: Mutex::new(fs_err::File::open(path)?), index })
    }

    /// The line of that id, if there is one.
    pub(crate) fn find<T: DeserializeOwned>(&self, id: &str) -> Result<Option<T>> {
        let Some((start, length)) = self.index.get(&fingerprint(&[id])).copied() else { return Ok(None) };
        let mut bytes = vec![0; length as usize];
        {
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)?;
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            Error::Input(format!("{}: the line of {id:?} is broken ({error})", self.path.display()))
        })
    }

    /// The line of that id.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn get<T: DeserializeOwned>(&self, id: &str) -> Result<T> {
        self.find(id)?.ok_or_else(|| {
            Error::Input(format!(
                "{}: no line for query {id:?}; the file belongs to other pairs, or is not whole",
                self.path.display()
            ))
        })
    }
}

fn key(id: &str, of: &str) -> u128 {
    fingerprint(&[id, of])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Line {
        id: String,
        of: String,
        text: String,
    }

    impl JournalLine for Line {
        fn id(&self) -> &str {
            &self.id
        }
        fn of(&self) -> &str {
            &self.of
        }
    }

    fn line(id: &str, of: &str, text: &str) -> Line {
        Line { id: id.into(), of: of.into(), text: text.into() }
    }

    #[test]
    fn lines_survive_and_a_torn_one_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let mut journal = Journal::open(&path).unwrap();
        journal.append(&line("b", "1", "second")).unwrap();
        journal.append(&line("a", "1", "first")).unwrap();
        drop(journal);
        for torn in
            ["{\"id\":\"c\",\"of\":\"1\",\"te", "{\"id\":\"c\",\"of\":\"1\",\"text\":\"x\"}", "\u{fffd}"]
        {
            let whole = fs_err::read(&path).unwrap();
            let mut bytes = whole.clone();
            bytes.extend_from_slice(torn.as_bytes());
            fs_err::write(&path, bytes).unwrap();
            let journal = Journal::open(&path).unwrap();
            assert!(journal.has("a", "1") && journal.has("b", "1") && !journal.has("c", "1"), "{torn}");
            assert_eq!(fs_err::read(&path).unwrap(), whole, "{torn}");
        }
        let mut journal = Journal::open(&path).unwrap();
        journal.append(&line("c", "2", "third")).unwrap();
        assert!(!journal.has("c", "1"));
        let out = folder.path().join("out.jsonl");
        let mut file = LineFile::create(&out).unwrap();
        for (id, of) in [("a", "1"), ("b", "1"), ("c", "2")] {
            journal.copy(id, of, &mut file).unwrap();
        }
        assert!(journal.copy("d", "1", &mut file).is_err());
        file.finish().unwrap();
        let text = fs_err::read_to_string(&out).unwrap();
        let texts: Vec<&str> = text.lines().map(|line| line.rsplit('"').nth(1).unwrap()).collect();
        assert_eq!(texts, ["first", "second", "third"]);
        let mut again = Journal::open(&folder.path().join("again.jsonl")).unwrap();
        again.import(&out).unwrap();
        assert!(again.has("c", "2"));
    }

    #[test]
    fn a_broken_line_in_the_middle_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        fs_err::write(&path, "{\"id\":\"a\",\"of\":\"1\"}\nrubbish\n{\"id\":\"b\",\"of\":\"1\"}\n").unwrap();
        assert!(Journal::open(&path).unwrap_err().to_string().contains("journal.jsonl:2: broken"));
    }
}
