//! When requests start: at a fixed rate whatever the server does, or one after the other over each connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use crate::bounds::{Bounds, Permit};
use crate::figures::Sample;
use crate::measure::Phase;
use crate::plan::{Arrivals, Pace};
use crate::progress::Progress;
use crate::queries::{Queries, Request};
use crate::target::Target;

/// What every load of a run is given.
#[derive(Clone)]
pub(crate) struct Generator {
    pub(crate) target: Target,
    pub(crate) queries: Arc<Queries>,
    pub(crate) bounds: Arc<Bounds>,
    pub(crate) seed: u64,
}

impl Generator {
    /// Runs one load: warm-up, the measured time, and then until every request under way has its answer. `phase` takes
    /// in what is measured; `progress` shows it.
    /// `number` tells the random arrivals of this load from those of the others.
    pub(crate) async fn drive(&self, phase: Phase, number: u64, progress: Progress) -> Result<Phase> {
        let plan = phase.plan;
        let (samples, received) = mpsc::unbounded_channel();
        let start = Instant::now();
        let measure_from = start + plan.warmup;
        let clock = Clock { start, measure_from, end: measure_from + plan.duration };
        let recorder = tokio::spawn(record(phase, received, progress, clock, Arc::clone(&self.bounds)));
        let shooter = Shooter { generator: self.clone(), samples, measure_from };
        match plan.pace {
            Pace::Open { rate, arrivals } => {
                let schedule = Schedule::new(rate, arrivals, self.seed.wrapping_add(number));
                let runtime = tokio::runtime::Handle::current();
                tokio::task::spawn_blocking(move || open_loop(&runtime, &shooter, schedule, clock)).await?;
            }
            Pace::Closed { connections } => {
                let mut workers = Vec::new();
                for _ in 0..connections {
                    let mut worker = shooter.clone();
                    worker.generator.target = self.target.alone()?;
                    workers.push(tokio::spawn(closed_loop(worker, clock)));
                }
                drop(shooter);
                for worker in workers {
                    worker.await?;
                }
            }
        }
        // The channel closes when the last request under way has reported.
        recorder.await.map_err(|error| anyhow!("the recorder failed: {error}"))
    }
}

/// Owns the histograms of a load, and shows how it goes on.
async fn record(
    mut phase: Phase,
    mut received: mpsc::UnboundedReceiver<Sample>,
    progress: Progress,
    clock: Clock,
    bounds: Arc<Bounds>,
) -> Phase {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            sample = received.recv() => match sample {
                Some(sample) => phase.record(&sample),
                None => break,
            },
            _ = tick.tick() => {
                phase.most_under_way = phase.most_under_way.max(bounds.under_way());
                progress.show(&phase, clock.start.elapsed(), bounds.under_way());
            }
        }
    }
    phase.close(clock.measure_from);
    progress.done(&phase);
    phase
}

#[derive(Clone, Copy)]
struct Clock {
    start: Instant,
    measure_from: Instant,
    end: Instant,
}

/// What one request needs.
#[derive(Clone)]
struct Shooter {
    generator: Generator,
    samples: mpsc::UnboundedSender<Sample>,
    measure_from: Instant,
}

impl Shooter {
    async fn shoot(&self, due: Instant, request: Request, permit: Permit) {
        let lag = due.elapsed();
        let Request { kind, queries } = request;
        let searches = queries.len() as u64;
        let outcome = self.generator.target.send(&self.generator.queries.kinds()[kind], queries).await;
        drop(permit);
        if due >= self.measure_from {
            let (due, latency) = (due - self.measure_from, due.elapsed());
            // The recorder lives as long as a sender does.
            let _ = self.samples.send(Sample { kind, searches, due, latency, lag, outcome: Ok(outcome) });
        }
    }

    /// Starts the request, or reports the bound that is reached.
    fn admit(&self, due: Instant) -> Option<(Request, Permit)> {
        let request = self.generator.queries.draw();
        match self.generator.bounds.admit() {
            Ok(permit) => Some((request, permit)),
            Err(bound) => {
                let unsent = Sample {
                    kind: request.kind,
                    searches: request.queries.len() as u64,
                    due: due.saturating_duration_since(self.measure_from),
                    latency: Duration::ZERO,
                    lag: Duration::ZERO,
                    outcome: Err(bound),
                };
                // Also one of the warm-up: what a bound held back is never silent.
                let _ = self.samples.send(unsent);
                None
            }
        }
    }
}

/// A connection ends with its time, or with the first request that a bound keeps from being sent.
async fn closed_loop(shooter: Shooter, clock: Clock) {
    while Instant::now() < clock.end {
        let due = Instant::now();
        let Some((request, permit)) = shooter.admit(due) else { return };
        shooter.shoot(due, request, permit).await;
    }
}

/// Starts requests on time from a thread of its own. A late wake-up starts all that are due, each counted from when it
/// was due.
fn open_loop(runtime: &tokio::runtime::Handle, shooter: &Shooter, schedule: Schedule, clock: Clock) {
    for offset in schedule {
        let due = clock.start + offset;
        if due >= clock.end {
            return;
        }
        shooter.generator.bounds.sleep_until(due);
        if let Some((request, permit)) = shooter.admit(due) {
            let shooter = shooter.clone();
            runtime.spawn(async move { shooter.shoot(due, request, permit).await });
        }
    }
}

/// When requests are due, counted from the start; endless.
struct Schedule {
    rate: f64,
    arrivals: Arrivals,
    rng: ChaCha8Rng,
    count: u64,
    last_seconds: f64,
}

impl Schedule {
    fn new(rate: f64, arrivals: Arrivals, seed: u64) -> Self {
        Self { rate, arrivals, rng: ChaCha8Rng::seed_from_u64(seed), count: 0, last_seconds: 0.0 }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let seconds = match self.arrivals {
            Arrivals::Even => self.count as f64 / self.rate,
            Arrivals::Poisson => {
                let uniform: f64 = self.rng.random();
                self.last_seconds - (1.0 - uniform).ln() / self.rate
            }
        };
        self.count += 1;
        self.last_seconds = seconds;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_keep_their_rate() {
        let even: Vec<Duration> = Schedule::new(4.0, Arrivals::Even, 1).take(3).collect();
        assert_eq!(even, [0, 250, 500].map(Duration::from_millis));
        let poisson: Vec<Duration> = Schedule::new(100.0, Arrivals::Poisson, 1).take(20_000).collect();
        let seconds = poisson[poisson.len() - 1].as_secs_f64();
        assert!((190.0..210.0).contains(&seconds), "20,000 arrivals at 100/s took {seconds} s");
        assert!(poisson.is_sorted());
        let repeated: Vec<Duration> = Schedule::new(100.0, Arrivals::Poisson, 1).take(20_000).collect();
        assert_eq!(poisson, repeated);
    }
}
