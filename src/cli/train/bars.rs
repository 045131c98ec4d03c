//! What a training run tells, as bars and lines for people.

use std::sync::{Mutex, PoisonError};

use expandr_training::progress::{Event, Observer};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::duration;

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
