//! Llama and Qwen2, for training: supervised and by preferences (DPO).
//!
//! - this file: the model; `load`: from a checkpoint; `fused`: on a CPU; `plain`: by candle's operations; `text`: prompts
//!   and passages as tokens.

mod fused;
mod load;
mod plain;
mod text;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::Device;

pub use self::text::DecoderText;
use super::{
    Gradients, Parameters,
    cpu::{memory::Memory, rotary::Rotary},
    modules::{Linear, Norm, Weight},
    options::{Pass, TrainableOptions},
    packing::{CompletionBatch, Packed},
    save,
};
use crate::{Error, Result, decoder::config::DecoderConfig, folder::Tensors, weights::weights_id};

/// One transformer layer.
#[derive(Clone, Debug)]
struct Layer {
    attention_norm: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// The network.
#[derive(Clone, Debug)]
struct Network {
    config: DecoderConfig,
    words: Weight,
    /// The output matrix; the embedding table itself where they are tied.
    head: Weight,
    norm: Norm,
    layers: Vec<Layer>,
}

/// A language model that trains: it gives the log-probabilities of completions, and their gradients.
pub struct TrainableDecoder {
    network: Network,
    parameters: Parameters,
    folder: PathBuf,
    id: String,
    frozen_id: String,
    description: String,
    plain: bool,
    memory: Memory,
    rotary: Mutex<Arc<Rotary>>,
}

/// What a forward pass has kept for the backward pass.
pub struct DecoderTape(Tape);

enum Tape {
    Fused(fused::Tape),
    Plain(plain::Tape),
}

impl TrainableDecoder {
    /// Reads a folder in Hugging Face layout.
    ///
    /// # Errors
    /// When the folder is no checkpoint of a supported architecture, or the options don't fit model or device.
    pub fn load(folder: &Path, options: &TrainableOptions, device: &Device) -> Result<Self> {
        let config = DecoderConfig::read(folder)?;
        let tensors = Tensors::open(folder)?;
        let (network, parameters) = load::read(&tensors, config, options, device)?;
        let rotary = Mutex::new(Arc::new(Rotary::new(&network.config.frequencies, 0)));
        let id = weights_id(folder)?;
        Ok(Self {
            network,
            parameters,
            folder: folder.to_path_buf(),
            description: format!("{id} {}", options.description()),
            frozen_id: format!("{id} {:?}", options.precision),
            id,
            plain: options.plain || !device.is_cpu(),
            memory: Memory::default(),
            rotary,
        })
    }

    /// What trains.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The longest sequence, in tokens.
    pub fn context(&self) -> usize {
        self.network.config.context
    }

    /// The log-probability of each target of the batch, in order, and what a backward pass needs of it.
    ///
    /// # Errors
    /// When a token is unknown or a sequence too long, and when the device fails.
    pub fn log_probabilities(&self, batch: &CompletionBatch, pass: Pass) -> Result<(Vec<f32>, DecoderTape)> {
        self.check(batch)?;
        if batch.targets() == 0 {
            return Err(Error::Input("a batch has no completions; push some".into()));
        }
        let rotary = self.rotary(batch.longest());
        if self.plain {
            let (values, tape) = self.network.log_probabilities_plain(batch, pass, &rotary)?;
            return Ok((values, DecoderTape(Tape::Plain(tape))));
        }
        let (values, tape) = self.network.log_probabilities_fused(batch, pass, rotary, &self.memory)?;
        Ok((values, DecoderTape(Tape::Fused(tape))))
    }

    /// Adds the parameters' gradients, from the gradient of the loss with respect to each target's log-probability.
    ///
    /// # Errors
    /// When the pass kept nothing, the number of targets is another, or the device fails.
    pub fn backward(&self, tape: DecoderTape, targets: &[f32], gradients: &mut Gradients) -> Result<()> {
        match tape.0 {
            Tape::Fused(tape) => self.network.backward_fused(tape, targets, &self.memory, gradients),
            Tape::Plain(tape) => self.network.backward_plain(tape, targets, &self.parameters, gradients),
        }
    }

    /// Writes a fully trained model as a folder of the same layout as the one that it was read from. The folder appears
    /// whole or not at all, and replaces one that is there.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save::with_parameters(&self.folder, folder, &self.parameters)
    }

    /// The checkpoint's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names the checkpoint's weights and configuration, as serving does.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Names the frozen weights as they are held: the checkpoint, and the type of the numbers. What the model says without
    /// its adapters follows from them.
    pub fn frozen_id(&self) -> &str {
        &self.frozen_id
    }

    /// Names everything that training depends on here: weights and method.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Angles for sequences of this length; made anew when a longer one comes.
    fn rotary(&self, longest: usize) -> Arc<Rotary> {
        let mut rotary = self.rotary.lock().unwrap_or_else(PoisonError::into_inner);
        if rotary.positions() < longest {
            *rotary = Arc::new(Rotary::new(&self.network.config.frequencies, longest.next_power_of_two()));
        }
        rotary.clone()
    }

    fn check(&self, batch: &CompletionBatch) -> Result<()> {
        let config = &self.network.config;
        let ids = batch.packed.ids.iter().chain(&batch.targets);
        if let Some(id) = ids.into_iter().find(|id| **id as usize >= config.vocabulary) {
            return Err(Error::Input(format!(
                "there is no token {id}; the model has {}. Is the tokenizer another model's?",
                config.vocabulary
            )));
        }
        if batch.longest() > config.context {
            return Err(Error::Input(format!(
                "a sequence of {} tokens is longer than the model's {}; set a smaller maximum length",
                batch.longest(),
                config.context
            )));
        }
        Ok(())
    }
}
