//! The loop of every training: batches, forward and backward, clipping, the optimiser's step, evaluation, checkpoints.
//!
//! What is trained is a [`Task`]: it knows a model, its data and its loss. The loop knows none of them, so that the three
//! trainings share schedule, checkpoints and resumption. Everything random is a function of the seed and the step's number
//! ([`Key`]), and sums are taken in a fixed order, so that a run that was killed and resumed ends with the same bits as one
//! that was not.
//!
//! - this file: tasks, settings and what is told; `batches`: who is in which step; `run`: the loop.

mod batches;
mod run;

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use expandr_models::trainable::{Gradients, Key, Parameters};
use serde::{Deserialize, Serialize};

pub use self::{batches::Batches, run::train};
use crate::{Error, Result, optim::AdamWSettings, schedule::Shape};

/// Figures by name, such as `reward_margin`.
pub type Figures = BTreeMap<String, f64>;

/// A model with its data and its loss.
pub trait Task {
    /// What trains.
    fn parameters(&self) -> &Parameters;

    /// The length of each training example in tokens, for batches of similar lengths.
    fn lengths(&self) -> &[usize];

    /// Adds the gradients of the mean loss over these examples, which make up one optimiser step.
    ///
    /// # Errors
    /// When the model fails.
    fn step(&self, examples: &[usize], key: Key, gradients: &mut Gradients) -> Result<Outcome>;

    /// Loss and figures on the development examples, without dropout; none where there are no such examples.
    ///
    /// # Errors
    /// When the model fails.
    fn evaluate(&self) -> Result<Option<Outcome>>;

    /// Names model, data and loss: a checkpoint goes on only with the same.
    fn fingerprint(&self) -> String;
}

/// What a step or an evaluation gave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The mean loss.
    pub loss: f64,
    /// Tokens computed.
    pub tokens: usize,
    /// Other figures.
    pub figures: Figures,
}

/// How a task is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainerSettings {
    /// How often every example is seen.
    pub epochs: f64,
    /// Examples an optimiser step.
    pub batch_size: usize,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// The learning rate's course.
    pub schedule: Shape,
    /// The share of the steps in which the learning rate rises to its largest.
    pub warmup_ratio: f64,
    /// The optimiser's other settings.
    pub optimiser: AdamWSettings,
    /// The gradient's norm is cut to it; 0 doesn't.
    pub clip: f64,
    /// Batches whose examples are sorted by length together, so that those of a batch are of similar length; 1 doesn't
    /// sort.
    pub bucket: usize,
    /// What everything random follows from.
    pub seed: u64,
    /// Steps between evaluations on the development part; 0 evaluates at the end of each epoch.
    pub evaluate_every: usize,
    /// Stop after so many evaluations without improvement; none never stops early.
    pub patience: Option<usize>,
    /// Whether the outcome is the best evaluation's weights instead of the last step's.
    pub keep_best: bool,
    /// Steps between checkpoints; 0 keeps none.
    pub checkpoint_every: usize,
    /// How many checkpoints are kept.
    pub keep_checkpoints: usize,
}

impl Default for TrainerSettings {
    fn default() -> Self {
        Self {
            epochs: 1.0,
            batch_size: 16,
            learning_rate: 2e-5,
            schedule: Shape::Linear,
            warmup_ratio: 0.1,
            optimiser: AdamWSettings::default(),
            clip: 1.0,
            bucket: 1,
            seed: 0,
            evaluate_every: 0,
            patience: None,
            keep_best: false,
            checkpoint_every: 100,
            keep_checkpoints: 2,
        }
    }
}

impl TrainerSettings {
    /// # Errors
    /// Names the setting that makes no sense.
    fn check(&self) -> Result<()> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let wrong = |name: &str, value: &dyn std::fmt::Display, remedy: &str| {
            Err(Error::Input(format!("{name} = {value} makes no sense; {remedy}")))
        };
        if !positive(self.epochs) {
            return wrong("epochs", &self.epochs, "use a positive number");
        }
        if !positive(self.learning_rate) {
            return wrong("learning_rate", &self.learning_rate, "use a small positive number");
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            return wrong("warmup_ratio", &self.warmup_ratio, "use a share from 0 to 1");
        }
        if !self.clip.is_finite() || self.clip < 0.0 {
            return wrong("clip", &self.clip, "use a positive norm, or 0 to clip nothing");
        }
        for (name, value) in [
            ("batch_size", self.batch_size),
            ("bucket", self.bucket),
            ("keep_checkpoints", self.keep_checkpoints),
        ] {
            if value == 0 {
                return wrong(name, &value, "use 1 or more");
            }
        }
        Ok(())
    }
}

/// Asks a training to stop after the step in progress. Clones ask the same training.
#[derive(Clone, Debug, Default)]
pub struct StopSignal(Arc<AtomicBool>);

impl StopSignal {
    /// Asks.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody asked.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a training tells while it works.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It begins, or goes on from a checkpoint.
    Started {
        /// Steps that an earlier run has taken.
        done: usize,
        /// All steps.
        total: usize,
        /// Numbers that train.
        parameters: usize,
    },
    /// A step is done.
    Step(StepReport),
    /// The development examples were evaluated.
    Evaluated {
        /// After this step.
        step: usize,
        /// Loss and figures.
        outcome: Outcome,
        /// Whether it is the best evaluation so far.
        best: bool,
    },
    /// A checkpoint was written.
    Checkpointed {
        /// After this step.
        step: usize,
    },
}

/// A step that is done.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Its number, from 1.
    pub step: usize,
    /// All steps.
    pub total: usize,
    /// How often the examples have been seen.
    pub epoch: f64,
    /// The mean loss.
    pub loss: f64,
    /// Other figures.
    pub figures: Figures,
    /// The gradients' norm before it was cut.
    pub gradient_norm: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Tokens computed a second, since this run began.
    pub tokens_per_second: f64,
    /// How long the rest will take at the speed so far.
    pub eta_seconds: f64,
}

/// How a training ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Why it ended.
    pub end: End,
    /// Steps taken, those of earlier runs included.
    pub steps: usize,
    /// The mean loss over the last tenth of the steps.
    pub final_loss: f64,
    /// The last evaluation.
    pub evaluation: Option<Outcome>,
    /// The step of the best evaluation, whose weights the model now has if the best are kept.
    pub best_step: Option<usize>,
    /// Wall time of this run.
    pub seconds: f64,
}

/// Why a training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All steps are done.
    Complete,
    /// The development loss didn't improve any more.
    Early,
    /// Somebody asked; a checkpoint holds the state.
    Stopped,
}

/// A training's surroundings.
pub struct Surroundings<'a> {
    /// Where checkpoints are; without, none are written and nothing is resumed.
    pub folder: Option<&'a Path>,
    /// Asks it to stop.
    pub stop: &'a StopSignal,
    /// Is told what happens.
    pub tell: &'a mut dyn FnMut(&Event),
}
