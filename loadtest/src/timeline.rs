//! A load by the second: what became of the requests that were due then.

use std::time::Duration;

use crate::figures::{Sample, Tally};
use crate::times::Times;

/// So many stretches at most, whatever the load's length.
const MOST: u32 = 120;

/// The measured time in stretches of equal length. A request belongs to the one in which it was due.
pub(crate) struct Timeline {
    pub(crate) width: Duration,
    pub(crate) stretches: Vec<Stretch>,
}

/// One stretch.
pub(crate) struct Stretch {
    /// Searches that were due.
    pub(crate) searches: u64,
    pub(crate) tally: Tally,
    /// Of requests that brought an answer to a search.
    pub(crate) latency: Times,
}

impl Timeline {
    pub(crate) fn new(duration: Duration) -> Self {
        let seconds = duration.as_secs_f64() / f64::from(MOST);
        // A second is long enough to hold a few requests, and round.
        Self { width: Duration::from_secs_f64(seconds.ceil().max(1.0)), stretches: Vec::new() }
    }

    pub(crate) fn record(&mut self, sample: &Sample, tally: Tally) {
        let index = (sample.due.as_secs_f64() / self.width.as_secs_f64()) as usize;
        let index = index.min(MOST as usize);
        while self.stretches.len() <= index {
            self.stretches.push(Stretch { searches: 0, tally: Tally::default(), latency: Times::coarse() });
        }
        let stretch = &mut self.stretches[index];
        stretch.searches += sample.searches;
        stretch.tally.add(tally);
        if tally.answered > 0 {
            stretch.latency.record(sample.latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_loads_have_long_stretches() {
        for (seconds, width) in [(1, 1), (120, 1), (121, 2), (600, 5), (3600, 30)] {
            assert_eq!(Timeline::new(Duration::from_secs(seconds)).width.as_secs(), width);
        }
    }
}
