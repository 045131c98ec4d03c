//! One parameter's update: in place and in one pass over memory on a CPU, by tensor operations elsewhere.

use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor, Var};
use expandr_models::trainable::Gradient;
use rayon::prelude::*;

use super::Moments;
use crate::{Error, Result};

/// Numbers that a thread takes at a time.
const CHUNK: usize = 1 << 15;

/// The factors of a step.
#[derive(Clone, Copy)]
pub(super) struct Update {
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) epsilon: f64,
    /// 1 - learning rate · weight decay.
    pub(super) keep: f64,
    /// Learning rate / (1 - β₁ᵗ).
    pub(super) step_size: f64,
    /// 1 / √(1 - β₂ᵗ).
    pub(super) root_scale: f64,
    /// By what the gradient is multiplied first.
    pub(super) gradient_scale: f64,
}

impl Update {
    /// Moves a parameter and its moments.
    pub(super) fn apply(self, value: &Var, gradient: Gradient<'_>, moments: &mut Moments) -> Result<()> {
        match (gradient, moments) {
            (Gradient::Memory(gradient), Moments::Memory { first, second }) => {
                let step = InMemory { update: self, gradient, moments: Mutex::new((first, second)) };
                Ok(value.as_tensor().inplace_op1(&step)?)
            }
            (Gradient::Tensor(gradient), Moments::Tensors { first, second }) => {
                self.by_tensors(value, gradient, first, second)
            }
            _ => Err(Error::Training("a gradient is on another device than its parameter".into())),
        }
    }

    fn by_tensors(
        self,
        value: &Var,
        gradient: &Tensor,
        first: &mut Tensor,
        second: &mut Tensor,
    ) -> Result<()> {
        let gradient = (gradient * self.gradient_scale)?;
        *first = ((&*first * self.beta1)? + (&gradient * (1.0 - self.beta1))?)?.detach();
        *second = ((&*second * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?.detach();
        let root = ((second.sqrt()? * self.root_scale)? + self.epsilon)?;
        let moved = ((value.as_tensor().detach() * self.keep)? - ((&*first / root)? * self.step_size)?)?;
        Ok(value.set(&moved)?)
    }
}

struct InMemory<'a> {
    update: Update,
    gradient: &'a [f32],
    moments: Mutex<(&'a mut Vec<f32>, &'a mut Vec<f32>)>,
}

impl InplaceOp1 for InMemory<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let CpuStorage::F32(values) = storage else { candle_core::bail!("a parameter is not f32") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("a parameter is not contiguous")
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = &mut *moments;
        if [self.gradient.len(), first.len(), second.len()] != [end - start; 3] {
            candle_core::bail!("a gradient is of another shape than its parameter")
        }
        let update = self.update;
        let parts = values[start..end].par_chunks_mut(CHUNK).zip(self.gradient.par_chunks(CHUNK));
        let moments = first.par_chunks_mut(CHUNK).zip(second.par_chunks_mut(CHUNK));
        parts.zip(moments).for_each(|((values, gradient), (first, second))| {
            move_chunk(update, values, gradient, first, second);
        });
        Ok(())
    }
}

fn move_chunk(update: Update, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    let (beta1, beta2) = (update.beta1 as f32, update.beta2 as f32);
    let (rest1, rest2) = ((1.0 - update.beta1) as f32, (1.0 - update.beta2) as f32);
    let (epsilon, keep) = (update.epsilon as f32, update.keep as f32);
    let (step_size, root_scale) = (update.step_size as f32, update.root_scale as f32);
    let scale = update.gradient_scale as f32;
    let moments = first.iter_mut().zip(second);
    for ((value, gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
        let gradient = *gradient * scale;
        *first = beta1 * *first + rest1 * gradient;
        *second = beta2 * *second + rest2 * gradient * gradient;
        *value = *value * keep - step_size * *first / (second.sqrt() * root_scale + epsilon);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn both_ways_of_computing_agree() {
        let number = |i: usize| ((i * 7919) % 101) as f32 / 50.0 - 1.0;
        let values: Vec<f32> = (0..100).map(number).collect();
        let gradient: Vec<f32> = (0..100).map(|i| number(i + 3)).collect();
        let update = Update {
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-8,
            keep: 0.999,
            step_size: 0.01,
            root_scale: 1.5,
            gradient_scale: 0.5,
        };
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let (one, other) =
            (Var::from_tensor(&tensor(&values)).unwrap(), Var::from_tensor(&tensor(&values)).unwrap());
        let (first, second) = (vec![0.1f32; 100], vec![0.2f32; 100]);
        let mut tensors = Moments::Tensors { first: tensor(&first), second: tensor(&second) };
        let mut memory = Moments::Memory { first, second };
        for _ in 0..3 {
            update.apply(&one, Gradient::Memory(&gradient), &mut memory).unwrap();
            update.apply(&other, Gradient::Tensor(&tensor(&gradient)), &mut tensors).unwrap();
        }
        let difference = (one.as_tensor() - other.as_tensor()).unwrap().abs().unwrap().max(0).unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
        assert_ne!(one.to_vec1::<f32>().unwrap(), values);
    }
}
