//! A language model on a CPU that writes many passages at once.
//!
//! On a CPU a step of a language model takes the time in which its weights are read from memory, and the same step for
//! thirty sequences takes little longer. [`Decoder`] runs whatever is asked of it in common steps: requests join between two
//! steps and leave when they end or when nobody listens any more. A passage is the same, to the last bit of its logits,
//! alone and in any company. In reading order:
//!
//! - `config`: what a folder says; `weights`: the matrices, arranged for products; `adapter`: what LoRA puts beside them;
//!   `chat` and `text`: from a message to tokens and back.
//! - `cache`: keys and values; `prefixes`: those of what prompts begin with; `attention`, `kernels`, `model`: one step.
//! - `engine`: the thread, and who is in the next step.

mod adapter;
mod attention;
mod cache;
mod chat;
pub(crate) mod config;
mod engine;
mod kernels;
mod model;
mod prefixes;
#[cfg(test)]
mod tests;
pub(crate) mod text;
mod weights;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use futures::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;

pub(crate) use self::config::is_supported;
use self::{
    cache::BLOCK_TOKENS,
    config::DecoderConfig,
    engine::{Counted, Engine, Job, Sample},
    model::Model,
    text::Text,
};
pub use crate::cpu::Precision;
use crate::{
    Error, Result,
    cpu::Team,
    expander::{Generation, GenerationStream, Sampling},
    trainable::AdapterFile,
};

const ENGINE: &str = "batched";

/// How a decoder runs.
#[derive(Clone, Debug)]
pub struct DecoderOptions {
    /// Passages written at once.
    pub places: usize,
    /// Passages that may wait for a place.
    pub queue_capacity: usize,
    /// Tokens of a prompt and its passage together, at most; the model's own limit where that is less. Memory for keys
    /// and values is at most `places` + 1 times this many tokens, and `prefix_tokens` ([`Decoder::cache_bytes`]); what is not used is not
    /// allocated.
    pub context: usize,
    /// Tokens of prompts' beginnings that are kept, so that prompts which begin alike are read from where they part.
    pub prefix_tokens: usize,
    /// Tokens that go through the model in one step at most, of running passages and new prompts together. More is
    /// faster for prompts, and makes those that run wait longer for their next token.
    pub step_tokens: usize,
    /// How exactly the weights are kept.
    pub precision: Precision,
    /// A folder with a LoRA adapter in PEFT's layout that is applied beside the weights.
    pub adapter: Option<PathBuf>,
    /// Threads that compute.
    pub threads: usize,
}

impl Default for DecoderOptions {
    fn default() -> Self {
        Self {
            places: 32,
            queue_capacity: 256,
            context: 8192,
            prefix_tokens: 1024,
            step_tokens: 128,
            precision: Precision::Exact,
            adapter: None,
            threads: thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// A language model on its own thread. Dropping it ends the thread when everything under way has ended.
pub struct Decoder {
    jobs: mpsc::Sender<Job>,
    text: Arc<Text>,
    taken: Arc<AtomicUsize>,
    waiting: Arc<AtomicUsize>,
    /// Waiting or running.
    present: Arc<AtomicUsize>,
    places: usize,
    queue_capacity: usize,
    context: usize,
    cache_bytes: usize,
    weight_bytes: usize,
}

impl Decoder {
    /// Loads the Hugging Face folder at `path` (llama or qwen2; safetensors in f32, f16 or bf16; tokenizer.json; a chat
    /// template) and starts its thread. Blocks for seconds.
    ///
    /// # Errors
    /// When the checkpoint is incomplete, damaged, or of another architecture, and when the adapter belongs to another.
    pub fn load(path: &Path, options: &DecoderOptions) -> Result<Self> {
        let mut config = DecoderConfig::read(path)?;
        let text = Arc::new(Text::read(path, &config)?);
        // A fine-tuned model may end its turn with a token that only its tokenizer names, as training does.
        config.end_tokens.extend(text.end_token());
        let team = Team::new(options.threads.max(1), "decoder")
            .map_err(|error| engine_error(format!("its threads don't start: {error}")))?;
        let adapter = options.adapter.as_deref().map(AdapterFile::read).transpose()?;
        let model = Model::read(path, config, options.precision, adapter.as_ref(), team)?;
        let context = options.context.min(model.config.context);
        let places = options.places.max(1);
        let weight_bytes = model.bytes();
        let prefix_blocks = options.prefix_tokens.div_ceil(BLOCK_TOKENS);
        let blocks = (places + 1) * context.div_ceil(BLOCK_TOKENS) + prefix_blocks;
        let cache_bytes = blocks * model.shape().block_bytes();
        let (jobs, receiver) = mpsc::channel();
        let taken = Arc::new(AtomicUsize::new(0));
        let engine = Engine {
            model,
            text: Arc::clone(&text),
            jobs: receiver,
            places,
            prefix_blocks,
            step_tokens: options.step_tokens.max(1),
            taken: Arc::clone(&taken),
        };
        thread::Builder::new()
            .name("decoder".into())
            .spawn(move || engine.run())
            .map_err(|error| engine_error(format!("its thread doesn't start: {error}")))?;
        Ok(Self {
            jobs,
            text,
            taken,
            waiting: Arc::default(),
            present: Arc::default(),
            places,
            queue_capacity: options.queue_capacity,
            context,
            cache_bytes,
            weight_bytes,
        })
    }

    /// One passage; returns when it has a place. Dropping the future gives up the wait.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when as many wait as may, [`Error::Input`] when the prompt leaves no room for a passage,
    /// [`Error::Engine`] when the thread has ended.
    pub async fn generate(&self, prompt: &str, sampling: Sampling) -> Result<GenerationStream> {
        let _waiter = Counted::new(&self.waiting);
        let (started, starts) = oneshot::channel();
        let mut streams = self.submit(prompt, &[sampling], Some(started))?;
        starts.await.map_err(|_| thread_ended())?;
        streams.pop().ok_or_else(thread_ended)
    }

    /// As many passages of one prompt as there are samplings, in their order. The prompt is read once for all of them.
    /// Each stream begins when its passage gets a place, and all of them may be read in any order.
    ///
    /// # Errors
    /// As [`Decoder::generate`].
    pub fn sample(&self, prompt: &str, samplings: &[Sampling]) -> Result<Vec<GenerationStream>> {
        self.submit(prompt, samplings, None)
    }

    /// The passages of many prompts, each with its samplings, in their order: what training generates candidates with. As
    /// many prompts are under way as keep all places busy.
    ///
    /// # Errors
    /// The first that occurs, as [`Decoder::generate`]; the rest is given up.
    pub async fn generate_many(&self, wanted: &[(String, Vec<Sampling>)]) -> Result<Vec<Vec<Generation>>> {
        let samples = wanted.iter().map(|(_, samplings)| samplings.len()).max().unwrap_or(1).max(1);
        let under_way = self.places.div_ceil(samples) + 1;
        let passages = |(prompt, samplings): &'_ (String, Vec<Sampling>)| {
            let streams = self.sample(prompt, samplings);
            async move {
                let streams = streams?.into_iter().map(|stream| stream.collect_until(None));
                futures::future::try_join_all(streams).await
            }
        };
        futures::stream::iter(wanted).map(passages).buffered(under_way).try_collect().await
    }

    /// Passages that are being written, or whose prompt is being read.
    pub fn running(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Passages that wait for a place.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Passages written at once.
    pub fn places(&self) -> usize {
        self.places
    }

    /// The most memory that keys and values take.
    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// The memory that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    /// The tokens of the whole prompt, chat template included, that a user's message becomes.
    ///
    /// # Errors
    /// When the chat template or the tokenizer refuses the message.
    pub fn prompt_tokens(&self, message: &str) -> Result<Vec<u32>> {
        self.text.prompt(message)
    }

    fn admit(&self, count: usize) -> Result<Vec<Counted>> {
        let capacity = self.places + self.queue_capacity;
        Counted::within(&self.present, count, capacity).ok_or_else(|| Error::Overloaded {
            what: "expander",
            detail: format!(
                "{} generations run or wait, and {capacity} may; try again later",
                self.present.load(Ordering::SeqCst)
            ),
        })
    }

    fn submit(
        &self,
        prompt: &str,
        samplings: &[Sampling],
        mut started: Option<oneshot::Sender<()>>,
    ) -> Result<Vec<GenerationStream>> {
        let prompt = self.text.prompt(prompt)?;
        let room = self.context.saturating_sub(prompt.len());
        if room == 0 {
            return Err(Error::Input(format!(
                "the prompt takes {} tokens with the chat template; the model's context has {}: shorten the query",
                prompt.len(),
                self.context
            )));
        }
        if samplings.iter().any(|sampling| sampling.max_tokens == 0) {
            return Err(Error::Input("max_tokens is 0; ask for at least one token".into()));
        }
        let presences = self.admit(samplings.len())?;
        let (mut samples, mut streams) = (VecDeque::new(), Vec::new());
        for (sampling, presence) in samplings.iter().zip(presences) {
            let sampling = Sampling { max_tokens: sampling.max_tokens.min(room), ..*sampling };
            // A piece a token, and the end.
            let (events, stream) = tokio::sync::mpsc::channel(sampling.max_tokens + 1);
            let started = started.take();
            // Whoever waits for the start counts the wait itself, and may give it up.
            let waiter = started.is_none().then(|| Counted::new(&self.waiting));
            samples.push_back(Sample { sampling, events, started, waiter, presence });
            streams.push(GenerationStream::new(stream));
        }
        if !samples.is_empty() {
            self.jobs.send(Job { prompt, samples }).map_err(|_| thread_ended())?;
        }
        Ok(streams)
    }
}

fn engine_error(detail: impl Into<String>) -> Error {
    Error::Engine { what: ENGINE, detail: detail.into() }
}

fn thread_ended() -> Error {
    engine_error("its thread has ended; load the model again")
}
