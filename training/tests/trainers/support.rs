//! Fixtures, and comparing with them.

use std::collections::HashMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use expandr_models::trainable::{Gradients, Parameters};
use expandr_training::optim::AdamWSettings;
use expandr_training::schedule::Shape;
use expandr_training::trainer::{Event, StepReport, StopSignal, Surroundings, Task, TrainerSettings, train};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Relative difference that gradients may have.
pub(crate) const TOLERANCE: f64 = 1e-4;

pub(crate) fn fixture(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

/// A checkpoint of the serving encoder's fixtures.
pub(crate) fn checkpoint(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/encoder").join(name)
}

pub(crate) fn json<T: DeserializeOwned>(path: &str) -> Result<T> {
    let path = fixture(path);
    serde_json::from_slice(&fs_err::read(&path)?).with_context(|| path.display().to_string())
}

pub(crate) fn tensors(path: &str) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load(fixture(path), &Device::Cpu)?)
}

/// A curve that PyTorch drew.
#[derive(Deserialize)]
pub(crate) struct Curve {
    pub(crate) losses: Vec<f64>,
    norms: Vec<f64>,
    learning_rate: f64,
    weight_decay: f64,
    clip: f64,
    schedule: Shape,
}

impl Curve {
    /// The same training: one batch that holds all examples.
    pub(crate) fn settings(&self, examples: usize) -> TrainerSettings {
        TrainerSettings {
            epochs: self.losses.len() as f64,
            batch_size: examples,
            learning_rate: self.learning_rate,
            schedule: self.schedule,
            warmup_ratio: 0.1,
            optimiser: AdamWSettings { weight_decay: self.weight_decay, ..AdamWSettings::default() },
            clip: self.clip,
            ..TrainerSettings::default()
        }
    }

    /// Trains the task and compares every step's loss and gradient norm.
    pub(crate) fn check(&self, task: &dyn Task) -> Result<()> {
        let reports = run(task, &self.settings(task.lengths().len()))?;
        assert_eq!(reports.len(), self.losses.len());
        for (report, (loss, norm)) in reports.iter().zip(self.losses.iter().zip(&self.norms)) {
            let step = report.step;
            // Rounding grows from step to step; a wrong decay, clip or schedule shows in the first few.
            let tolerance = if step <= 10 { 1e-4 } else { 2e-3 };
            assert!(
                (report.loss - loss).abs() < tolerance * loss.abs().max(0.1),
                "step {step}: {} {loss}",
                report.loss
            );
            let difference = (report.gradient_norm - norm).abs();
            assert!(difference < 5.0 * tolerance * norm, "step {step}: norm {} {norm}", report.gradient_norm);
        }
        let (first, last) = (self.losses[0], self.losses[self.losses.len() - 1]);
        assert!(last < 0.8 * first, "the curve hardly falls: {first} {last}");
        Ok(())
    }
}

/// Trains without a folder; the steps' reports come back.
pub(crate) fn run(task: &dyn Task, settings: &TrainerSettings) -> Result<Vec<StepReport>> {
    let mut reports = Vec::new();
    let mut tell = |event: &Event| {
        if let Event::Step(report) = event {
            reports.push(report.clone());
        }
    };
    train(task, settings, Surroundings { folder: None, stop: &StopSignal::default(), tell: &mut tell })?;
    Ok(reports)
}

/// Compares the gradients of all parameters with those that PyTorch found (by `prefix` and the parameter's name): the norm
/// of the difference relative to the norm. Parameters whose gradient is mathematically zero are compared with the largest.
pub(crate) fn compare(
    what: &str,
    parameters: &Parameters,
    gradients: &Gradients,
    expected: &HashMap<String, Tensor>,
    prefix: &str,
) -> Result<()> {
    let count = expected.keys().filter(|name| name.starts_with(prefix)).count();
    assert_eq!(parameters.len(), count, "{what}: number of parameters");
    let norm = |tensor: &Tensor| -> Result<f64> {
        Ok(f64::from(tensor.sqr()?.sum_all()?.to_scalar::<f32>()?).sqrt())
    };
    let mut largest = 0.0f64;
    for (name, tensor) in expected {
        if name.starts_with(prefix) {
            largest = largest.max(norm(tensor)?);
        }
    }
    for (index, parameter) in parameters.iter().enumerate() {
        let name = &parameter.name;
        let expected =
            &expected.get(&format!("{prefix}{name}")).with_context(|| format!("{what}: no {name}"))?;
        let found = gradients.to_tensor(index)?.with_context(|| format!("{what}: {name} has no gradient"))?;
        let (difference, size) = (norm(&(&found - *expected)?)?, norm(expected)?);
        let size = if size < 1e-5 * largest { largest } else { size };
        assert!(
            difference <= TOLERANCE * size,
            "{what}: {name} differs by {} of its norm",
            difference / size
        );
    }
    Ok(())
}

/// All values as bytes: equal only when every bit is.
pub(crate) fn bits(parameters: &Parameters) -> Result<Vec<u32>> {
    let mut bits = Vec::new();
    for parameter in parameters.iter() {
        let values = parameter.value.flatten_all()?.to_vec1::<f32>()?;
        bits.extend(values.iter().map(|value| value.to_bits()));
    }
    Ok(bits)
}
