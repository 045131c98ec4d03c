//! A GGUF file, opened and with typed access to its metadata and tensors.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
};

use candle_core::{
    Device, Tensor,
    quantized::gguf_file::{Content, Value},
};

use super::gguf_header;
use crate::{Error, Result};

/// An opened GGUF file.
pub(super) struct Gguf {
    path: PathBuf,
    reader: BufReader<fs_err::File>,
    content: Content,
}

impl Gguf {
    pub(super) fn open(path: &Path) -> Result<Self> {
        gguf_header::check(path)?;
        let mut reader = BufReader::new(fs_err::File::open(path)?);
        let content = Content::read(&mut reader).map_err(|error| Error::Checkpoint {
            path: path.to_path_buf(),
            detail: format!("not a GGUF file that can be read ({error}); fetch it again"),
        })?;
        Ok(Self { path: path.to_path_buf(), reader, content })
    }

    /// An error about this file.
    pub(super) fn error(&self, detail: impl Into<String>) -> Error {
        Error::Checkpoint { path: self.path.clone(), detail: detail.into() }
    }

    fn required<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<T> {
        self.optional(key, read)?.ok_or_else(|| self.error(format!("the metadata lacks `{key}`")))
    }

    fn optional<'a, T>(&'a self, key: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.content.metadata.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.error(format!("the metadata's `{key}` is of an unexpected type"))),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<&str> {
        self.required(key, as_text)
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<&str>> {
        self.optional(key, as_text)
    }

    pub(super) fn number(&self, key: &str) -> Result<usize> {
        self.required(key, as_number)
    }

    pub(super) fn optional_number(&self, key: &str) -> Result<Option<usize>> {
        self.optional(key, as_number)
    }

    pub(super) fn float(&self, key: &str) -> Result<f32> {
        self.required(key, |value| value.to_f32().ok())
    }

    pub(super) fn optional_float(&self, key: &str) -> Result<Option<f32>> {
        self.optional(key, |value| value.to_f32().ok())
    }

    pub(super) fn optional_bool(&self, key: &str) -> Result<Option<bool>> {
        self.optional(key, |value| value.to_bool().ok())
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        self.required(key, |value| value.to_vec().ok()?.iter().map(as_text).collect())
    }

    pub(super) fn optional_numbers(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.optional(key, |value| value.to_vec().ok()?.iter().map(as_number).collect())
    }

    /// The tensors' names, sorted.
    pub(super) fn tensor_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.content.tensor_infos.keys().cloned().collect();
        names.sort();
        names
    }

    /// A tensor's shape, outermost dimension first.
    pub(super) fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims().to_vec())
    }

    /// Reads a tensor and dequantises it exactly, in f32.
    pub(super) fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let read = self.content.tensor(&mut self.reader, name, &Device::Cpu);
        let tensor = read.and_then(|tensor| tensor.dequantize(&Device::Cpu));
        tensor.map_err(|error| {
            self.error(format!("tensor `{name}` can't be read ({error}); fetch the file again"))
        })
    }
}

fn as_text(value: &Value) -> Option<&str> {
    value.to_string().ok().map(String::as_str)
}

fn as_number(value: &Value) -> Option<usize> {
    let wide = match value {
        Value::I8(value) => i64::from(*value).try_into().ok(),
        Value::I16(value) => i64::from(*value).try_into().ok(),
        Value::I32(value) => i64::from(*value).try_into().ok(),
        Value::I64(value) => (*value).try_into().ok(),
        Value::Bool(_) => None,
        other => other.to_u64().ok(),
    };
    wide.and_then(|number: u64| usize::try_from(number).ok())
}
