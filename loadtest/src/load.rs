//! When requests start: at a fixed rate whatever the server does, or one after the other over each connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

use crate::args::{Args, Arrivals, Plan};
use crate::measure::{Phase, Sample};
use crate::queries::Queries;
use crate::target::Target;

/// Runs one load: warm-up, the measured time, and then until every request under way has its answer.
pub(crate) async fn drive(plan: Plan, args: &Args, target: &Target, queries: Arc<Queries>) -> Result<Phase> {
    let (samples, mut received) = mpsc::unbounded_channel();
    let start = Instant::now();
    let clock = Clock { measure_from: start + args.warmup.0, end: start + args.warmup.0 + args.duration.0 };
    let shooter = Shooter { target: target.clone(), queries, samples, measure_from: clock.measure_from };
    let within = args.within.map(|within| within.0);
    let mut phase = Phase::new(plan, args.duration.0, within, target.batch());
    let recorder = tokio::spawn(async move {
        while let Some(sample) = received.recv().await {
            phase.record(sample);
        }
        phase.close(clock.measure_from);
        phase
    });
    match plan {
        Plan::Open { rate, arrivals } => {
            let schedule = Schedule::new(rate, arrivals, args.seed);
            let limit = args.max_in_flight;
            let runtime = tokio::runtime::Handle::current();
            tokio::task::spawn_blocking(move || open_loop(&runtime, &shooter, schedule, clock, limit))
                .await?;
        }
        Plan::Closed { connections } => {
            let mut workers = Vec::new();
            for _ in 0..connections {
                let worker = Shooter { target: shooter.target.alone()?, ..shooter.clone() };
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

#[derive(Clone, Copy)]
struct Clock {
    measure_from: Instant,
    end: Instant,
}

/// What one request needs.
#[derive(Clone)]
struct Shooter {
    target: Target,
    queries: Arc<Queries>,
    samples: mpsc::UnboundedSender<Sample>,
    measure_from: Instant,
}

impl Shooter {
    fn draw(&self) -> Vec<String> {
        (0..self.target.batch()).map(|_| self.queries.next()).collect()
    }

    async fn shoot(&self, due: Instant, queries: Vec<String>) {
        let lag = due.elapsed();
        let outcome = self.target.send(queries).await;
        self.report(due, Sample { latency: due.elapsed(), lag, outcome: Some(outcome) });
    }

    fn report(&self, due: Instant, sample: Sample) {
        if due >= self.measure_from {
            // The recorder lives as long as a sender does.
            let _ = self.samples.send(sample);
        }
    }
}

async fn closed_loop(shooter: Shooter, clock: Clock) {
    while Instant::now() < clock.end {
        shooter.shoot(Instant::now(), shooter.draw()).await;
    }
}

/// Starts requests on time from a thread of its own. A late wake-up starts all that are due, each counted from when it
/// was due.
fn open_loop(
    runtime: &tokio::runtime::Handle,
    shooter: &Shooter,
    schedule: Schedule,
    clock: Clock,
    limit: usize,
) {
    let in_flight = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    for offset in schedule {
        let due = start + offset;
        if due >= clock.end {
            return;
        }
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        if in_flight.load(Ordering::Relaxed) >= limit {
            shooter.report(due, Sample { latency: Duration::ZERO, lag: Duration::ZERO, outcome: None });
            continue;
        }
        in_flight.fetch_add(1, Ordering::Relaxed);
        let (shooter, in_flight) = (shooter.clone(), Arc::clone(&in_flight));
        let queries = shooter.draw();
        runtime.spawn(async move {
            shooter.shoot(due, queries).await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
        });
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
