//! What trains: named tensors, each with what the optimiser and the gradient check must know of it.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};

use crate::{Error, Result};

/// When a parameter's gradient may be zero without anything being wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroGradient {
    /// Never: a zero means that the parameter is cut off from the loss.
    #[default]
    Never,
    /// Always. A bias of attention keys shifts all scores of a query alike, to which softmax is indifferent.
    Always,
    /// As long as the parameter of this index is all zeros: LoRA's A stands behind a B that starts at zero.
    While(usize),
}

/// A tensor that trains.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Its name in the checkpoint or adapter file.
    pub name: String,
    /// Its value, always f32. Clones share it.
    pub value: Var,
    /// Whether weight decay applies: to matrices, not to biases and norms.
    pub decays: bool,
    /// When its gradient may be zero.
    pub zero_gradient: ZeroGradient,
}

/// The parameters of a model, in the model's order. A parameter's index never changes.
#[derive(Clone, Debug)]
pub struct Parameters {
    list: Vec<Parameter>,
    index: HashMap<String, usize>,
    device: Device,
}

impl Parameters {
    pub(super) fn new(device: &Device) -> Self {
        Self { list: Vec::new(), index: HashMap::new(), device: device.clone() }
    }

    /// Adds a parameter and gives its index.
    pub(super) fn push(&mut self, parameter: Parameter) -> Result<usize> {
        let index = self.list.len();
        if self.index.insert(parameter.name.clone(), index).is_some() {
            return Err(Error::Input(format!("two parameters are called `{}`", parameter.name)));
        }
        self.list.push(parameter);
        Ok(index)
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Parameter> {
        self.list.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing trains.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Their numbers in all.
    pub fn elements(&self) -> usize {
        self.list.iter().map(|parameter| parameter.value.elem_count()).sum()
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The parameter of this name.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.index.get(name).map(|index| &self.list[*index])
    }

    /// The index of the parameter of this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    /// Copies of all values by name, on the CPU.
    ///
    /// # Errors
    /// When the device fails.
    pub fn values(&self) -> Result<HashMap<String, Tensor>> {
        let copy = |parameter: &Parameter| {
            let value = parameter.value.as_tensor().to_device(&Device::Cpu)?.copy()?;
            Ok((parameter.name.clone(), value))
        };
        self.list.iter().map(copy).collect()
    }

    /// Sets all values from tensors of the same names and shapes.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape, or has no counterpart; nothing is changed then.
    pub fn set(&self, values: &HashMap<String, Tensor>) -> Result<()> {
        for parameter in &self.list {
            let name = &parameter.name;
            let Some(value) = values.get(name) else {
                return Err(Error::Input(format!(
                    "no value for the parameter `{name}`; it is of another model"
                )));
            };
            if value.dims() != parameter.value.dims() {
                return Err(Error::Input(format!(
                    "the value for the parameter `{name}` has shape {:?}, and the model's is {:?}; they belong to \
                     different models",
                    value.dims(),
                    parameter.value.dims()
                )));
            }
        }
        if let Some(other) = values.keys().find(|name| !self.index.contains_key(*name)) {
            return Err(Error::Input(format!(
                "there is no parameter `{other}`; the values are of another model"
            )));
        }
        for parameter in &self.list {
            let value = values[&parameter.name].to_device(&self.device)?;
            parameter.value.set(&value.to_dtype(candle_core::DType::F32)?.contiguous()?)?;
        }
        Ok(())
    }
}
