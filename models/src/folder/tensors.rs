//! Tensors out of safetensors files, one or sharded, as f32.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::Metadata};
use serde::Deserialize;

use super::files::{checkpoint_error, read_json};
use crate::Result;

/// Headers larger than this are no headers (a 100-layer model's has about 100 kB).
const LONGEST_HEADER: u64 = 64 << 20;

/// The tensors of a checkpoint. Only headers are kept; a tensor is read from disk when it is asked for, so that
/// loading needs little more memory than the model itself.
pub(crate) struct Tensors {
    folder: PathBuf,
    files: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Tensors {
    /// Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut tensors =
            Self { folder: folder.to_path_buf(), files: weight_files(folder)?, entries: BTreeMap::new() };
        for file in 0..tensors.files.len() {
            tensors.read_header(file)?;
        }
        Ok(tensors)
    }

    /// The files behind it, in a fixed order.
    pub(crate) fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The names of the tensors in a file of [`Tensors::files`], in the order in which they lie there.
    pub(crate) fn names_in(&self, file: usize) -> Vec<&str> {
        let mut names: Vec<(&str, u64)> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.file == file)
            .map(|(name, entry)| (name.as_str(), entry.offset))
            .collect();
        names.sort_by_key(|(_, offset)| *offset);
        names.into_iter().map(|(name, _)| name).collect()
    }

    /// A tensor's type and shape.
    pub(crate) fn layout(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.entries.get(name).map(|entry| (entry.dtype, entry.shape.as_slice()))
    }

    /// A tensor's bytes as they are in the file; nothing when there is no such tensor.
    pub(crate) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let Some(entry) = self.entries.get(name) else { return Ok(Vec::new()) };
        let mut file = fs_err::File::open(&self.files[entry.file])?;
        file.seek(SeekFrom::Start(entry.offset))?;
        let mut bytes = vec![0; entry.bytes];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a tensor, which must have this shape, row by row. f16 and bf16 become f32.
    pub(crate) fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let Some(entry) = self.entries.get(name) else {
            let detail = format!(
                "no tensor `{name}` in its safetensors; fetch the checkpoint again, or correct config.json"
            );
            return Err(checkpoint_error(&self.folder, detail));
        };
        let path = &self.files[entry.file];
        if entry.shape != shape {
            let detail = format!(
                "tensor `{name}` has shape {:?}, and config.json says {shape:?}; they belong to different models",
                entry.shape
            );
            return Err(checkpoint_error(path, detail));
        }
        let mut file = fs_err::File::open(path)?;
        file.seek(SeekFrom::Start(entry.offset))?;
        let mut bytes = vec![0; entry.bytes];
        file.read_exact(&mut bytes)?;
        let values = match entry.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            other => {
                let detail = format!("tensor `{name}` is of type {other:?}; convert it to F32, F16 or BF16");
                return Err(checkpoint_error(path, detail));
            }
        };
        Ok(values)
    }

    fn read_header(&mut self, index: usize) -> Result<()> {
        let path = &self.files[index];
        let broken = |detail: String| checkpoint_error(path, format!("{detail}; fetch the file again"));
        let mut file = fs_err::File::open(path)?;
        let length = file.metadata()?.len();
        let mut header = vec![0; 8];
        file.read_exact(&mut header)
            .map_err(|_| broken(format!("{length} bytes are too few for a safetensors file")))?;
        let header_length = u64::from_le_bytes(header.as_slice().try_into().unwrap_or_default());
        if header_length > LONGEST_HEADER.min(length - 8) {
            return Err(broken("not a safetensors file, or a damaged one".into()));
        }
        header.resize(8 + header_length as usize, 0);
        file.read_exact(&mut header[8..]).map_err(|_| broken("the file ends within its header".into()))?;
        let metadata: Metadata = serde_json::from_slice(&header[8..])
            .map_err(|e| broken(format!("not a safetensors file ({e})")))?;
        let (found, expected) = (length - 8 - header_length, metadata.data_len() as u64);
        if found != expected {
            let detail = format!("the file has {found} bytes of tensors, and its header says {expected}");
            return Err(broken(detail));
        }
        // Reading the metadata has checked that shapes and offsets agree.
        for (name, info) in metadata.tensors() {
            let (start, end) = info.data_offsets;
            let entry = Entry {
                file: index,
                dtype: info.dtype,
                shape: info.shape.clone(),
                offset: 8 + header_length + start as u64,
                bytes: end - start,
            };
            self.entries.insert(name, entry);
        }
        Ok(())
    }
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.is_file() {
        let remedy = if folder.join("pytorch_model.bin").is_file() {
            "pytorch_model.bin is not read because loading it can run code; convert it: \
             AutoModel.from_pretrained(folder).save_pretrained(folder)"
        } else {
            "fetch the checkpoint's weights in safetensors format"
        };
        return Err(checkpoint_error(&single, format!("the file is missing; {remedy}")));
    }
    let index: ShardIndex = read_json(&index_path, "fetch the checkpoint again")?;
    let mut names: Vec<String> = index.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let mut files = Vec::new();
    for name in names {
        let plain = Path::new(&name).file_name().is_some_and(|file_name| file_name == name.as_str());
        let path = folder.join(&name);
        if !plain || !path.is_file() {
            let detail =
                format!("it names the shard {name:?}, which is not in the folder; fetch the missing file");
            return Err(checkpoint_error(&index_path, detail));
        }
        files.push(path);
    }
    if files.is_empty() {
        return Err(checkpoint_error(&index_path, "it names no shard; fetch the file again".into()));
    }
    Ok(files)
}
