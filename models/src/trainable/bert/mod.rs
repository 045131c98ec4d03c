//! BERT and its relatives, for training: contrastive learning of the retriever.
//!
//! - this file: the model; `load`: from a checkpoint; `fused`: on a CPU; `plain`: by candle's operations.

mod fused;
mod load;
mod plain;

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::{
    Gradients, Parameters,
    cpu::memory::Memory,
    modules::{Linear, Norm, Weight},
    options::{Pass, TrainableOptions},
    packing::{Packed, TextBatch},
    save,
};
use crate::{
    Error, Pooling, Result, TextKind,
    encoder::{
        checkpoint::Checkpoint,
        config::{BertConfig, Family},
        tokenize::TextTokenizer,
    },
};

/// One transformer layer.
#[derive(Clone, Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    output_norm: Norm,
}

/// The network.
#[derive(Clone, Debug)]
struct Bert {
    config: BertConfig,
    hidden_dropout: f32,
    attention_dropout: f32,
    words: Weight,
    positions: Weight,
    types: Option<Weight>,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Bert {
    /// Transformers' DistilBERT drops nothing between attention and its residual sum.
    fn dropout_after_attention(&self) -> f32 {
        if self.config.family == Family::DistilBert { 0.0 } else { self.hidden_dropout }
    }
}

/// A sentence encoder that trains. Its vectors are those of the checkpoint before normalisation, which is the loss's
/// affair.
pub struct TrainableEncoder {
    bert: Bert,
    pooling: Pooling,
    normalize: bool,
    parameters: Parameters,
    /// Of queries and of documents, which may be cut to different lengths.
    tokenizers: [TextTokenizer; 2],
    folder: PathBuf,
    id: String,
    description: String,
    plain: bool,
    memory: Memory,
}

/// The longest texts in tokens, special tokens included; where nothing is said, or more than the checkpoint's own limit,
/// that limit counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextLengths {
    /// Of queries.
    pub query: Option<usize>,
    /// Of documents and expansions.
    pub document: Option<usize>,
}

/// What a forward pass has kept for the backward pass.
pub struct EncoderTape(Tape);

enum Tape {
    Fused(fused::Tape),
    Plain(plain::Tape),
}

impl TrainableEncoder {
    /// Reads a checkpoint folder of the sentence-transformers or plain Hugging Face layout, as serving does.
    ///
    /// # Errors
    /// When the folder is no checkpoint of a supported architecture, or the options don't fit model or device.
    pub fn load(
        folder: &Path,
        lengths: TextLengths,
        options: &TrainableOptions,
        device: &Device,
    ) -> Result<Self> {
        let mut checkpoint = Checkpoint::read(folder)?;
        let id = checkpoint.id()?;
        let longest = checkpoint.settings.max_length;
        let mut tokenizer = |length: Option<usize>| {
            checkpoint.settings.max_length = length.unwrap_or(longest).min(longest);
            TextTokenizer::read(&checkpoint)
        };
        let tokenizers = [tokenizer(lengths.query)?, tokenizer(lengths.document)?];
        let (bert, parameters) = load::read(&checkpoint, options, device)?;
        let dropout = [bert.hidden_dropout, bert.attention_dropout];
        Ok(Self {
            description: format!("{id} {lengths:?} {dropout:?} {}", options.description()),
            bert,
            pooling: checkpoint.settings.pooling,
            normalize: checkpoint.settings.normalize,
            parameters,
            tokenizers,
            folder: folder.to_path_buf(),
            id,
            plain: options.plain || !device.is_cpu(),
            memory: Memory::default(),
        })
    }

    /// What trains.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Components of a vector.
    pub fn dimension(&self) -> usize {
        self.bert.config.hidden_size
    }

    /// Whether the checkpoint itself ends with L2 normalisation.
    pub fn normalizes(&self) -> bool {
        self.normalize
    }

    /// The checkpoint's id, as serving gives it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Names everything that training depends on here: weights, method, dropout, lengths.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The token ids of a text with the checkpoint's prefix and special tokens, cut to the longest length.
    ///
    /// # Errors
    /// When the tokenizer refuses the text.
    pub fn ids(&self, kind: TextKind, text: &str) -> Result<Vec<u32>> {
        let tokenizer = match kind {
            TextKind::Query => &self.tokenizers[0],
            TextKind::Document => &self.tokenizers[1],
        };
        tokenizer.ids(kind, text)
    }

    /// The texts' vectors (`texts × dimension`, not normalised), and what a backward pass needs of it.
    ///
    /// # Errors
    /// When a token is unknown or a text too long, and when the device fails.
    pub fn embed(&self, batch: &TextBatch, pass: Pass) -> Result<(Tensor, EncoderTape)> {
        self.check(&batch.packed)?;
        if self.plain {
            let (vectors, tape) = self.bert.embed_plain(&batch.packed, self.pooling, pass)?;
            return Ok((vectors, EncoderTape(Tape::Plain(tape))));
        }
        let (vectors, tape) = self.bert.embed_fused(&batch.packed, self.pooling, pass, &self.memory)?;
        let vectors = Tensor::from_slice(&vectors, (batch.texts(), self.dimension()), &Device::Cpu)?;
        Ok((vectors, EncoderTape(Tape::Fused(tape))))
    }

    /// Adds the parameters' gradients, from the gradient of the loss with respect to the vectors (`texts × dimension`).
    ///
    /// # Errors
    /// When the pass kept nothing, the shape is another, or the device fails.
    pub fn backward(&self, tape: EncoderTape, vectors: &Tensor, gradients: &mut Gradients) -> Result<()> {
        match tape.0 {
            Tape::Fused(tape) => {
                let values = vectors.flatten_all()?.to_vec1::<f32>()?;
                self.bert.backward_fused(tape, &values, self.pooling, &self.memory, gradients)
            }
            Tape::Plain(tape) => self.bert.backward_plain(tape, vectors, &self.parameters, gradients),
        }
    }

    /// Writes the trained encoder as a folder of the same layout as the one that it was read from. The folder appears whole
    /// or not at all, and replaces one that is there.
    ///
    /// # Errors
    /// When adapters train (write those, or merge them), and when a file can't be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        save::with_parameters(&self.folder, folder, &self.parameters)
    }

    /// The checkpoint's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn check(&self, packed: &Packed) -> Result<()> {
        let (words, longest) = (self.bert.config.vocab_size, self.bert.config.longest_text());
        if let Some(id) = packed.ids.iter().find(|id| **id as usize >= words) {
            return Err(Error::Input(format!("there is no token {id}; the encoder has {words}")));
        }
        if let Some(group) = packed.groups.iter().find(|group| group.rows() > longest) {
            return Err(Error::Input(format!(
                "a text of {} tokens is longer than the encoder's {longest} positions; cut it",
                group.rows()
            )));
        }
        Ok(())
    }
}
