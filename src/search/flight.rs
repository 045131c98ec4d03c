//! The expansion cache, and single flight: identical queries in flight share one generation.
//!
//! A flight lives as long as somebody waits for it: when the last waiter gives up (client gone, deadline), its
//! task is aborted, which drops the generation stream, which stops the language model. Waiters with different deadlines
//! each take what is there when theirs passes.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Weak},
    time::Duration,
};

use expandr_models::{
    Error, Expander, FinishReason, GenerationRequest, GenerationStream, Sampling, StreamEvent, TraceContext,
};
use moka::future::Cache;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use tracing::Instrument;

use super::{
    forecast::{Forecast, Wanted, Writing},
    watch::Pieces,
};
use crate::traces;

/// What two requests must have in common to share a passage.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlightKey {
    bundle: Arc<str>,
    prompt: String,
    max_tokens: usize,
    temperature_bits: u32,
    top_p_bits: u32,
    seed: Option<u64>,
    /// Which of several samples of one query.
    sample: usize,
}

impl FlightKey {
    /// The key of the `sample`-th passage that `bundle` writes for `prompt`.
    pub fn new(bundle: &Arc<str>, prompt: String, sampling: &Sampling, sample: usize) -> Self {
        Self {
            bundle: bundle.clone(),
            prompt,
            max_tokens: sampling.max_tokens,
            temperature_bits: sampling.temperature.to_bits(),
            top_p_bits: sampling.top_p.to_bits(),
            seed: sampling.seed,
            sample,
        }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.prompt.len()
    }
}

/// A passage as the language model wrote it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Written {
    /// The text, not cleaned.
    pub text: String,
    /// Tokens behind it.
    pub output_tokens: usize,
    /// From the start of the flight (its wait for a place included) to the first token.
    pub first_token: Option<Duration>,
}

/// What a waiter gets.
#[derive(Clone, Debug)]
pub enum Landing {
    /// The whole passage was in the cache.
    Cached(Arc<Written>),
    /// The passage was finished in time.
    Finished(Written),
    /// The deadline passed; this much is there.
    Cut(Written),
    /// No place for it.
    Overloaded(String),
    /// The engine failed.
    Failed(String),
}

#[derive(Default)]
struct FlightState {
    written: Written,
    outcome: Option<Outcome>,
}

#[derive(Clone)]
enum Outcome {
    Finished,
    Overloaded(String),
    Failed(String),
}

struct Flight {
    state: watch::Receiver<FlightState>,
    task: AbortHandle,
    key: FlightKey,
    flights: Weak<FlightMap>,
}

type FlightMap = Mutex<HashMap<FlightKey, Weak<Flight>>>;

impl Drop for Flight {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(flights) = self.flights.upgrade() {
            let mut flights = flights.lock();
            if flights.get(&self.key).is_some_and(|flight| flight.strong_count() == 0) {
                flights.remove(&self.key);
            }
        }
    }
}

/// How a waiter came to its flight, for the cache's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boarding {
    /// From the cache.
    Hit,
    /// With a generation that was under way.
    Joined,
    /// With a new generation.
    Started,
    /// Not at all: a new generation would come too late.
    Refused,
}

/// The cache and the flights.
pub struct Flights {
    cache: Cache<FlightKey, Arc<Written>>,
    flights: Arc<FlightMap>,
    forecast: Arc<Forecast>,
}

impl Flights {
    /// A cache of at most `cache_bytes` bytes (0 switches it off) whose passages are forgotten after
    /// `time_to_live`.
    pub fn new(cache_bytes: u64, time_to_live: Duration) -> Self {
        let cache = Cache::builder()
            .max_capacity(cache_bytes)
            .weigher(|key: &FlightKey, written: &Arc<Written>| {
                u32::try_from(key.bytes() + size_of::<Written>() + written.text.len()).unwrap_or(u32::MAX)
            })
            .time_to_live(time_to_live)
            .support_invalidation_closures()
            .build();
        Self { cache, flights: Arc::default(), forecast: Arc::default() }
    }

    /// Passages in the cache.
    pub fn cached(&self) -> u64 {
        self.cache.entry_count()
    }

    /// Bytes in the cache.
    pub fn cached_bytes(&self) -> u64 {
        self.cache.weighted_size()
    }

    /// Frees the passages of a bundle that answers no more. Those that are being written for it go on, and are kept as long
    /// as others.
    pub fn forget(&self, bundle: &str) {
        let bundle = bundle.to_owned();
        // Fails only where the cache was built without closures.
        if let Err(error) = self.cache.invalidate_entries_if(move |key, _| *key.bundle == *bundle) {
            tracing::error!(%error, "the old bundle's passages stay in the cache");
        }
    }

    /// Gets the passage of `key` from the cache, from a generation under way, or from a new one, unless that would come
    /// too late to be of use, for which it needs `enough_tokens`; `pieces` tells it as it comes.
    pub async fn board(
        &self,
        key: FlightKey,
        expander: &Arc<dyn Expander>,
        sampling: Sampling,
        deadline: Instant,
        enough_tokens: usize,
        mut pieces: Pieces<'_>,
    ) -> (Landing, Boarding) {
        if let Some(written) = self.cache.get(&key).await {
            pieces.tell(&written.text);
            return (Landing::Cached(written), Boarding::Hit);
        }
        let wanted = Wanted { max_tokens: sampling.max_tokens, enough_tokens, deadline };
        match self.join_or_start(key, expander, sampling, wanted) {
            Ok((flight, boarding)) => (wait(&flight, deadline, pieces).await, boarding),
            Err(detail) => (Landing::Overloaded(detail), Boarding::Refused),
        }
    }

    fn join_or_start(
        &self,
        key: FlightKey,
        expander: &Arc<dyn Expander>,
        sampling: Sampling,
        wanted: Wanted,
    ) -> Result<(Arc<Flight>, Boarding), String> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(&key).and_then(Weak::upgrade) {
            return Ok((flight, Boarding::Joined));
        }
        let places = expander.info().concurrency;
        if let Some(detail) = self.forecast.too_late(wanted, flights.len(), places, Instant::now()) {
            return Err(detail);
        }
        let has_place = flights.len() < places;
        let (sender, state) = watch::channel(FlightState::default());
        let kind = if expander.info().engine == "openai" { "client" } else { "internal" };
        let span = tracing::debug_span!("generate", otel.kind = kind);
        let flight = fly(
            sender,
            expander.clone(),
            GenerationRequest { prompt: key.prompt.clone(), sampling },
            self.cache.clone(),
            key.clone(),
            self.forecast.clone(),
            has_place,
        );
        // A generation that several searches share is part of the trace that began it.
        let task = tokio::spawn(TraceContext::scope(traces::of(&span), flight).instrument(span));
        let flight = Arc::new(Flight {
            state,
            task: task.abort_handle(),
            key: key.clone(),
            flights: Arc::downgrade(&self.flights),
        });
        flights.insert(key, Arc::downgrade(&flight));
        Ok((flight, Boarding::Started))
    }
}

async fn wait(flight: &Flight, deadline: Instant, mut pieces: Pieces<'_>) -> Landing {
    let mut state = flight.state.clone();
    let landed = state.wait_for(|state| {
        pieces.tell(&state.written.text);
        state.outcome.is_some()
    });
    let in_time = timeout_at(deadline, landed).await;
    match in_time.map(|waited| waited.map(|landed| (landed.written.clone(), landed.outcome.clone()))) {
        Ok(Ok((written, outcome))) => match outcome {
            Some(Outcome::Overloaded(detail)) => Landing::Overloaded(detail),
            Some(Outcome::Failed(detail)) => Landing::Failed(detail),
            Some(Outcome::Finished) | None => Landing::Finished(written),
        },
        Ok(Err(_closed)) => Landing::Failed("the generation's task ended early".to_owned()),
        Err(_elapsed) => {
            let written = state.borrow().written.clone();
            pieces.tell(&written.text);
            Landing::Cut(written)
        }
    }
}

async fn fly(
    state: watch::Sender<FlightState>,
    expander: Arc<dyn Expander>,
    request: GenerationRequest,
    cache: Cache<FlightKey, Arc<Written>>,
    key: FlightKey,
    forecast: Arc<Forecast>,
    has_place: bool,
) {
    let start = Instant::now();
    let outcome = match expander.generate(request).await {
        Ok(stream) => {
            // The wait for a place of others is no part of what a passage takes.
            let writing = forecast.follow(if has_place { start } else { Instant::now() });
            follow(stream, &state, start, writing).await
        }
        Err(error) => Err(error),
    };
    let outcome = match outcome {
        Ok(FinishReason::Stop | FinishReason::Length) => {
            let written = Arc::new(state.borrow().written.clone());
            cache.insert(key, written).await;
            Outcome::Finished
        }
        Err(error @ Error::Overloaded { .. }) => Outcome::Overloaded(error.to_string()),
        Err(error) => Outcome::Failed(error.to_string()),
    };
    state.send_modify(|state| state.outcome = Some(outcome));
}

async fn follow(
    mut stream: GenerationStream,
    state: &watch::Sender<FlightState>,
    start: Instant,
    mut writing: Writing<'_>,
) -> Result<FinishReason, Error> {
    while let Some(event) = stream.next().await {
        match event? {
            StreamEvent::Text { text, tokens } => {
                writing.came(tokens, Instant::now());
                state.send_modify(|state| {
                    let written = &mut state.written;
                    written.first_token.get_or_insert_with(|| start.elapsed());
                    written.text.push_str(&text);
                    written.output_tokens += tokens;
                });
            }
            StreamEvent::Finished(reason) => return Ok(reason),
        }
    }
    Err(Error::Engine { what: "expander", detail: "the stream ended without a finish reason".into() })
}
