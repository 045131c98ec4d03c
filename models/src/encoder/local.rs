//! An encoder in this process: a checkpoint behind a queue and its threads.
//!
//! Threads and their order:
//!
//! ```text
//! encode() ── admission ──► tokenizer thread, one a priority ──► queue ──► inference thread ──► answer
//! ```
//!
//! - Admission counts texts; beyond the capacity a call fails at once, so memory is bounded.
//! - A tokenizer thread takes requests in order and passes texts on in pieces, so that the first micro-batch of a
//!   long request starts early. Interactive requests have a thread of their own and never wait behind bulk ones.
//! - The inference thread owns the model. It forms micro-batches that several requests may share, so an interactive
//!   text waits for the micro-batch in progress at most. A panic in it fails the requests of that micro-batch alone.
//!
//! Dropping the encoder ends its threads after the micro-batch in progress.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rayon::prelude::*;
use tokio::sync::oneshot;

use super::{
    Encoder, EncoderInfo, Priority, TextKind,
    bert::BertWeights,
    checkpoint::Checkpoint,
    config::Architecture,
    model::{TextModel, normalize},
    packed::PackedBert,
    padded::PaddedBert,
    queue::{Admission, Places, Queue, Request, Work},
    tokenize::TextTokenizer,
};
use crate::{Error, Pace, Result, device::DeviceChoice};

/// Texts that are tokenised together and then passed on. Longer pieces are sorted better, shorter ones start sooner.
const TOKENIZED_TOGETHER: usize = 128;

/// A micro-batch on a CPU has room for one of the longest texts a thread, so that no thread idles and an interactive
/// text waits for about one long text's time; and for this many tokens at least.
const LEAST_CPU_BATCH_TOKENS: usize = 512;

/// Tokens of a micro-batch, padding included, on an accelerator.
const ACCELERATOR_BATCH_TOKENS: usize = 16_384;

/// How to run an encoder.
#[derive(Clone, Debug)]
pub struct EncoderOptions {
    /// Where it runs.
    pub device: DeviceChoice,
    /// Tokens of a micro-batch; none chooses by device and threads. An interactive text waits for one micro-batch at most.
    pub max_batch_tokens: Option<usize>,
    /// Texts that may wait or be encoded at a time; more are refused.
    pub queue_capacity: usize,
    /// CPU threads for inference, and as many for tokenising; none uses one a core.
    pub threads: Option<usize>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        Self { device: DeviceChoice::Auto, max_batch_tokens: None, queue_capacity: 4096, threads: None }
    }
}

/// Loads the checkpoint in `folder` (sentence-transformers or plain Hugging Face layout) and starts its threads.
/// Reads all weights, so it takes a moment: call it where blocking is allowed.
///
/// # Errors
/// [`Error::Checkpoint`] when a file is missing, damaged or of an unsupported kind; [`Error::Input`] when an option is
/// out of range or the device isn't there.
pub fn load(folder: &Path, options: &EncoderOptions) -> Result<Arc<dyn Encoder>> {
    let threads = options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, |n| n.get()));
    if threads == 0 || options.queue_capacity == 0 || options.max_batch_tokens == Some(0) {
        return Err(Error::Input(
            "encoder: threads, queue capacity and batch tokens must be at least 1".into(),
        ));
    }
    let device = options.device.open()?;
    let checkpoint = Checkpoint::read(folder)?;
    let tokenizer = TextTokenizer::read(&checkpoint)?;
    let Architecture::Bert(config) = &checkpoint.architecture;
    let weights = BertWeights::read(&checkpoint.tensors, config)?;
    let settings = &checkpoint.settings;
    let (model, budget): (Box<dyn TextModel>, _) = if device.is_cpu() {
        let model = PackedBert::new(weights, config.clone(), settings.pooling, threads)?;
        (Box::new(model), LEAST_CPU_BATCH_TOKENS.max(threads * settings.max_length))
    } else {
        let model = PaddedBert::new(weights, config, settings.pooling, device.clone())?;
        (Box::new(model), ACCELERATOR_BATCH_TOKENS)
    };
    let info = EncoderInfo {
        id: checkpoint.id()?,
        dimension: config.hidden_size,
        max_length: settings.max_length,
        pooling: settings.pooling,
        normalize: settings.normalize,
        query_prefix: settings.query_prefix.clone(),
        document_prefix: settings.document_prefix.clone(),
        device: device_name(&device),
    };
    let budget = options.max_batch_tokens.unwrap_or(budget);
    tracing::info!(id = info.id, device = info.device, threads, budget, "encoder loaded");
    let encoder = LocalEncoder::start(info, tokenizer, model, budget, options.queue_capacity, threads)?;
    Ok(Arc::new(encoder))
}

fn device_name(device: &candle_core::Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// A checkpoint behind its queue and threads.
pub(super) struct LocalEncoder {
    info: EncoderInfo,
    admission: Arc<Admission>,
    interactive: mpsc::Sender<Submission>,
    bulk: mpsc::Sender<Submission>,
    queue: Arc<Queue>,
    pace: Arc<Pace>,
}

/// What `encode` hands to a tokenizer thread.
struct Submission {
    kind: TextKind,
    texts: Vec<String>,
    places: Places,
    reply: oneshot::Sender<Result<Vec<Vec<f32>>>>,
}

impl LocalEncoder {
    pub(super) fn start(
        info: EncoderInfo,
        tokenizer: TextTokenizer,
        model: Box<dyn TextModel>,
        budget: usize,
        capacity: usize,
        threads: usize,
    ) -> Result<Self> {
        let failed = |e: &dyn std::fmt::Display| engine_error(format!("its threads don't start: {e}"));
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("tokenizer-{index}"))
            .build()
            .map_err(|e| failed(&e))?;
        let queue = Arc::new(Queue::default());
        let stage = Arc::new(TokenizerStage { tokenizer, pool, queue: queue.clone() });
        let mut senders = Vec::new();
        for (priority, name) in [(Priority::Interactive, "tokenize-first"), (Priority::Bulk, "tokenize-bulk")]
        {
            let (sender, receiver) = mpsc::channel();
            let stage = stage.clone();
            let run = move || receiver.into_iter().for_each(|submission| stage.take(priority, submission));
            thread::Builder::new().name(name.into()).spawn(run).map_err(|e| failed(&e))?;
            senders.push(sender);
        }
        let pace = Arc::new(Pace::default());
        let inference = Inference {
            model,
            normalize: info.normalize,
            dimension: info.dimension,
            budget,
            pace: pace.clone(),
        };
        let worker_queue = queue.clone();
        thread::Builder::new()
            .name("encoder".into())
            .spawn(move || inference.run(&worker_queue))
            .map_err(|e| failed(&e))?;
        let (Some(bulk), Some(interactive)) = (senders.pop(), senders.pop()) else {
            return Err(engine_error("its threads don't start".into()));
        };
        Ok(Self { info, admission: Admission::new(capacity), interactive, bulk, queue, pace })
    }
}

impl Drop for LocalEncoder {
    fn drop(&mut self) {
        // The tokenizer threads end when their senders are dropped with `self`.
        self.queue.close();
    }
}

#[async_trait]
impl Encoder for LocalEncoder {
    fn info(&self) -> &EncoderInfo {
        &self.info
    }

    async fn encode(&self, kind: TextKind, priority: Priority, texts: Vec<String>) -> Result<Vec<Vec<f32>>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let places = self.admission.admit(priority, texts.len())?;
        let (reply, answer) = oneshot::channel();
        let submission = Submission { kind, texts, places, reply };
        let sender = match priority {
            Priority::Interactive => &self.interactive,
            Priority::Bulk => &self.bulk,
        };
        let ended = |_| engine_error("its thread has ended".into());
        sender.send(submission).map_err(|_| engine_error("its thread has ended".into()))?;
        answer.await.map_err(ended)?
    }

    fn queued(&self) -> usize {
        self.admission.admitted()
    }

    fn expected_wait(&self) -> Duration {
        self.pace.time_for(self.admission.interactive())
    }
}

/// What both tokenizer threads share.
struct TokenizerStage {
    tokenizer: TextTokenizer,
    pool: rayon::ThreadPool,
    queue: Arc<Queue>,
}

impl TokenizerStage {
    /// Tokenises a request piece by piece and queues the pieces, the longest text of each first: texts of similar
    /// length then share a micro-batch.
    fn take(&self, priority: Priority, submission: Submission) {
        let Submission { kind, texts, places, reply } = submission;
        let request = Request::new(texts.len(), places, reply);
        let mut offset = 0;
        for piece in texts.chunks(TOKENIZED_TOGETHER) {
            if request.abandoned() {
                return;
            }
            match self.tokenize(kind, piece) {
                Ok(ids) => {
                    let mut numbered: Vec<_> = ids.into_iter().enumerate().collect();
                    numbered.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
                    let work = |(index, ids)| Work::new(request.clone(), offset + index, ids);
                    self.queue.push(priority, numbered.into_iter().map(work));
                }
                Err(error) => return request.fail(error),
            }
            offset += piece.len();
        }
    }

    fn tokenize(&self, kind: TextKind, texts: &[String]) -> Result<Vec<Vec<u32>>> {
        let all = || match texts {
            [text] => Ok(vec![self.tokenizer.ids(kind, text)?]),
            texts => {
                self.pool.install(|| texts.par_iter().map(|text| self.tokenizer.ids(kind, text)).collect())
            }
        };
        catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(|panic| {
            Err(engine_error(format!("its tokenizer panicked: {}", panic_message(&*panic))))
        })
    }
}

/// What the inference thread owns.
struct Inference {
    model: Box<dyn TextModel>,
    normalize: bool,
    dimension: usize,
    budget: usize,
    pace: Arc<Pace>,
}

impl Inference {
    fn run(mut self, queue: &Queue) {
        while let Some((priority, batch)) = queue.next_batch(self.budget, |batch| self.model.cost(batch)) {
            let texts: Vec<&[u32]> = batch.iter().map(|work| work.ids.as_slice()).collect();
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| self.model.vectors(&texts)));
            if priority == Priority::Interactive {
                self.pace.note(texts.len(), start.elapsed());
            }
            let result = result.unwrap_or_else(|panic| {
                let message = panic_message(&*panic);
                tracing::error!(message, "the encoder panicked; its micro-batch failed");
                Err(engine_error(format!("it panicked: {message}")))
            });
            match result {
                Ok(vectors) => self.deliver(batch, vectors),
                Err(error) => {
                    let detail = error.to_string();
                    batch.into_iter().for_each(|work| work.fail(engine_error(detail.clone())));
                }
            }
        }
    }

    fn deliver(&self, batch: Vec<Work>, vectors: Vec<Vec<f32>>) {
        let mut vectors = vectors.into_iter();
        for work in batch {
            let mut vector = vectors.next().unwrap_or_default();
            if self.normalize {
                normalize(&mut vector);
            }
            if vector.len() == self.dimension && vector.iter().all(|value| value.is_finite()) {
                work.fulfil(vector);
            } else {
                let detail =
                    "a vector is not finite; the checkpoint's weights may be damaged or need a wider type";
                work.fail(engine_error(detail.into()));
            }
        }
    }
}

fn engine_error(detail: String) -> Error {
    Error::Engine { what: "encoder", detail }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}
