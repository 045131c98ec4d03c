//! The settings of the three trainers.

use serde::{Deserialize, Serialize};

use crate::schedule::Shape;

/// The type of the frozen weights. Adapters and optimiser are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 where the device computes in it, else f32.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
}

/// The type of the numbers of an adapter's file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SavedAs {
    /// 32 bits, as they were trained.
    #[default]
    F32,
    /// 16 bits: half the file. What follows (merging, expansions, evaluation) sees the rounded numbers, too.
    Bf16,
}

/// Which weights train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// All of them.
    #[default]
    Full,
    /// Low-rank adapters.
    Lora,
}

/// Supervised training of the language model: it learns to write the gold passage. Candidates then come from the
/// model that this gives, and DPO starts from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarmUpSettings {
    /// Whether there is a warm-up. The paper has none.
    pub enabled: bool,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// How often every pair is seen.
    pub epochs: f64,
    /// Pairs an optimiser step.
    pub batch_size: usize,
    /// In how many parts a batch is computed.
    pub accumulation: usize,
    /// Most tokens of prompt and passage together.
    pub max_length: usize,
    /// Most tokens of the prompt.
    pub max_prompt_length: usize,
    /// The learning rate's course.
    pub schedule: Shape,
    /// The share of the steps in which the learning rate rises to its largest.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's norm is cut to it; 0 doesn't.
    pub clip: f64,
    /// Rank of the adapters.
    pub lora_rank: usize,
    /// Their scale is `lora_alpha / lora_rank`.
    pub lora_alpha: f64,
    /// Dropout before the adapters.
    pub lora_dropout: f64,
    /// The projections that get an adapter.
    pub target_modules: Vec<String>,
    /// Its own seed; none takes the run's.
    pub seed: Option<u64>,
}

impl Default for WarmUpSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            learning_rate: 1e-4,
            epochs: 1.0,
            batch_size: 16,
            accumulation: 1,
            max_length: 612,
            max_prompt_length: 100,
            schedule: Shape::default(),
            warmup_ratio: 0.05,
            weight_decay: 0.0,
            clip: 1.0,
            lora_rank: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.1,
            target_modules: attention(),
            seed: None,
        }
    }
}

/// Direct preference optimisation of the language model with adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DpoSettings {
    /// β of Eq. 17: how dear it is to leave the reference model.
    pub beta: f64,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// How often every preference is seen.
    pub epochs: f64,
    /// Preferences an optimiser step.
    pub batch_size: usize,
    /// In how many parts a batch is computed.
    pub accumulation: usize,
    /// Most tokens of prompt and completion together.
    pub max_length: usize,
    /// Most tokens of the prompt.
    pub max_prompt_length: usize,
    /// The learning rate's course.
    pub schedule: Shape,
    /// The share of the steps in which the learning rate rises to its largest.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's norm is cut to it; 0 doesn't.
    pub clip: f64,
    /// Rank of the adapters.
    pub lora_rank: usize,
    /// Their scale is `lora_alpha / lora_rank`.
    pub lora_alpha: f64,
    /// Dropout before the adapters.
    pub lora_dropout: f64,
    /// The projections that get an adapter.
    pub target_modules: Vec<String>,
    /// The type of the frozen weights.
    pub precision: Precision,
    /// The type of the adapter's numbers in its file.
    pub saved_as: SavedAs,
    /// Compute activations again in the backward pass instead of keeping them.
    pub checkpoint_activations: bool,
    /// Steps between evaluations on the development part; 0 evaluates at the end of each epoch.
    pub evaluate_every: usize,
    /// Stop after so many evaluations without improvement, and keep the best one's weights; none never stops early.
    pub patience: Option<usize>,
    /// Steps between checkpoints; 0 keeps none.
    pub checkpoint_every: usize,
    /// Its own seed; none takes the run's.
    pub seed: Option<u64>,
}

impl Default for DpoSettings {
    fn default() -> Self {
        Self {
            beta: 0.1,
            learning_rate: 2e-5,
            epochs: 2.0,
            batch_size: 16,
            accumulation: 1,
            max_length: 612,
            max_prompt_length: 100,
            schedule: Shape::default(),
            warmup_ratio: 0.1,
            weight_decay: 0.0,
            clip: 10.0,
            lora_rank: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.1,
            target_modules: attention(),
            precision: Precision::default(),
            saved_as: SavedAs::default(),
            checkpoint_activations: false,
            evaluate_every: 0,
            patience: None,
            checkpoint_every: 100,
            seed: None,
        }
    }
}

/// Contrastive training of the encoder on the averaged vectors of query and expansion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContrastiveSettings {
    /// Whether the encoder is trained. Otherwise every row has it as it is: for an encoder that is as good as it gets.
    pub enabled: bool,
    /// Which weights train.
    pub method: Method,
    /// The largest learning rate.
    pub learning_rate: f64,
    /// How often every pair is seen.
    pub epochs: f64,
    /// Pairs an optimiser step; each pair's positive is a negative for all the others.
    pub batch_size: usize,
    /// Pairs computed at once; the gradient is that of the whole batch (gradient caching).
    pub chunk: usize,
    /// Similarities are divided by it; 1 leaves them as they are.
    pub temperature: f64,
    /// Whether vectors are L2-normalised before they are averaged and compared.
    pub normalize: bool,
    /// The weight of the query's vector; the expansion's is 1 less it (Eq. 8: 0.5).
    pub query_weight: f64,
    /// How likely a query of a step stands alone, without its expansion, as searches do that the gate or the budget
    /// answers without one.
    pub expansion_dropout: f64,
    /// Given negatives a pair that join the in-batch ones.
    pub negatives: usize,
    /// Negatives a query that the untrained encoder finds among the other queries' positives; they join the given ones.
    pub mined_negatives: usize,
    /// They are drawn from this rank on (passages that answer the query don't count) …
    pub mined_from: usize,
    /// … to this one.
    pub mined_to: usize,
    /// Most tokens of a query.
    pub max_query_length: usize,
    /// Most tokens of a document or an expansion.
    pub max_document_length: usize,
    /// The learning rate's course.
    pub schedule: Shape,
    /// The share of the steps in which the learning rate rises to its largest.
    pub warmup_ratio: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient's norm is cut to it; 0 doesn't.
    pub clip: f64,
    /// How far the outcome goes from the weights before training to those after it: 1 is what training found, 0.5 the
    /// mean of both, which forgets less of what the encoder could do before (WiSE-FT, Wortsman et al. 2022).
    pub interpolation: f64,
    /// Trainings, with the seed and those that follow it, whose outcomes' mean is the encoder (model soups, Wortsman et al.
    /// 2022); with `lora` an adapter of so many times the rank.
    pub soup: usize,
    /// `lora`: rank of the adapters.
    pub lora_rank: usize,
    /// `lora`: their scale is `lora_alpha / lora_rank`.
    pub lora_alpha: f64,
    /// `lora`: dropout before the adapters.
    pub lora_dropout: f64,
    /// `lora`: the layers that get an adapter, by the ends of their names; `all-linear` means all of them.
    pub target_modules: Vec<String>,
    /// Compute activations again in the backward pass instead of keeping them.
    pub checkpoint_activations: bool,
    /// Steps between evaluations on the development part; 0 evaluates at the end of each epoch.
    pub evaluate_every: usize,
    /// Stop after so many evaluations without improvement, and keep the best one's weights; none never stops early.
    pub patience: Option<usize>,
    /// Steps between checkpoints; 0 keeps none.
    pub checkpoint_every: usize,
    /// Its own seed; none takes the run's.
    pub seed: Option<u64>,
}

impl Default for ContrastiveSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            method: Method::default(),
            learning_rate: 1e-5,
            epochs: 3.0,
            batch_size: 1024,
            chunk: 32,
            temperature: 1.0,
            normalize: false,
            query_weight: 0.5,
            expansion_dropout: 0.0,
            negatives: 1,
            mined_negatives: 0,
            mined_from: 10,
            mined_to: 100,
            max_query_length: 64,
            max_document_length: 256,
            schedule: Shape::default(),
            warmup_ratio: 0.1,
            weight_decay: 0.0,
            clip: 1.0,
            interpolation: 1.0,
            soup: 1,
            lora_rank: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.1,
            target_modules: vec!["all-linear".into()],
            checkpoint_activations: false,
            evaluate_every: 0,
            patience: None,
            checkpoint_every: 100,
            seed: None,
        }
    }
}

/// PEFT's default for Llama.
fn attention() -> Vec<String> {
    vec!["q_proj".into(), "v_proj".into()]
}
