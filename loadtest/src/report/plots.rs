//! The page's plots: latency, goodput and shares by rate; one load over time; the process over time.

use anyhow::Result;
use plotters::style::RGBColor;

use super::lines::{Axes, Plot, Series, plot};
use crate::measure::Phase;
use crate::plan::{Pace, Role};
use crate::timeline::Stretch;

const BLUE: RGBColor = RGBColor(0x3b, 0x82, 0xc4);
const ORANGE: RGBColor = RGBColor(0xe0, 0x8a, 0x1e);
const RED: RGBColor = RGBColor(0xd9, 0x4c, 0x4c);
const GREEN: RGBColor = RGBColor(0x2f, 0xa3, 0x6b);
const VIOLET: RGBColor = RGBColor(0x8d, 0x6c, 0xc9);
const GREY: RGBColor = RGBColor(0x7a, 0x8b, 0x99);

/// Goes by factors from this ratio of the highest to the lowest rate on.
const WIDE: f64 = 6.0;

/// What comes of a load, by its rate (or connections): every load but an overload, which would be far off.
pub(super) fn by_load(phases: &[Phase]) -> Result<Vec<Plot>> {
    let loads = distinct(phases);
    let (Some(first), Some(last)) = (loads.first(), loads.last()) else { return Ok(Vec::new()) };
    let (by, x) = match first.1.plan.pace {
        Pace::Open { .. } => ("rate", "requests a second"),
        Pace::Closed { .. } => ("connections", "connections"),
    };
    let axes = Axes { x, y: "milliseconds", log_x: last.0 / first.0 > WIDE, log_y: true, top: 0.0 };
    let line = |name: &str, color, value: &dyn Fn(&Phase) -> Option<f64>| Series {
        name: name.into(),
        color,
        points: loads.iter().filter_map(|(x, phase)| Some((*x, value(phase)?))).collect(),
    };
    let latency = |percentile: f64| {
        move |phase: &Phase| {
            (phase.all.latency.count() > 0).then(|| phase.all.latency.percentile_ms(percentile))
        }
    };
    let plots = [
        plot(
            format!("Latency of answered requests by {by}, counted from the moment each was due"),
            axes,
            vec![
                line("p50", BLUE, &latency(50.0)),
                line("p95", ORANGE, &latency(95.0)),
                line("p99", RED, &latency(99.0)),
            ],
        )?,
        plot(
            format!(
                "Shares by {by}: degraded of the answered searches; refused (429, 503) and failed of all"
            ),
            Axes { y: "%", log_y: false, top: 1.0, ..axes },
            vec![
                line("degraded", ORANGE, &|phase| Some(100.0 * phase.all.expansion_share("degraded"))),
                line("refused", VIOLET, &|phase| Some(100.0 * phase.all.refused_share())),
                line("failed or not sent", RED, &|phase| Some(100.0 * phase.all.unexpected_share())),
            ],
        )?,
        plot(
            format!("Searches a second by {by}: asked, answered, and answered as wanted (goodput)"),
            Axes { y: "searches a second", log_y: false, ..axes },
            vec![
                line("asked", GREY, &asked),
                line("answered", BLUE, &|phase| Some(phase.per_second(phase.all.tally.answered))),
                line("good", GREEN, &|phase| Some(phase.goodput())),
            ],
        )?,
    ];
    Ok(plots.into_iter().flatten().collect())
}

/// The loads in the order of their rates. Of several of one rate the last counts: the longer one, which proves a limit.
fn distinct(phases: &[Phase]) -> Vec<(f64, &Phase)> {
    let mut loads: Vec<(f64, &Phase)> = Vec::new();
    for phase in phases.iter().filter(|phase| phase.plan.role != Role::Overload) {
        let x = match phase.plan.pace {
            Pace::Open { rate, .. } => rate,
            Pace::Closed { connections } => connections as f64,
        };
        loads.retain(|(other, _)| *other != x);
        loads.push((x, phase));
    }
    loads.sort_by(|left, right| left.0.total_cmp(&right.0));
    loads
}

/// One load over time.
pub(super) fn over_time(phase: &Phase) -> Result<Vec<Plot>> {
    let width = phase.timeline.width.as_secs_f64();
    let duration = phase.plan.duration.as_secs_f64();
    // `value` is told how many seconds its stretch had: the last one may be cut by the load's end.
    let line = |name: &str, color, value: &dyn Fn(&Stretch, f64) -> Option<f64>| Series {
        name: name.into(),
        color,
        points: phase
            .timeline
            .stretches
            .iter()
            .enumerate()
            .filter_map(|(index, stretch)| {
                let start = index as f64 * width;
                Some((start, value(stretch, width.min(duration - start))?))
            })
            .collect(),
    };
    let latency = |percentile: f64| {
        move |stretch: &Stretch, _: f64| {
            (stretch.latency.count() > 0).then(|| stretch.latency.percentile_ms(percentile))
        }
    };
    let rate = |count: u64, seconds: f64| (seconds > 0.0).then(|| count as f64 / seconds);
    let axes = Axes { x: "seconds", y: "milliseconds", log_x: false, log_y: true, top: 0.0 };
    let mut counts = vec![line("good", GREEN, &|stretch, seconds| rate(stretch.tally.good, seconds))];
    // What never happened needs no line.
    let tally = &phase.all.tally;
    for (name, color, total, of) in [
        ("degraded", ORANGE, tally.degraded, (|stretch| stretch.tally.degraded) as fn(&Stretch) -> u64),
        ("refused", VIOLET, tally.refused, |stretch| stretch.tally.refused),
        ("failed or not sent", RED, tally.failed + tally.not_sent, |stretch| {
            stretch.tally.failed + stretch.tally.not_sent
        }),
    ] {
        if total > 0 {
            counts.push(line(name, color, &|stretch, seconds| rate(of(stretch), seconds)));
        }
    }
    let plots = [
        plot(
            "Latency of the requests that were due in each stretch".into(),
            axes,
            vec![line("p50", BLUE, &latency(50.0)), line("p99", RED, &latency(99.0))],
        )?,
        plot("What became of them".into(), Axes { y: "searches a second", log_y: false, ..axes }, counts)?,
    ];
    let mut plots: Vec<Plot> = plots.into_iter().flatten().collect();
    plots.extend(process(phase)?);
    Ok(plots)
}

fn process(phase: &Phase) -> Result<Vec<Plot>> {
    let Some(usage) = &phase.usage else { return Ok(Vec::new()) };
    let axes = Axes { x: "seconds", y: "MB", log_x: false, log_y: false, top: 0.0 };
    let memory = usage.series.iter().map(|point| (point.seconds, point.resident_bytes as f64 / 1e6));
    let cores = usage.series.iter().map(|point| (point.seconds, point.cpu_cores));
    let plots = [
        plot(
            "Memory of the server's process".into(),
            axes,
            vec![Series { name: "resident".into(), color: BLUE, points: memory.collect() }],
        )?,
        plot(
            "CPU of the server's process".into(),
            Axes { y: "cores busy", top: 1.0, ..axes },
            vec![Series { name: "cores".into(), color: ORANGE, points: cores.collect() }],
        )?,
    ];
    Ok(plots.into_iter().flatten().collect())
}

/// Searches a second that an open loop asked for: of a closed one there is no such number.
fn asked(phase: &Phase) -> Option<f64> {
    phase.plan.rate()?;
    Some(phase.all.searches as f64 / phase.plan.duration.as_secs_f64())
}
