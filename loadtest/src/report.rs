//! What the load showed: a table to read, and JSON to keep.

use std::fmt::Write;
use std::thread::available_parallelism;

use serde_json::{Map, Value, json};

use crate::args::{Args, Plan};
use crate::measure::{Phase, Times};
use crate::objective::{Objective, Verdict};

const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p95", 95.0), ("p99", 99.0), ("p99.9", 99.9)];

/// The figures of all loads.
pub(crate) struct Report {
    request: Value,
    server: Value,
    phases: Vec<Phase>,
    objectives: Vec<Objective>,
}

impl Report {
    pub(crate) fn new(args: &Args, server: Value, phases: Vec<Phase>) -> Self {
        let request = json!({
            "endpoint": args.endpoint,
            "top_k": args.top_k,
            "batch": args.batch,
            "expansion": args.expansion_json(),
            "cached_share": args.cached,
            "hot_queries": args.cached.map(|_| args.hot),
            "queries": args.queries.as_ref().map(|path| path.display().to_string()),
            "duration_seconds": args.duration.0.as_secs_f64(),
            "warmup_seconds": args.warmup.0.as_secs_f64(),
            "timeout_seconds": args.timeout.0.as_secs_f64(),
            "within_ms": args.within.map(|within| within.0.as_secs_f64() * 1e3),
            "seed": args.seed,
        });
        Self { request, server, phases, objectives: args.objectives.clone() }
    }

    /// Searches with hits, over all loads.
    pub(crate) fn answered(&self) -> u64 {
        self.phases.iter().map(|phase| phase.answered).sum()
    }

    /// What the first failed request said.
    pub(crate) fn first_failure(&self) -> &str {
        self.phases.iter().find_map(|phase| phase.first_failure.as_deref()).unwrap_or("none")
    }

    pub(crate) fn objectives_met(&self) -> bool {
        self.verdicts().all(|(_, _, verdict)| verdict.holds)
    }

    fn verdicts(&self) -> impl Iterator<Item = (&Objective, &Phase, Verdict)> {
        let judge = |objective| {
            self.phases
                .iter()
                .map(move |phase: &Phase| (objective, phase, Objective::judge(objective, phase)))
        };
        self.objectives.iter().flat_map(judge)
    }

    pub(crate) fn json(&self) -> Value {
        let objectives: Vec<Value> = self
            .verdicts()
            .map(|(objective, phase, verdict)| {
                json!({
                    "objective": objective.to_string(),
                    "load": phase.plan.to_string(),
                    "measured": verdict.measured,
                    "holds": verdict.holds,
                })
            })
            .collect();
        json!({
            "tool": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
            "machine": {
                "os": std::env::consts::OS,
                "arch": std::env::consts::ARCH,
                "cpus": available_parallelism().map(usize::from).ok(),
            },
            "request": self.request,
            "server": self.server,
            "loads": self.phases.iter().map(phase_json).collect::<Vec<_>>(),
            "objectives": objectives,
        })
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for phase in &self.phases {
            write_phase(&mut text, phase);
        }
        if !self.objectives.is_empty() {
            text.push_str("\nobjectives\n");
        }
        for (objective, phase, verdict) in self.verdicts() {
            let measured =
                verdict.measured.map_or("not measured".into(), |measured| objective.format(measured));
            let mark = if verdict.holds { "holds " } else { "MISSED" };
            line(&mut text, &format!("  {mark}  {objective}  ({measured}; {})", phase.plan));
        }
        text
    }
}

fn phase_json(phase: &Phase) -> Value {
    let (mode, load) = match phase.plan {
        Plan::Open { rate, .. } => ("open", json!({"requests_per_second": rate})),
        Plan::Closed { connections } => ("closed", json!({"connections": connections})),
    };
    let server: Map<String, Value> =
        phase.server.iter().map(|(name, times)| (name.clone(), times_json(times))).collect();
    json!({
        "name": phase.plan.to_string(),
        "loop": mode,
        "load": load,
        "measured_seconds": phase.measured.as_secs_f64(),
        "requests": phase.requests,
        "searches": phase.searches,
        "answered": phase.answered,
        "not_sent": phase.not_sent,
        "statuses": phase.statuses,
        "error_share": phase.error_share(),
        "throughput_per_second": phase.throughput(),
        "goodput_per_second": phase.goodput(),
        "generated_tokens_per_second": phase.tokens_per_second(),
        "expansion": phase.expansions,
        "degraded_share": phase.expansion_share("degraded"),
        "degraded_by_reason": phase.reasons,
        "bundles": phase.bundles,
        "latency_ms": times_json(&phase.latency),
        "server_ms": server,
        "generator_lag_ms": times_json(&phase.lag),
        "first_failure": phase.first_failure,
    })
}

fn times_json(times: &Times) -> Value {
    if times.count() == 0 {
        return Value::Null;
    }
    let mut object = Map::new();
    object.insert("count".into(), json!(times.count()));
    object.insert("mean".into(), json!(times.mean_ms()));
    for (name, percentile) in PERCENTILES {
        object.insert(name.into(), json!(times.percentile_ms(percentile)));
    }
    object.insert("max".into(), json!(times.max_ms()));
    Value::Object(object)
}

fn write_phase(text: &mut String, phase: &Phase) {
    line(text, &format!("\n{}", phase.plan));
    let statuses: Vec<String> =
        phase.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
    line(
        text,
        &format!(
            "  requests    {} in {:.1} s   ({})",
            phase.requests,
            phase.measured.as_secs_f64(),
            statuses.join(", ")
        ),
    );
    if phase.not_sent > 0 {
        line(text, &format!("  NOT SENT    {} (too many under way; the server fell behind)", phase.not_sent));
    }
    line(
        text,
        &format!(
            "  searches/s  {:.2} answered, {:.2} good   errors {:.3} %",
            phase.throughput(),
            phase.goodput(),
            phase.error_share() * 100.0
        ),
    );
    let expansions: Vec<String> = phase
        .expansions
        .iter()
        .map(|(status, count)| format!("{status} {count} ({:.1} %)", phase.expansion_share(status) * 100.0))
        .collect();
    line(
        text,
        &format!("  expansion   {}", if expansions.is_empty() { "-".into() } else { expansions.join(", ") }),
    );
    for (reason, count) in &phase.reasons {
        line(text, &format!("  degraded    {reason}: {count}"));
    }
    if phase.generated_tokens > 0 {
        line(text, &format!("  tokens/s    {:.1} generated", phase.tokens_per_second()));
    }
    if phase.bundles.len() > 1 {
        let bundles: Vec<&str> = phase.bundles.iter().map(String::as_str).collect();
        line(text, &format!("  BUNDLES     the server changed over under the load: {}", bundles.join(", ")));
    }
    if let Some(failure) = &phase.first_failure {
        line(text, &format!("  first failure: {failure}"));
    }
    write_times(text, phase);
}

fn write_times(text: &mut String, phase: &Phase) {
    let width = phase.server.keys().map(|name| name.len() + 7).max().unwrap_or(0).max(14);
    let mut header = format!("  {:width$}", "milliseconds");
    for (name, _) in PERCENTILES {
        let _ = write!(header, " {name:>9}");
    }
    line(text, &format!("{header} {:>9}", "max"));
    times_row(text, width, "latency", &phase.latency);
    // Stages that never ran say nothing, and the total is what the server took.
    let told = phase.server.iter().filter(|(name, times)| times.max_ms() > 0.0 && *name != "total");
    for (name, times) in told {
        times_row(text, width, &format!("server {name}"), times);
    }
    times_row(text, width, "generator lag", &phase.lag);
}

fn times_row(text: &mut String, width: usize, name: &str, times: &Times) {
    if times.count() == 0 {
        return;
    }
    let mut row = format!("  {name:width$}");
    for (_, percentile) in PERCENTILES {
        let _ = write!(row, " {:>9.2}", times.percentile_ms(percentile));
    }
    line(text, &format!("{row} {:>9.2}", times.max_ms()));
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}
