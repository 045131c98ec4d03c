//! Text files line by line, with the numbers that an error message needs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Reads a UTF-8 file line by line without holding it in memory. Line ends may be `\n` or `\r\n`; a byte order
/// mark at the start is dropped; blank lines are passed over, and still counted.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<fs_err::File>,
    number: usize,
    buffer: Vec<u8>,
}

impl Lines {
    /// Opens a file.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        Ok(Self { path: path.to_owned(), reader: BufReader::new(file), number: 0, buffer: Vec::new() })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next line that is not blank, with its number; none at the end of the file.
    ///
    /// # Errors
    /// When reading fails, and when the line is not UTF-8.
    pub fn next_line(&mut self) -> Result<Option<(usize, &str)>> {
        loop {
            self.buffer.clear();
            if self.reader.read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.number == 1 && self.buffer.starts_with(b"\xef\xbb\xbf") {
                self.buffer.drain(..3);
            }
            if !self.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some((self.number, text.trim_end_matches(['\n', '\r'])))),
            Err(error) => Err(Error::line(
                &self.path,
                self.number,
                format!("byte {} is not UTF-8; convert the file to UTF-8", error.valid_up_to() + 1),
            )),
        }
    }
}
