//! Checkpoints of a training: everything that the next step depends on, in a folder that appears whole or not at all.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use expandr_models::trainable::{NewFolder, Parameters};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::optim::{AdamW, OptimiserState};
use crate::{Error, Result};

const PREFIX: &str = "step-";
const BEST: &str = "best";
const STATE: &str = "state.json";
const TENSORS: &str = "tensors.safetensors";
/// Raised when what a checkpoint holds changes.
const VERSION: u32 = 1;

/// The checkpoints of one training.
pub(crate) struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    fingerprint: String,
}

/// `state.json`.
#[derive(Serialize, Deserialize)]
struct Saved<S> {
    version: u32,
    /// Of model, data, loss and settings.
    fingerprint: String,
    optimiser_steps: u64,
    state: S,
}

impl Checkpoints {
    /// The checkpoints in `folder`, which is made if it isn't there. `keep` of them are kept.
    pub(crate) fn open(folder: &Path, keep: usize, fingerprint: String) -> Result<Self> {
        fs_err::create_dir_all(folder)?;
        for entry in fs_err::read_dir(folder)? {
            let entry = entry?;
            // What a killed run was writing.
            if entry.file_name().to_string_lossy().starts_with(".tmp-") {
                fs_err::remove_dir_all(entry.path())?;
            }
        }
        Ok(Self { folder: folder.to_path_buf(), keep, fingerprint })
    }

    /// Writes a checkpoint and removes the oldest beyond those that are kept.
    pub(crate) fn write<S: Serialize>(
        &self,
        step: usize,
        parameters: &Parameters,
        optimiser: &AdamW,
        state: &S,
    ) -> Result<()> {
        let moments = optimiser.state(parameters)?;
        let mut tensors = values(parameters)?;
        for (name, [first, second]) in moments.moments {
            tensors.insert(format!("first.{name}"), first);
            tensors.insert(format!("second.{name}"), second);
        }
        self.write_folder(&format!("{PREFIX}{step:08}"), &tensors, moments.steps, state)?;
        let steps = self.steps()?;
        for old in &steps[..steps.len().saturating_sub(self.keep)] {
            fs_err::remove_dir_all(self.path(*old))?;
        }
        Ok(())
    }

    /// Restores the newest checkpoint, if there is one, and gives its state.
    ///
    /// # Errors
    /// When it belongs to another training, or can't be read.
    pub(crate) fn restore<S: DeserializeOwned>(
        &self,
        parameters: &Parameters,
        optimiser: &mut AdamW,
    ) -> Result<Option<S>> {
        let Some(step) = self.steps()?.pop() else { return Ok(None) };
        let path = self.path(step);
        let (saved, mut tensors) = self.read_folder::<S>(&path)?;
        let mut moments = HashMap::new();
        for parameter in parameters.iter() {
            let pair =
                ["first", "second"].map(|moment| tensors.remove(&format!("{moment}.{}", parameter.name)));
            if let [Some(first), Some(second)] = pair {
                moments.insert(parameter.name.clone(), [first, second]);
            }
        }
        optimiser.restore(parameters, &OptimiserState { steps: saved.optimiser_steps, moments })?;
        set_values(parameters, tensors)?;
        Ok(Some(saved.state))
    }

    /// Keeps the parameters as the best so far.
    pub(crate) fn write_best(&self, parameters: &Parameters) -> Result<()> {
        self.write_folder(BEST, &values(parameters)?, 0, &())
    }

    /// Goes back to the best parameters.
    pub(crate) fn restore_best(&self, parameters: &Parameters) -> Result<()> {
        let (_, tensors) = self.read_folder::<()>(&self.folder.join(BEST))?;
        set_values(parameters, tensors)
    }

    fn write_folder<S: Serialize>(
        &self,
        name: &str,
        tensors: &HashMap<String, Tensor>,
        optimiser_steps: u64,
        state: &S,
    ) -> Result<()> {
        let folder = NewFolder::create(&self.folder.join(name))?;
        candle_core::safetensors::save(tensors, folder.path().join(TENSORS))?;
        let saved = Saved { version: VERSION, fingerprint: self.fingerprint.clone(), optimiser_steps, state };
        let text = serde_json::to_string_pretty(&saved).map_err(|error| {
            Error::Training(format!("the state of step {name} can't be written: {error}"))
        })?;
        fs_err::write(folder.path().join(STATE), text + "\n")?;
        Ok(folder.finish()?)
    }

    fn read_folder<S: DeserializeOwned>(&self, path: &Path) -> Result<(Saved<S>, HashMap<String, Tensor>)> {
        let broken = |detail: String| {
            let remedy = "remove it to go on from an older checkpoint, or to begin anew";
            Error::Training(format!("the checkpoint {} {detail}; {remedy}", path.display()))
        };
        let text = fs_err::read(path.join(STATE))?;
        let saved: Saved<S> =
            serde_json::from_slice(&text).map_err(|error| broken(format!("can't be read ({error})")))?;
        if saved.version != VERSION {
            return Err(broken(format!("is of version {}, and this program's is {VERSION}", saved.version)));
        }
        if saved.fingerprint != self.fingerprint {
            return Err(broken("was made from another model, other data or other settings".into()));
        }
        let tensors = candle_core::safetensors::load(path.join(TENSORS), &Device::Cpu)
            .map_err(|error| broken(format!("can't be read ({error})")))?;
        Ok((saved, tensors))
    }

    fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("{PREFIX}{step:08}"))
    }

    /// The steps that have a checkpoint, in order.
    fn steps(&self) -> Result<Vec<usize>> {
        let mut steps = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
            steps.extend(step.and_then(|step| step.parse::<usize>().ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }
}

/// The parameters' values by name, on the CPU.
pub(crate) fn values(parameters: &Parameters) -> Result<HashMap<String, Tensor>> {
    let values = parameters.values()?;
    Ok(values.into_iter().map(|(name, value)| (format!("parameter.{name}"), value)).collect())
}

/// The reverse of [`values`].
pub(crate) fn set_values(parameters: &Parameters, tensors: HashMap<String, Tensor>) -> Result<()> {
    let named = tensors.into_iter().filter_map(|(name, tensor)| {
        name.strip_prefix("parameter.").map(|name| (name.to_owned(), tensor.clone()))
    });
    Ok(parameters.set(&named.collect())?)
}
