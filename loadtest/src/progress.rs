//! What is seen while a load runs: a bar on a terminal, and a line for every load that has ended.

use std::time::Duration;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::measure::Phase;
use crate::plan::Plan;

/// The bar of one load.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar as long as warm-up and measured time; nothing where standard error is no terminal.
    pub(crate) fn start(plan: &Plan) -> Result<Self> {
        let length = (plan.warmup + plan.duration).as_millis() as u64;
        let style = ProgressStyle::with_template("{prefix} {bar:24} {msg}")?;
        let bar = ProgressBar::new(length).with_style(style).with_prefix(plan.to_string());
        bar.set_message("begins");
        Ok(Self { bar })
    }

    /// Shows how far it is.
    pub(crate) fn show(&self, phase: &Phase, elapsed: Duration, under_way: usize) {
        let plan = &phase.plan;
        let whole = plan.warmup + plan.duration;
        self.bar.set_position(elapsed.min(whole).as_millis() as u64);
        let seconds = elapsed.as_secs();
        if elapsed < plan.warmup {
            self.bar.set_message(format!("{seconds} s, warm-up, {under_way} under way"));
        } else if elapsed > whole {
            self.bar.set_message(format!("waiting for {under_way} answers  {}", figures(phase)));
        } else {
            self.bar.set_message(format!("{seconds} s, {under_way} under way  {}", figures(phase)));
        }
    }

    /// Ends the bar with a line that stays, on a terminal or not.
    pub(crate) fn done(&self, phase: &Phase) {
        self.bar.finish_and_clear();
        let good = phase.goodput();
        eprintln!("{}: {good:.2} good/s, {}", phase.plan, figures(phase));
    }
}

fn figures(phase: &Phase) -> String {
    let tally = &phase.all.tally;
    let mut text = format!("{} answered", tally.answered);
    for (count, word) in [
        (tally.degraded, "degraded"),
        (tally.refused, "refused"),
        (tally.failed, "FAILED"),
        (tally.not_sent, "NOT SENT"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {word}"));
        }
    }
    if phase.all.latency.count() > 0 {
        let [p50, p99] = [50.0, 99.0].map(|percentile| phase.all.latency.percentile_ms(percentile));
        text.push_str(&format!(", p50 {p50:.1} ms, p99 {p99:.1} ms"));
    }
    text
}
