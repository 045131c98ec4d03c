//! The search for the highest rate that holds: doubling, then halving the gap, then proof.
//!
//! It knows rates and whether they held; who runs the loads is not its business.

/// A search under way.
pub(crate) struct Search {
    settings: Settings,
    /// Every rate that held and is below `failed`, ascending.
    held: Vec<f64>,
    /// The lowest rate that failed.
    failed: Option<f64>,
    /// How often the highest rate that held has held again.
    confirmed: usize,
    probes: usize,
}

/// What a search is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// The first rate.
    pub(crate) start: f64,
    /// The highest rate.
    pub(crate) most: f64,
    /// It ends when `failed` is within this share of the highest rate that held.
    pub(crate) precision: f64,
    /// How often the result must hold again.
    pub(crate) confirmations: usize,
    /// Loads it may run.
    pub(crate) max_probes: usize,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    Probe(f64),
    Confirm(f64),
    Done(Limit),
}

/// The result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limit {
    /// The highest rate that held; none when even the lowest that was tried did not.
    pub(crate) rate: Option<f64>,
    /// Whether it held again as often as it had to.
    pub(crate) confirmed: bool,
    /// The lowest rate that failed; none when the highest allowed rate held.
    pub(crate) failed: Option<f64>,
    /// Loads that were run.
    pub(crate) probes: usize,
}

/// Below this part of the first rate nothing is tried.
const LEAST_PART: f64 = 1.0 / 1024.0;

impl Search {
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings, held: Vec::new(), failed: None, confirmed: 0, probes: 0 }
    }

    /// The next step.
    pub(crate) fn next(&self) -> Step {
        let Settings { start, most, precision, confirmations, max_probes } = self.settings;
        let highest = self.held.last().copied();
        let done = |rate, confirmed| Limit { rate, confirmed, failed: self.failed, probes: self.probes };
        if highest.is_some() && self.confirmed >= confirmations && self.confirmed > 0 {
            return Step::Done(done(highest, true));
        }
        if self.probes >= max_probes {
            return Step::Done(done(highest, false));
        }
        match (highest, self.failed) {
            (None, None) => Step::Probe(start),
            (None, Some(failed)) if failed / 2.0 < start * LEAST_PART => Step::Done(done(None, false)),
            (None, Some(failed)) => Step::Probe(round(failed / 2.0)),
            (Some(held), None) if held < most => Step::Probe(round((held * 2.0).min(most))),
            (Some(held), Some(failed)) if failed / held > 1.0 + precision => {
                // The middle of a ratio, not of a difference: the precision is one, too.
                Step::Probe(round((held * failed).sqrt()))
            }
            (Some(held), _) if confirmations > 0 => Step::Confirm(held),
            (Some(held), _) => Step::Done(done(Some(held), false)),
        }
    }

    /// Takes in how a step of `rate` ended.
    pub(crate) fn record(&mut self, rate: f64, confirmation: bool, holds: bool) {
        self.probes += 1;
        match (holds, confirmation) {
            (true, true) => self.confirmed += 1,
            (true, false) => {
                self.held.push(rate);
                self.confirmed = 0;
            }
            (false, _) => {
                self.failed = Some(self.failed.map_or(rate, |failed| failed.min(rate)));
                self.held.retain(|held| *held < rate);
                self.confirmed = 0;
            }
        }
    }
}

/// To three significant digits, so that a rate can be read and given again.
fn round(rate: f64) -> f64 {
    let scale = 10f64.powf(2.0 - rate.abs().log10().floor());
    (rate * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings =
        Settings { start: 4.0, most: 10_000.0, precision: 0.1, confirmations: 1, max_probes: 40 };

    /// Runs a search against a server that holds what `holds` says, and gives the rates that were tried.
    fn search(settings: Settings, mut holds: impl FnMut(f64, bool) -> bool) -> (Limit, Vec<f64>) {
        let mut search = Search::new(settings);
        let mut rates = Vec::new();
        loop {
            let (rate, confirmation) = match search.next() {
                Step::Probe(rate) => (rate, false),
                Step::Confirm(rate) => (rate, true),
                Step::Done(limit) => return (limit, rates),
            };
            rates.push(rate);
            assert!(rates.len() < 100, "{rates:?}");
            search.record(rate, confirmation, holds(rate, confirmation));
        }
    }

    #[test]
    fn the_limit_is_found_to_the_precision() {
        for capacity in [0.9, 4.0, 5.0, 37.0, 100.0, 1234.0] {
            let (limit, rates) = search(SETTINGS, |rate, _| rate <= capacity);
            let rate = limit.rate.unwrap();
            assert!(rate <= capacity && rate * 1.12 > capacity, "{capacity}: {limit:?} by {rates:?}");
            assert!(limit.confirmed && limit.failed.unwrap() > capacity, "{limit:?}");
            assert!(rates.len() < 20, "{rates:?}");
        }
    }

    #[test]
    fn it_doubles_halves_and_proves() {
        let (_, rates) = search(Settings { precision: 0.5, ..SETTINGS }, |rate, _| rate <= 20.0);
        assert_eq!(rates, [4.0, 8.0, 16.0, 32.0, 22.6, 16.0]);
    }

    #[test]
    fn a_limit_that_does_not_hold_again_is_lowered() {
        // Short loads hold up to 100, long ones up to 60.
        let (limit, _) =
            search(SETTINGS, |rate, confirmation| rate <= if confirmation { 60.0 } else { 100.0 });
        let rate = limit.rate.unwrap();
        assert!(limit.confirmed && (50.0..=60.0).contains(&rate), "{limit:?}");
    }

    #[test]
    fn the_ends_of_the_scale() {
        let (limit, _) = search(Settings { most: 50.0, ..SETTINGS }, |_, _| true);
        assert_eq!((limit.rate, limit.confirmed, limit.failed), (Some(50.0), true, None));
        let (limit, rates) = search(SETTINGS, |_, _| false);
        assert_eq!((limit.rate, limit.confirmed), (None, false));
        assert!(rates.len() <= 12, "{rates:?}");
        let (limit, rates) = search(Settings { max_probes: 3, ..SETTINGS }, |_, _| true);
        assert_eq!((limit.rate, limit.confirmed, rates.len()), (Some(16.0), false, 3));
        let (limit, _) = search(Settings { confirmations: 0, ..SETTINGS }, |rate, _| rate <= 37.0);
        assert!(!limit.confirmed && limit.rate.is_some());
    }
}
