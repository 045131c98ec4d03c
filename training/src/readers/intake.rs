//! What a reader hands its examples to.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::SourceSettings;
use crate::{Error, Result};

/// What a reader found: a query, a passage that answers it, and passages that don't.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// What is asked.
    pub query: String,
    /// A passage that answers it (the paper's d*).
    pub positive: String,
    /// Passages that don't, possibly none.
    pub negatives: Vec<String>,
    /// How the positive relates to the query where the source says so (`SUPPORTS`, …).
    pub label: Option<String>,
}

/// What became of a source's examples. `read` is the sum of all that follow it up to `kept`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCounts {
    /// The source's name.
    pub source: String,
    /// Examples found, good and bad.
    pub read: usize,
    /// Passed over: the line is broken.
    pub broken: usize,
    /// Dropped: the source names no passage that answers the query.
    pub without_positive: usize,
    /// Dropped: its label was not asked for.
    pub other_label: usize,
    /// Dropped: not drawn (the source's `ratio`).
    pub not_drawn: usize,
    /// Dropped: its query occurs in an evaluation set.
    pub held_out: usize,
    /// Dropped: query and positive were there before, in this source or an earlier one.
    pub duplicates: usize,
    /// Dropped: more than the source's `limit`.
    pub over_limit: usize,
    /// Dropped: more queries than the parts want.
    pub surplus: usize,
    /// Taken.
    pub kept: usize,
    /// Positives that were taken and cut to the longest length.
    pub cut: usize,
    /// Negatives left out because they are a positive of their query.
    pub false_negatives: usize,
}

type Receiver<'a> = dyn FnMut(Example, &mut SourceCounts) -> Result<()> + 'a;

/// Counts what a reader finds and passes it on.
pub struct Intake<'a> {
    source: &'a SourceSettings,
    counts: SourceCounts,
    receive: Box<Receiver<'a>>,
    first_broken: Option<String>,
    max_negatives: usize,
}

impl<'a> Intake<'a> {
    /// An intake of the examples of `source`, of which at most `max_negatives` negatives each are looked up.
    pub fn new(
        source: &'a SourceSettings,
        max_negatives: usize,
        receive: impl FnMut(Example, &mut SourceCounts) -> Result<()> + 'a,
    ) -> Self {
        let counts = SourceCounts { source: source.name.clone(), ..SourceCounts::default() };
        Self { source, counts, receive: Box::new(receive), first_broken: None, max_negatives }
    }

    /// What is read.
    pub fn source(&self) -> &'a SourceSettings {
        self.source
    }

    /// What was found, and what the receiver counted.
    pub fn counts(&self) -> &SourceCounts {
        &self.counts
    }

    /// The message of the first broken line that was passed over.
    pub fn first_broken(&self) -> Option<&str> {
        self.first_broken.as_deref()
    }

    pub(super) fn max_negatives(&self) -> usize {
        self.max_negatives
    }

    /// One example. Blank negatives are left out, and those beyond the limit.
    pub(super) fn example(&mut self, mut example: Example) -> Result<()> {
        self.counts.read += 1;
        if let Some(reason) = self.refusal(&example) {
            match reason {
                Refusal::WithoutPositive => self.counts.without_positive += 1,
                Refusal::OtherLabel => self.counts.other_label += 1,
            }
            return Ok(());
        }
        example.negatives.retain(|negative| !negative.trim().is_empty());
        example.negatives.truncate(self.max_negatives);
        (self.receive)(example, &mut self.counts)
    }

    fn refusal(&self, example: &Example) -> Option<Refusal> {
        let labels = &self.source.labels;
        if !labels.is_empty() && !example.label.as_ref().is_some_and(|label| labels.contains(label)) {
            return Some(Refusal::OtherLabel);
        }
        let empty = example.query.trim().is_empty() || example.positive.trim().is_empty();
        empty.then_some(Refusal::WithoutPositive)
    }

    /// An example of which the source says that nothing answers it, or that can't be looked up.
    pub(super) fn without_positive(&mut self) {
        self.counts.read += 1;
        self.counts.without_positive += 1;
    }

    /// A broken line; an error once there are more of them than the source allows.
    pub(super) fn broken(&mut self, path: &Path, line: usize, detail: &str) -> Result<()> {
        let error = Error::line(path, line, detail);
        self.counts.read += 1;
        self.counts.broken += 1;
        if self.counts.broken > self.source.broken_lines {
            return Err(error);
        }
        self.first_broken.get_or_insert_with(|| error.to_string());
        Ok(())
    }

    /// After the last example.
    pub(super) fn finish(&self) -> Result<()> {
        if self.counts.read == 0 {
            let detail = "holds no pair; is it the right file, and was it written whole?";
            return Err(Error::line(&self.source.path, 1, detail));
        }
        Ok(())
    }
}

enum Refusal {
    WithoutPositive,
    OtherLabel,
}
