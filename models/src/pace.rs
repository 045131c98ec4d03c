//! How fast work of one kind has been done lately, and so how long what waits will take.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// How much of the mean a new measurement is.
const NEW: f64 = 0.1;

/// The time that a unit of work (a text, a token) takes: a mean in which old measurements fade.
#[derive(Debug, Default)]
pub struct Pace {
    /// Seconds a unit.
    seconds: Mean,
}

/// A mean in which old values fade. Any number of threads note and ask; of two notes at the same moment one may be lost.
#[derive(Debug, Default)]
pub struct Mean {
    /// The bits of an f64; 0 until something was noted.
    bits: AtomicU64,
}

impl Mean {
    /// Notes a value.
    pub fn note(&self, value: f64) {
        let before = self.value();
        let mean = if before == 0.0 { value } else { before + NEW * (value - before) };
        self.bits.store(mean.to_bits(), Ordering::Relaxed);
    }

    /// The mean; 0 before the first value was noted.
    pub fn value(&self) -> f64 {
        f64::from_bits(self.bits.load(Ordering::Relaxed))
    }
}

impl Pace {
    /// Notes that `units` units took `took`.
    pub fn note(&self, units: usize, took: Duration) {
        self.seconds.note(took.as_secs_f64() / units.max(1) as f64);
    }

    /// How long so many units will take; nothing before the first was noted.
    pub fn time_for(&self, units: usize) -> Duration {
        let seconds = self.seconds.value() * units as f64;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_follows_what_is_noted_and_counts_units() {
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
