//! mistralrs in process: a Hugging Face directory or a GGUF file.
//!
//! Threads and tasks: mistralrs runs its engine on a thread of its own, which takes requests from a channel. For every
//! generation a task of ours reads the engine's stream to its end (the engine waits for slow readers, so that nobody else
//! may be the reader) and hands the pieces on. A generation's place is given back by the engine itself, when it drops the
//! sequence: on a CPU, where two sequences in flight would corrupt each other's text, the next one starts only when the
//! last one is really gone.

mod load;
mod rider;
mod run;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use tokenizers::Tokenizer;
use tokio::sync::mpsc;

pub use load::load;

use self::run::Run;
use super::{Expander, ExpanderInfo, GenerationRequest, GenerationStream, SpecialTokens, gate::Gate};
use crate::{DeviceChoice, Error, Result};

const ENGINE: &str = "mistralrs";
/// Pieces that may wait for a slow reader.
const STREAM_CAPACITY: usize = 32;
/// Tokens that may join differently where the template meets the prompt.
const SEAM_TOKENS: usize = 2;

/// The number format that the weights are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32-bit floating point; the only one that a CPU computes in.
    F32,
    /// 16-bit floating point.
    F16,
    /// 16-bit brain floating point.
    Bf16,
}

/// How a model is loaded and run.
#[derive(Clone, Debug)]
pub struct MistralOptions {
    /// Where it runs.
    pub device: DeviceChoice,
    /// The weights' format; chosen by the device when none (f32 on a CPU). A GGUF file has its own.
    pub format: Option<WeightFormat>,
    /// Quantises the weights of a Hugging Face directory while loading (`Q4K`, `Q8_0`, `4`, …).
    pub isq: Option<String>,
    /// Generations at once on an accelerator. On a CPU it is always one.
    pub max_concurrency: usize,
    /// Generations that may wait.
    pub queue_capacity: usize,
    /// Paged attention on CUDA, so that sequences of different lengths share a batch.
    pub paged_attention: bool,
}

impl Default for MistralOptions {
    fn default() -> Self {
        Self {
            device: DeviceChoice::Auto,
            format: None,
            isq: None,
            max_concurrency: 32,
            queue_capacity: 256,
            paged_attention: true,
        }
    }
}

/// A language model in this process.
pub struct MistralExpander {
    model: Arc<::mistralrs::Model>,
    path: PathBuf,
    special: SpecialTokens,
    budget: Budget,
    gate: Gate,
    alive: Arc<AtomicBool>,
    info: ExpanderInfo,
}

/// What fits into the model's context.
struct Budget {
    /// Counts the prompt's tokens; without one, a byte counts as a token.
    tokenizer: Option<Tokenizer>,
    /// Tokens of the chat template around an empty prompt.
    template_tokens: usize,
    /// Prompt and passage together.
    context: usize,
}

impl Budget {
    /// How many tokens may be written after `prompt`, at most `wanted`.
    fn allow(&self, prompt: &str, wanted: usize) -> Result<usize> {
        let tokens = match &self.tokenizer {
            Some(tokenizer) => {
                let encoded = tokenizer.encode_fast(prompt, false);
                encoded
                    .map_err(|error| Error::Input(format!("the prompt can't be tokenised: {error}")))?
                    .len()
            }
            None => prompt.len(),
        };
        let used = tokens + self.template_tokens + SEAM_TOKENS;
        match self.context.checked_sub(used) {
            Some(room) if room > 0 => Ok(wanted.min(room)),
            _ => Err(Error::Input(format!(
                "the prompt takes {used} tokens with the chat template; the model's context has {}: shorten the query",
                self.context
            ))),
        }
    }
}

impl MistralExpander {
    /// Whether the engine answered last time. A dead engine is started anew by the next generation.
    pub fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// Where the weights are.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

#[async_trait]
impl Expander for MistralExpander {
    fn info(&self) -> &ExpanderInfo {
        &self.info
    }

    async fn generate(&self, request: GenerationRequest) -> Result<GenerationStream> {
        let prompt = self.special.neutralise(&request.prompt).into_owned();
        let mut sampling = request.sampling;
        if sampling.max_tokens == 0 {
            return Err(Error::Input("max_tokens is 0; ask for at least one token".into()));
        }
        sampling.max_tokens = self.budget.allow(&prompt, sampling.max_tokens)?;
        let place = self.gate.enter().await?;
        let (events, stream) = mpsc::channel(STREAM_CAPACITY);
        let run = Run { model: Arc::clone(&self.model), alive: Arc::clone(&self.alive), events, sampling };
        tokio::spawn(run.generate(prompt, place));
        Ok(GenerationStream::new(stream))
    }

    fn running(&self) -> usize {
        self.gate.running()
    }

    fn waiting(&self) -> usize {
        self.gate.waiting()
    }
}

fn engine_error(detail: impl Into<String>) -> Error {
    Error::Engine { what: ENGINE, detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_and_the_passage_gets_the_rest() {
        let budget = Budget { tokenizer: None, template_tokens: 8, context: 100 };
        assert_eq!(budget.allow(&"a".repeat(50), 20).unwrap(), 20);
        assert_eq!(budget.allow(&"a".repeat(80), 20).unwrap(), 10);
        let error = budget.allow(&"a".repeat(90), 20).unwrap_err().to_string();
        assert!(error.contains("takes 100 tokens") && error.contains("shorten the query"), "{error}");
    }
}
