//! The elements of a JSON array of any size, one at a time, each with the line on which it starts.
//!
//! The published files of DPR (8 GB), HotpotQA and TriviaQA are single JSON values. Only one element is held in
//! memory; where it ends is found by counting brackets outside of strings, and it is parsed by whoever asked for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Reads a file whose whole content is an array, or an object with the array as one of its members.
pub(super) struct Elements {
    path: PathBuf,
    reader: BufReader<fs_err::File>,
    line: usize,
    started: bool,
    buffer: Vec<u8>,
}

/// One element.
pub(super) struct Element<'a> {
    /// The line on which it starts, counted from 1.
    pub(super) line: usize,
    /// Its JSON.
    pub(super) json: &'a [u8],
}

impl Elements {
    /// Finds the array: the file's value itself, or its member `member`.
    ///
    /// # Errors
    /// When the file can't be read or holds no such array.
    pub(super) fn open(path: &Path, member: Option<&str>) -> Result<Self> {
        let file = fs_err::File::open(path)?;
        let reader = BufReader::with_capacity(1 << 16, file);
        let mut elements =
            Self { path: path.to_owned(), reader, line: 1, started: false, buffer: Vec::new() };
        if elements.peek_bytes()?.starts_with(b"\xef\xbb\xbf") {
            elements.reader.consume(3);
        }
        match (elements.next_solid()?, member) {
            (Some(b'['), _) => Ok(elements),
            (Some(b'{'), Some(member)) => {
                elements.find(member)?;
                Ok(elements)
            }
            _ => {
                let wanted = match member {
                    Some(member) => format!("an object with the list {member:?}"),
                    None => "a list".to_owned(),
                };
                Err(elements.error(&format!("the file is not {wanted}; is it the right file and format?")))
            }
        }
    }

    /// The next element; none at the array's end.
    ///
    /// # Errors
    /// When the file can't be read, ends too early, or is no JSON.
    pub(super) fn next(&mut self) -> Result<Option<Element<'_>>> {
        let mut first = self.next_solid()?;
        if self.started && first == Some(b',') {
            first = self.next_solid()?;
        } else if self.started && first != Some(b']') {
            return Err(self.broken_off(first, "`,` or `]` after an element"));
        }
        self.started = true;
        let line = self.line;
        match first {
            Some(b']') => Ok(None),
            None => Err(self.broken_off(None, "an element")),
            Some(first) => {
                self.value(first)?;
                Ok(Some(Element { line, json: &self.buffer }))
            }
        }
    }

    /// Passes over the members before `member`, and into its array.
    fn find(&mut self, member: &str) -> Result<()> {
        loop {
            match self.next_solid()? {
                Some(b'"') => self.value(b'"')?,
                Some(b'}') => {
                    let detail = format!("the file has no list {member:?}; is it the right file and format?");
                    return Err(self.error(&detail));
                }
                other => return Err(self.broken_off(other, "the name of a member")),
            }
            let found = serde_json::from_slice::<String>(&self.buffer).is_ok_and(|name| name == member);
            match self.next_solid()? {
                Some(b':') => {}
                other => return Err(self.broken_off(other, "`:`")),
            }
            match self.next_solid()? {
                Some(b'[') if found => return Ok(()),
                _ if found => {
                    return Err(
                        self.error(&format!("{member:?} is not a list; is it the right file and format?"))
                    );
                }
                Some(first) => self.value(first)?,
                None => return Err(self.broken_off(None, "a value")),
            }
            match self.next_solid()? {
                Some(b',') => {}
                Some(b'}') => {
                    let detail = format!("the file has no list {member:?}; is it the right file and format?");
                    return Err(self.error(&detail));
                }
                other => return Err(self.broken_off(other, "`,` or `}`")),
            }
        }
    }

    /// Reads the value that begins with `first` into the buffer.
    fn value(&mut self, first: u8) -> Result<()> {
        self.buffer.clear();
        self.buffer.push(first);
        let mut depth = usize::from(matches!(first, b'{' | b'['));
        let mut in_string = first == b'"';
        let mut escaped = false;
        if depth == 0 && !in_string {
            return self.scalar();
        }
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Err(self.broken_off(None, "the rest of a value"));
            }
            let mut used = 0;
            let mut done = false;
            for &byte in bytes {
                used += 1;
                self.line += usize::from(byte == b'\n');
                if in_string {
                    match byte {
                        _ if escaped => escaped = false,
                        b'\\' => escaped = true,
                        b'"' => in_string = false,
                        _ => {}
                    }
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b'}' | b']' => depth -= 1,
                        _ => {}
                    }
                }
                if depth == 0 && !in_string {
                    done = true;
                    break;
                }
            }
            self.buffer.extend_from_slice(&bytes[..used]);
            self.reader.consume(used);
            if done {
                return Ok(());
            }
        }
    }

    /// The rest of a number, `true`, `false` or `null`.
    fn scalar(&mut self) -> Result<()> {
        while let Some(byte) = self.peek_bytes()?.first().copied() {
            if matches!(byte, b',' | b']' | b'}' | b':') || byte.is_ascii_whitespace() {
                break;
            }
            self.buffer.push(byte);
            self.reader.consume(1);
        }
        Ok(())
    }

    /// The next byte that is not white space.
    fn next_solid(&mut self) -> Result<Option<u8>> {
        while let Some(byte) = self.peek_bytes()?.first().copied() {
            self.reader.consume(1);
            self.line += usize::from(byte == b'\n');
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
        }
        Ok(None)
    }

    fn peek_bytes(&mut self) -> Result<&[u8]> {
        Ok(self.reader.fill_buf()?)
    }

    fn broken_off(&self, found: Option<u8>, wanted: &str) -> Error {
        match found {
            None => self.error(&format!("the file ends where {wanted} should follow; was it written whole?")),
            Some(byte) => {
                let found = char::from(byte).escape_default();
                self.error(&format!("`{found}` where {wanted} should follow; the file is not JSON"))
            }
        }
    }

    fn error(&self, detail: &str) -> Error {
        Error::line(&self.path, self.line, detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str, member: Option<&str>) -> Result<Vec<(usize, String)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        let mut elements = Elements::open(file.path(), member)?;
        let mut found = Vec::new();
        while let Some(element) = elements.next()? {
            found.push((element.line, String::from_utf8(element.json.to_vec()).unwrap()));
        }
        Ok(found)
    }

    #[test]
    fn elements_come_with_their_lines() {
        let content = "\u{feff}[\n {\"a\": \"]}\\\"\\\\\", \"b\": [1,\n 2]},\n\n17 , \"x,y\",[]\n, null]";
        let found = read(content, None).unwrap();
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 5, 5, 5, 6]);
        let json: Vec<&str> = found.iter().map(|(_, json)| json.as_str()).collect();
        assert_eq!(json, ["{\"a\": \"]}\\\"\\\\\", \"b\": [1,\n 2]}", "17", "\"x,y\"", "[]", "null"]);
        assert!(read(" [ ] ", None).unwrap().is_empty());
    }

    #[test]
    fn a_member_is_found_behind_others() {
        let content =
            "{\"version\": \"1.1\", \"other\": {\"data\": [0]}, \"n\": 1.5e3,\n\"data\": [1, 2], \"z\": 0}";
        let found = read(content, Some("data")).unwrap();
        assert_eq!(found, [(2, "1".into()), (2, "2".into())]);
    }

    #[test]
    fn broken_files_are_named_by_line() {
        for (content, member, wrong) in [
            ("", None, ":1: the file is not a list"),
            ("{}", None, ":1: the file is not a list"),
            ("\n3", Some("data"), ":2: the file is not an object with the list \"data\""),
            ("{\"a\": 1}", Some("data"), ":1: the file has no list \"data\""),
            ("{}", Some("data"), ":1: the file has no list \"data\""),
            ("{\"data\": {}}", Some("data"), ":1: \"data\" is not a list"),
            ("[1,\n", None, ":2: the file ends where an element"),
            ("[1\n", None, ":2: the file ends where `,` or `]`"),
            ("[{\"a\":\n[1}", None, ":2: the file ends where the rest of a value"),
            ("[1 2]", None, ":1: `2` where `,` or `]`"),
            ("{\"a\" 1}", Some("data"), ":1: `1` where `:`"),
        ] {
            let error = read(content, member).unwrap_err().to_string();
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
    }

    #[test]
    fn an_element_longer_than_the_buffer_stays_whole() {
        let long = "x".repeat(200_000);
        let found = read(&format!("[\"{long}\", \"y\"]"), None).unwrap();
        assert_eq!((found[0].1.len(), found[1].1.as_str()), (200_002, "\"y\""));
    }
}
