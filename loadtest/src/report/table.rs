//! The report as text for a terminal.

use std::fmt::Write;

use super::{PERCENTILES, Report};
use crate::measure::Phase;
use crate::plan::{Role, short};
use crate::times::Times;

/// Everything that a person wants to see at once.
pub(super) fn text(report: &Report) -> String {
    let mut text = String::new();
    let (tries, loads): (Vec<&Phase>, Vec<&Phase>) =
        report.phases.iter().partition(|phase| report.probe_holds(phase).is_some());
    write_tries(&mut text, report, &tries);
    for phase in loads {
        write_phase(&mut text, phase);
    }
    if let Some(limit) = &report.limit {
        let rate = limit.rate.map_or("none".into(), |rate| format!("{} requests/s", short(rate)));
        let proof = if limit.confirmed { "held again" } else { "not proved" };
        let failed = limit.failed.map_or("nothing failed".into(), |rate| format!("{} failed", short(rate)));
        line(&mut text, &format!("\nlimit: {rate} ({proof}; {failed}; {} loads)", limit.probes));
    }
    if !report.verdicts.is_empty() {
        text.push_str("\nobjectives\n");
    }
    for verdict in &report.verdicts {
        let mark = if verdict.holds { "holds " } else { "MISSED" };
        let about: Vec<&str> = [verdict.shown.as_str(), verdict.load.as_str()]
            .into_iter()
            .filter(|text| !text.is_empty())
            .collect();
        let about = if about.is_empty() { String::new() } else { format!("  ({})", about.join("; ")) };
        line(&mut text, &format!("  {mark}  {}{about}", verdict.what));
    }
    for note in &report.notes {
        line(&mut text, &format!("note: {note}"));
    }
    text
}

/// A line a try of the search.
fn write_tries(text: &mut String, report: &Report, tries: &[&Phase]) {
    if tries.is_empty() {
        return;
    }
    let objectives: Vec<String> = report.search_objectives.iter().map(ToString::to_string).collect();
    line(text, &format!("\nthe highest rate that holds {}", objectives.join(", ")));
    line(
        text,
        &format!(
            "  {:22} {:>10} {:>9} {:>9} {:>8} {:>9} {:>9} {:>9}",
            "", "answered/s", "good/s", "degraded", "refused", "p50 ms", "p95 ms", "p99 ms"
        ),
    );
    for phase in tries {
        let all = &phase.all;
        let [p50, p95, p99] = [50.0, 95.0, 99.0].map(|percentile| all.latency.percentile_ms(percentile));
        let verdict = if report.probe_holds(phase) == Some(true) { "holds" } else { "too much" };
        line(
            text,
            &format!(
                "  {:22} {:>10.2} {:>9.2} {:>7.1} % {:>6.1} % {p50:>9.2} {p95:>9.2} {p99:>9.2}  {verdict}",
                phase.plan.brief(),
                phase.per_second(all.tally.answered),
                phase.goodput(),
                all.expansion_share("degraded") * 100.0,
                all.refused_share() * 100.0,
            ),
        );
    }
}

fn write_phase(text: &mut String, phase: &Phase) {
    line(text, &format!("\n{}", phase.plan));
    let all = &phase.all;
    let counts = |counts: Vec<(&str, u64)>| -> String {
        counts.iter().map(|(name, count)| format!("{name}: {count}")).collect::<Vec<_>>().join(", ")
    };
    let statuses = counts(all.statuses.iter().map(|(status, count)| (status.as_str(), *count)).collect());
    line(
        text,
        &format!("  requests    {} in {:.1} s   ({statuses})", all.requests, phase.measured.as_secs_f64()),
    );
    if all.unsent() > 0 {
        let bounds = counts(all.not_sent.iter().map(|(bound, count)| (*bound, *count)).collect());
        line(text, &format!("  NOT SENT    {} ({bounds})", all.unsent()));
    }
    line(
        text,
        &format!(
            "  searches/s  {:.2} answered, {:.2} good   errors {:.3} %, refused {:.3} %",
            phase.per_second(all.tally.answered),
            phase.goodput(),
            all.error_share() * 100.0,
            all.refused_share() * 100.0
        ),
    );
    if let (Role::Overload, Some(share)) = (phase.plan.role, phase.goodput_of_peak()) {
        line(text, &format!("  of the peak {:.1} % of its goodput", share * 100.0));
    }
    write_expansions(text, phase);
    if phase.bundles.len() > 1 {
        let bundles: Vec<&str> = phase.bundles.iter().map(String::as_str).collect();
        line(text, &format!("  BUNDLES     the server changed over under the load: {}", bundles.join(", ")));
    }
    if let Some(usage) = &phase.usage {
        let growth =
            usage.memory_growth().map_or(String::new(), |growth| format!(" ({:+.1} %)", growth * 100.0));
        line(
            text,
            &format!(
                "  process     {:.0} MB at most{growth}, {:.2} cores busy; the generator {:.2}",
                usage.most_bytes() as f64 / 1e6,
                usage.cpu_cores,
                usage.own_cpu_cores
            ),
        );
    }
    if let Some(failure) = &phase.first_failure {
        line(text, &format!("  first failure: {failure}"));
    }
    write_times(text, phase);
}

fn write_expansions(text: &mut String, phase: &Phase) {
    let all = &phase.all;
    let expansions: Vec<String> = all
        .expansions
        .iter()
        .map(|(status, count)| format!("{status} {count} ({:.1} %)", all.expansion_share(status) * 100.0))
        .collect();
    line(
        text,
        &format!("  expansion   {}", if expansions.is_empty() { "-".into() } else { expansions.join(", ") }),
    );
    for (reason, count) in &all.reasons {
        line(text, &format!("  degraded    {reason}: {count}"));
    }
    if all.generated_tokens > 0 {
        line(text, &format!("  tokens/s    {:.1} generated", phase.per_second(all.generated_tokens)));
    }
}

fn write_times(text: &mut String, phase: &Phase) {
    // Stages that never ran say nothing, and the total is what the server took.
    let told = phase.server.iter().filter(|(name, times)| times.max_ms() > 0.0 && *name != "total");
    let mut rows = vec![("latency".to_owned(), &phase.all.latency)];
    if phase.kinds.len() > 1 {
        rows.extend(phase.kinds.iter().map(|(name, figures)| (format!("  of {name}"), &figures.latency)));
    }
    rows.push(("refusals".into(), &phase.all.refusal_latency));
    rows.extend(told.map(|(name, times)| (format!("server {name}"), times)));
    rows.push(("generator lag".into(), &phase.lag));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(14);
    let mut header = format!("  {:width$}", "milliseconds");
    for (name, _) in PERCENTILES {
        let _ = write!(header, " {name:>9}");
    }
    line(text, &format!("{header} {:>9}", "max"));
    for (name, times) in rows {
        times_row(text, width, &name, times);
    }
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
