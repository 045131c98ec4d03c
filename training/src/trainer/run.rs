//! The loop.

use std::collections::HashMap;
use std::time::Instant;

use candle_core::Tensor;
use expandr_models::trainable::{Gradients, Key};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Batches, End, Event, Outcome, StepReport, Summary, Surroundings, Task, TrainerSettings};
use crate::checkpoint::{Checkpoints, set_values, values};
use crate::optim::{AdamW, clip_scale};
use crate::schedule::Schedule;
use crate::{Error, Result};

/// What the next step depends on, besides parameters and optimiser. The place in the data follows from the step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// Steps taken.
    step: usize,
    /// The losses of the last tenth of the steps.
    losses: Vec<f64>,
    best: Option<Best>,
    /// Evaluations since the best.
    without_improvement: usize,
    evaluation: Option<Outcome>,
    /// Whether it has stopped early.
    early: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Best {
    step: usize,
    loss: f64,
}

struct Run<'a, 's> {
    task: &'a dyn Task,
    settings: &'a TrainerSettings,
    surroundings: Surroundings<'s>,
    batches: Batches,
    /// The epoch at hand and its batches.
    epoch: Option<(usize, Vec<Vec<usize>>)>,
    schedule: Schedule,
    optimiser: AdamW,
    gradients: Gradients,
    checkpoints: Option<Checkpoints>,
    /// The best parameters where no folder keeps them.
    best: Option<HashMap<String, Tensor>>,
    state: State,
    /// Whether every parameter's gradient has been seen to be there.
    checked: bool,
    began: Instant,
    steps_before: usize,
    tokens: usize,
}

/// Trains a task, or goes on with it where a folder holds a checkpoint of the same training. On return the task's
/// parameters are the last step's, or the best evaluation's if those are kept. Work is done in the current rayon pool.
///
/// # Errors
/// When a setting makes no sense or there are no examples, when a checkpoint belongs to another training, when a
/// parameter has no gradient or a loss is not a number, and when the model or a disk fails.
pub fn train(task: &dyn Task, settings: &TrainerSettings, surroundings: Surroundings<'_>) -> Result<Summary> {
    settings.check()?;
    let mut run = Run::begin(task, settings, surroundings)?;
    let end = run.steps()?;
    run.finish(end)
}

impl<'a, 's> Run<'a, 's> {
    fn begin(
        task: &'a dyn Task,
        settings: &'a TrainerSettings,
        surroundings: Surroundings<'s>,
    ) -> Result<Self> {
        let parameters = task.parameters();
        if task.lengths().is_empty() {
            return Err(Error::Input(
                "there are no training examples; check the stages that make them".into(),
            ));
        }
        if parameters.is_empty() {
            return Err(Error::Input(
                "the model has nothing that trains; choose full tuning or adapters".into(),
            ));
        }
        let batches = Batches::new(task.lengths(), settings.batch_size, settings.bucket, settings.seed);
        let total = ((settings.epochs * batches.per_epoch() as f64).ceil() as usize).max(1);
        let mut optimiser = AdamW::new(parameters, settings.optimiser)?;
        let checkpoints = match surroundings.folder {
            Some(folder) => {
                Some(Checkpoints::open(folder, settings.keep_checkpoints, fingerprint(task, settings))?)
            }
            None => None,
        };
        let restored = match &checkpoints {
            Some(checkpoints) => checkpoints.restore(parameters, &mut optimiser)?,
            None => None,
        };
        let state: State = restored.unwrap_or_default();
        let event = Event::Started { done: state.step, total, parameters: parameters.elements() };
        (surroundings.tell)(&event);
        Ok(Self {
            task,
            settings,
            surroundings,
            epoch: None,
            schedule: Schedule::new(settings.schedule, settings.learning_rate, settings.warmup_ratio, total),
            batches,
            optimiser,
            gradients: Gradients::new(parameters),
            checkpoints,
            best: None,
            steps_before: state.step,
            state,
            checked: false,
            began: Instant::now(),
            tokens: 0,
        })
    }

    fn steps(&mut self) -> Result<End> {
        while self.state.step < self.schedule.total_steps && !self.state.early {
            if self.surroundings.stop.is_set() {
                self.checkpoint()?;
                return Ok(End::Stopped);
            }
            self.step()?;
            let step = self.state.step;
            let done = step == self.schedule.total_steps;
            let per_epoch = self.batches.per_epoch();
            let every =
                if self.settings.evaluate_every == 0 { per_epoch } else { self.settings.evaluate_every };
            if done || step.is_multiple_of(every) {
                self.evaluate()?;
            }
            let every = self.settings.checkpoint_every;
            if every > 0 && (done || self.state.early || step.is_multiple_of(every)) {
                self.checkpoint()?;
            }
        }
        Ok(if self.state.early { End::Early } else { End::Complete })
    }

    fn step(&mut self) -> Result<()> {
        let parameters = self.task.parameters();
        let step = self.state.step;
        let key = Key::new(self.settings.seed).child(2).child(step as u64);
        let examples = self.examples(step);
        self.gradients.reset();
        let outcome = self.task.step(&examples, key, &mut self.gradients)?;
        if !outcome.loss.is_finite() {
            return Err(diverged(step, "loss"));
        }
        // A last batch of one example, with which a resumed training may begin, has nothing to tell its positive from.
        let says_nothing = outcome.loss == 0.0 && self.steps_before > 0;
        if !self.checked && !says_nothing {
            self.checked = self.gradients.check(parameters)?;
        }
        let norm = self.gradients.norm()?;
        if !norm.is_finite() {
            return Err(diverged(step, "gradient"));
        }
        let learning_rate = self.schedule.at(step);
        let scale = clip_scale(norm, self.settings.clip);
        self.optimiser.step(parameters, &self.gradients, learning_rate, scale)?;

        self.state.step += 1;
        self.tokens += outcome.tokens;
        let window = self.schedule.total_steps.div_ceil(10);
        self.state.losses.push(outcome.loss);
        let excess = self.state.losses.len().saturating_sub(window);
        self.state.losses.drain(..excess);
        self.report(outcome, norm, learning_rate);
        Ok(())
    }

    fn examples(&mut self, step: usize) -> Vec<usize> {
        let per_epoch = self.batches.per_epoch();
        let (epoch, place) = (step / per_epoch, step % per_epoch);
        if self.epoch.as_ref().is_none_or(|(at_hand, _)| *at_hand != epoch) {
            self.epoch = Some((epoch, self.batches.epoch(epoch)));
        }
        self.epoch.as_ref().and_then(|(_, batches)| batches.get(place)).cloned().unwrap_or_default()
    }

    fn report(&mut self, outcome: Outcome, gradient_norm: f64, learning_rate: f64) {
        let seconds = self.began.elapsed().as_secs_f64();
        let (step, total) = (self.state.step, self.schedule.total_steps);
        let a_step = seconds / (step - self.steps_before) as f64;
        let event = Event::Step(StepReport {
            step,
            total,
            epoch: step as f64 / self.batches.per_epoch() as f64,
            loss: outcome.loss,
            figures: outcome.figures,
            gradient_norm,
            learning_rate,
            tokens_per_second: self.tokens as f64 / seconds,
            eta_seconds: a_step * (total - step) as f64,
        });
        (self.surroundings.tell)(&event);
    }

    fn evaluate(&mut self) -> Result<()> {
        let Some(outcome) = self.task.evaluate()? else { return Ok(()) };
        let step = self.state.step;
        if !outcome.loss.is_finite() {
            return Err(diverged(step, "development loss"));
        }
        let best = self.state.best.is_none_or(|best| outcome.loss < best.loss);
        if best {
            self.state.best = Some(Best { step, loss: outcome.loss });
            self.state.without_improvement = 0;
            if self.settings.keep_best {
                self.keep_best()?;
            }
        } else {
            self.state.without_improvement += 1;
            let patience = self.settings.patience;
            self.state.early = patience.is_some_and(|patience| self.state.without_improvement >= patience);
        }
        self.state.evaluation = Some(outcome.clone());
        (self.surroundings.tell)(&Event::Evaluated { step, outcome, best });
        Ok(())
    }

    fn keep_best(&mut self) -> Result<()> {
        match &self.checkpoints {
            Some(checkpoints) => checkpoints.write_best(self.task.parameters()),
            None => {
                self.best = Some(values(self.task.parameters())?);
                Ok(())
            }
        }
    }

    fn checkpoint(&mut self) -> Result<()> {
        let Some(checkpoints) = &self.checkpoints else { return Ok(()) };
        let step = self.state.step;
        checkpoints.write(step, self.task.parameters(), &self.optimiser, &self.state)?;
        (self.surroundings.tell)(&Event::Checkpointed { step });
        Ok(())
    }

    fn finish(mut self, end: End) -> Result<Summary> {
        let best_step = self.state.best.map(|best| best.step);
        let elsewhere = best_step.is_some_and(|best| best != self.state.step);
        if self.settings.keep_best && end != End::Stopped && elsewhere {
            match (&self.checkpoints, self.best.take()) {
                (_, Some(best)) => set_values(self.task.parameters(), best)?,
                (Some(checkpoints), None) => checkpoints.restore_best(self.task.parameters())?,
                (None, None) => {}
            }
        }
        let losses = &self.state.losses;
        Ok(Summary {
            end,
            steps: self.state.step,
            final_loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
            evaluation: self.state.evaluation,
            best_step,
            seconds: self.began.elapsed().as_secs_f64(),
        })
    }
}

fn diverged(step: usize, what: &str) -> Error {
    Error::Training(format!(
        "the {what} of step {} is not a number; lower the learning rate, or clip the gradient's norm",
        step + 1
    ))
}

/// Of everything that changes the outcome.
fn fingerprint(task: &dyn Task, settings: &TrainerSettings) -> String {
    let settings = TrainerSettings { checkpoint_every: 0, keep_checkpoints: 1, ..settings.clone() };
    let digest = Sha256::digest(format!("{} {settings:?}", task.fingerprint()));
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
