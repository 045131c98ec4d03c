//! Models that train: an encoder and language models whose every trainable tensor gets a gradient.
//!
//! A model runs forward and gives what the loss is made of (vectors of texts, log-probabilities of tokens) together with a
//! *tape*; the loss says how much it changes with each of these numbers; and from tape and numbers the model adds the
//! parameters' gradients to [`Gradients`]. There are two ways of computing, with the same results: on a CPU layers are
//! written out by hand, forward and backward, over packed texts; elsewhere they are made of candle's differentiable
//! operations. Which loss, which optimiser and which data is the training crate's affair.
//!
//! In reading order:
//! - `parameters`, `gradients`: what trains, and the check that nothing is left behind. `options`: full or adapters, what a
//!   pass keeps. `seed`: random numbers without state. `packing`: sequences without padding.
//! - `modules`: the parts of models; `bert`, `decoder`: the models; `cpu`, `plain`: the two ways of computing.
//! - `lora`: adapters in PEFT's layout, and merging. `save`: checkpoints like those that were read.

mod bert;
mod cpu;
mod decoder;
mod gradients;
mod lora;
mod modules;
mod options;
mod packing;
mod parameters;
mod plain;
mod save;
mod seed;

pub use self::{
    bert::{EncoderTape, TextLengths, TrainableEncoder},
    decoder::{DecoderTape, DecoderText, TrainableDecoder},
    gradients::{Gradient, Gradients},
    lora::{
        ADAPTER_CONFIG, ADAPTER_FILES, ADAPTER_WEIGHTS, AdapterFile, AdapterTask, LoraSettings, merge_adapter,
    },
    options::{Keep, Method, Pass, Precision, TrainableOptions},
    packing::{CompletionBatch, TextBatch},
    parameters::{Parameter, Parameters, ZeroGradient},
    save::truncate_layers,
    seed::Key,
};
pub use crate::folder::{NewFolder, replace, sync_folder};
