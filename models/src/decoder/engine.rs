//! The thread that runs the model: who waits, who runs, what the next step computes.
//!
//! Each step takes one token of every running sample, and fills up with tokens of the prompts that were let in, so
//! that many prompts share a step and a long one does not hold up those that run. Between steps, samples that ended or that
//! nobody listens to leave, and waiting ones take their places in the order of their arrival. The samples of one prompt
//! share its keys and values, and start from the same logits.

use std::{
    collections::{HashSet, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use tokio::sync::oneshot;

use super::{
    ENGINE,
    cache::Cache,
    engine_error,
    model::{Model, Part, Workspace},
    prefixes::Prefixes,
    text::{Text, Writer},
};
use crate::{
    Error, Result,
    expander::{Draw, FinishReason, Sampling, StreamEvent},
};

/// A prompt and the samples that are wanted of it.
pub(super) struct Job {
    pub(super) prompt: Vec<u32>,
    pub(super) samples: VecDeque<Sample>,
}

/// A sample that has not begun.
pub(super) struct Sample {
    pub(super) sampling: Sampling,
    pub(super) events: Events,
    /// Told when the sample gets its place.
    pub(super) started: Option<oneshot::Sender<()>>,
    /// Counts the sample as waiting as long as it does.
    pub(super) waiter: Option<Counted>,
    /// Counts it as present until it ends.
    pub(super) presence: Counted,
}

/// Has room for every event of its sample, so that the engine never waits for a reader.
pub(super) type Events = tokio::sync::mpsc::Sender<Result<StreamEvent>>;

/// Counts as one until dropped.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(super) fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(counter))
    }

    /// Counts `count` more, unless that would be more than `capacity`.
    pub(super) fn within(counter: &Arc<AtomicUsize>, count: usize, capacity: usize) -> Option<Vec<Self>> {
        let room = |counted: usize| (counted + count <= capacity).then_some(counted + count);
        counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).ok()?;
        Some((0..count).map(|_| Self(Arc::clone(counter))).collect())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sample {
    fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }
}

/// A prompt that is being read.
struct Reading {
    job: Job,
    cache: Cache,
}

/// A prompt that was read, and its samples that have no place yet.
struct Ready {
    cache: Cache,
    logits: Vec<f32>,
    samples: VecDeque<Sample>,
}

/// A running sample.
struct Running {
    cache: Cache,
    last: u32,
    left: usize,
    draw: Draw,
    writer: Writer,
    events: Events,
    _presence: Counted,
}

/// What the thread owns.
pub(super) struct Engine {
    pub(super) model: Model,
    pub(super) text: Arc<Text>,
    pub(super) jobs: mpsc::Receiver<Job>,
    /// Samples at once.
    pub(super) places: usize,
    /// Tokens of a step, of running samples and prompts together.
    pub(super) step_tokens: usize,
    /// Blocks of prompts' beginnings that are kept.
    pub(super) prefix_blocks: usize,
    /// Places that are taken, for those who ask.
    pub(super) taken: Arc<AtomicUsize>,
}

/// Everything that is under way.
struct State {
    waiting: VecDeque<Job>,
    reading: VecDeque<Reading>,
    ready: VecDeque<Ready>,
    running: Vec<Running>,
    prefixes: Prefixes,
    special: HashSet<u32>,
    workspace: Workspace,
}

impl Engine {
    /// Runs until nobody can send a job any more and everything has ended.
    pub(super) fn run(self) {
        loop {
            let mut state = State::new(self.text.special_ids(), self.prefix_blocks);
            let outcome = catch_unwind(AssertUnwindSafe(|| self.serve(&mut state)));
            self.taken.store(0, Ordering::SeqCst);
            if outcome.is_ok() {
                return;
            }
            tracing::error!("the decoder's step panicked; what was under way fails, and it goes on");
            state.fail();
        }
    }

    fn serve(&self, state: &mut State) {
        loop {
            if state.is_idle() {
                let Ok(job) = self.jobs.recv() else { return };
                state.waiting.push_back(job);
            }
            state.waiting.extend(self.jobs.try_iter());
            state.leave();
            self.start_ready(state);
            self.let_in(state);
            self.taken.store(state.taken(), Ordering::SeqCst);
            self.step(state);
            self.taken.store(state.taken(), Ordering::SeqCst);
        }
    }

    /// Gives free places to samples whose prompts were read.
    fn start_ready(&self, state: &mut State) {
        while state.taken() < self.places {
            let Some(ready) = state.ready.front_mut() else { return };
            let Some(sample) = ready.samples.pop_front() else {
                state.ready.pop_front();
                continue;
            };
            let cache = ready.cache.fork();
            let is_last = ready.samples.is_empty();
            let running = self.start(sample, cache, &ready.logits, &state.special);
            state.running.extend(running);
            if is_last {
                state.ready.pop_front();
            }
        }
    }

    /// Lets waiting prompts in while all of their samples that came before have places.
    fn let_in(&self, state: &mut State) {
        while state.wanted() < self.places {
            let Some(mut job) = state.waiting.pop_front() else { return };
            if let Some(first) = job.samples.front_mut() {
                first.tell_start();
            }
            state.reading.push_back(Reading { job, cache: Cache::new(self.model.shape()) });
        }
    }

    /// A sample's first token; none when it ends with that.
    fn start(
        &self,
        mut sample: Sample,
        cache: Cache,
        logits: &[f32],
        special: &HashSet<u32>,
    ) -> Option<Running> {
        sample.tell_start();
        let mut running = Running {
            cache,
            last: 0,
            left: sample.sampling.max_tokens,
            draw: Draw::new(&sample.sampling),
            writer: Writer::default(),
            events: sample.events,
            _presence: sample.presence,
        };
        let token = running.draw.token(logits);
        self.go_on(&mut running, token, special).then_some(running)
    }

    /// Hands on what the token adds to the text. False when the sample has ended.
    fn go_on(&self, running: &mut Running, token: Option<usize>, special: &HashSet<u32>) -> bool {
        let event = match token {
            None => Err(engine_error("the model's logits are not finite; its weights may be damaged")),
            Some(token) if self.model.config.end_tokens.contains(&(token as u32)) => {
                Ok(StreamEvent::Finished(FinishReason::Stop))
            }
            Some(token) => {
                running.last = token as u32;
                running.left -= 1;
                let piece = match special.contains(&running.last) {
                    true => Ok(String::new()),
                    false => running.writer.push(running.last, &self.text),
                };
                piece.map(|text| StreamEvent::Text { text, tokens: 1 })
            }
        };
        let goes_on = matches!(event, Ok(StreamEvent::Text { .. }));
        let _nobody_listens = running.events.try_send(event);
        if goes_on && running.left == 0 {
            let _nobody_listens = running.events.try_send(Ok(StreamEvent::Finished(FinishReason::Length)));
        }
        goes_on && running.left > 0
    }

    /// One step of the model for all who run, and the tokens that come of it.
    fn step(&self, state: &mut State) {
        let State { reading, running, workspace, prefixes, .. } = state;
        let mut room = self.step_tokens.saturating_sub(running.len()).max(1);
        let mut parts: Vec<Part<'_>> = Vec::new();
        for running in running.iter_mut() {
            let tokens = std::slice::from_ref(&running.last);
            parts.push(Part { cache: &mut running.cache, tokens, wants_logits: true });
        }
        for Reading { job, cache } in reading.iter_mut() {
            if room > 0 && cache.length() == 0 {
                prefixes.start(cache, &job.prompt);
            }
            let tokens = &job.prompt[cache.length()..];
            let tokens = &tokens[..tokens.len().min(room)];
            if tokens.is_empty() {
                break;
            }
            room -= tokens.len();
            let wants_logits = cache.length() + tokens.len() == job.prompt.len();
            parts.push(Part { cache, tokens, wants_logits });
        }
        if parts.is_empty() {
            return;
        }
        let vocabulary = self.model.config.vocabulary;
        let logits = self.model.step(&mut parts, workspace);
        let (of_running, of_read) = logits.split_at(running.len() * vocabulary);
        let mut tokens: Vec<Option<usize>> = vec![None; running.len()];
        let draws = running.iter_mut().zip(of_running.chunks_exact(vocabulary)).zip(&mut tokens);
        self.model.team.each(draws.collect(), |((running, logits), token)| {
            *token = running.draw.token(logits);
        });
        let mut tokens = tokens.into_iter();
        for Reading { job, cache } in &state.reading {
            state.prefixes.keep(cache, &job.prompt);
        }
        let special = &state.special;
        state.running.retain_mut(|running| self.go_on(running, tokens.next().flatten(), special));
        for logits in of_read.chunks_exact(vocabulary) {
            let read =
                state.reading.iter().position(|reading| reading.cache.length() == reading.job.prompt.len());
            if let Some(reading) = read.and_then(|index| state.reading.remove(index)) {
                let (cache, samples) = (reading.cache, reading.job.samples);
                state.ready.push_back(Ready { cache, logits: logits.to_vec(), samples });
            }
        }
        self.start_ready(state);
    }
}

impl Sample {
    fn tell_start(&mut self) {
        self.waiter = None;
        if let Some(started) = self.started.take() {
            let _gave_up = started.send(());
        }
    }
}

impl State {
    fn new(special: HashSet<u32>, prefix_blocks: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            reading: VecDeque::new(),
            ready: VecDeque::new(),
            running: Vec::new(),
            prefixes: Prefixes::new(prefix_blocks),
            special,
            workspace: Workspace::default(),
        }
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.reading.is_empty() && self.ready.is_empty() && self.running.is_empty()
    }

    /// Places that are taken: a prompt that is being read holds that of its first sample.
    fn taken(&self) -> usize {
        self.running.len() + self.reading.len()
    }

    /// Places that everybody who was let in will need.
    fn wanted(&self) -> usize {
        let reading: usize = self.reading.iter().map(|reading| reading.job.samples.len()).sum();
        let ready: usize = self.ready.iter().map(|ready| ready.samples.len()).sum();
        self.running.len() + reading + ready
    }

    /// Lets go of everybody whom nobody listens to any more.
    fn leave(&mut self) {
        self.running.retain(|running| !running.events.is_closed());
        for samples in self
            .waiting
            .iter_mut()
            .map(|job| &mut job.samples)
            .chain(self.reading.iter_mut().map(|reading| &mut reading.job.samples))
            .chain(self.ready.iter_mut().map(|ready| &mut ready.samples))
        {
            samples.retain(|sample| !sample.is_abandoned());
        }
        self.waiting.retain(|job| !job.samples.is_empty());
        self.reading.retain(|reading| !reading.job.samples.is_empty());
        self.ready.retain(|ready| !ready.samples.is_empty());
    }

    /// Tells everybody who was let in that it failed. (Those who wait fail by their closed streams.)
    fn fail(self) {
        let events = self.running.into_iter().map(|running| running.events);
        let samples = self.reading.into_iter().flat_map(|reading| reading.job.samples);
        let samples = samples.chain(self.ready.into_iter().flat_map(|ready| ready.samples));
        let samples = samples.chain(self.waiting.into_iter().flat_map(|job| job.samples));
        for events in events.chain(samples.map(|sample| sample.events)) {
            let error = Error::Engine { what: ENGINE, detail: "a step of the model broke off".into() };
            let _nobody_listens = events.try_send(Err(error));
        }
    }
}
