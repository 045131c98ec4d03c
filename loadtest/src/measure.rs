//! Everything that is measured under one load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::figures::{Figures, Good, Sample, Tally};
use crate::plan::Plan;
use crate::resources::Usage;
use crate::timeline::Timeline;
use crate::times::Times;

/// One load and what it showed.
pub(crate) struct Phase {
    pub(crate) plan: Plan,
    /// From the start of measuring to the last answer, and no less than requests were started for: so that a server which
    /// falls behind is not credited with what it answered afterwards.
    pub(crate) measured: Duration,
    /// Of all requests.
    pub(crate) all: Figures,
    /// Of each kind, by name.
    pub(crate) kinds: Vec<(String, Figures)>,
    pub(crate) timeline: Timeline,
    /// Most requests under way at once, as seen five times a second.
    pub(crate) most_under_way: usize,
    /// Every bundle that answered.
    pub(crate) bundles: BTreeSet<String>,
    /// The generator's own lateness.
    pub(crate) lag: Times,
    /// What the server says of its time by name; `outside` is what it can't see: latency from the sending less `took`.
    pub(crate) server: BTreeMap<String, Times>,
    /// The first request that failed.
    pub(crate) first_failure: Option<String>,
    /// Memory and CPU of the server's process meanwhile.
    pub(crate) usage: Option<Usage>,
    /// The highest goodput of the loads before, for an overload.
    pub(crate) peak_goodput: Option<f64>,
    good: Good,
    last_answer: Option<Instant>,
}

impl Phase {
    pub(crate) fn new(plan: Plan, kinds: impl IntoIterator<Item = String>, good: Good) -> Self {
        Self {
            plan,
            measured: plan.duration,
            all: Figures::new(),
            kinds: kinds.into_iter().map(|name| (name, Figures::new())).collect(),
            timeline: Timeline::new(plan.duration),
            most_under_way: 0,
            bundles: BTreeSet::new(),
            lag: Times::new(),
            server: BTreeMap::new(),
            first_failure: None,
            usage: None,
            peak_goodput: None,
            good,
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
    pub(crate) fn record(&mut self, sample: &Sample) {
        let tally = Tally::of(sample, self.good);
        self.all.record(sample, tally);
        if let Some((_, figures)) = self.kinds.get_mut(sample.kind) {
            figures.record(sample, tally);
        }
        self.timeline.record(sample, tally);
        let outcome = match &sample.outcome {
            Ok(outcome) => outcome,
            Err(bound) => {
                self.first_failure.get_or_insert_with(|| format!("not sent: {}", bound.describe()));
                return;
            }
        };
        self.last_answer = Some(Instant::now());
        self.lag.record(sample.lag);
        if !outcome.is_success() {
            self.first_failure.get_or_insert_with(|| outcome.describe());
            return;
        }
        for search in &outcome.searches {
            if search.is_problem() {
                self.first_failure
                    .get_or_insert_with(|| "a search of a batch was answered by a problem".into());
                continue;
            }
            self.bundles.extend(search.bundle.clone());
            for (name, milliseconds) in &search.times_ms {
                self.record_server(name, *milliseconds);
            }
        }
        if let [only] = outcome.searches.as_slice()
            && let Some(took) = only.times_ms.get("took")
        {
            self.record_server("outside", (outcome.elapsed.as_secs_f64() * 1e3 - took).max(0.0));
        }
    }

    fn record_server(&mut self, name: &str, milliseconds: f64) {
        match self.server.get_mut(name) {
            Some(times) => times.record_ms(milliseconds),
            None => self.server.entry(name.to_owned()).or_insert_with(Times::new).record_ms(milliseconds),
        }
    }

    /// Figures of the kind with this name.
    pub(crate) fn kind(&self, name: &str) -> Option<&Figures> {
        self.kinds.iter().find(|(kind, _)| kind == name).map(|(_, figures)| figures)
    }

    /// So many, as a rate over the measured time.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.measured.as_secs_f64()
    }

    /// Good answers a second.
    pub(crate) fn goodput(&self) -> f64 {
        self.per_second(self.all.tally.good)
    }

    /// Goodput by the highest of the loads before.
    pub(crate) fn goodput_of_peak(&self) -> Option<f64> {
        self.peak_goodput.filter(|peak| *peak > 0.0).map(|peak| self.goodput() / peak)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::answer::SearchOutcome;
    use crate::bounds::Bound;
    use crate::plan::{Pace, Role};
    use crate::target::Outcome;

    pub(crate) fn phase(seconds: u64, good: Good) -> Phase {
        let plan = Plan {
            pace: Pace::Closed { connections: 1 },
            role: Role::Load,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(seconds),
        };
        Phase::new(plan, ["all".to_owned()], good)
    }

    pub(crate) fn sample(status: Result<u16, &'static str>, latency_ms: u64, expansions: &[&str]) -> Sample {
        let searches: Vec<SearchOutcome> = expansions
            .iter()
            .map(|expansion| SearchOutcome {
                expansion: (*expansion).into(),
                output_tokens: 10,
                times_ms: BTreeMap::from([("took".into(), 1.0), ("own".into(), 0.5)]),
                ..SearchOutcome::default()
            })
            .collect();
        let latency = Duration::from_millis(latency_ms);
        Sample {
            kind: 0,
            searches: searches.len().max(1) as u64,
            due: Duration::ZERO,
            latency,
            lag: Duration::ZERO,
            outcome: Ok(Outcome { status, searches, elapsed: latency, detail: None }),
        }
    }

    #[test]
    fn shares_and_rates() {
        let within = Some(Duration::from_millis(100));
        let mut phase = phase(2, Good { within, degraded: false });
        phase.record(&sample(Ok(200), 10, &["applied"]));
        phase.record(&sample(Ok(200), 150, &["cached"]));
        phase.record(&sample(Ok(200), 10, &["degraded"]));
        phase.record(&sample(Ok(429), 1, &[]));
        phase.record(&sample(Err("timeout"), 1, &[]));
        phase.record(&Sample { outcome: Err(Bound::InFlight), ..sample(Ok(200), 1, &[]) });
        let all = &phase.all;
        let tally = Tally { answered: 3, good: 1, degraded: 1, refused: 1, failed: 1, not_sent: 1 };
        assert_eq!((all.requests, all.tally), (6, tally));
        assert_eq!(
            (all.error_share(), all.shed_share(), all.unexpected_share()),
            (0.5, 1.0 / 6.0, 2.0 / 6.0)
        );
        assert_eq!((phase.per_second(all.tally.answered), phase.goodput()), (1.5, 0.5));
        assert_eq!((all.generated_tokens, all.expansion_share("degraded")), (20, 1.0 / 3.0));
        assert_eq!((all.reasons["unstated"], all.not_sent["max_in_flight"]), (1, 1));
        assert_eq!((all.latency.count(), all.refusal_latency.count()), (3, 1));
        assert!((all.latency.max_ms() - 150.0).abs() < 0.2);
        assert!((phase.server["outside"].percentile_ms(50.0) - 9.0).abs() < 0.1);
        assert_eq!(phase.kind("all").unwrap().requests, 6);
        assert_eq!(phase.timeline.stretches[0].tally, tally);
    }

    #[test]
    fn degraded_answers_are_good_where_that_is_said() {
        let mut phase = phase(1, Good { within: None, degraded: true });
        phase.record(&sample(Ok(200), 10, &["degraded"]));
        assert_eq!(phase.all.good_share(), 1.0);
    }

    #[test]
    fn answers_after_the_end_make_the_time_longer() {
        let mut phase = phase(0, Good::default());
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        phase.record(&sample(Ok(200), 20, &["applied"]));
        phase.close(start);
        assert!(phase.measured >= Duration::from_millis(20) && phase.goodput() <= 50.0);
    }

    #[test]
    fn a_problem_in_a_batch_is_an_error_of_one_search() {
        let mut phase = phase(1, Good::default());
        phase.record(&sample(Ok(200), 10, &["disabled", "problem"]));
        let mut refused = sample(Ok(200), 10, &["disabled", "problem"]);
        if let Ok(outcome) = &mut refused.outcome {
            outcome.searches[1].problem_status = Some(503);
        }
        phase.record(&refused);
        let all = &phase.all;
        assert_eq!((all.searches, all.tally.answered, all.error_share()), (4, 2, 0.5));
        assert_eq!((all.tally.failed, all.tally.refused), (1, 1));
        // A batch that was turned away as a whole was no answer, however fast it came.
        let mut away = sample(Ok(200), 1, &["problem"]);
        if let Ok(outcome) = &mut away.outcome {
            outcome.searches[0].problem_status = Some(429);
        }
        phase.record(&away);
        assert_eq!((phase.all.latency.count(), phase.all.refusal_latency.count()), (2, 1));
    }
}
