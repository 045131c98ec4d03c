//! A scripted expander: deterministic text, chosen speed, chosen failures, and counts of what happened.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::{
    Error, Result,
    expander::{
        Expander, ExpanderInfo, FinishReason, Gate, GenerationRequest, GenerationStream, Place, Sampling,
        SpecialTokens, StreamEvent,
    },
};

/// How the double behaves.
#[derive(Clone, Debug)]
pub struct Script {
    /// From the start of a generation to its first token.
    pub first_token_delay: Duration,
    /// From one token to the next.
    pub token_delay: Duration,
    /// Generations at once.
    pub concurrency: usize,
    /// Generations that may wait.
    pub queue_capacity: usize,
    /// What goes wrong.
    pub failure: ScriptedFailure,
    /// Tokens before the model ends its turn, between this and half as many more, depending on the prompt.
    pub natural_length: usize,
}

impl Default for Script {
    /// As fast as can be, 4 at once, 1,024 waiting, no failure, 24 to 36 tokens.
    fn default() -> Self {
        Self {
            first_token_delay: Duration::ZERO,
            token_delay: Duration::ZERO,
            concurrency: 4,
            queue_capacity: 1024,
            failure: ScriptedFailure::None,
            natural_length: 24,
        }
    }
}

/// What goes wrong with every generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptedFailure {
    /// Nothing.
    None,
    /// `generate` fails.
    Start,
    /// `generate` says that the expander is overloaded.
    Overloaded,
    /// An error comes after so many tokens.
    After(usize),
    /// The stream ends after so many tokens, without a finish reason.
    Cut(usize),
    /// The model ends its turn at once.
    Empty,
    /// Nothing ever comes.
    Hang,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScriptedCounts {
    /// Generations that got a place.
    pub started: usize,
    /// Those that ended with a finish reason.
    pub finished: usize,
    /// Those whose stream was dropped before.
    pub cancelled: usize,
    /// Those that failed as the script says.
    pub failed: usize,
    /// Tokens written, all generations together.
    pub tokens: usize,
}

/// An expander without a model. A token is a word. The text is the same for the same prompt when decoding is greedy or
/// has a seed; it is made of words of the prompt and of a fixed vocabulary. Special tokens that reach the "model" end
/// its prompt there, as they would for a real one; they don't, for they are neutralised.
#[derive(Debug)]
pub struct ScriptedExpander {
    gate: Gate,
    info: ExpanderInfo,
    script: Mutex<Script>,
    special: SpecialTokens,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    started: AtomicUsize,
    finished: AtomicUsize,
    cancelled: AtomicUsize,
    failed: AtomicUsize,
    tokens: AtomicUsize,
    unseeded: AtomicUsize,
}

impl ScriptedExpander {
    /// A double that behaves as `script` says.
    pub fn new(script: Script) -> Self {
        let info = ExpanderInfo {
            engine: "double",
            id: "scripted@000000000000".into(),
            honours_seed: true,
            concurrency: script.concurrency,
            device: "none".into(),
        };
        Self {
            gate: Gate::new(script.concurrency, script.queue_capacity),
            info,
            script: Mutex::new(script),
            special: SpecialTokens::common(),
            counters: Arc::default(),
        }
    }

    /// Changes what goes wrong, for generations that start from now on.
    pub fn set_failure(&self, failure: ScriptedFailure) {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).failure = failure;
    }

    /// What happened so far.
    pub fn counts(&self) -> ScriptedCounts {
        let read = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        ScriptedCounts {
            started: read(&self.counters.started),
            finished: read(&self.counters.finished),
            cancelled: read(&self.counters.cancelled),
            failed: read(&self.counters.failed),
            tokens: read(&self.counters.tokens),
        }
    }

    /// The text that a greedy generation for `prompt` with at most `max_tokens` tokens gives.
    pub fn text_for(&self, prompt: &str, max_tokens: usize) -> String {
        let script = self.script.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let request = GenerationRequest { prompt: prompt.into(), sampling: Sampling::greedy(max_tokens) };
        let (words, _) = self.plan(&request, &script);
        words.concat()
    }

    /// The tokens to write and why they end.
    fn plan(&self, request: &GenerationRequest, script: &Script) -> (Vec<String>, FinishReason) {
        let prompt = self.special.neutralise(&request.prompt);
        // What a model would see: nothing after a special token.
        let seen = prompt.split("<|").next().unwrap_or_default();
        let sampling = &request.sampling;
        let drawn = match sampling.seed {
            _ if sampling.temperature == 0.0 => 0,
            Some(seed) => seed.wrapping_add(1),
            None => u64::MAX - self.counters.unseeded.fetch_add(1, Ordering::SeqCst) as u64,
        };
        let seed = hash_of(&(seen, drawn));
        let natural_length = script.natural_length + (seed % (script.natural_length as u64 / 2 + 1)) as usize;
        let own_words: Vec<&str> =
            seen.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3).collect();
        let length = natural_length.min(sampling.max_tokens);
        let words = (0..length).map(|index| {
            let draw = hash_of(&(seed, index)) as usize;
            let word = match own_words.get(draw % (2 * own_words.len().max(1))) {
                Some(word) => *word,
                None => VOCABULARY[draw % VOCABULARY.len()],
            };
            if index == 0 { word.to_owned() } else { format!(" {word}") }
        });
        let reason =
            if natural_length <= sampling.max_tokens { FinishReason::Stop } else { FinishReason::Length };
        (words.collect(), reason)
    }
}

#[async_trait]
impl Expander for ScriptedExpander {
    fn info(&self) -> &ExpanderInfo {
        &self.info
    }

    async fn generate(&self, request: GenerationRequest) -> Result<GenerationStream> {
        let place = self.gate.enter().await?;
        let script = self.script.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.counters.started.fetch_add(1, Ordering::SeqCst);
        let failure = match script.failure {
            ScriptedFailure::Start => Some(scripted_error("it does not start")),
            ScriptedFailure::Overloaded => {
                Some(Error::Overloaded { what: "expander", detail: "as scripted".into() })
            }
            _ => None,
        };
        if let Some(error) = failure {
            self.counters.failed.fetch_add(1, Ordering::SeqCst);
            return Err(error);
        }
        let (words, reason) = self.plan(&request, &script);
        let (events, stream) = mpsc::channel(1);
        tokio::spawn(write(script, words, reason, events, Arc::clone(&self.counters), place));
        Ok(GenerationStream::new(stream))
    }

    fn running(&self) -> usize {
        self.gate.running()
    }

    fn waiting(&self) -> usize {
        self.gate.waiting()
    }
}

/// Writes one generation, and stops when nobody listens any more.
async fn write(
    script: Script,
    words: Vec<String>,
    reason: FinishReason,
    events: mpsc::Sender<Result<StreamEvent>>,
    counters: Arc<Counters>,
    place: Place,
) {
    let add = |counter: &AtomicUsize| counter.fetch_add(1, Ordering::SeqCst);
    let playing = play(&script, words, &events, &counters.tokens);
    let played = tokio::select! {
        () = events.closed() => None,
        played = playing => played,
    };
    // Counted, and the place free, before the reader learns of the end.
    match &played {
        None => add(&counters.cancelled),
        Some(Ok(true)) => add(&counters.finished),
        Some(_) => add(&counters.failed),
    };
    drop(place);
    let last = match played {
        None | Some(Ok(false)) => return,
        Some(Ok(true)) if script.failure == ScriptedFailure::Empty => {
            Ok(StreamEvent::Finished(FinishReason::Stop))
        }
        Some(Ok(true)) => Ok(StreamEvent::Finished(reason)),
        Some(Err(error)) => Err(error),
    };
    let _nobody_listens = events.send(last).await;
}

/// Whether a finish reason follows; none when nobody listens any more.
async fn play(
    script: &Script,
    words: Vec<String>,
    events: &mpsc::Sender<Result<StreamEvent>>,
    tokens: &AtomicUsize,
) -> Option<Result<bool>> {
    pause(script.first_token_delay).await;
    for (index, text) in words.into_iter().enumerate() {
        match script.failure {
            ScriptedFailure::After(count) if index >= count => return Some(Err(scripted_error("it breaks"))),
            ScriptedFailure::Cut(count) if index >= count => return Some(Ok(false)),
            ScriptedFailure::Empty => return Some(Ok(true)),
            ScriptedFailure::Hang => std::future::pending::<()>().await,
            _ => {}
        }
        if index > 0 {
            pause(script.token_delay).await;
        }
        tokens.fetch_add(1, Ordering::SeqCst);
        events.send(Ok(StreamEvent::Text { text, tokens: 1 })).await.ok()?;
    }
    Some(Ok(true))
}

async fn pause(delay: Duration) {
    if delay.is_zero() { tokio::task::yield_now().await } else { tokio::time::sleep(delay).await }
}

fn scripted_error(detail: &str) -> Error {
    Error::Engine { what: "double", detail: detail.into() }
}

fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

const VOCABULARY: &[&str] = &[
    "the",
    "of",
    "and",
    "is",
    "which",
    "known",
    "often",
    "because",
    "passage",
    "system",
    "study",
    "result",
    "process",
    "water",
    "light",
    "energy",
    "history",
    "method",
    "large",
    "small",
    "between",
    "during",
    "called",
    "form",
    "part",
    "number",
    "century",
    "species",
    "structure",
    "example",
    "theory",
    "measure",
];
