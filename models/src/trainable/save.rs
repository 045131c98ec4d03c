//! Writing a checkpoint folder like another, with some of its tensors replaced.

use std::{
    io::{BufWriter, Write},
    path::{Component, Path, PathBuf},
};

use candle_core::Tensor;
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::Parameters;
use crate::{
    Error, Result,
    folder::{NewFolder, Tensors, checkpoint_error, read_json, read_json_if_there},
    weights::MANIFEST_FILE,
};

/// Ends of names of files that hold weights in other formats: they would not have what was trained.
const OTHER_WEIGHTS: [&str; 9] =
    [".bin", ".h5", ".msgpack", ".onnx", ".gguf", ".pt", ".pth", ".ot", ".safetensors"];
const INDEX: &str = "model.safetensors.index.json";

/// What is different from the original.
pub(super) struct Rewrite<'a> {
    /// Whether the tensor of this name has a new value.
    pub(super) replaces: &'a dyn Fn(&str) -> bool,
    /// That value; asked for one tensor at a time.
    pub(super) value: &'a dyn Fn(&str) -> Result<Tensor>,
    /// Write new values as f32, whatever type the original has.
    pub(super) f32: bool,
    /// Keep only so many of the first layers.
    pub(super) layers: Option<usize>,
}

/// Keeps only the first `layers` transformer layers of a checkpoint: an encoder that nobody tuned, made from one that
/// somebody did. `target` appears whole or not at all.
///
/// # Errors
/// When `source` is no checkpoint or has no more layers than that, and when a file can't be written.
pub fn truncate_layers(source: &Path, target: &Path, layers: usize) -> Result<()> {
    if layers == 0 {
        return Err(Error::Input("a model without layers is none; keep one at least".into()));
    }
    let value = |name: &str| Err(Error::Input(format!("`{name}` has no new value")));
    rewrite(
        source,
        target,
        &Rewrite { replaces: &|_| false, value: &value, f32: false, layers: Some(layers) },
    )
}

/// Writes `target` like `source` with the values of `parameters`, as f32.
pub(super) fn with_parameters(source: &Path, target: &Path, parameters: &Parameters) -> Result<()> {
    let value = |name: &str| match parameters.get(name) {
        Some(parameter) => Ok(parameter.value.as_tensor().clone()),
        None => Err(Error::Input(format!("there is no parameter `{name}`"))),
    };
    let replaces = |name: &str| parameters.get(name).is_some();
    let tensors = Tensors::open(&source.join(weights_folder(source)?))?;
    if let Some(other) = parameters.iter().find(|parameter| !tensors.contains(&parameter.name)) {
        return Err(Error::Input(format!(
            "{} has no tensor `{}`; write adapters as adapters, or merge them",
            source.display(),
            other.name
        )));
    }
    rewrite(source, target, &Rewrite { replaces: &replaces, value: &value, f32: true, layers: None })
}

/// Writes `target` like `source`.
pub(super) fn rewrite(source: &Path, target: &Path, rewrite: &Rewrite<'_>) -> Result<()> {
    let folder = NewFolder::create(target)?;
    copy_files(source, folder.path(), 0)?;
    let inner = weights_folder(source)?;
    let (from, to) = (source.join(&inner), folder.path().join(&inner));
    if let Some(layers) = rewrite.layers {
        shorten_config(&to.join("config.json"), layers)?;
    }
    let tensors = Tensors::open(&from)?;
    let (mut total, mut dropped) = (0, 0);
    let mut places = Map::new();
    for (index, file) in tensors.files().iter().enumerate() {
        let name = file.file_name().unwrap_or_default();
        let all = tensors.names_in(index);
        let before = all.len();
        let names: Vec<&str> = all.into_iter().filter(|name| keeps(name, rewrite.layers)).collect();
        dropped += before - names.len();
        for tensor in &names {
            places.insert((*tensor).to_owned(), json!(name.to_string_lossy()));
        }
        if !names.is_empty() {
            total += write_file(&to.join(name), &tensors, &names, rewrite)?;
        }
    }
    if rewrite.layers.is_some() && dropped == 0 {
        let detail = "its tensors' names tell no layer; its architecture isn't known";
        return Err(checkpoint_error(source, detail.into()));
    }
    if tensors.files().len() > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        fs_err::write(to.join(INDEX), format!("{index:#}\n"))?;
    }
    folder.finish()
}

/// Where in a folder the weights are: in the first module of a sentence-transformers folder.
pub(super) fn weights_folder(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("modules.json");
    let modules: Option<Vec<Value>> = read_json_if_there(&path)?;
    let first =
        modules.as_ref().and_then(|modules| modules.first()).and_then(|module| module["path"].as_str());
    let inner = PathBuf::from(first.unwrap_or_default());
    if inner.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Err(checkpoint_error(
            &path,
            "a module's path leads out of the checkpoint; use a folder within it".into(),
        ));
    }
    Ok(inner)
}

/// Copies what is no weights, no manifest (whose hashes would be wrong) and not hidden.
fn copy_files(from: &Path, to: &Path, depth: usize) -> Result<()> {
    for entry in fs_err::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name.starts_with('.') || name == MANIFEST_FILE || name == INDEX {
            continue;
        }
        if path.is_dir() {
            if depth < 2 && !["onnx", "openvino"].contains(&name.as_str()) {
                fs_err::create_dir(to.join(&name))?;
                copy_files(&path, &to.join(&name), depth + 1)?;
            }
        } else if !OTHER_WEIGHTS.iter().any(|end| name.ends_with(end)) {
            fs_err::copy(&path, to.join(&name))?;
        }
    }
    Ok(())
}

fn shorten_config(path: &Path, layers: usize) -> Result<()> {
    let mut config: Map<String, Value> = read_json(path, "fetch the checkpoint again")?;
    let key = ["num_hidden_layers", "n_layers"].into_iter().find(|key| config.contains_key(*key));
    let found = key.and_then(|key| config[key].as_u64()).unwrap_or(0) as usize;
    let Some(key) = key.filter(|_| layers < found) else {
        let detail = format!("it has {found} layers, so {layers} of them can't be kept alone; keep fewer");
        return Err(checkpoint_error(path, detail));
    };
    config.insert(key.to_owned(), json!(layers));
    Ok(fs_err::write(path, format!("{:#}\n", Value::Object(config)))?)
}

/// Whether a tensor belongs to one of the first `layers` layers, or to none.
fn keeps(name: &str, layers: Option<usize>) -> bool {
    let Some(layers) = layers else { return true };
    let parts: Vec<&str> = name.split('.').collect();
    let index = parts
        .windows(2)
        .find(|pair| ["layer", "layers"].contains(&pair[0]))
        .map(|pair| pair[1].parse::<usize>());
    !matches!(index, Some(Ok(index)) if index >= layers)
}

/// Writes one safetensors file, tensor by tensor. The number of bytes of all tensors comes back.
fn write_file(path: &Path, tensors: &Tensors, names: &[&str], rewrite: &Rewrite<'_>) -> Result<usize> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut offset = 0;
    let mut kinds = Vec::new();
    for name in names {
        let (dtype, shape) = tensors.layout(name).unwrap_or((Dtype::F32, &[]));
        let replaced = (rewrite.replaces)(name);
        let dtype = if replaced && rewrite.f32 { Dtype::F32 } else { dtype };
        let end = offset + shape.iter().product::<usize>() * (dtype.bitsize() / 8);
        let entry = json!({ "dtype": format!("{dtype:?}"), "shape": shape, "data_offsets": [offset, end] });
        header.insert((*name).to_owned(), entry);
        offset = end;
        kinds.push((dtype, shape.to_vec(), replaced));
    }
    let mut text = Value::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut file = BufWriter::with_capacity(1 << 20, fs_err::File::create(path)?);
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(text.as_bytes())?;
    for (name, (dtype, shape, replaced)) in names.iter().zip(kinds) {
        if !replaced {
            file.write_all(&tensors.bytes(name)?)?;
            continue;
        }
        let value = (rewrite.value)(name)?;
        if value.dims() != shape {
            let detail = format!("tensor `{name}` has shape {shape:?}, and its new value {:?}", value.dims());
            return Err(checkpoint_error(path, detail + "; they belong to different models"));
        }
        file.write_all(&bytes_of(&value, dtype, path)?)?;
    }
    file.flush()?;
    Ok(offset)
}

fn bytes_of(value: &Tensor, dtype: Dtype, path: &Path) -> Result<Vec<u8>> {
    let values = value.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
    match dtype {
        Dtype::F32 => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        Dtype::F16 => Ok(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()),
        Dtype::BF16 => Ok(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()),
        other => Err(checkpoint_error(
            path,
            format!("weights of type {other:?} can't be written; convert them to F32"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_told_by_their_number() {
        assert!(keeps("encoder.layer.1.output.dense.weight", Some(2)));
        assert!(!keeps("bert.encoder.layer.2.output.dense.weight", Some(2)));
        assert!(!keeps("model.layers.10.mlp.up_proj.weight", Some(2)));
        assert!(keeps("embeddings.word_embeddings.weight", Some(2)));
        assert!(keeps("encoder.layer.9.output.dense.weight", None));
    }
}
