//! An upload on its way to the disk: each line is checked as it passes, as a training run would read it.

use axum::body::Bytes;
use sha2::{Digest, Sha256};

use crate::http::problem::{FieldError, Problem};

/// Longest line in bytes; longer ones are refused, so that memory stays bounded.
const LINE_BYTES: usize = 4 << 20;
/// Bad lines that an answer lists.
const LISTED: usize = 100;

/// Checks a body chunk by chunk.
#[derive(Default)]
pub(super) struct Checker {
    hash: Sha256,
    bytes: u64,
    pairs: usize,
    number: usize,
    /// The line that the chunks so far end with.
    rest: Vec<u8>,
    /// The line that goes on is too long already.
    overlong: bool,
    bad: usize,
    errors: Vec<FieldError>,
}

/// What a good body was.
pub(super) struct Checked {
    pub(super) pairs: usize,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

impl Checker {
    /// Checks the lines that end in `chunk`.
    pub(super) fn chunk(&mut self, chunk: &Bytes) {
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        let mut left: &[u8] = chunk;
        while let Some(end) = left.iter().position(|byte| *byte == b'\n') {
            self.add(&left[..end]);
            self.end_line();
            left = &left[end + 1..];
        }
        self.add(left);
    }

    /// Whether a bad line was among them.
    pub(super) fn has_failed(&self) -> bool {
        self.bad > 0
    }

    /// How many bytes came.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// After the last chunk.
    ///
    /// # Errors
    /// `invalid_request` that names the bad lines, and for a body without a pair.
    pub(super) fn finish(mut self) -> Result<Checked, Problem> {
        if !self.rest.is_empty() || self.overlong {
            self.end_line();
        }
        if self.bad > 0 {
            let bad = self.bad;
            let mut problem = Problem::fields(self.errors);
            problem.detail = match problem.errors.as_slice() {
                [one] => one.detail.clone(),
                [first, ..] => format!("{bad} lines are not pairs, the first: {}", first.detail),
                [] => problem.detail,
            };
            problem.detail.push_str("; nothing was kept");
            return Err(problem);
        }
        if self.pairs == 0 {
            return Err(Problem::field("", "the body holds no pair; send {\"query\", \"positive\"} a line"));
        }
        Ok(Checked { pairs: self.pairs, bytes: self.bytes, sha256: hexadecimal(&self.hash.finalize()) })
    }

    fn add(&mut self, part: &[u8]) {
        if self.rest.len() + part.len() > LINE_BYTES {
            self.overlong = true;
            self.rest = Vec::new();
        }
        if !self.overlong {
            self.rest.extend_from_slice(part);
        }
    }

    fn end_line(&mut self) {
        self.number += 1;
        let mut line = std::mem::take(&mut self.rest);
        if std::mem::take(&mut self.overlong) {
            self.fail(format!("is longer than {} MiB; shorten its texts", LINE_BYTES >> 20));
            return;
        }
        if self.number == 1 && line.starts_with(b"\xef\xbb\xbf") {
            line.drain(..3);
        }
        if !line.trim_ascii().is_empty() {
            match expandr_training::readers::parse_pair(&line) {
                Ok(_) => self.pairs += 1,
                Err(detail) => self.fail(detail),
            }
        }
        line.clear();
        self.rest = line; // its memory is used again
    }

    fn fail(&mut self, detail: String) {
        self.bad += 1;
        if self.errors.len() < LISTED {
            let detail = format!("line {}: {detail}", self.number);
            self.errors.push(FieldError { pointer: String::new(), detail });
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body in chunks of every size up to seven bytes: lines end and begin anywhere.
    fn check(body: &str) -> Result<Checked, Problem> {
        let whole = check_in_chunks(body, usize::MAX);
        for size in 1..8 {
            match (&whole, check_in_chunks(body, size)) {
                (Ok(whole), Ok(cut)) => assert_eq!((whole.pairs, &whole.sha256), (cut.pairs, &cut.sha256)),
                (Err(whole), Err(cut)) => assert_eq!(*whole, cut),
                _ => panic!("chunks of {size} bytes change the outcome"),
            }
        }
        whole
    }

    fn check_in_chunks(body: &str, size: usize) -> Result<Checked, Problem> {
        let mut checker = Checker::default();
        for chunk in body.as_bytes().chunks(size.min(body.len().max(1))) {
            checker.chunk(&Bytes::copy_from_slice(chunk));
        }
        checker.finish()
    }

    #[test]
    fn good_lines_are_counted() {
        let body = "\u{feff}{\"query\":\"q\",\"positive\":\"p\"}\r\n\n{\"query\":\"q\",\"positive\":[\"p\"],\"negatives\":[\"n\"]}";
        let checked = check(body).unwrap();
        assert_eq!((checked.pairs, checked.bytes), (2, body.len() as u64));
    }

    #[test]
    fn bad_lines_are_named() {
        let body = "{\"query\":\"q\",\"positive\":\"p\"}\n\n{\"query\":\"q\"}\nnot json\n[1]\n{\"query\":\"\",\"positive\":\"p\"}\n\u{1}";
        let problem = check(body).err().unwrap();
        let details: Vec<&str> = problem.errors.iter().map(|error| error.detail.as_str()).collect();
        for (detail, start) in details.iter().zip(["line 3:", "line 4:", "line 5:", "line 6:", "line 7:"]) {
            assert!(detail.starts_with(start), "{detail}");
        }
        assert_eq!(details.len(), 5);
        assert!(details[0].contains("\"positive\" is missing"), "{}", details[0]);
        assert!(
            problem.detail.starts_with("5 lines are not pairs, the first: line 3:"),
            "{}",
            problem.detail
        );
        assert!(check(" \n\n").err().unwrap().detail.contains("no pair"));
    }

    #[test]
    fn an_endless_line_takes_no_memory() {
        let mut checker = Checker::default();
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        for _ in 0..20 {
            checker.chunk(&chunk);
            assert!(checker.rest.capacity() <= 2 * LINE_BYTES, "{}", checker.rest.capacity());
        }
        checker.chunk(&Bytes::from_static(b"\n{\"query\":\"q\",\"positive\":\"p\"}\n"));
        let problem = checker.finish().err().unwrap();
        assert_eq!(problem.errors.len(), 1);
        assert!(problem.detail.starts_with("line 1: is longer than 4 MiB"), "{}", problem.detail);
    }

    #[test]
    fn a_hundred_bad_lines_are_listed_and_all_counted() {
        let problem = check_in_chunks(&"{}\n".repeat(250), 1000).err().unwrap();
        assert_eq!(problem.errors.len(), LISTED);
        assert!(problem.detail.starts_with("250 lines"), "{}", problem.detail);
    }
}
