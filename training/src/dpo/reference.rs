//! What the reference model thinks of the completions. It does not change in training, so it is asked once.

use std::collections::HashMap;
use std::path::Path;

use expandr_models::trainable::{CompletionBatch, Pass, TrainableDecoder};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{PreferenceExample, examples::fingerprint};
use crate::{Error, Result};

/// Pairs that are computed at once.
const AT_ONCE: usize = 4;
/// Pairs between two writings of the file.
const SAVE_EVERY: usize = 256;
const VALUES: &str = "log_probabilities";

/// Is told how many pairs of how many are done.
pub type ReferenceProgress<'a> = &'a mut dyn FnMut(usize, usize);

/// The reference model's log-probabilities of each pair's chosen and rejected completion.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference(Vec<[f64; 2]>);

impl Reference {
    /// Takes them from the file, as far as they are there for this model and these pairs, and computes the rest. The file
    /// is written as it goes, so that an interrupted computation goes on.
    pub(super) fn get(
        decoder: &TrainableDecoder,
        model: &str,
        examples: &[PreferenceExample],
        path: Option<&Path>,
        progress: ReferenceProgress<'_>,
    ) -> Result<Self> {
        let data = fingerprint(examples);
        let mut values = match path {
            Some(path) => read(path, model, &data)?.unwrap_or_default(),
            None => Vec::new(),
        };
        let known = values.len();
        for pairs in examples[known.min(examples.len())..].chunks(AT_ONCE) {
            let mut batch = CompletionBatch::default();
            for pair in pairs {
                batch.push(&pair.prompt, &[&pair.chosen, &pair.rejected])?;
            }
            let found = decoder.log_probabilities(&batch, Pass::reference())?.0;
            values.extend(sums(&batch, &found).chunks_exact(2).map(|sums| [sums[0], sums[1]]));
            progress(values.len(), examples.len());
            if let Some(path) = path.filter(|_| values.len() % SAVE_EVERY < AT_ONCE) {
                write(path, model, &data, &values)?;
            }
        }
        if let Some(path) = path.filter(|_| values.len() > known) {
            write(path, model, &data, &values)?;
        }
        Ok(Self(values))
    }

    /// Of a pair's chosen and rejected completion.
    pub fn of(&self, pair: usize) -> [f64; 2] {
        self.0[pair]
    }
}

/// The log-probability of each completion: the sum over its tokens.
pub(super) fn sums(batch: &CompletionBatch, log_probabilities: &[f32]) -> Vec<f64> {
    let sum =
        |range: &std::ops::Range<usize>| log_probabilities[range.clone()].iter().map(|v| f64::from(*v)).sum();
    batch.completions().iter().map(sum).collect()
}

fn read(path: &Path, model: &str, data: &str) -> Result<Option<Vec<[f64; 2]>>> {
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let broken = |error: safetensors::SafeTensorError| {
        Error::Training(format!("{} can't be read ({error}); remove it, and it is made anew", path.display()))
    };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(broken)?;
    let metadata = metadata.metadata().clone().unwrap_or_default();
    let same = |key: &str, value: &str| metadata.get(key).is_some_and(|found| found == value);
    if !same("model", model) || !same("data", data) {
        tracing::info!(path = %path.display(), "reference log-probabilities are of another model or other data; made anew");
        return Ok(None);
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(broken)?;
    let values = tensors.tensor(VALUES).map_err(broken)?;
    let numbers: Vec<f64> =
        values.data().as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    Ok(Some(numbers.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect()))
}

fn write(path: &Path, model: &str, data: &str, values: &[[f64; 2]]) -> Result<()> {
    let bytes: Vec<u8> = values.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    let failed = |error: safetensors::SafeTensorError| {
        Error::Training(format!("{} can't be written: {error}", path.display()))
    };
    let view = TensorView::new(Dtype::F64, vec![values.len(), 2], &bytes).map_err(failed)?;
    let metadata =
        HashMap::from([("model".to_owned(), model.to_owned()), ("data".to_owned(), data.to_owned())]);
    let bytes = safetensors::serialize([(VALUES, view)], Some(metadata)).map_err(failed)?;
    let temporary = path.with_extension("tmp");
    if let Some(parent) = path.parent() {
        fs_err::create_dir_all(parent)?;
    }
    fs_err::write(&temporary, bytes)?;
    fs_err::File::open(&temporary)?.sync_all()?;
    Ok(fs_err::rename(&temporary, path)?)
}
