//! What a training run tells, as bars and lines for people.

use std::sync::{Mutex, PoisonError};

use expandr_training::progress::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};

/// One bar for the stage that is at work, and a line for every stage that ends.
pub(super) struct Bars {
    style: ProgressStyle,
    bar: Mutex<ProgressBar>,
}

impl Bars {
    pub(super) fn new() -> anyhow::Result<Self> {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {human_pos}/{human_len} {msg}")?;
        Ok(Self { style, bar: Mutex::new(ProgressBar::hidden()) })
    }
}

impl Observer for Bars {
    fn observe(&self, event: &Event<'_>) {
        let mut bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::StageStarted { stage, why } => {
                *bar = ProgressBar::new(0).with_style(self.style.clone()).with_prefix((*stage).to_owned());
                bar.println(format!("{stage}: {why}"));
            }
            Event::StageSkipped { stage } => eprintln!("{stage}: done already"),
            Event::Progress { unit, done, total, eta_seconds, figures, .. } => {
                bar.set_length(*total as u64);
                bar.set_position(*done as u64);
                let left =
                    eta_seconds.map_or(String::new(), |seconds| format!(", {} left", duration(seconds)));
                let figures: Vec<String> = figures
                    .iter()
                    .map(|(name, value)| match value.as_f64() {
                        Some(number) => format!(", {name} {number:.4}"),
                        None => format!(", {name} {value}"),
                    })
                    .collect();
                bar.set_message(format!("{unit}{left}{}", figures.concat()));
            }
            Event::Note { stage, text } => bar.suspend(|| eprintln!("{stage}: {text}")),
            Event::StageFinished { stage, seconds, .. } => {
                bar.finish_and_clear();
                eprintln!("{stage}: done in {}", duration(*seconds));
            }
            Event::Finished { folder } => eprintln!("everything is done; it is in {folder}"),
        }
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let shown: Vec<String> = [0.4, 59.6, 61.0, 3_600.0, 90_061.0].map(duration).into();
        assert_eq!(shown, ["0 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "25 h 1 min"]);
    }
}
