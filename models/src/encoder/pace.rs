//! How fast texts of searches have been encoded lately, and so how long those will take that wait.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How much of the mean a new micro-batch is.
const NEW: f64 = 0.1;

/// The time that a text takes: a mean in which old micro-batches fade. One thread notes, any number ask.
#[derive(Default)]
pub(super) struct Pace {
    /// Seconds a text, the bits of an f64; 0 until something was noted.
    seconds_bits: AtomicU64,
}

impl Pace {
    /// Notes a micro-batch of `texts` texts that took `took`.
    pub(super) fn note(&self, texts: usize, took: Duration) {
        let seconds = took.as_secs_f64() / texts.max(1) as f64;
        let before = f64::from_bits(self.seconds_bits.load(Ordering::Relaxed));
        let mean = if before == 0.0 { seconds } else { before + NEW * (seconds - before) };
        self.seconds_bits.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// How long so many texts will take; nothing before the first was noted.
    pub(super) fn time_for(&self, texts: usize) -> Duration {
        let seconds = f64::from_bits(self.seconds_bits.load(Ordering::Relaxed)) * texts as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_is_noted_and_counts_texts() {
        let pace = Pace::default();
        assert_eq!(pace.time_for(100), Duration::ZERO, "nothing is known yet");
        pace.note(4, Duration::from_millis(40));
        assert_eq!(pace.time_for(10).as_millis(), 100);
        for _ in 0..100 {
            pace.note(1, Duration::from_millis(20));
        }
        assert!((199..=201).contains(&pace.time_for(10).as_millis()), "{:?}", pace.time_for(10));
        assert_eq!(pace.time_for(0), Duration::ZERO);
    }
}
