//! Writing a safetensors file tensor by tensor, so that a conversion never holds more than one tensor, and reading back
//! what was written.

use std::{
    collections::BTreeMap,
    io::{BufWriter, Read, Write},
    path::Path,
};

use candle_core::Tensor;
use safetensors::tensor::Metadata;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::manifest::hex;
use crate::{Error, Result};

/// The longest header that the safetensors crate reads.
const LONGEST_HEADER: u64 = 100_000_000;

/// Writes f32 tensors of the given names and shapes (in that order) to `path`; `tensor` is asked for them one by one.
/// The hash of what was written comes back.
pub(super) fn write_f32(
    path: &Path,
    shapes: &[(String, Vec<usize>)],
    mut tensor: impl FnMut(usize) -> Result<Tensor>,
) -> Result<String> {
    let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(path)?);
    let mut hasher = Sha256::new();
    let header = header(shapes);
    for part in [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes()] {
        hasher.update(part);
        file.write_all(part)?;
    }
    let mut bytes = Vec::new();
    for (index, (name, shape)) in shapes.iter().enumerate() {
        let tensor = tensor(index)?;
        if tensor.dims() != shape {
            return Err(Error::Weights(format!(
                "tensor `{name}` has shape {:?} where {shape:?} was announced",
                tensor.dims()
            )));
        }
        bytes.clear();
        for value in tensor.flatten_all()?.to_vec1::<f32>()? {
            bytes.extend_from_slice(&value.to_le_bytes());
        }
        hasher.update(&bytes);
        file.write_all(&bytes)?;
    }
    file.flush()?;
    Ok(hex(&hasher.finalize()))
}

/// The header, padded with spaces to a multiple of eight bytes as the format wants.
fn header(shapes: &[(String, Vec<usize>)]) -> String {
    let mut entries: BTreeMap<&str, Value> = BTreeMap::new();
    entries.insert("__metadata__", json!({ "format": "pt" }));
    let mut offset = 0_usize;
    for (name, shape) in shapes {
        let end = offset + 4 * shape.iter().product::<usize>();
        entries.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }));
        offset = end;
    }
    let mut header = json!(entries).to_string();
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    header
}

/// The shapes in a safetensors file, from its header alone (checked against the file's length).
pub(super) fn shapes(path: &Path) -> Result<BTreeMap<String, Vec<usize>>> {
    let broken = |detail: String| Error::Checkpoint {
        path: path.to_path_buf(),
        detail: format!("not a whole safetensors file: {detail}"),
    };
    let mut file = fs_err::File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(|_| broken("shorter than eight bytes".into()))?;
    let header_length = u64::from_le_bytes(start);
    if header_length > LONGEST_HEADER || header_length > length {
        return Err(broken(format!("a header of {header_length} bytes in a file of {length}")));
    }
    let mut header = Vec::new();
    file.take(header_length).read_to_end(&mut header)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| broken(error.to_string()))?;
    if metadata.data_len() as u64 + 8 + header_length != length {
        return Err(broken("its length is not what its header says".into()));
    }
    Ok(metadata.tensors().into_iter().map(|(name, info)| (name, info.shape.clone())).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn what_is_written_is_read_back_by_candle() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        let tensors = [
            Tensor::arange(0_f32, 6., &Device::Cpu).unwrap().reshape((2, 3)).unwrap(),
            Tensor::new(&[7_f32], &Device::Cpu).unwrap(),
        ];
        let shapes_written = [("b.weight".to_owned(), vec![2, 3]), ("a".to_owned(), vec![1])];
        let hash = write_f32(&path, &shapes_written, |index| Ok(tensors[index].clone())).unwrap();
        assert_eq!(hash, super::super::sha256_of_file(&path).unwrap());
        assert_eq!(shapes(&path).unwrap(), shapes_written.iter().cloned().collect());
        let read = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        assert_eq!(read["b.weight"].to_vec2::<f32>().unwrap(), [[0., 1., 2.], [3., 4., 5.]]);
        assert_eq!(read["a"].to_vec1::<f32>().unwrap(), [7.]);

        let bytes = fs_err::read(&path).unwrap();
        fs_err::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(shapes(&path).unwrap_err().to_string().contains("not a whole"));
        let wrong = [("a".to_owned(), vec![2])];
        assert!(write_f32(&path, &wrong, |_| Ok(tensors[1].clone())).is_err());
    }
}
