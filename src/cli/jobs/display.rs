//! A job's progress for people: a bar on a terminal, lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use super::job::{Job, Progress};

/// Steps of a bar that is filled by a share.
const BAR: u64 = 1000;
/// Time after which a line says where a stage is.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Shows one job.
pub(super) struct Display {
    bar: Option<ProgressBar>,
    status: String,
    attempts: u64,
    stage: Option<String>,
    /// Tenths of the stage that a line has told of, and when.
    told: (u64, Instant),
}

impl Display {
    pub(super) fn new() -> anyhow::Result<Self> {
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {percent:>3} % {msg}")?;
            Some(ProgressBar::new(BAR).with_style(style))
        } else {
            None
        };
        Ok(Self { bar, status: String::new(), attempts: 0, stage: None, told: (0, Instant::now()) })
    }

    /// Shows what is new.
    pub(super) fn show(&mut self, job: &Job) {
        if job.status != self.status {
            self.say(&format!("{} {}: {}", job.kind, job.id, job.status));
            self.status.clone_from(&job.status);
        }
        if job.attempts > self.attempts {
            if self.attempts > 0 {
                self.say(&format!("attempt {}", job.attempts));
            }
            self.attempts = job.attempts;
        }
        if job.stage != self.stage {
            if let Some(stage) = &job.stage {
                self.say(&format!("stage {stage}"));
            }
            self.stage.clone_from(&job.stage);
            self.told = (0, Instant::now());
            if let Some(bar) = &self.bar {
                bar.set_prefix(job.stage.clone().unwrap_or_default());
                bar.set_position(0);
                bar.set_message("");
            }
        }
        if job.ending().is_none()
            && let Some(progress) = &job.progress
        {
            self.progress(job, progress);
        }
    }

    fn progress(&mut self, job: &Job, progress: &Progress) {
        let share = progress.share();
        if let Some(bar) = &self.bar {
            bar.set_position((share.unwrap_or(0.0) * BAR as f64) as u64);
            bar.set_message(figures(progress));
            return;
        }
        let tenths = (share.unwrap_or(0.0) * 10.0) as u64;
        let (told, when) = self.told;
        if tenths > told || when.elapsed() >= LINE_EVERY {
            let percent = share.map_or(String::new(), |share| format!("{:.0} % ", share * 100.0));
            let stage = job.stage.as_deref().unwrap_or(&job.kind);
            self.say(&format!("{stage} {percent}{}", figures(progress)));
            self.told = (tenths.max(told), Instant::now());
        }
    }

    /// A line above the bar.
    pub(super) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `120/400 steps, 3 min 5 s left, loss 0.6931, reward_margin 0.0120, stage 3 of 9`.
fn figures(progress: &Progress) -> String {
    let mut parts = Vec::new();
    if let (Some(done), Some(total)) = (progress.done, progress.total)
        && total > 0.0
    {
        parts
            .push(format!("{done}/{total} {}", progress.unit.as_deref().unwrap_or("")).trim_end().to_owned());
    }
    if let Some(seconds) = progress.eta_seconds {
        parts.push(format!("{} left", crate::cli::duration(seconds)));
    }
    if let (Some(step), Some(steps)) = (progress.step, progress.steps)
        && progress.unit.as_deref() != Some("steps")
    {
        parts.push(format!("step {step} of {steps}"));
    }
    let known = [("loss", progress.loss), ("reward_margin", progress.reward_margin)];
    let further = progress.figures.iter().filter(|(name, _)| known.iter().all(|(known, _)| name != known));
    let further = further.map(|(name, value)| (name.as_str(), value.as_f64()));
    for (name, value) in known.into_iter().chain(further) {
        match value {
            Some(number) if number != 0.0 && number.abs() < 0.001 => {
                parts.push(format!("{name} {number:.2e}"))
            }
            Some(number) if number.fract() == 0.0 => parts.push(format!("{name} {number}")),
            Some(number) => parts.push(format!("{name} {number:.4}")),
            None => {}
        }
    }
    if let Some(stages) = progress.stages {
        parts.push(format!("stage {} of {stages}", (progress.stages_done + 1).min(stages)));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_read_well() {
        let progress = json!({"unit": "steps", "done": 120, "total": 400, "fraction": 0.3, "eta_seconds": 185.0, "step": 120, "steps": 400,
            "loss": 0.52518, "reward_margin": 0.5, "figures": {"learning_rate": 1e-5, "loss": 0.52518, "tokens": 12}, "trainings": {"dpo": {"step": 1}},
            "stages_done": 2, "stages": 9});
        let progress: Progress = serde_json::from_value(progress).unwrap();
        let expected = "120/400 steps, 3 min 5 s left, loss 0.5252, reward_margin 0.5000, learning_rate 1.00e-5, tokens 12, stage 3 of 9";
        assert_eq!((figures(&progress).as_str(), progress.share()), (expected, Some(0.3)));
        let counted: Progress = serde_json::from_value(json!({"done": 1, "total": 4})).unwrap();
        assert_eq!((counted.share(), figures(&counted).as_str()), (Some(0.25), "1/4"));
        let unknown: Progress =
            serde_json::from_value(json!({"done": 0, "total": 0, "stages_done": 0})).unwrap();
        assert_eq!((unknown.share(), figures(&unknown).as_str()), (None, ""));
    }
}
