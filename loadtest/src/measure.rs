//! Counts and histograms of one load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::args::Plan;
use crate::target::{Outcome, SearchOutcome};

/// Three significant digits from a microsecond to an hour.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    const LONGEST_US: u64 = 3_600_000_000;

    fn new() -> Self {
        // The bounds are constants that `new_with_bounds` accepts: low ≥ 1, high ≥ 2·low, 0..=5 digits.
        Self(Histogram::new_with_bounds(1, Self::LONGEST_US, 3).expect("constant bounds are valid"))
    }

    fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    fn record_ms(&mut self, milliseconds: f64) {
        // A float-to-integer cast saturates; NaN becomes 0.
        self.0.saturating_record((milliseconds * 1e3).round() as u64);
    }

    /// Milliseconds below which the given share (0 to 100) of the values lies.
    pub(crate) fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    pub(crate) fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }
}

/// One request as the generator saw it.
pub(crate) struct Sample {
    /// From the moment it was due (open loop) or sent (closed loop) to the last byte.
    pub(crate) latency: Duration,
    /// How late the generator itself was in sending it.
    pub(crate) lag: Duration,
    /// What came of it; none when it was not sent, because too many were under way.
    pub(crate) outcome: Option<Outcome>,
}

/// Everything measured under one load.
pub(crate) struct Phase {
    pub(crate) plan: Plan,
    /// From the start of measuring to the last answer, and no less than requests were started for: so that a server which
    /// falls behind is not credited with what it answered afterwards.
    pub(crate) measured: Duration,
    /// Requests that were due, sent or not.
    pub(crate) requests: u64,
    /// Searches in them.
    pub(crate) searches: u64,
    /// Searches that got hits.
    pub(crate) answered: u64,
    /// Searches that got hits, not degraded, within `--within`.
    pub(crate) good: u64,
    /// Requests not sent because too many were under way.
    pub(crate) not_sent: u64,
    /// Requests by HTTP status, or by what kept one from coming.
    pub(crate) statuses: BTreeMap<String, u64>,
    /// Answered searches by what became of the expansion.
    pub(crate) expansions: BTreeMap<String, u64>,
    /// Degraded searches by reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Tokens of the expansions that didn't come from a cache. Searches that shared one generation count it each.
    pub(crate) generated_tokens: u64,
    /// Every bundle that answered.
    pub(crate) bundles: BTreeSet<String>,
    /// Latency of successful requests.
    pub(crate) latency: Times,
    /// The generator's own lateness.
    pub(crate) lag: Times,
    /// What the server says of its time by name; `outside` is what it can't see: latency from the sending less `took`.
    pub(crate) server: BTreeMap<String, Times>,
    /// The first request that failed.
    pub(crate) first_failure: Option<String>,
    within: Option<Duration>,
    batch: u64,
    last_answer: Option<Instant>,
}

impl Phase {
    pub(crate) fn new(plan: Plan, measured: Duration, within: Option<Duration>, batch: usize) -> Self {
        Self {
            plan,
            measured,
            requests: 0,
            searches: 0,
            answered: 0,
            good: 0,
            not_sent: 0,
            statuses: BTreeMap::new(),
            expansions: BTreeMap::new(),
            reasons: BTreeMap::new(),
            generated_tokens: 0,
            bundles: BTreeSet::new(),
            latency: Times::new(),
            lag: Times::new(),
            server: BTreeMap::new(),
            first_failure: None,
            within,
            batch: batch as u64,
            last_answer: None,
        }
    }

    /// Ends the measuring that began at `start`.
    pub(crate) fn close(&mut self, start: Instant) {
        if let Some(last) = self.last_answer {
            self.measured = self.measured.max(last.saturating_duration_since(start));
        }
    }

    /// Takes in one request.
    pub(crate) fn record(&mut self, sample: Sample) {
        self.requests += 1;
        self.searches += self.batch;
        let Some(outcome) = sample.outcome else {
            self.not_sent += 1;
            self.first_failure
                .get_or_insert_with(|| "not sent: --max-in-flight requests were under way".into());
            return;
        };
        self.last_answer = Some(Instant::now());
        self.lag.record(sample.lag);
        let status = match outcome.status {
            Ok(status) => status.to_string(),
            Err(kind) => kind.to_owned(),
        };
        *self.statuses.entry(status).or_default() += 1;
        if !outcome.is_success() {
            self.first_failure.get_or_insert_with(|| outcome.describe());
            return;
        }
        self.latency.record(sample.latency);
        let in_time = self.within.is_none_or(|within| sample.latency <= within);
        for search in &outcome.searches {
            self.record_search(search, in_time);
        }
        if let [only] = outcome.searches.as_slice()
            && let Some(took) = only.times_ms.get("took")
        {
            let outside = (outcome.elapsed.as_secs_f64() * 1e3 - took).max(0.0);
            self.server.entry("outside".into()).or_insert_with(Times::new).record_ms(outside);
        }
    }

    fn record_search(&mut self, search: &SearchOutcome, in_time: bool) {
        if search.expansion == "problem" {
            self.first_failure.get_or_insert_with(|| "a search of a batch was answered by a problem".into());
            return;
        }
        self.answered += 1;
        *self.expansions.entry(search.expansion.clone()).or_default() += 1;
        if search.expansion == "degraded" {
            let reason = search.reason.clone().unwrap_or_else(|| "unstated".into());
            *self.reasons.entry(reason).or_default() += 1;
        } else if in_time {
            self.good += 1;
        }
        if search.expansion != "cached" {
            self.generated_tokens += search.output_tokens;
        }
        self.bundles.extend(search.bundle.clone());
        for (name, milliseconds) in &search.times_ms {
            self.server.entry(name.clone()).or_insert_with(Times::new).record_ms(*milliseconds);
        }
    }

    /// Share of searches without hits, whatever the cause: statuses other than 2xx (429 too), broken connections,
    /// timeouts, requests not sent.
    pub(crate) fn error_share(&self) -> f64 {
        share(self.searches - self.answered, self.searches)
    }

    /// Share of answered searches with this expansion status.
    pub(crate) fn expansion_share(&self, status: &str) -> f64 {
        share(self.expansions.get(status).copied().unwrap_or(0), self.answered)
    }

    /// Share of requests that were turned away (429).
    pub(crate) fn shed_share(&self) -> f64 {
        share(self.statuses.get("429").copied().unwrap_or(0), self.requests)
    }

    /// Answered searches a second.
    pub(crate) fn throughput(&self) -> f64 {
        self.answered as f64 / self.measured.as_secs_f64()
    }

    /// Answered searches a second that did not degrade and came within `--within`.
    pub(crate) fn goodput(&self) -> f64 {
        self.good as f64 / self.measured.as_secs_f64()
    }

    /// Generated tokens a second.
    pub(crate) fn tokens_per_second(&self) -> f64 {
        self.generated_tokens as f64 / self.measured.as_secs_f64()
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(status: Result<u16, &'static str>, latency_ms: u64, expansions: &[&str]) -> Sample {
        let searches = expansions
            .iter()
            .map(|expansion| SearchOutcome {
                expansion: (*expansion).into(),
                output_tokens: 10,
                times_ms: BTreeMap::from([("took".into(), 1.0)]),
                ..SearchOutcome::default()
            })
            .collect();
        let latency = Duration::from_millis(latency_ms);
        Sample {
            latency,
            lag: Duration::ZERO,
            outcome: Some(Outcome { status, searches, elapsed: latency, detail: None }),
        }
    }

    #[test]
    fn shares_and_rates() {
        let plan = Plan::Closed { connections: 1 };
        let mut phase = Phase::new(plan, Duration::from_secs(2), Some(Duration::from_millis(100)), 1);
        phase.record(sample(Ok(200), 10, &["applied"]));
        phase.record(sample(Ok(200), 150, &["cached"]));
        phase.record(sample(Ok(200), 10, &["degraded"]));
        phase.record(sample(Ok(429), 1, &[]));
        phase.record(sample(Err("timeout"), 1, &[]));
        phase.record(Sample { latency: Duration::ZERO, lag: Duration::ZERO, outcome: None });
        assert_eq!((phase.requests, phase.answered, phase.good, phase.not_sent), (6, 3, 1, 1));
        assert_eq!((phase.error_share(), phase.shed_share()), (0.5, 1.0 / 6.0));
        assert_eq!((phase.throughput(), phase.goodput(), phase.tokens_per_second()), (1.5, 0.5, 10.0));
        assert_eq!(phase.expansion_share("degraded"), 1.0 / 3.0);
        assert_eq!(phase.reasons["unstated"], 1);
        assert_eq!(phase.latency.count(), 3);
        assert!((phase.latency.max_ms() - 150.0).abs() < 0.2);
        assert!((phase.server["outside"].percentile_ms(50.0) - 9.0).abs() < 0.1);
    }

    #[test]
    fn answers_after_the_end_make_the_time_longer() {
        let mut phase = Phase::new(Plan::Closed { connections: 1 }, Duration::from_millis(1), None, 1);
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        phase.record(sample(Ok(200), 20, &["applied"]));
        phase.close(start);
        assert!(phase.measured >= Duration::from_millis(20) && phase.throughput() <= 50.0);
    }

    #[test]
    fn a_problem_in_a_batch_is_an_error_of_one_search() {
        let mut phase = Phase::new(Plan::Closed { connections: 1 }, Duration::from_secs(1), None, 2);
        phase.record(sample(Ok(200), 10, &["disabled", "problem"]));
        assert_eq!((phase.searches, phase.answered, phase.error_share()), (2, 1, 0.5));
    }
}
