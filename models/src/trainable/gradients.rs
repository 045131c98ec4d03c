//! Where a backward pass leaves the gradients, and the check that none is missing.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::{Parameters, ZeroGradient};
use crate::{Error, Result};

/// Numbers that are summed as one; fixed, so that sums don't depend on the number of threads.
const CHUNK: usize = 1 << 16;

/// The gradients of a model's parameters, summed over the backward passes since the last [`Gradients::reset`].
#[derive(Debug)]
pub struct Gradients {
    device: Device,
    slots: Vec<Slot>,
}

#[derive(Debug)]
struct Slot {
    name: String,
    shape: Vec<usize>,
    /// On a CPU; its memory is kept from step to step.
    memory: Vec<f32>,
    /// Elsewhere.
    tensor: Option<Tensor>,
    /// Whether a backward pass has left something.
    written: bool,
}

/// One gradient, where it lies.
#[derive(Clone, Copy, Debug)]
pub enum Gradient<'a> {
    /// On a CPU.
    Memory(&'a [f32]),
    /// On an accelerator.
    Tensor(&'a Tensor),
}

impl Gradients {
    /// None yet.
    pub fn new(parameters: &Parameters) -> Self {
        let slot = |parameter: &super::Parameter| Slot {
            name: parameter.name.clone(),
            shape: parameter.value.dims().to_vec(),
            memory: Vec::new(),
            tensor: None,
            written: false,
        };
        Self { device: parameters.device().clone(), slots: parameters.iter().map(slot).collect() }
    }

    /// Forgets all gradients, and keeps their memory.
    pub fn reset(&mut self) {
        for slot in &mut self.slots {
            slot.written = false;
            slot.tensor = None;
        }
    }

    /// The gradient of the parameter of this index, if a backward pass has left one.
    pub fn get(&self, index: usize) -> Option<Gradient<'_>> {
        let slot = self.slots.get(index).filter(|slot| slot.written)?;
        match &slot.tensor {
            Some(tensor) => Some(Gradient::Tensor(tensor)),
            None => Some(Gradient::Memory(&slot.memory)),
        }
    }

    /// The gradient of the parameter of this index as a tensor of the parameter's shape.
    ///
    /// # Errors
    /// When the device fails.
    pub fn to_tensor(&self, index: usize) -> Result<Option<Tensor>> {
        match self.get(index) {
            None => Ok(None),
            Some(Gradient::Tensor(tensor)) => Ok(Some(tensor.clone())),
            Some(Gradient::Memory(values)) => {
                Ok(Some(Tensor::from_slice(values, self.slots[index].shape.as_slice(), &self.device)?))
            }
        }
    }

    /// The L2 norm of all gradients together.
    ///
    /// # Errors
    /// When the device fails.
    pub fn norm(&self) -> Result<f64> {
        let mut total = 0.0;
        for index in 0..self.slots.len() {
            total += match self.get(index) {
                None => 0.0,
                Some(Gradient::Memory(values)) => sum_of_squares(values),
                Some(Gradient::Tensor(tensor)) => f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?),
            };
        }
        Ok(total.sqrt())
    }

    /// Checks that a backward pass has reached every parameter: each has a gradient, and the gradient is finite and not
    /// all zeros (see [`ZeroGradient`] for the exceptions). Several operations give no gradient without an error, so that
    /// a model can seem to train while a part of it stands still. False comes back while a zero is excused that will not
    /// always be: check again after the next pass.
    ///
    /// # Errors
    /// Names the first parameter that fails.
    pub fn check(&self, parameters: &Parameters) -> Result<bool> {
        let mut complete = true;
        for (index, parameter) in parameters.iter().enumerate() {
            let fault = |what: &str| {
                let detail = format!(
                    "the parameter `{}` has {what} gradient, so it does not train; its model or loss is wrong",
                    parameter.name
                );
                Error::Engine { what: "training", detail }
            };
            let largest = match self.get(index) {
                None => return Err(fault("no")),
                Some(Gradient::Memory(values)) => largest(values),
                Some(Gradient::Tensor(tensor)) => {
                    largest(&tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?)
                }
            };
            if !largest.is_finite() {
                return Err(Error::Engine {
                    what: "training",
                    detail: format!(
                        "the gradient of the parameter `{}` is not finite; lower the learning rate, or clip gradients",
                        parameter.name
                    ),
                });
            }
            let may_be_zero = match parameter.zero_gradient {
                ZeroGradient::Never => false,
                ZeroGradient::Always => true,
                ZeroGradient::While(other) => match parameters.iter().nth(other) {
                    Some(other) => other.value.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? == 0.0,
                    None => false,
                },
            };
            if largest == 0.0 && !may_be_zero {
                return Err(fault("an all-zero"));
            }
            complete &= largest != 0.0 || parameter.zero_gradient == ZeroGradient::Always;
        }
        Ok(complete)
    }

    /// The memory of a gradient on a CPU, and whether it holds something to add to (otherwise what it holds is
    /// meaningless and must be overwritten).
    pub(super) fn memory(&mut self, index: usize) -> (&mut [f32], bool) {
        let slot = &mut self.slots[index];
        let length = slot.shape.iter().product();
        if slot.memory.len() != length {
            slot.memory = vec![0.0; length];
        }
        let add = std::mem::replace(&mut slot.written, true);
        (&mut slot.memory, add)
    }

    /// The memory of a gradient on a CPU, zeros where nothing was left yet.
    pub(super) fn zeroed_memory(&mut self, index: usize) -> &mut [f32] {
        let (memory, add) = self.memory(index);
        if !add {
            memory.par_chunks_mut(CHUNK).for_each(|chunk| chunk.fill(0.0));
        }
        memory
    }

    /// Adds a tensor of the parameter's shape.
    pub(super) fn add(&mut self, index: usize, gradient: &Tensor) -> Result<()> {
        let gradient = gradient.detach().to_dtype(DType::F32)?;
        if gradient.dims() != self.slots[index].shape {
            return Err(Error::Engine {
                what: "training",
                detail: format!(
                    "the gradient of `{}` has shape {:?}",
                    self.slots[index].name,
                    gradient.dims()
                ),
            });
        }
        if self.device.is_cpu() {
            let values = gradient.flatten_all()?.to_vec1::<f32>()?;
            let (memory, add) = self.memory(index);
            if add {
                memory.iter_mut().zip(&values).for_each(|(sum, value)| *sum += *value);
            } else {
                memory.copy_from_slice(&values);
            }
            return Ok(());
        }
        let slot = &mut self.slots[index];
        slot.tensor = Some(match slot.tensor.take() {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        });
        slot.written = true;
        Ok(())
    }
}

/// The same for every number of threads: chunks are fixed and their sums are added in order.
fn sum_of_squares(values: &[f32]) -> f64 {
    let chunk = |chunk: &[f32]| f64::from(crate::cpu::sum_of_squares(chunk));
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk).collect();
    sums.iter().sum()
}

/// The largest absolute value; NaN if there is one.
fn largest(values: &[f32]) -> f32 {
    let mut largest = 0.0f32;
    for value in values {
        if value.is_nan() {
            return f32::NAN;
        }
        largest = largest.max(value.abs());
    }
    largest
}
