//! The graph's file: written whole to a temporary name, synced, renamed; read whole and proved before it is used.
//!
//! ```text
//! "XPDHNSW\n"  u32 version  u32 header length  u32 crc32 of the header  header (JSON)
//! keys (portable roaring treemap)   payload (usearch's own format)
//! ```
//! Integers are little-endian. The header names lengths and checksum of what follows, and everything that a graph must
//! share with the store that it is opened beside. The file is an optimisation: losing it costs a rebuild, never a
//! document.

use std::io::{Read, Write};
use std::path::Path;

use roaring::RoaringTreemap;
use serde::{Deserialize, Serialize};

use crate::config::{IndexConfig, Scalar};
use crate::error::{Error, Result};
use crate::vector_index::Image;

const MAGIC: &[u8; 8] = b"XPDHNSW\n";
const VERSION: u32 = 1;
const MAX_HEADER_BYTES: u32 = 64 * 1024;

/// What a graph must have in common with its store and configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) store_id: String,
    pub(crate) encoder_id: String,
    pub(crate) dimension: usize,
    pub(crate) metric: String,
    pub(crate) scalar: Scalar,
    pub(crate) connectivity: usize,
    pub(crate) usearch: String,
}

impl Identity {
    pub(crate) fn new(store_id: &str, config: &IndexConfig) -> Self {
        Self {
            store_id: store_id.to_owned(),
            encoder_id: config.encoder_id.clone(),
            dimension: config.dimension,
            metric: "inner_product".to_owned(),
            scalar: config.scalar,
            connectivity: config.connectivity,
            usearch: usearch::version().to_owned(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    identity: Identity,
    /// `f32::to_bits`.
    scale_bits: u32,
    key_count: u64,
    highest_key: u64,
    keys_bytes: u64,
    payload_bytes: u64,
    body_crc32: u32,
}

/// Why a file was not used. Told in logs and statistics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("there is no snapshot")]
    Missing,
    #[error("the snapshot is damaged: {0}")]
    Damaged(String),
    #[error("the snapshot belongs to something else: {0}")]
    Foreign(String),
}

/// Writes a snapshot so that a crash at any moment leaves the old file or the new one. Returns its size in bytes.
pub(crate) fn write(path: &Path, identity: Identity, image: &Image) -> Result<u64> {
    let mut keys = Vec::with_capacity(image.keys.serialized_size());
    image.keys.serialize_into(&mut keys)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&keys);
    crc.update(&image.payload);
    let header = Header {
        identity,
        scale_bits: image.scale.to_bits(),
        key_count: image.keys.len(),
        highest_key: image.keys.max().unwrap_or(0),
        keys_bytes: keys.len() as u64,
        payload_bytes: image.payload.len() as u64,
        body_crc32: crc.finalize(),
    };
    let header = serde_json::to_vec(&header).map_err(std::io::Error::from)?;

    let temporary = path.with_extension("tmp");
    let outcome = write_parts(&temporary, &header, &[&keys, &image.payload]);
    if outcome.is_err() {
        // Best effort: the next snapshot overwrites it anyway.
        _ = fs_err::remove_file(&temporary);
        return outcome;
    }
    fs_err::rename(&temporary, path)?;
    sync_directory(path)?;
    outcome
}

fn write_parts(path: &Path, header: &[u8], body: &[&[u8]]) -> Result<u64> {
    let mut file = fs_err::File::create(path)?;
    let mut length = 0;
    let prefix = [VERSION, header.len() as u32, crc32fast::hash(header)].map(u32::to_le_bytes).concat();
    for part in [&MAGIC[..], &prefix, header].iter().chain(body) {
        file.write_all(part)?;
        length += part.len() as u64;
    }
    file.sync_all()?;
    let written = file.metadata()?.len();
    if written != length {
        let message =
            format!("{}: {written} of {length} bytes were written; is the disk full?", path.display());
        return Err(std::io::Error::other(message).into());
    }
    Ok(length)
}

/// Makes a rename, or a new file, survive a power cut.
pub(crate) fn sync_directory(file: &Path) -> Result<()> {
    #[cfg(unix)]
    if let Some(directory) = file.parent() {
        fs_err::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Reads a snapshot and proves that it is whole and belongs to `identity`; keys must be below `next_key`.
pub(crate) fn read(path: &Path, identity: &Identity, next_key: u64) -> Result<Image, Rejected> {
    let mut file = match fs_err::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(Rejected::Missing),
        Err(error) => return Err(damaged(error)),
    };
    let file_length = file.metadata().map_err(damaged)?.len();
    let mut prefix = [0; 20];
    file.read_exact(&mut prefix).map_err(|_| damaged("it is shorter than its prefix"))?;
    let number = |at: usize| u32::from_le_bytes([prefix[at], prefix[at + 1], prefix[at + 2], prefix[at + 3]]);
    if &prefix[..8] != MAGIC {
        return Err(Rejected::Foreign("it does not start like a snapshot".into()));
    }
    if number(8) != VERSION {
        return Err(Rejected::Foreign(format!("format {} instead of {VERSION}", number(8))));
    }
    if number(12) > MAX_HEADER_BYTES {
        return Err(damaged("its header has an impossible length"));
    }
    let mut header = vec![0; number(12) as usize];
    file.read_exact(&mut header).map_err(|_| damaged("it ends in its header"))?;
    if crc32fast::hash(&header) != number(16) {
        return Err(damaged("the checksum of its header differs"));
    }
    let header: Header = serde_json::from_slice(&header).map_err(damaged)?;
    if header.identity != *identity {
        return Err(Rejected::Foreign(differences(&header.identity, identity)));
    }
    let announced = header.keys_bytes.checked_add(header.payload_bytes).and_then(|body| body.checked_add(20));
    let announced = announced.and_then(|length| length.checked_add(u64::from(number(12))));
    if announced != Some(file_length) {
        return Err(damaged(format!("it has {file_length} bytes, its header announces {announced:?}")));
    }
    if header.key_count > 0 && header.highest_key >= next_key {
        return Err(Rejected::Foreign(format!(
            "it holds key {}, but the store has given none above {next_key}: was the store restored from a backup?",
            header.highest_key
        )));
    }
    read_body(&mut file, &header)
}

fn read_body(file: &mut impl Read, header: &Header) -> Result<Image, Rejected> {
    let mut keys = vec![0; header.keys_bytes as usize];
    file.read_exact(&mut keys).map_err(damaged)?;
    let mut payload = vec![0; header.payload_bytes as usize];
    file.read_exact(&mut payload).map_err(damaged)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&keys);
    crc.update(&payload);
    if crc.finalize() != header.body_crc32 {
        return Err(damaged("the checksum of its content differs"));
    }
    let keys = RoaringTreemap::deserialize_from(&keys[..]).map_err(damaged)?;
    if keys.len() != header.key_count || keys.max().unwrap_or(0) != header.highest_key {
        return Err(damaged("its keys differ from what its header announces"));
    }
    Ok(Image { keys, scale: f32::from_bits(header.scale_bits), payload })
}

fn differences(found: &Identity, expected: &Identity) -> String {
    let pairs = [
        ("store", &found.store_id, &expected.store_id),
        ("encoder", &found.encoder_id, &expected.encoder_id),
        ("dimension", &found.dimension.to_string(), &expected.dimension.to_string()),
        ("metric", &found.metric, &expected.metric),
        ("scalar", &format!("{:?}", found.scalar), &format!("{:?}", expected.scalar)),
        ("connectivity", &found.connectivity.to_string(), &expected.connectivity.to_string()),
        ("usearch", &found.usearch, &expected.usearch),
    ];
    let told = pairs.iter().filter(|(_, found, expected)| found != expected);
    told.map(|(name, found, expected)| format!("{name} {found} instead of {expected}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn damaged(reason: impl ToString) -> Rejected {
    Rejected::Damaged(reason.to_string())
}

impl From<Rejected> for Error {
    fn from(rejected: Rejected) -> Self {
        Self::Graph(rejected.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hnsw, VectorIndex};
    use proptest::prelude::*;

    fn identity() -> Identity {
        Identity::new("store", &IndexConfig::new("encoder", 4))
    }

    fn image() -> Image {
        let hnsw = Hnsw::new(&IndexConfig::new("encoder", 4)).unwrap();
        for key in 1..40 {
            hnsw.add(&[(key, &[key as f32, 1.0, -2.0, 0.5])]).unwrap();
        }
        hnsw.snapshot().unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("graph");
        assert_eq!(read(&path, &identity(), 100), Err(Rejected::Missing));
        let bytes = write(&path, identity(), &image()).unwrap();
        assert_eq!(bytes, fs_err::metadata(&path).unwrap().len());
        assert_eq!(read(&path, &identity(), 100), Ok(image()));
        assert!(matches!(read(&path, &identity(), 39), Err(Rejected::Foreign(_))));
        assert_eq!(fs_err::read_dir(directory.path()).unwrap().count(), 1, "the temporary file is gone");
    }

    #[test]
    fn every_difference_of_identity_is_foreign() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("graph");
        write(&path, identity(), &image()).unwrap();
        let original = identity();
        for other in [
            Identity { store_id: "x".into(), ..original.clone() },
            Identity { encoder_id: "x".into(), ..original.clone() },
            Identity { dimension: 5, ..original.clone() },
            Identity { metric: "cosine".into(), ..original.clone() },
            Identity { scalar: Scalar::I8, ..original.clone() },
            Identity { connectivity: 32, ..original.clone() },
            Identity { usearch: "0".into(), ..original.clone() },
        ] {
            let told = read(&path, &other, 100).unwrap_err();
            assert!(matches!(&told, Rejected::Foreign(why) if why.contains("instead of")), "{told}");
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("graph");
        write(&path, identity(), &image()).unwrap();
        // A directory in the way of the temporary file makes its creation fail.
        fs_err::create_dir(path.with_extension("tmp")).unwrap();
        let empty = Image { keys: RoaringTreemap::new(), scale: 1.0, payload: Vec::new() };
        assert!(write(&path, identity(), &empty).is_err());
        assert_eq!(read(&path, &identity(), 100), Ok(image()));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn no_flipped_bit_and_no_truncation_passes(position in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<bool>()) {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("graph");
            write(&path, identity(), &image()).unwrap();
            let mut bytes = fs_err::read(&path).unwrap();
            let position = position.index(bytes.len());
            if cut { bytes.truncate(position) } else { bytes[position] ^= 1 << bit }
            fs_err::write(&path, bytes).unwrap();
            prop_assert!(read(&path, &identity(), 100).is_err());
        }
    }
}
