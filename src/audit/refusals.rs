//! Requests without a good key are written down as long as they come slowly: nobody without a key can fill the disk, or push
//! the lines of those with one out of the files that are kept.

use std::time::{Duration, Instant};

/// Refusals that are written in a row.
const BURST: u32 = 20;
/// Time after which one more may be written.
const EACH: Duration = Duration::from_secs(10);

/// How many refusals may be written now.
#[derive(Default)]
pub(super) struct Refusals {
    used: u32,
    since: Option<Instant>,
    left_out: u64,
}

impl Refusals {
    /// Whether a refusal may be written: then how many before it were not.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let back = (now.saturating_duration_since(since).as_millis() / EACH.as_millis()) as u32;
        if back > 0 {
            self.used = self.used.saturating_sub(back);
            self.since = Some(since + EACH * back);
        }
        if self.used >= BURST {
            self.left_out += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_written() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        let written =
            |refusals: &mut Refusals, at| (0..1000).filter(|_| refusals.admit(at).is_some()).count();
        assert_eq!(written(&mut refusals, now), BURST as usize);
        assert_eq!(refusals.admit(now + EACH), Some(1000 - u64::from(BURST)));
        assert_eq!(written(&mut refusals, now + EACH * 4), 3);
        assert_eq!(written(&mut refusals, now + EACH * 1000), BURST as usize, "unused places do not pile up");
    }
}
