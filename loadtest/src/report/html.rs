//! The report as one HTML page that needs nothing from outside: style and plots are in it, and no script runs.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::lines::Plot;
use super::{PERCENTILES, Report, json, plots};
use crate::measure::Phase;
use crate::plan::short;

/// The whole page; every text is escaped.
///
/// # Errors
///
/// When a plot can't be drawn.
pub(super) fn page(report: &Report) -> Result<String> {
    let by_load = plots::by_load(&report.phases)?;
    let mut sections = Vec::new();
    for phase in &report.phases {
        sections.push(section(
            phase,
            &plots::over_time(phase)?,
            sections.is_empty() || report.phases.len() < 3,
        ));
    }
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { (report.title) }
                (summary(report))
                @if !report.notes.is_empty() {
                    div.warnings role="note" { @for note in &report.notes { p { (note) } } }
                }
                (verdicts(report))
                @if let Some(phase) = report.overload() { (overload(phase)) }
                h2 { "Loads" }
                (loads(report))
                @if !by_load.is_empty() {
                    (figures(&by_load))
                }
                @if report.phases.iter().any(|phase| phase.kinds.len() > 1) {
                    h2 { "By kind of request" }
                    (kinds(report))
                }
                h2 { "Over time" }
                @for section in &sections { (section) }
                h2 { "How it was run" }
                (settings(report))
            }
        }
    };
    Ok(page.into_string())
}

fn summary(report: &Report) -> Markup {
    let word = if report.holds() { "everything holds" } else { "something was missed" };
    html! {
        p {
            strong class=(if report.holds() { "better" } else { "worse" }) { (word) }
            @if let Some(limit) = &report.limit {
                @match limit.rate {
                    Some(rate) => {
                        "; the highest rate that holds is " strong { (short(rate)) " requests/s" }
                        @if let Some(failed) = limit.failed { " (" (short(failed)) " is too much)" }
                        @if !limit.confirmed { ", not proved" }
                        "; to hold: " (objectives(report))
                    }
                    None => { "; no rate held " (objectives(report)) }
                }
            }
        }
    }
}

fn objectives(report: &Report) -> String {
    let all: Vec<String> = report.search_objectives.iter().map(ToString::to_string).collect();
    all.join(", ")
}

fn verdicts(report: &Report) -> Markup {
    html! {
        @if !report.verdicts.is_empty() {
            h2 { "Objectives" }
            div.wide { table {
                thead { tr { th { "objective" } th.text { "measured" } th.text { "load" } th.text { "" } } }
                tbody { @for verdict in &report.verdicts {
                    tr {
                        td { (verdict.what) }
                        td.text { (verdict.shown) }
                        td.text { (verdict.load) }
                        td class=(if verdict.holds { "text better" } else { "text worse" }) {
                            (if verdict.holds { "holds" } else { "missed" })
                        }
                    }
                } }
            } }
        }
    }
}

fn overload(phase: &Phase) -> Markup {
    let all = &phase.all;
    let percent = |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.1} %", share * 100.0));
    let growth = phase.usage.as_ref().and_then(|usage| usage.memory_growth());
    html! {
        h2 { "Overload" }
        p {
            "At " (short(phase.plan.rate().unwrap_or(0.0))) " requests/s the goodput was "
            strong { (format!("{:.2}", phase.goodput())) "/s, " (percent(phase.goodput_of_peak())) }
            " of the peak of the loads before (" (format!("{:.2}", phase.peak_goodput.unwrap_or(0.0))) "/s). "
            "Answered requests had a p99 of " strong { (ms(&all.latency, 99.0)) " ms" }
            "; refusals took " (ms(&all.refusal_latency, 50.0)) " ms (p50). "
            @if let Some(growth) = growth { "The server's memory grew by " (percent(Some(growth))) "." }
        }
        div.wide { table {
            thead { tr { th { "status" } th { "requests" } } }
            tbody { @for (status, count) in &all.statuses { tr { td { (status) } td { (count) } } } }
        } }
    }
}

fn loads(report: &Report) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { "load" } th.text { "" } th { "requests" } th { "answered/s" } th { "good/s" } th { "degraded" } th { "refused" }
                th { "failed" } th { "not sent" }
                @for (name, _) in PERCENTILES { th { (name) " ms" } }
                th { "cores" } th { "MB" }
            } }
            tbody { @for phase in &report.phases { (load_row(report, phase)) } }
        } }
    }
}

fn load_row(report: &Report, phase: &Phase) -> Markup {
    let all = &phase.all;
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let usage = phase.usage.as_ref();
    html! {
        tr {
            td { (phase.plan.brief()) }
            @match report.probe_holds(phase) {
                Some(true) => { td.better { "holds" } }
                Some(false) => { td.worse { "too much" } }
                None => { td {} }
            }
            td { (all.requests) }
            td { (format!("{:.2}", phase.per_second(all.tally.answered))) }
            td { (format!("{:.2}", phase.goodput())) }
            td { (percent(all.expansion_share("degraded"))) }
            td { (percent(all.refused_share())) }
            td { (all.tally.failed) }
            td { (all.unsent()) }
            @for (_, percentile) in PERCENTILES { td { (ms(&all.latency, percentile)) } }
            td { (usage.map_or("-".into(), |usage| format!("{:.2}", usage.cpu_cores))) }
            td { (usage.map_or("-".into(), |usage| format!("{:.0}", usage.most_bytes() as f64 / 1e6))) }
        }
    }
}

fn kinds(report: &Report) -> Markup {
    html! {
        div.wide { table {
            thead { tr {
                th { "load" } th.text { "kind" } th { "requests" } th { "good/s" } th { "degraded" } th { "errors" }
                @for (name, _) in PERCENTILES { th { (name) " ms" } }
            } }
            tbody { @for phase in &report.phases { @for (name, figures) in &phase.kinds {
                tr {
                    td { (phase.plan.brief()) }
                    td.text { (name) }
                    td { (figures.requests) }
                    td { (format!("{:.2}", phase.per_second(figures.tally.good))) }
                    td { (format!("{:.1} %", figures.expansion_share("degraded") * 100.0)) }
                    td { (format!("{:.1} %", figures.error_share() * 100.0)) }
                    @for (_, percentile) in PERCENTILES { td { (ms(&figures.latency, percentile)) } }
                }
            } } }
        } }
    }
}

fn section(phase: &Phase, plots: &[Plot], open: bool) -> Markup {
    html! {
        details open[open] {
            summary { (phase.plan) }
            @if let Some(failure) = &phase.first_failure { p.soft { "first failure: " (failure) } }
            (figures(plots))
        }
    }
}

fn figures(plots: &[Plot]) -> Markup {
    html! { div.plots { @for plot in plots { (figure(plot)) } } }
}

fn figure(plot: &Plot) -> Markup {
    html! {
        figure {
            div role="img" aria-label=(plot.caption) { (PreEscaped(&plot.svg)) }
            figcaption {
                @for (name, color) in &plot.legend {
                    span.key { span.swatch style=(format!("background:{color}")) {} (name) }
                }
                br;
                (plot.caption)
            }
        }
    }
}

fn settings(report: &Report) -> Markup {
    let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default();
    html! {
        p { code { (report.command) } }
        p.soft { (env!("CARGO_PKG_NAME")) " " (env!("CARGO_PKG_VERSION")) }
        details { summary { "Machine" } pre { (pretty(&json::machine())) } }
        details { summary { "Settings" } pre { (pretty(&report.request)) } }
        @if !report.server.is_null() {
            details { summary { "What the server says of itself" } pre { (pretty(&report.server)) } }
        }
    }
}

fn ms(times: &crate::times::Times, percentile: f64) -> String {
    if times.count() == 0 { "-".into() } else { format!("{:.1}", times.percentile_ms(percentile)) }
}
