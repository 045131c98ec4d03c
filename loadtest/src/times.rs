//! A histogram of times.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Times from a microsecond to an hour, to three significant digits (or two), in constant memory.
pub(crate) struct Times(Histogram<u64>);

impl Times {
    const LONGEST_US: u64 = 3_600_000_000;

    pub(crate) fn new() -> Self {
        Self::with_digits(3)
    }

    /// For many at once: a tenth of the memory.
    pub(crate) fn coarse() -> Self {
        Self::with_digits(2)
    }

    fn with_digits(digits: u8) -> Self {
        // The bounds are constants that `new_with_bounds` accepts: low ≥ 1, high ≥ 2·low, 0..=5 digits.
        Self(Histogram::new_with_bounds(1, Self::LONGEST_US, digits).expect("constant bounds are valid"))
    }

    pub(crate) fn record(&mut self, duration: Duration) {
        self.0.saturating_record(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    pub(crate) fn record_ms(&mut self, milliseconds: f64) {
        // A float-to-integer cast saturates; NaN becomes 0.
        self.0.saturating_record((milliseconds * 1e3).round() as u64);
    }

    /// Milliseconds below which the given share (0 to 100) of the values lies.
    pub(crate) fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    pub(crate) fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }

    pub(crate) fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }
}
