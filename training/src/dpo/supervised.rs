//! Supervised training: the expander learns to write given passages. A warm-up before preferences.

use expandr_models::trainable::{CompletionBatch, Gradients, Keep, Key, Parameters, Pass, TrainableDecoder};
use serde::{Deserialize, Serialize};

use super::examples::{CompletionExample, fingerprint};
use crate::trainer::{Figures, Outcome, Task};
use crate::{Error, Result};

/// How the loss is computed: the mean over a batch's answer tokens of -log p.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SupervisedOptions {
    /// Examples computed at once; a batch's gradient is the sum of its parts' (gradient accumulation).
    pub examples_at_once: usize,
    /// Compute activations again in the backward pass instead of keeping them.
    pub checkpoint_activations: bool,
}

impl Default for SupervisedOptions {
    fn default() -> Self {
        Self { examples_at_once: 8, checkpoint_activations: false }
    }
}

/// A language model with answers to learn. Adapters train, or all of it, as it was loaded.
pub struct SupervisedTask<'a> {
    decoder: &'a TrainableDecoder,
    settings: SupervisedOptions,
    train: Vec<CompletionExample>,
    dev: Vec<CompletionExample>,
    lengths: Vec<usize>,
    fingerprint: String,
}

impl<'a> SupervisedTask<'a> {
    /// A task; `dev` may be empty.
    ///
    /// # Errors
    /// When a setting makes no sense, and when the model's files can't be read.
    pub fn new(
        decoder: &'a TrainableDecoder,
        settings: SupervisedOptions,
        train: Vec<CompletionExample>,
        dev: Vec<CompletionExample>,
    ) -> Result<Self> {
        if settings.examples_at_once == 0 {
            return Err(Error::Input("examples_at_once must be 1 at least".into()));
        }
        let lengths = train.iter().map(|example| example.prompt.len() + example.completion.len()).collect();
        let fingerprint =
            format!("{} {settings:?} {} {}", decoder.description(), fingerprint(&train), fingerprint(&dev));
        Ok(Self { decoder, settings, train, dev, lengths, fingerprint })
    }

    /// The sum of -log p over the answers' tokens, and tokens computed.
    fn part(
        &self,
        examples: &[&CompletionExample],
        share: f64,
        training: Option<(Key, &mut Gradients)>,
    ) -> Result<(f64, usize)> {
        let mut batch = CompletionBatch::default();
        for example in examples {
            batch.push(&example.prompt, &[&example.completion])?;
        }
        let keep = if self.settings.checkpoint_activations { Keep::LayerInputs } else { Keep::Activations };
        let pass = match &training {
            Some((key, _)) => Pass::training(*key, keep),
            None => Pass::inference(),
        };
        let (found, tape) = self.decoder.log_probabilities(&batch, pass)?;
        if let Some((_, gradients)) = training {
            self.decoder.backward(tape, &vec![-share as f32; found.len()], gradients)?;
        }
        let sum: f64 = found.iter().map(|value| f64::from(*value)).sum();
        Ok((-sum, batch.tokens()))
    }
}

fn outcome(loss: f64, tokens: usize) -> Outcome {
    Outcome { loss, tokens, figures: Figures::from([("perplexity".to_owned(), loss.exp())]) }
}

fn answer_tokens<'e>(examples: impl IntoIterator<Item = &'e CompletionExample>) -> usize {
    examples.into_iter().map(|example| example.completion.len()).sum()
}

impl Task for SupervisedTask<'_> {
    fn parameters(&self) -> &Parameters {
        self.decoder.parameters()
    }

    fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    fn step(&self, examples: &[usize], key: Key, gradients: &mut Gradients) -> Result<Outcome> {
        let examples: Vec<&CompletionExample> = examples.iter().map(|&index| &self.train[index]).collect();
        let share = 1.0 / answer_tokens(examples.iter().copied()) as f64;
        let (mut total, mut tokens) = (0.0, 0);
        for (part, examples) in examples.chunks(self.settings.examples_at_once).enumerate() {
            let training = Some((key.child(part as u64), &mut *gradients));
            let (loss, computed) = self.part(examples, share, training)?;
            total += loss * share;
            tokens += computed;
        }
        Ok(outcome(total, tokens))
    }

    fn evaluate(&self) -> Result<Option<Outcome>> {
        let share = 1.0 / answer_tokens(&self.dev) as f64;
        let (mut total, mut tokens) = (0.0, 0);
        let examples: Vec<&CompletionExample> = self.dev.iter().collect();
        for examples in examples.chunks(self.settings.examples_at_once) {
            let (loss, computed) = self.part(examples, share, None)?;
            total += loss * share;
            tokens += computed;
        }
        Ok((!self.dev.is_empty()).then(|| outcome(total, tokens)))
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}
