//! What a run showed: a table to read, JSON to keep, a page to look at.

mod html;
mod json;
mod lines;
mod plots;
mod redact;
mod table;

use anyhow::Result;
use serde_json::{Value, json};

use crate::args::Args;
use crate::kinds::Kind;
use crate::limit::Limit;
use crate::measure::Phase;
use crate::objective::Objective;
use crate::plan::{Role, short};
use crate::server::Ending;
use crate::session::{Findings, holds};

/// The percentiles that every output has.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p95", 95.0), ("p99", 99.0), ("p99.9", 99.9)];

/// The figures of all loads, and what they are judged by.
pub(crate) struct Report {
    title: String,
    command: String,
    request: Value,
    /// What the server says about itself.
    server: Value,
    ending: Option<Ending>,
    phases: Vec<Phase>,
    limit: Option<Limit>,
    /// What a probe had to hold.
    search_objectives: Vec<Objective>,
    verdicts: Vec<Verdict>,
    notes: Vec<String>,
}

/// Whether one thing holds.
struct Verdict {
    what: String,
    /// The load that it is about; empty for the run as a whole.
    load: String,
    /// In the unit of the objective: milliseconds, a fraction, or a second.
    measured: Option<f64>,
    /// The same to read.
    shown: String,
    holds: bool,
}

impl Report {
    pub(crate) fn new(
        args: &Args,
        kinds: &[Kind],
        server: Value,
        findings: Findings,
        ending: Option<Ending>,
        mut notes: Vec<String>,
    ) -> Self {
        let verdicts = verdicts(args, &findings, ending.as_ref());
        notes.extend(findings.phases.iter().filter_map(lateness));
        Self {
            title: args.title.clone(),
            command: redact::words(std::env::args()),
            request: request_json(args, kinds),
            server,
            ending,
            phases: findings.phases,
            limit: findings.limit,
            search_objectives: findings.objectives,
            verdicts,
            notes,
        }
    }

    /// Searches with hits, over all loads.
    pub(crate) fn answered(&self) -> u64 {
        self.phases.iter().map(|phase| phase.all.tally.answered).sum()
    }

    /// What the first failed request said.
    pub(crate) fn first_failure(&self) -> &str {
        self.phases.iter().find_map(|phase| phase.first_failure.as_deref()).unwrap_or("none")
    }

    /// Whether everything holds that has to.
    pub(crate) fn holds(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.holds)
    }

    /// As one JSON document.
    pub(crate) fn json(&self) -> Value {
        json::document(self)
    }

    /// As text.
    pub(crate) fn table(&self) -> String {
        table::text(self)
    }

    /// As one HTML page that loads nothing.
    ///
    /// # Errors
    ///
    /// When a plot can't be drawn.
    pub(crate) fn html(&self) -> Result<String> {
        html::page(self)
    }

    /// Whether a load that was a try of the search held.
    fn probe_holds(&self, phase: &Phase) -> Option<bool> {
        matches!(phase.plan.role, Role::Probe | Role::Confirmation)
            .then(|| holds(phase, &self.search_objectives))
    }

    fn overload(&self) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.plan.role == Role::Overload)
    }
}

fn verdicts(args: &Args, findings: &Findings, ending: Option<&Ending>) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for phase in &findings.phases {
        let objectives = match phase.plan.role {
            Role::Load => &findings.objectives,
            Role::Overload => &findings.overload_objectives,
            // A try may miss: that is how the limit is found.
            Role::Probe | Role::Confirmation => continue,
        };
        verdicts.extend(objectives.iter().map(|objective| judge(objective, phase)));
        verdicts.extend(unsent(phase));
    }
    if args.find_limit.is_some() {
        verdicts.extend(limit_verdicts(args, findings.limit));
    }
    let whole = |what: String| Verdict {
        what,
        load: String::new(),
        measured: None,
        shown: String::new(),
        holds: false,
    };
    verdicts
        .extend(findings.left_out.iter().map(|left_out| whole(format!("every load is run; not {left_out}"))));
    verdicts.extend(ending.and_then(|ending| ending.trouble.clone()).map(whole));
    verdicts
}

fn judge(objective: &Objective, phase: &Phase) -> Verdict {
    let judged = objective.judge(phase);
    Verdict {
        what: objective.to_string(),
        load: phase.plan.to_string(),
        measured: judged.measured,
        shown: judged.measured.map_or("not measured".into(), |measured| objective.format(measured)),
        holds: judged.holds,
    }
}

/// What a bound kept from being sent is missed by every load, whatever its objectives.
fn unsent(phase: &Phase) -> Option<Verdict> {
    let count = phase.all.unsent();
    let bounds: Vec<String> =
        phase.all.not_sent.iter().map(|(bound, count)| format!("{bound} {count}")).collect();
    (count > 0).then(|| Verdict {
        what: "every request is sent".into(),
        load: phase.plan.to_string(),
        measured: Some(count as f64),
        shown: format!("{count} were not: {}", bounds.join(", ")),
        holds: false,
    })
}

fn limit_verdicts(args: &Args, limit: Option<Limit>) -> Vec<Verdict> {
    let rate = limit.and_then(|limit| limit.rate);
    let proved = limit.is_some_and(|limit| limit.confirmed || args.confirm == 0);
    let shown = match (rate, proved) {
        (Some(rate), true) => format!("{} requests/s", short(rate)),
        (Some(rate), false) => format!("{} requests/s held, but not again", short(rate)),
        (None, _) if limit.is_none() => "the search was cut off".into(),
        (None, _) => "no rate held".into(),
    };
    let about = |what: String, holds| Verdict {
        what,
        load: String::new(),
        measured: rate,
        shown: shown.clone(),
        holds,
    };
    let mut verdicts = vec![about("a limit is found and proved".into(), rate.is_some() && proved)];
    if let Some(least) = args.at_least {
        let holds = rate.is_some_and(|rate| rate >= least);
        verdicts.push(about(format!("the limit is at least {}/s", short(least)), holds));
    }
    verdicts
}

/// A note when the generator itself was late: then it, and not only the server, is what was measured.
fn lateness(phase: &Phase) -> Option<String> {
    const NOTED_MS: f64 = 20.0;
    let lag = phase.lag.percentile_ms(99.0);
    (phase.lag.count() > 0 && lag > NOTED_MS).then(|| {
        format!(
            "{}: the generator sent 1 % of the requests {lag:.0} ms late or later (it wants a core of its own); that is in the latencies",
            phase.plan
        )
    })
}

fn request_json(args: &Args, kinds: &[Kind]) -> Value {
    let milliseconds = |span: Option<crate::span::Span>| span.map(|span| span.0.as_secs_f64() * 1e3);
    json!({
        "endpoint": args.endpoint,
        "kinds": kinds.iter().map(Kind::json).collect::<Vec<_>>(),
        "hot_queries": args.hot,
        "queries": args.queries.as_ref().map(|path| path.display().to_string()),
        "duration_seconds": args.duration.0.as_secs_f64(),
        "warmup_seconds": args.warmup.0.as_secs_f64(),
        "timeout_seconds": args.timeout.0.as_secs_f64(),
        "max_in_flight": args.max_in_flight,
        "max_requests": args.max_requests,
        "max_time_seconds": args.max_time.0.as_secs_f64(),
        "within_ms": milliseconds(args.within),
        "degraded_is_good": args.degraded_is_good,
        "seed": args.seed,
    })
}
