//! Merging an adapter into a checkpoint's weights: W + scale · B·A.

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Tensor};

use super::{AdapterFile, PREFIX};
use crate::{
    Error, Result,
    folder::Tensors,
    trainable::save::{Rewrite, rewrite, weights_folder},
};

/// What the names of a checkpoint's tensors may have before a module's name, or lack.
const PREFIXES: [&str; 4] = ["", "bert.", "roberta.", "distilbert."];

/// Writes `target` like the checkpoint `base` with the adapter merged into its weights, which keep their type. `target`
/// appears whole or not at all, and replaces one that is there. Base may be a Hugging Face or a sentence-transformers
/// folder; one tensor is held in memory at a time.
///
/// # Errors
/// When the adapter has a module that the checkpoint lacks, or of another shape, and when a file can't be written.
pub fn merge_adapter(base: &Path, adapter: &AdapterFile, target: &Path) -> Result<()> {
    let tensors = Tensors::open(&base.join(weights_folder(base)?))?;
    let mut names = HashMap::new();
    for module in adapter.modules() {
        let name = tensor_of(&tensors, module).ok_or_else(|| {
            Error::Input(format!(
                "{} has no weight of the adapter's module `{module}`; the adapter belongs to another model ({})",
                base.display(),
                adapter.base
            ))
        })?;
        names.insert(name, module.to_owned());
    }
    let replaces = |name: &str| names.contains_key(name);
    let value = |name: &str| merged(&tensors, name, adapter, &names[name]);
    rewrite(base, target, &Rewrite { replaces: &replaces, value: &value, f32: false, layers: None })
}

/// The checkpoint's name for a module's weight.
fn tensor_of(tensors: &Tensors, module: &str) -> Option<String> {
    let without = module.strip_prefix("model.").unwrap_or(module);
    let names = PREFIXES.iter().map(|prefix| format!("{prefix}{module}.weight"));
    names.chain([format!("{without}.weight")]).find(|name| tensors.contains(name))
}

fn merged(tensors: &Tensors, name: &str, adapter: &AdapterFile, module: &str) -> Result<Tensor> {
    let matrix = |letter: &str| {
        let name = format!("{PREFIX}{module}.lora_{letter}.weight");
        adapter.tensors.get(&name).ok_or_else(|| Error::Input(format!("the adapter has no matrix `{name}`")))
    };
    let (down, up) = (matrix("A")?, matrix("B")?);
    let shape = tensors.layout(name).map(|(_, shape)| shape.to_vec()).unwrap_or_default();
    let update = (up.matmul(down)? * adapter.settings.scale())?;
    if update.dims() != shape {
        return Err(Error::Input(format!(
            "the adapter's update of `{module}` has shape {:?}, and the weight {shape:?}; the adapter belongs to \
             another model ({})",
            update.dims(),
            adapter.base
        )));
    }
    let weight = Tensor::from_vec(tensors.read(name, &shape)?, shape, &Device::Cpu)?;
    Ok((weight + update)?)
}
