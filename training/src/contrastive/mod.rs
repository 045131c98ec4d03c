//! Contrastive training of the encoder on the averaged vectors of query and expansion (Eq. 8 and 9).
//!
//! - this file: the task, with gradient caching; `examples`: its data; `loss`: from vectors to a loss and its gradient;
//!   `interpolation`: an outcome that goes only a part of the way; `soup`: the mean of several outcomes.

mod examples;
mod interpolation;
mod loss;
mod soup;

use candle_core::Tensor;
use expandr_models::trainable::{
    EncoderTape, Gradients, Keep, Key, Parameters, Pass, TextBatch, TrainableEncoder,
};
use serde::{Deserialize, Serialize};

pub use self::{
    examples::{ContrastiveExample, ContrastiveText, tokenize},
    interpolation::Interpolation,
    soup::{Member, average},
};
use self::{
    examples::{Layout, fingerprint},
    loss::loss,
};
use crate::trainer::{Figures, Outcome, Task};
use crate::{Error, Result};

/// The part of a step's key that says which queries keep their expansions. The parts of a batch, which have theirs, are
/// never as many.
const EXPANSIONS: u64 = u64::MAX;

/// The loss and how it is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastiveOptions {
    /// The weight of the query's vector; the expansions' mean has 1 less it (Eq. 8: 0.5). A query without expansions
    /// stands alone.
    pub query_weight: f64,
    /// How likely a query of a step stands alone, without its expansions.
    pub expansion_dropout: f64,
    /// Whether vectors are L2-normalised before they are averaged and compared.
    pub normalize: bool,
    /// Similarities are divided by it; 1 leaves them as they are.
    pub temperature: f64,
    /// Whether a passage that equals a query's positive, or is another positive of the same query, is no negative for it.
    pub mask_duplicates: bool,
    /// Examples computed at once. A larger batch is computed in parts; its gradient is that of the whole (gradient
    /// caching, Gao et al. 2021).
    pub chunk: usize,
    /// Compute activations again in the backward pass instead of keeping them.
    pub checkpoint_activations: bool,
    /// Examples of a batch in evaluation; as in training, a batch's other passages are the negatives.
    pub evaluation_batch: usize,
}

impl Default for ContrastiveOptions {
    /// As the paper's code trains.
    fn default() -> Self {
        Self {
            query_weight: 0.5,
            expansion_dropout: 0.0,
            normalize: false,
            temperature: 1.0,
            mask_duplicates: true,
            chunk: 32,
            checkpoint_activations: false,
            evaluation_batch: 128,
        }
    }
}

impl ContrastiveOptions {
    /// Without what only says how the same gradient is computed, which may change between two attempts (where
    /// something is dropped, another `chunk` draws other masks).
    fn outcome(&self) -> Self {
        Self { chunk: 0, checkpoint_activations: false, ..self.clone() }
    }

    fn check(&self) -> Result<()> {
        let wrong = |detail: String| Err(Error::Input(detail));
        if !(0.0..=1.0).contains(&self.query_weight) {
            return wrong(format!("query_weight = {} is no share; use 0 to 1", self.query_weight));
        }
        if !(0.0..1.0).contains(&self.expansion_dropout) {
            return wrong(format!(
                "expansion_dropout = {} makes no sense; use 0 or more, and less than 1",
                self.expansion_dropout
            ));
        }
        if !self.temperature.is_finite() || self.temperature <= 0.0 {
            return wrong(format!("temperature = {} makes no sense; use 0.01 to 1", self.temperature));
        }
        if self.chunk == 0 || self.evaluation_batch == 0 {
            return wrong("chunk and evaluation_batch must be 1 at least".into());
        }
        Ok(())
    }
}

/// An encoder with its examples.
pub struct ContrastiveTask<'a> {
    encoder: &'a TrainableEncoder,
    settings: ContrastiveOptions,
    train: Vec<ContrastiveExample>,
    dev: Vec<ContrastiveExample>,
    lengths: Vec<usize>,
    fingerprint: String,
}

impl<'a> ContrastiveTask<'a> {
    /// A task; `dev` may be empty.
    ///
    /// # Errors
    /// When a setting makes no sense.
    pub fn new(
        encoder: &'a TrainableEncoder,
        settings: ContrastiveOptions,
        train: Vec<ContrastiveExample>,
        dev: Vec<ContrastiveExample>,
    ) -> Result<Self> {
        settings.check()?;
        let lengths = train.iter().map(ContrastiveExample::tokens).collect();
        let examples = fingerprint(train.iter().chain(&dev));
        let fingerprint = format!("{} {:?} {examples}", encoder.description(), settings.outcome());
        Ok(Self { encoder, settings, train, dev, lengths, fingerprint })
    }

    /// How many examples it trains on, and how many are for development.
    pub fn examples(&self) -> (usize, usize) {
        (self.train.len(), self.dev.len())
    }

    /// The loss of a batch and, with `gradients`, its gradients.
    fn batch(&self, examples: &[&ContrastiveExample], key: Option<(Key, &mut Gradients)>) -> Result<Outcome> {
        let dropout = self.settings.expansion_dropout;
        let key_of_expansions = key.as_ref().map(|(key, _)| key.child(EXPANSIONS));
        let layout = Layout::of(examples, |query| {
            key_of_expansions.is_none_or(|key| key.uniform(query as u64) >= dropout)
        });
        let tokens = layout.texts.iter().map(|text| text.len()).sum();
        let parts = layout.parts(self.settings.chunk);
        let outcome = |loss: f64, figures: Figures| Outcome { loss, tokens, figures };
        let Some((key, gradients)) = key else {
            let vectors = self.vectors(&layout, &parts, Keep::Nothing, None)?.0;
            let (found, _, figures) = loss(&vectors, &layout, &self.settings, false)?;
            return Ok(outcome(found, figures));
        };
        // One part keeps its activations. Of several, the vectors alone are kept at first; when the loss has said how it
        // changes with them, each part is computed again, dropping the same activations, and differentiated.
        let whole = parts.len() == 1;
        let keep = if self.settings.checkpoint_activations { Keep::LayerInputs } else { Keep::Activations };
        let first = if whole { keep } else { Keep::Nothing };
        let (vectors, tapes) = self.vectors(&layout, &parts, first, Some(key))?;
        let (found, slopes, figures) = loss(&vectors, &layout, &self.settings, true)?;
        for (index, (part, tape)) in parts.iter().zip(tapes).enumerate() {
            let tape =
                if whole { tape } else { self.part(&layout, part, keep, Some(key.child(index as u64)))?.1 };
            let places = Tensor::from_slice(part, part.len(), slopes.device())?;
            self.encoder.backward(tape, &slopes.index_select(&places, 0)?, gradients)?;
        }
        Ok(outcome(found, figures))
    }

    /// All texts' vectors in the layout's order, and the parts' tapes.
    fn vectors(
        &self,
        layout: &Layout<'_>,
        parts: &[Vec<u32>],
        keep: Keep,
        key: Option<Key>,
    ) -> Result<(Tensor, Vec<EncoderTape>)> {
        let (mut found, mut tapes) = (Vec::new(), Vec::new());
        for (index, part) in parts.iter().enumerate() {
            let (vectors, tape) = self.part(layout, part, keep, key.map(|key| key.child(index as u64)))?;
            found.push(vectors);
            tapes.push(tape);
        }
        let order = parts.concat();
        let mut places = vec![0u32; order.len()];
        for (place, text) in order.iter().enumerate() {
            places[*text as usize] = place as u32;
        }
        let vectors = Tensor::cat(&found, 0)?;
        let places = Tensor::from_slice(&places, places.len(), vectors.device())?;
        Ok((vectors.index_select(&places, 0)?, tapes))
    }

    fn part(
        &self,
        layout: &Layout<'_>,
        part: &[u32],
        keep: Keep,
        key: Option<Key>,
    ) -> Result<(Tensor, EncoderTape)> {
        let batch = TextBatch::new(part.iter().map(|text| layout.texts[*text as usize]))?;
        Ok(self.encoder.embed(&batch, Pass { keep, dropout: key, adapters: true })?)
    }
}

impl Task for ContrastiveTask<'_> {
    fn parameters(&self) -> &Parameters {
        self.encoder.parameters()
    }

    fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    fn step(&self, examples: &[usize], key: Key, gradients: &mut Gradients) -> Result<Outcome> {
        let examples: Vec<&ContrastiveExample> = examples.iter().map(|&index| &self.train[index]).collect();
        self.batch(&examples, Some((key, gradients)))
    }

    fn evaluate(&self) -> Result<Option<Outcome>> {
        let mut total = Outcome::default();
        for examples in self.dev.chunks(self.settings.evaluation_batch) {
            let examples: Vec<&ContrastiveExample> = examples.iter().collect();
            let outcome = self.batch(&examples, None)?;
            let share = examples.len() as f64 / self.dev.len() as f64;
            total.loss += outcome.loss * share;
            total.tokens += outcome.tokens;
            for (name, value) in outcome.figures {
                *total.figures.entry(name).or_default() += value * share;
            }
        }
        Ok((!self.dev.is_empty()).then_some(total))
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}
