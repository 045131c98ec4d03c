//! Counts and times of requests: of a whole load, or of one kind in it.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::answer::SearchOutcome;
use crate::bounds::Bound;
use crate::target::Outcome;
use crate::times::Times;

/// One request as the generator saw it.
pub(crate) struct Sample {
    /// Its place among the kinds.
    pub(crate) kind: usize,
    /// Searches in it.
    pub(crate) searches: u64,
    /// When it was due, counted from the start of measuring.
    pub(crate) due: Duration,
    /// From the moment it was due (open loop) or sent (closed loop) to the last byte.
    pub(crate) latency: Duration,
    /// How late the generator itself was in sending it.
    pub(crate) lag: Duration,
    /// What came of it, or the bound that kept it from being sent.
    pub(crate) outcome: Result<Outcome, Bound>,
}

/// What makes an answer good.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Good {
    /// It came within this time.
    pub(crate) within: Option<Duration>,
    /// It may be degraded.
    pub(crate) degraded: bool,
}

/// What became of one request's searches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// With hits.
    pub(crate) answered: u64,
    /// Answered as wanted: in time, and not degraded unless that is good, too.
    pub(crate) good: u64,
    pub(crate) degraded: u64,
    /// Turned away by 429 or 503.
    pub(crate) refused: u64,
    /// Neither answered nor refused, though sent.
    pub(crate) failed: u64,
    pub(crate) not_sent: u64,
}

/// Figures of many requests.
pub(crate) struct Figures {
    /// Requests that were due, sent or not.
    pub(crate) requests: u64,
    /// Searches in them.
    pub(crate) searches: u64,
    /// What became of the searches.
    pub(crate) tally: Tally,
    /// Requests by HTTP status, or by what kept one from coming.
    pub(crate) statuses: BTreeMap<String, u64>,
    /// Requests not sent, by the bound that was reached.
    pub(crate) not_sent: BTreeMap<&'static str, u64>,
    /// Answered searches by what became of the expansion.
    pub(crate) expansions: BTreeMap<String, u64>,
    /// Degraded searches by reason.
    pub(crate) reasons: BTreeMap<String, u64>,
    /// Tokens of the expansions that didn't come from a cache. Searches that shared one generation count it each.
    pub(crate) generated_tokens: u64,
    /// Latency of requests that brought an answer to a search.
    pub(crate) latency: Times,
    /// Latency of requests that were turned away, of batches with every search in them.
    pub(crate) refusal_latency: Times,
}

impl Figures {
    pub(crate) fn new() -> Self {
        Self {
            requests: 0,
            searches: 0,
            tally: Tally::default(),
            statuses: BTreeMap::new(),
            not_sent: BTreeMap::new(),
            expansions: BTreeMap::new(),
            reasons: BTreeMap::new(),
            generated_tokens: 0,
            latency: Times::new(),
            refusal_latency: Times::new(),
        }
    }

    /// Takes in one request with its tally.
    pub(crate) fn record(&mut self, sample: &Sample, tally: Tally) {
        self.requests += 1;
        self.searches += sample.searches;
        self.tally.add(tally);
        let outcome = match &sample.outcome {
            Ok(outcome) => outcome,
            Err(bound) => {
                *self.not_sent.entry(bound.name()).or_default() += 1;
                return;
            }
        };
        *self.statuses.entry(outcome.status_name()).or_default() += 1;
        if tally.answered > 0 {
            self.latency.record(sample.latency);
        } else if tally.refused > 0 {
            self.refusal_latency.record(sample.latency);
        }
        for search in &outcome.searches {
            self.record_search(search);
        }
    }

    fn record_search(&mut self, search: &SearchOutcome) {
        if search.is_problem() {
            return;
        }
        *self.expansions.entry(search.expansion.clone()).or_default() += 1;
        if search.is_degraded() {
            let reason = search.reason.clone().unwrap_or_else(|| "unstated".into());
            *self.reasons.entry(reason).or_default() += 1;
        }
        if search.expansion != "cached" {
            self.generated_tokens += search.output_tokens;
        }
    }

    /// Requests that were not sent.
    pub(crate) fn unsent(&self) -> u64 {
        self.not_sent.values().sum()
    }

    /// Share of searches without hits, whatever the cause: refusals, other statuses, broken connections, timeouts,
    /// requests not sent.
    pub(crate) fn error_share(&self) -> f64 {
        share(self.searches - self.tally.answered, self.searches)
    }

    /// Share of searches that were neither answered nor refused: sent in vain, or not sent.
    pub(crate) fn unexpected_share(&self) -> f64 {
        share(self.tally.failed + self.tally.not_sent, self.searches)
    }

    /// Share of searches that were turned away by 429 or 503.
    pub(crate) fn refused_share(&self) -> f64 {
        share(self.tally.refused, self.searches)
    }

    /// Share of searches that were answered as wanted.
    pub(crate) fn good_share(&self) -> f64 {
        share(self.tally.good, self.searches)
    }

    /// Share of answered searches with this expansion status.
    pub(crate) fn expansion_share(&self, status: &str) -> f64 {
        share(self.expansions.get(status).copied().unwrap_or(0), self.tally.answered)
    }

    /// Share of requests that were turned away by 429.
    pub(crate) fn shed_share(&self) -> f64 {
        share(self.statuses.get("429").copied().unwrap_or(0), self.requests)
    }
}

impl Tally {
    /// What became of this request's searches.
    pub(crate) fn of(sample: &Sample, good: Good) -> Self {
        let mut tally = Self::default();
        let outcome = match &sample.outcome {
            Ok(outcome) => outcome,
            Err(_) => return Self { not_sent: sample.searches, ..tally },
        };
        if outcome.is_refusal() {
            return Self { refused: sample.searches, ..tally };
        }
        if !outcome.is_success() {
            return Self { failed: sample.searches, ..tally };
        }
        let in_time = good.within.is_none_or(|within| sample.latency <= within);
        for search in &outcome.searches {
            match search.problem_status {
                Some(429 | 503) => tally.refused += 1,
                _ if search.is_problem() => tally.failed += 1,
                _ => {
                    tally.answered += 1;
                    tally.degraded += u64::from(search.is_degraded());
                    tally.good += u64::from(in_time && (good.degraded || !search.is_degraded()));
                }
            }
        }
        tally
    }

    /// Adds another's.
    pub(crate) fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.good += other.good;
        self.degraded += other.degraded;
        self.refused += other.refused;
        self.failed += other.failed;
        self.not_sent += other.not_sent;
    }
}

impl SearchOutcome {
    pub(crate) fn is_problem(&self) -> bool {
        self.expansion == "problem"
    }

    pub(crate) fn is_degraded(&self) -> bool {
        self.expansion == "degraded"
    }
}

impl Outcome {
    /// Whether the server turned the request away.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self.status, Ok(429 | 503))
    }

    /// The status, or what kept one from coming.
    pub(crate) fn status_name(&self) -> String {
        match self.status {
            Ok(status) => status.to_string(),
            Err(cause) => cause.to_owned(),
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
