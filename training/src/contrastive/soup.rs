//! Several trainings and the mean of what they leave (uniform model soups, Wortsman et al. 2022).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor, safetensors};
use expandr_models::trainable::Parameters;
use serde_json::Value;

use crate::folder::replace_file;
use crate::{Error, Result};

const WEIGHTS: &str = "outcome.safetensors";
/// Written after the weights: where it is, they are whole.
const SUMMARY: &str = "outcome.json";

/// A training that has come to its end.
pub struct Member {
    /// What it left, by the names of the parameters.
    pub weights: HashMap<String, Tensor>,
    /// What is to be said of it.
    pub summary: Value,
}

impl Member {
    /// Copies the parameters as they are now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn new(parameters: &Parameters, summary: Value) -> Result<Self> {
        Ok(Self { weights: parameters.values()?, summary })
    }

    /// The member that was written to `folder`; none where its training has not come to its end.
    ///
    /// # Errors
    /// When a file is broken.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(SUMMARY);
        if !path.is_file() {
            return Ok(None);
        }
        let broken = |error: &dyn std::fmt::Display| {
            Error::Input(format!(
                "{}: it or the {WEIGHTS} beside it is broken ({error}); remove it, and the training is done again",
                path.display()
            ))
        };
        let summary = serde_json::from_slice(&fs_err::read(&path)?).map_err(|error| broken(&error))?;
        let weights =
            safetensors::load(folder.join(WEIGHTS), &Device::Cpu).map_err(|error| broken(&error))?;
        Ok(Some(Self { weights, summary }))
    }

    /// Writes it to `folder`.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        safetensors::save(&self.weights, folder.join(WEIGHTS))?;
        replace_file(&folder.join(SUMMARY), self.summary.to_string().as_bytes())
    }
}

/// Sets the parameters to the mean of the members'. Of one member, to its own, to the bit.
///
/// # Errors
/// When they have other names or shapes, and when the device fails.
pub fn average(members: &[Member], parameters: &Parameters) -> Result<()> {
    for parameter in parameters.iter() {
        let mut sum: Option<Tensor> = None;
        for member in members {
            let weight = member.weights.get(&parameter.name).ok_or_else(|| {
                Error::Input(format!("a training of the soup has left no weight `{}`", parameter.name))
            })?;
            sum = Some(match sum {
                Some(sum) => (sum + weight)?,
                None => weight.clone(),
            });
        }
        let sum = sum.ok_or_else(|| Error::Input("there is no mean of no trainings".into()))?;
        let mean = (sum / members.len() as f64)?.to_device(parameter.value.device())?;
        parameter.value.set(&mean)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_without_its_weights_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Member::read(folder.path()).unwrap().is_none());
        let weights = HashMap::from([("one".to_owned(), Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap())]);
        Member { weights, summary: Value::Null }.write(folder.path()).unwrap();
        assert_eq!(Member::read(folder.path()).unwrap().unwrap().weights.len(), 1);

        fs_err::remove_file(folder.path().join(WEIGHTS)).unwrap();
        let error = Member::read(folder.path()).err().unwrap().to_string();
        assert!(error.contains(SUMMARY) && error.contains("remove it"), "{error}");
    }
}
