//! AdamW with decoupled weight decay (Loshchilov and Hutter 2019), and gradient clipping.

mod update;

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use expandr_models::trainable::{Gradients, Parameters};
use serde::{Deserialize, Serialize};

use self::update::Update;
use crate::{Error, Result};

/// What AdamW does to a parameter, besides its learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWSettings {
    /// How long the mean of the gradients remembers.
    pub beta1: f64,
    /// How long the mean of their squares remembers.
    pub beta2: f64,
    /// Added to the root of the latter.
    pub epsilon: f64,
    /// Share of a weight, times the learning rate, by which it shrinks in a step. Biases and norms don't decay.
    pub weight_decay: f64,
}

impl Default for AdamWSettings {
    /// PyTorch's, without decay.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.0 }
    }
}

/// The optimiser with its moments.
pub struct AdamW {
    settings: AdamWSettings,
    steps: u64,
    moments: Vec<Moments>,
}

/// The means of a parameter's gradients and of their squares.
enum Moments {
    /// On a CPU.
    Memory { first: Vec<f32>, second: Vec<f32> },
    /// On an accelerator.
    Tensors { first: Tensor, second: Tensor },
}

/// What an optimiser must remember from one step to the next.
pub struct OptimiserState {
    /// Steps taken.
    pub steps: u64,
    /// By parameter: the means of gradients and of their squares, on the CPU.
    pub moments: HashMap<String, [Tensor; 2]>,
}

impl AdamW {
    /// An optimiser that has not taken a step.
    ///
    /// # Errors
    /// When a setting makes no sense, and when the device fails.
    pub fn new(parameters: &Parameters, settings: AdamWSettings) -> Result<Self> {
        for (name, beta) in [("beta1", settings.beta1), ("beta2", settings.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::Input(format!(
                    "{name} = {beta} is no share below 1; use e.g. 0.9 and 0.999"
                )));
            }
        }
        for (name, value) in [("epsilon", settings.epsilon), ("weight_decay", settings.weight_decay)] {
            if !value.is_finite() || value < 0.0 {
                return Err(Error::Input(format!(
                    "{name} = {value} makes no sense; use 0 or a small number"
                )));
            }
        }
        let moments = parameters.iter().map(|parameter| {
            let count = parameter.value.elem_count();
            if parameters.device().is_cpu() {
                return Ok(Moments::Memory { first: vec![0.0; count], second: vec![0.0; count] });
            }
            let (first, second) = (parameter.value.zeros_like()?, parameter.value.zeros_like()?);
            Ok(Moments::Tensors { first, second })
        });
        Ok(Self { settings, steps: 0, moments: moments.collect::<Result<_>>()? })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves every parameter against its gradient, which is first multiplied by `gradient_scale` (clipping). The update is
    /// PyTorch's: p ← p · (1 - lr·decay), then p ← p - lr · m̂ / (√v̂ + ε).
    ///
    /// # Errors
    /// When a parameter has no gradient, and when the device fails.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_scale: f64,
    ) -> Result<()> {
        for (index, parameter) in parameters.iter().enumerate() {
            if gradients.get(index).is_none() {
                return Err(Error::Training(format!("the parameter `{}` has no gradient", parameter.name)));
            }
        }
        self.steps += 1;
        let settings = &self.settings;
        let power = i32::try_from(self.steps).unwrap_or(i32::MAX);
        for (index, (parameter, moments)) in parameters.iter().zip(&mut self.moments).enumerate() {
            let Some(gradient) = gradients.get(index) else { continue };
            let decay = if parameter.decays { settings.weight_decay } else { 0.0 };
            let update = Update {
                beta1: settings.beta1,
                beta2: settings.beta2,
                epsilon: settings.epsilon,
                keep: 1.0 - learning_rate * decay,
                step_size: learning_rate / (1.0 - settings.beta1.powi(power)),
                root_scale: 1.0 / (1.0 - settings.beta2.powi(power)).sqrt(),
                gradient_scale,
            };
            update.apply(&parameter.value, gradient, moments)?;
        }
        Ok(())
    }

    /// What must be saved to go on later.
    ///
    /// # Errors
    /// When the device fails.
    pub fn state(&self, parameters: &Parameters) -> Result<OptimiserState> {
        let mut moments = HashMap::new();
        for (parameter, of_parameter) in parameters.iter().zip(&self.moments) {
            let shape = parameter.value.dims();
            let pair = match of_parameter {
                Moments::Memory { first, second } => {
                    let tensor = |values: &[f32]| Tensor::from_slice(values, shape, &Device::Cpu);
                    [tensor(first)?, tensor(second)?]
                }
                Moments::Tensors { first, second } => {
                    [first.to_device(&Device::Cpu)?, second.to_device(&Device::Cpu)?]
                }
            };
            moments.insert(parameter.name.clone(), pair);
        }
        Ok(OptimiserState { steps: self.steps, moments })
    }

    /// Goes on from a saved state.
    ///
    /// # Errors
    /// When the state is of other parameters; nothing is changed then.
    pub fn restore(&mut self, parameters: &Parameters, state: &OptimiserState) -> Result<()> {
        for parameter in parameters.iter() {
            let found = state.moments.get(&parameter.name);
            if !found.is_some_and(|pair| pair.iter().all(|moment| moment.dims() == parameter.value.dims())) {
                return Err(Error::Training(format!(
                    "the saved optimiser has no moments that fit the parameter `{}`; it is another model's",
                    parameter.name
                )));
            }
        }
        for (parameter, moments) in parameters.iter().zip(&mut self.moments) {
            let [saved_first, saved_second] = &state.moments[&parameter.name];
            match moments {
                Moments::Memory { first, second } => {
                    *first = saved_first.flatten_all()?.to_vec1()?;
                    *second = saved_second.flatten_all()?.to_vec1()?;
                }
                Moments::Tensors { first, second } => {
                    *first = saved_first.to_device(parameters.device())?;
                    *second = saved_second.to_device(parameters.device())?;
                }
            }
        }
        self.steps = state.steps;
        Ok(())
    }
}

/// By what gradients of this norm are multiplied so that it is at most `limit` (as PyTorch's `clip_grad_norm_`); a limit
/// of 0 clips nothing.
pub fn clip_scale(norm: f64, limit: f64) -> f64 {
    if limit <= 0.0 { 1.0 } else { (limit / (norm + 1e-6)).min(1.0) }
}
