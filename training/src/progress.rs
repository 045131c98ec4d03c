//! What a run tells about itself while it works.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Map, Value};

/// One thing that happened. As JSON each is an object with a member `event`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// A stage begins.
    StageStarted {
        /// Its name.
        stage: &'a str,
        /// Why it is done (again).
        why: &'a str,
    },
    /// A stage is done already, and nothing has changed.
    StageSkipped {
        /// Its name.
        stage: &'a str,
    },
    /// A stage got on with its work.
    Progress {
        /// Its name.
        stage: &'a str,
        /// What is counted: `queries`, `steps`, …
        unit: &'a str,
        /// How many are done, those of earlier attempts included.
        done: usize,
        /// How many there are.
        total: usize,
        /// How long the rest will take at the speed so far; none before there is a speed.
        eta_seconds: Option<f64>,
        /// Figures of the moment: loss, tokens a second, …
        #[serde(skip_serializing_if = "Map::is_empty")]
        figures: Map<String, Value>,
    },
    /// Something that a person should know.
    Note {
        /// The stage's name.
        stage: &'a str,
        /// What.
        text: &'a str,
    },
    /// A stage is done.
    StageFinished {
        /// Its name.
        stage: &'a str,
        /// How long this attempt took.
        seconds: f64,
        /// What is to be said of it.
        summary: &'a Value,
    },
    /// The run is done.
    Finished {
        /// The run folder.
        folder: &'a str,
    },
}

/// Receives events. They come from several threads.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, event: &Event<'_>);
}

/// An observer that doesn't listen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn observe(&self, _event: &Event<'_>) {}
}

/// Writes each event as one line of JSON.
#[derive(Debug)]
pub struct JsonEvents<W>(Mutex<W>);

impl<W: Write + Send> JsonEvents<W> {
    /// Writes to `output`, and flushes after each line.
    pub fn new(output: W) -> Self {
        Self(Mutex::new(output))
    }
}

impl<W: Write + Send> Observer for JsonEvents<W> {
    fn observe(&self, event: &Event<'_>) {
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        let mut output = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Whoever read the events has gone; the work goes on.
        let _ = output.write_all(&line).and_then(|()| output.flush());
    }
}

/// How often progress is told at most.
const INTERVAL: Duration = Duration::from_millis(500);

/// Counts a stage's work and estimates the rest.
pub struct Meter<'a> {
    observer: &'a dyn Observer,
    stage: &'a str,
    unit: &'a str,
    total: usize,
    /// Done before this attempt, which says nothing about the speed.
    before: usize,
    done: usize,
    start: Instant,
    told: Option<Instant>,
}

impl<'a> Meter<'a> {
    /// A meter of `total` units of which `before` are done already.
    pub fn new(
        observer: &'a dyn Observer,
        stage: &'a str,
        unit: &'a str,
        total: usize,
        before: usize,
    ) -> Self {
        let mut meter =
            Self { observer, stage, unit, total, before, done: before, start: Instant::now(), told: None };
        meter.tell(Map::new());
        meter
    }

    /// So many units more are done.
    pub fn add(&mut self, count: usize) {
        self.add_with(count, Map::new());
    }

    /// The same, with figures of the moment.
    pub fn add_with(&mut self, count: usize, figures: Map<String, Value>) {
        self.done += count;
        let due = self.told.is_none_or(|told| told.elapsed() >= INTERVAL);
        if due || self.done >= self.total {
            self.tell(figures);
        }
    }

    fn tell(&mut self, figures: Map<String, Value>) {
        self.told = Some(Instant::now());
        let now = self.done - self.before;
        let rest = self.total.saturating_sub(self.done);
        let eta = self.start.elapsed().as_secs_f64() * rest as f64 / now as f64;
        self.observer.observe(&Event::Progress {
            stage: self.stage,
            unit: self.unit,
            done: self.done,
            total: self.total,
            eta_seconds: eta.is_finite().then_some(eta),
            figures,
        });
    }
}

/// What a trainer tells its progress to.
pub struct StepProgress<'a> {
    observer: &'a dyn Observer,
    stage: &'a str,
    /// The first step of this attempt, and when it was told.
    start: Mutex<Option<(usize, Instant)>>,
    /// Which of how many trainings alike it tells of.
    part: (usize, usize),
}

impl<'a> StepProgress<'a> {
    /// For the trainer of a stage.
    pub fn new(observer: &'a dyn Observer, stage: &'a str) -> Self {
        Self { observer, stage, start: Mutex::new(None), part: (0, 1) }
    }

    /// For the training `number` (from 0) of `count` alike, whose steps are counted on.
    pub fn part(&self, number: usize, count: usize) -> Self {
        Self { part: (number, count), ..Self::new(self.observer, self.stage) }
    }

    /// `done` of `total` optimiser steps are done, those of earlier attempts included. `figures` are the moment's:
    /// loss, learning rate, tokens a second.
    pub fn step(&self, done: usize, total: usize, figures: Map<String, Value>) {
        let (number, count) = self.part;
        let (done, total) = (number * total + done, count * total);
        let mut start = self.start.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (first, since) = *start.get_or_insert_with(|| (done, Instant::now()));
        let rest = total.saturating_sub(done) as f64;
        let eta = since.elapsed().as_secs_f64() * rest / done.saturating_sub(first) as f64;
        self.observer.observe(&Event::Progress {
            stage: self.stage,
            unit: "steps",
            done,
            total,
            eta_seconds: eta.is_finite().then_some(eta),
            figures,
        });
    }

    /// Something that a person should know.
    pub fn note(&self, text: &str) {
        self.observer.observe(&Event::Note { stage: self.stage, text });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_of_json_and_resumed_work_is_no_speed() {
        let events = JsonEvents::new(Vec::new());
        let mut meter = Meter::new(&events, "candidates", "queries", 10, 6);
        std::thread::sleep(Duration::from_millis(20));
        meter.add(4);
        let text = String::from_utf8(events.0.into_inner().unwrap()).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!((&lines[0]["event"], &lines[0]["done"]), (&"progress".into(), &6.into()));
        assert!(lines[0]["eta_seconds"].is_null());
        assert_eq!((&lines[1]["done"], &lines[1]["eta_seconds"]), (&10.into(), &0.0.into()));
    }
}
