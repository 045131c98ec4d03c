//! Training of the expander: by preferences (DPO, Eq. 17), and by examples as a warm-up.
//!
//! - this file: the DPO task; `examples`: data as tokens; `loss`: Eq. 17; `reference`: the reference model's
//!   log-probabilities, computed once; `supervised`: the warm-up.

mod examples;
mod loss;
mod reference;
mod supervised;

use std::path::Path;

use expandr_models::trainable::{CompletionBatch, Gradients, Keep, Key, Parameters, Pass, TrainableDecoder};
use serde::{Deserialize, Serialize};

use self::{examples::fingerprint, reference::sums};
pub use self::{
    examples::{
        CompletionExample, CompletionText, Limits, PreferenceExample, PreferenceText, Shortened,
        tokenize_completions, tokenize_preferences,
    },
    loss::{PairLoss, pair_loss},
    reference::{Reference, ReferenceProgress},
    supervised::{SupervisedOptions, SupervisedTask},
};
use crate::trainer::{Figures, Outcome, Task};
use crate::{Error, Result};

/// The loss and how it is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoOptions {
    /// β of Eq. 17: how dear it is to leave the reference model.
    pub beta: f64,
    /// Pairs computed at once; a batch's gradient is the sum of its parts' (gradient accumulation).
    pub pairs_at_once: usize,
    /// Compute activations again in the backward pass instead of keeping them.
    pub checkpoint_activations: bool,
}

impl Default for DpoOptions {
    fn default() -> Self {
        Self { beta: 0.1, pairs_at_once: 4, checkpoint_activations: false }
    }
}

impl DpoOptions {
    /// Without what only says how the same gradient is computed, which may change between two attempts.
    fn outcome(&self) -> Self {
        Self { checkpoint_activations: false, ..self.clone() }
    }
}

/// A language model with its preferences.
pub struct DpoTask<'a> {
    decoder: &'a TrainableDecoder,
    settings: DpoOptions,
    train: Vec<PreferenceExample>,
    dev: Vec<PreferenceExample>,
    references: [Reference; 2],
    lengths: Vec<usize>,
    fingerprint: String,
}

impl<'a> DpoTask<'a> {
    /// A task; `dev` may be empty. The reference model is the decoder without its adapters; its log-probabilities are
    /// computed now, or taken from `folder` where they are there for the same model and data.
    ///
    /// # Errors
    /// When a setting makes no sense, when the model has no adapters and so no reference, and when model or disk fails.
    pub fn new(
        decoder: &'a TrainableDecoder,
        settings: DpoOptions,
        train: Vec<PreferenceExample>,
        dev: Vec<PreferenceExample>,
        folder: Option<&Path>,
        progress: ReferenceProgress<'_>,
    ) -> Result<Self> {
        if !settings.beta.is_finite() || settings.beta <= 0.0 {
            return Err(Error::Input(format!("beta = {} makes no sense; use e.g. 0.1", settings.beta)));
        }
        if settings.pairs_at_once == 0 {
            return Err(Error::Input("pairs_at_once must be 1 at least".into()));
        }
        let adapters = decoder.parameters().iter().all(|parameter| parameter.name.contains(".lora_"));
        if !adapters {
            return Err(Error::Input(
                "preferences train adapters, so that the model without them is the reference; load it for LoRA".into(),
            ));
        }
        let path = |name: &str| folder.map(|folder| folder.join(name));
        let references = [
            Reference::get(
                decoder,
                decoder.frozen_id(),
                &train,
                path("reference.safetensors").as_deref(),
                &mut *progress,
            )?,
            Reference::get(
                decoder,
                decoder.frozen_id(),
                &dev,
                path("reference.dev.safetensors").as_deref(),
                &mut *progress,
            )?,
        ];
        let lengths = train.iter().map(PreferenceExample::tokens).collect();
        let fingerprint = format!(
            "{} {:?} {} {}",
            decoder.description(),
            settings.outcome(),
            fingerprint(&train),
            fingerprint(&dev)
        );
        Ok(Self { decoder, settings, train, dev, references, lengths, fingerprint })
    }

    /// Losses of pairs (indices into `examples`) added to `total`; with a key, their gradients too. `share` is what a pair
    /// contributes to the mean.
    fn pairs(
        &self,
        (examples, reference): (&[PreferenceExample], &Reference),
        pairs: &[usize],
        share: f64,
        total: &mut Totals,
        training: Option<(Key, &mut Gradients)>,
    ) -> Result<()> {
        let mut batch = CompletionBatch::default();
        for &pair in pairs {
            let example = &examples[pair];
            batch.push(&example.prompt, &[&example.chosen, &example.rejected])?;
        }
        total.tokens += batch.tokens();
        let keep = if self.settings.checkpoint_activations { Keep::LayerInputs } else { Keep::Activations };
        let pass = match &training {
            Some((key, _)) => Pass::training(*key, keep),
            None => Pass::inference(),
        };
        let (found, tape) = self.decoder.log_probabilities(&batch, pass)?;
        let mut slopes = vec![0f32; found.len()];
        for (index, (sums, &pair)) in sums(&batch, &found).chunks_exact(2).zip(pairs).enumerate() {
            let loss = pair_loss([sums[0], sums[1]], reference.of(pair), self.settings.beta);
            total.add(&loss, share);
            let completions = &batch.completions()[2 * index..2 * index + 2];
            slopes[completions[0].clone()].fill((-loss.slope * share) as f32);
            slopes[completions[1].clone()].fill((loss.slope * share) as f32);
        }
        if let Some((_, gradients)) = training {
            self.decoder.backward(tape, &slopes, gradients)?;
        }
        Ok(())
    }
}

impl Task for DpoTask<'_> {
    fn parameters(&self) -> &Parameters {
        self.decoder.parameters()
    }

    fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    fn step(&self, examples: &[usize], key: Key, gradients: &mut Gradients) -> Result<Outcome> {
        let mut total = Totals::default();
        let share = 1.0 / examples.len() as f64;
        for (part, pairs) in examples.chunks(self.settings.pairs_at_once).enumerate() {
            let training = Some((key.child(part as u64), &mut *gradients));
            self.pairs((&self.train, &self.references[0]), pairs, share, &mut total, training)?;
        }
        Ok(total.outcome())
    }

    fn evaluate(&self) -> Result<Option<Outcome>> {
        let mut total = Totals::default();
        let share = 1.0 / self.dev.len() as f64;
        let order: Vec<usize> = (0..self.dev.len()).collect();
        for pairs in order.chunks(self.settings.pairs_at_once) {
            self.pairs((&self.dev, &self.references[1]), pairs, share, &mut total, None)?;
        }
        Ok((!self.dev.is_empty()).then(|| total.outcome()))
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

/// Means over pairs, as they come in.
#[derive(Default)]
struct Totals {
    tokens: usize,
    loss: f64,
    chosen_reward: f64,
    rejected_reward: f64,
    accuracy: f64,
    divergence: f64,
}

impl Totals {
    fn add(&mut self, pair: &PairLoss, share: f64) {
        self.loss += pair.loss * share;
        self.chosen_reward += pair.rewards[0] * share;
        self.rejected_reward += pair.rewards[1] * share;
        self.accuracy += if pair.rewards[0] > pair.rewards[1] { share } else { 0.0 };
        self.divergence += pair.divergence * share;
    }

    fn outcome(self) -> Outcome {
        let figures = [
            ("chosen_reward", self.chosen_reward),
            ("rejected_reward", self.rejected_reward),
            ("reward_margin", self.chosen_reward - self.rejected_reward),
            ("accuracy", self.accuracy),
            ("divergence", self.divergence),
        ];
        let figures: Figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Outcome { loss: self.loss, tokens: self.tokens, figures }
    }
}
