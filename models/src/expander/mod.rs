//! The expander Θ: a language model that writes the passage which would answer a query.

pub mod batched;
mod clean;
mod gate;
#[cfg(feature = "mistralrs")]
pub mod mistral;
pub mod openai;
mod prompt;
mod sampler;
mod sse;

use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use tokio::{sync::mpsc, time::Instant};
use utoipa::ToSchema;

#[cfg(any(test, feature = "testing"))]
pub(crate) use self::gate::{Gate, Place};
pub(crate) use self::sampler::Draw;
pub use self::{
    clean::{behind_query, clean},
    prompt::{PromptTemplate, Q2A, Q2D, SpecialTokens},
};
use crate::{Error, Result};

/// Most passages of one query.
pub const MAX_EXPANSIONS: usize = 8;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// 0 is greedy; 1 samples from the model's own distribution.
    pub temperature: f32,
    /// Nucleus: draw from the smallest set of tokens whose probabilities sum to this (0 < top_p ≤ 1).
    pub top_p: f32,
    /// Makes a sample repeatable, where the engine honours it ([`ExpanderInfo::honours_seed`]).
    pub seed: Option<u64>,
}

impl Sampling {
    /// Greedy decoding of at most `max_tokens` tokens.
    pub fn greedy(max_tokens: usize) -> Self {
        Self { max_tokens, temperature: 0.0, top_p: 1.0, seed: None }
    }
}

/// One passage to write.
#[derive(Clone, Debug)]
pub struct GenerationRequest {
    /// The user's message; the engine puts the model's chat template around it. Special tokens in it are text.
    pub prompt: String,
    /// How tokens are drawn.
    pub sampling: Sampling,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn.
    Stop,
    /// `max_tokens` were written.
    Length,
}

/// What arrives on a [`GenerationStream`].
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// The next piece of text (possibly empty) and how many tokens it stands for.
    Text {
        /// The piece.
        text: String,
        /// Tokens behind it.
        tokens: usize,
    },
    /// The last event of a stream that ended well. A stream that ends without it has failed.
    Finished(FinishReason),
}

/// What an expander says about itself.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ExpanderInfo {
    /// `mistralrs`, `openai` or `double`.
    pub engine: &'static str,
    /// Names the weights: `<folder or file name>@<first 12 hex digits of a sha256>`, or the remote server's model name.
    pub id: String,
    /// Whether the same seed gives the same sample.
    pub honours_seed: bool,
    /// Generations that run at once; further ones wait.
    pub concurrency: usize,
    /// Where it runs, e.g. `cpu`, `cuda:0`, or the remote server's URL (without credentials).
    pub device: String,
}

/// The receiving end of one generation. Dropping it stops the generation and frees its place.
#[derive(Debug)]
pub struct GenerationStream {
    events: mpsc::Receiver<Result<StreamEvent>>,
}

/// A finished or cut generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generation {
    /// The text so far, as the model wrote it (not cleaned).
    pub text: String,
    /// Tokens behind it.
    pub output_tokens: usize,
    /// Why it ended; none when the deadline cut it.
    pub finish_reason: Option<FinishReason>,
    /// From the request to the first piece of text.
    pub time_to_first_token: Option<Duration>,
}

impl GenerationStream {
    /// A stream fed by an engine. The engine notices that nobody listens any more when its send fails or
    /// `Sender::closed` resolves.
    pub fn new(events: mpsc::Receiver<Result<StreamEvent>>) -> Self {
        Self { events }
    }

    /// The next event; none when the engine has closed the stream.
    pub async fn next(&mut self) -> Option<Result<StreamEvent>> {
        self.events.recv().await
    }

    /// Reads until the generation ends or `deadline` passes; in the latter case the text so far comes back with
    /// no finish reason, and the generation stops.
    ///
    /// # Errors
    /// When the engine fails, and when the stream ends without a finish reason.
    pub async fn collect_until(mut self, deadline: Option<Instant>) -> Result<Generation> {
        let start = Instant::now();
        let mut generation = Generation::default();
        loop {
            let event = match deadline {
                Some(deadline) => match tokio::time::timeout_at(deadline, self.events.recv()).await {
                    Ok(event) => event,
                    Err(_elapsed) => return Ok(generation),
                },
                None => self.events.recv().await,
            };
            match event {
                Some(Ok(StreamEvent::Text { text, tokens })) => {
                    if generation.time_to_first_token.is_none() {
                        generation.time_to_first_token = Some(start.elapsed());
                    }
                    generation.text.push_str(&text);
                    generation.output_tokens += tokens;
                }
                Some(Ok(StreamEvent::Finished(reason))) => {
                    generation.finish_reason = Some(reason);
                    return Ok(generation);
                }
                Some(Err(error)) => return Err(error),
                None => {
                    return Err(Error::Engine {
                        what: "expander",
                        detail: "the stream ended without a finish reason".into(),
                    });
                }
            }
        }
    }
}

/// Writes passages. Implementations queue inside; the stream starts when a place is free.
#[async_trait]
pub trait Expander: Send + Sync {
    /// What this expander is.
    fn info(&self) -> &ExpanderInfo;

    /// Waits for a place and starts a generation. Dropping the future gives up the wait; dropping the stream
    /// stops the generation.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when the queue is full, [`Error::Engine`] when the engine can't start.
    async fn generate(&self, request: GenerationRequest) -> Result<GenerationStream>;

    /// Generations that run now.
    fn running(&self) -> usize;

    /// Generations that wait for a place.
    fn waiting(&self) -> usize;
}
