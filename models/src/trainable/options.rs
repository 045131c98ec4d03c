//! What trains, and how a model is run.

use super::{lora::LoraSettings, seed::Key};

/// Which weights train.
#[derive(Clone, Debug, Default)]
pub enum Method {
    /// All that lie between the input and what the model gives.
    #[default]
    Full,
    /// Low-rank adapters beside frozen weights.
    Lora(LoraSettings),
    /// None: the model is only run.
    Frozen,
}

/// The type of frozen weights. What trains is always f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponents of 32, on accelerators.
    Bf16,
}

/// How a trainable model is loaded.
#[derive(Clone, Debug, Default)]
pub struct TrainableOptions {
    /// Which weights train.
    pub method: Method,
    /// The type of frozen weights.
    pub precision: Precision,
    /// From which new adapters are drawn.
    pub seed: u64,
    /// An encoder's own dropout (not that of adapters); none takes what its checkpoint says.
    pub dropout: Option<f32>,
    /// Compute with candle's own operations even on a CPU, as on a GPU: slower, for comparison.
    pub plain: bool,
}

impl TrainableOptions {
    /// Everything that changes what training gives.
    pub(super) fn description(&self) -> String {
        format!("{:?} {:?} {}", self.method, self.precision, self.seed)
    }
}

/// What a forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: there will be no backward pass.
    #[default]
    Nothing,
    /// All activations.
    Activations,
    /// Only the input of each layer, from which the backward pass computes the rest again: a quarter more time, a
    /// fraction of the memory (activation checkpointing).
    LayerInputs,
}

/// How a model is run.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// What is kept.
    pub keep: Keep,
    /// The source of dropout's random numbers; without, nothing is dropped.
    pub dropout: Option<Key>,
    /// Whether adapters count.
    pub adapters: bool,
}

impl Pass {
    /// The model as it stands, without dropout.
    pub fn inference() -> Self {
        Self { keep: Keep::Nothing, dropout: None, adapters: true }
    }

    /// The model without its adapters and without dropout: DPO's reference.
    pub fn reference() -> Self {
        Self { adapters: false, ..Self::inference() }
    }

    /// The model with dropout, to be followed by a backward pass.
    pub fn training(dropout: Key, keep: Keep) -> Self {
        Self { keep, dropout: Some(dropout), adapters: true }
    }

    /// The pass of one layer.
    pub(super) fn of_layer(self, layer: usize) -> Self {
        Self { dropout: self.dropout.map(|key| key.child(layer as u64)), ..self }
    }
}
