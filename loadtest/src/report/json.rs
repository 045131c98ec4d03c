//! The report as JSON.

use std::thread::available_parallelism;

use serde_json::{Map, Value, json};

use super::{PERCENTILES, Report, redact};
use crate::figures::Figures;
use crate::measure::Phase;
use crate::plan::Pace;
use crate::timeline::Timeline;
use crate::times::Times;

/// Everything.
pub(super) fn document(report: &Report) -> Value {
    let objectives: Vec<Value> = report
        .verdicts
        .iter()
        .map(|verdict| {
            json!({
                "objective": verdict.what,
                "load": verdict.load,
                "measured": verdict.measured,
                "shown": verdict.shown,
                "holds": verdict.holds,
            })
        })
        .collect();
    let limit = report.limit.map(|limit| {
        json!({
            "requests_per_second": limit.rate,
            "confirmed": limit.confirmed,
            "lowest_that_failed": limit.failed,
            "loads_run": limit.probes,
            "objectives": report.search_objectives.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    let mut process = report.ending.as_ref().map(|ending| ending.json());
    if let Some(command) = process.as_mut().and_then(|process| process.get_mut("command")) {
        *command = json!(redact::command(command.as_str().unwrap_or_default()));
    }
    json!({
        "title": report.title,
        "tool": {"name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION")},
        "command": report.command,
        "machine": machine(),
        "request": report.request,
        "server": report.server,
        "server_process": process,
        "loads": report.phases.iter().map(|phase| load(report, phase)).collect::<Vec<_>>(),
        "limit": limit,
        "overload": report.overload().map(overload),
        "objectives": objectives,
        "notes": report.notes,
        "holds": report.holds(),
    })
}

/// What the load ran on.
pub(super) fn machine() -> Value {
    let processor = fs_err::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    json!({
        "os": std::env::consts::OS,
        "arch": std::env::consts::ARCH,
        "processor": processor,
        "cpus": available_parallelism().map(usize::from).ok(),
    })
}

fn load(report: &Report, phase: &Phase) -> Value {
    let (mode, pace) = match phase.plan.pace {
        Pace::Open { rate, .. } => ("open", json!({"requests_per_second": rate})),
        Pace::Closed { connections } => ("closed", json!({"connections": connections})),
    };
    let server: Map<String, Value> =
        phase.server.iter().map(|(name, of)| (name.clone(), times(of))).collect();
    let kinds: Map<String, Value> =
        phase.kinds.iter().map(|(name, of)| (name.clone(), figures(phase, of))).collect();
    let Value::Object(mut object) = figures(phase, &phase.all) else { return Value::Null };
    let more = json!({
        "name": phase.plan.to_string(),
        "role": phase.plan.role.name(),
        "holds": report.probe_holds(phase),
        "loop": mode,
        "load": pace,
        "warmup_seconds": phase.plan.warmup.as_secs_f64(),
        "measured_seconds": phase.measured.as_secs_f64(),
        "kinds": kinds,
        "most_under_way": phase.most_under_way,
        "bundles": phase.bundles,
        "server_ms": server,
        "generator_lag_ms": times(&phase.lag),
        "first_failure": phase.first_failure,
        "timeline": timeline(&phase.timeline),
        "process": phase.usage.as_ref().map(|usage| usage.json()),
    });
    if let Value::Object(more) = more {
        object.extend(more);
    }
    Value::Object(object)
}

fn figures(phase: &Phase, of: &Figures) -> Value {
    json!({
        "requests": of.requests,
        "searches": of.searches,
        "answered": of.tally.answered,
        "good": of.tally.good,
        "degraded": of.tally.degraded,
        "refused": of.tally.refused,
        "failed": of.tally.failed,
        "not_sent": of.unsent(),
        "not_sent_by_bound": of.not_sent,
        "statuses": of.statuses,
        "error_share": of.error_share(),
        "good_share": of.good_share(),
        "refused_share": of.refused_share(),
        "unexpected_share": of.unexpected_share(),
        "degraded_share": of.expansion_share("degraded"),
        "throughput_per_second": phase.per_second(of.tally.answered),
        "goodput_per_second": phase.per_second(of.tally.good),
        "generated_tokens_per_second": phase.per_second(of.generated_tokens),
        "expansion": of.expansions,
        "degraded_by_reason": of.reasons,
        "latency_ms": times(&of.latency),
        "refusal_latency_ms": times(&of.refusal_latency),
    })
}

fn overload(phase: &Phase) -> Value {
    let of = &phase.all;
    let refusals = of.statuses.iter().filter(|(status, _)| matches!(status.as_str(), "429" | "503"));
    json!({
        "load": phase.plan.to_string(),
        "requests_per_second": phase.plan.rate(),
        "peak_goodput_per_second": phase.peak_goodput,
        "goodput_per_second": phase.goodput(),
        "goodput_of_peak": phase.goodput_of_peak(),
        "accepted_latency_ms": times(&of.latency),
        "refusals_by_status": refusals.collect::<std::collections::BTreeMap<_, _>>(),
        "unexpected_share": of.unexpected_share(),
        "memory_growth": phase.usage.as_ref().and_then(|usage| usage.memory_growth()),
    })
}

fn timeline(timeline: &Timeline) -> Value {
    let width = timeline.width.as_secs_f64();
    let stretches: Vec<Value> = timeline
        .stretches
        .iter()
        .enumerate()
        .map(|(index, stretch)| {
            let seen = stretch.latency.count() > 0;
            json!({
                "seconds": index as f64 * width,
                "searches": stretch.searches,
                "answered": stretch.tally.answered,
                "good": stretch.tally.good,
                "degraded": stretch.tally.degraded,
                "refused": stretch.tally.refused,
                "failed": stretch.tally.failed,
                "not_sent": stretch.tally.not_sent,
                "p50_ms": seen.then(|| stretch.latency.percentile_ms(50.0)),
                "p99_ms": seen.then(|| stretch.latency.percentile_ms(99.0)),
            })
        })
        .collect();
    json!({"width_seconds": width, "stretches": stretches})
}

fn times(times: &Times) -> Value {
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
