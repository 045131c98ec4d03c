//! A bounded walk over a GGUF header, done before candle's reader sees the file: that one trusts every length, so
//! that a damaged file makes it ask for terabytes of memory or panic.

use std::{
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use crate::{Error, Result};

const MAGIC: &[u8; 4] = b"GGUF";
/// An array inside an array is more than any known metadata needs.
const DEEPEST_ARRAY: usize = 2;
const MOST_DIMENSIONS: u32 = 4;

/// Refuses a file that is no GGUF of version 2 or 3, or whose header claims more than the file holds.
pub(super) fn check(path: &Path) -> Result<()> {
    let file = fs_err::File::open(path)?;
    let length = file.metadata()?.len();
    let mut walk = Walk { reader: BufReader::new(file), position: 0, length };
    walk.header().map_err(|detail| Error::Checkpoint {
        path: path.to_path_buf(),
        detail: format!("not a whole GGUF file: {detail}; fetch it again"),
    })
}

type Step<T> = std::result::Result<T, String>;

struct Walk {
    reader: BufReader<fs_err::File>,
    position: u64,
    length: u64,
}

impl Walk {
    fn header(&mut self) -> Step<()> {
        if &self.bytes::<4>()? != MAGIC {
            return Err("it does not begin with `GGUF`".into());
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("version {version}, where 2 and 3 are understood"));
        }
        let tensors = self.u64()?;
        let entries = self.u64()?;
        for _ in 0..entries {
            self.string()?;
            let kind = self.u32()?;
            self.value(kind, 0)?;
        }
        for _ in 0..tensors {
            self.tensor()?;
        }
        Ok(())
    }

    fn tensor(&mut self) -> Step<()> {
        self.string()?;
        let dimensions = self.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!("a tensor with {dimensions} dimensions"));
        }
        let mut elements: u64 = 1;
        for _ in 0..dimensions {
            elements = elements.checked_mul(self.u64()?).ok_or("a tensor's shape overflows")?;
        }
        let _kind = self.u32()?;
        let offset = self.u64()?;
        // No format stores more than eight elements a byte.
        if elements / 8 > self.length || offset > self.length {
            return Err("a tensor lies outside the file".into());
        }
        Ok(())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Step<()> {
        if let Some(width) = width(kind) {
            return self.skip(width);
        }
        match kind {
            8 => self.string(),
            9 if depth < DEEPEST_ARRAY => {
                let kind = self.u32()?;
                let count = self.u64()?;
                if let Some(width) = width(kind) {
                    return self.skip(count.checked_mul(width).ok_or("an array's length overflows")?);
                }
                // A string or an array takes eight bytes at least.
                if count > self.length / 8 {
                    return Err("an array is longer than the file".into());
                }
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(format!("unknown kind of value {kind}")),
        }
    }

    fn string(&mut self) -> Step<()> {
        let length = self.u64()?;
        self.skip(length)
    }

    fn skip(&mut self, bytes: u64) -> Step<()> {
        let end = self.position.checked_add(bytes).filter(|end| *end <= self.length);
        let end = end.ok_or("its header is cut off")?;
        let by = i64::try_from(bytes).map_err(|_| "a length overflows")?;
        if by > 0 {
            self.reader.seek_relative(by).map_err(|error| error.to_string())?;
        }
        self.position = end;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|_| "its header is cut off")?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Step<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Step<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }
}

/// The bytes of a metadata value of fixed width.
fn width(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Whether the bytes of `path` begin as a GGUF file's do.
pub(super) fn has_magic(path: &Path) -> Result<bool> {
    let mut file = fs_err::File::open(path)?;
    file.seek(SeekFrom::Start(0))?;
    let mut magic = [0; 4];
    Ok(file.read_exact(&mut magic).is_ok() && &magic == MAGIC)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check_bytes(bytes: &[u8]) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gguf");
        fs_err::write(&path, bytes).unwrap();
        check(&path)
    }

    fn header(string_length: u64, count: u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(string_length.to_le_bytes());
        bytes.extend(b"key");
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(b"a");
        bytes
    }

    #[test]
    fn lengths_beyond_the_file_are_refused() {
        check_bytes(&header(3, 1)).unwrap();
        for (string_length, count) in [(u64::MAX, 1), (1 << 40, 1), (3, u64::MAX), (3, 2)] {
            let error = check_bytes(&header(string_length, count)).unwrap_err().to_string();
            assert!(error.contains("not a whole GGUF file"), "{error}");
        }
        assert!(check_bytes(b"not a model").unwrap_err().to_string().contains("does not begin"));
        assert!(check_bytes(b"").unwrap_err().to_string().contains("cut off"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(tail);
            let _ = check_bytes(&bytes);
        }
    }
}
