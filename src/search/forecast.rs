//! Whether a passage that is asked for now would come in time. Where more is asked of a language model than it can write, those
//! who can't be served in time are told so at once: else they would wait out their budgets, take the places of those who can
//! be served, and nobody would get a passage.

use std::sync::atomic::{AtomicUsize, Ordering};

use expandr_models::{Mean, Pace};
use tokio::time::Instant;

/// What estimates are multiplied by: passages that come at the last moment come too late as often as not, and prompts that are
/// read after theirs hold them up.
const MARGIN: f64 = 1.4;

/// Tokens that are measured together: single steps of a model take very different times, as it reads prompts between.
const MEASURED_TOGETHER: usize = 8;

/// How fast passages have been written lately.
#[derive(Debug, Default)]
pub(super) struct Forecast {
    lately: Paces,
    /// How many were being written then.
    company: Mean,
    /// While no other was being written.
    alone: Paces,
    /// Passages that are being written.
    writing: AtomicUsize,
}

#[derive(Debug, Default)]
struct Paces {
    /// From when a passage is asked for, or has waited for a place, to its first token.
    first_token: Pace,
    /// From one token of a passage to the next.
    token: Pace,
}

/// A passage that is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// Its tokens, at most.
    pub(super) max_tokens: usize,
    /// With so many it is of use.
    pub(super) enough_tokens: usize,
    /// When it is wanted.
    pub(super) deadline: Instant,
}

impl Forecast {
    /// Why a passage that is `wanted` `now` would be of no use, where `under_way` others are asked of a model that writes
    /// `places` at once; none where it would, or where that is not known.
    ///
    /// All of its tokens must come in time where that is possible at all; where its budget is too short even for a passage that is
    /// written alone, enough of them must, for what is there by then is used.
    pub(super) fn too_late(
        &self,
        wanted: Wanted,
        under_way: usize,
        places: usize,
        now: Instant,
    ) -> Option<String> {
        if under_way == 0 {
            // How fast an idle model is, only it can show: what was noted may be from when it was busy.
            return None;
        }
        let left = wanted.deadline.saturating_duration_since(now).as_secs_f64();
        let writing = (under_way + 1).min(places);
        let passage = MARGIN * self.seconds_for(wanted.max_tokens, writing);
        let needed = if under_way >= places {
            passage + passage * (under_way - places + 1) as f64 / places.max(1) as f64
        } else if MARGIN * self.seconds_for(wanted.max_tokens, 1) <= left {
            passage
        } else {
            self.seconds_for(wanted.enough_tokens.min(wanted.max_tokens), writing)
        };
        (needed > left).then(|| {
            format!(
                "{under_way} passages are under way: this one would take {:.0} ms, and {:.0} ms are left; ask again later, or with a \
                 larger budget",
                needed * 1000.0,
                left * 1000.0
            )
        })
    }

    /// The seconds that a passage of so many tokens takes among `writing`, itself included. A step of a model takes longer the more
    /// passages there are, by as much for each: between what was measured alone and lately, and beyond that.
    fn seconds_for(&self, tokens: usize, writing: usize) -> f64 {
        let seconds = |pace: &Pace| pace.time_for(1).as_secs_f64();
        let (token, alone, company) =
            (seconds(&self.lately.token), seconds(&self.alone.token), self.company.value());
        let each =
            if company > 1.5 && alone > 0.0 { (token - alone).max(0.0) / (company - 1.0) } else { 0.0 };
        let token = (token + each * (writing as f64 - company)).max(alone);
        let first_token = if writing > 1 { &self.lately } else { &self.alone }.first_token.time_for(1);
        first_token.as_secs_f64() + token * tokens as f64
    }

    /// Follows a passage that was asked for at `start`, or has waited for its place until then.
    pub(super) fn follow(&self, start: Instant) -> Writing<'_> {
        self.writing.fetch_add(1, Ordering::Relaxed);
        Writing { forecast: self, since: start, tokens: None }
    }
}

/// A passage that is being written.
pub(super) struct Writing<'a> {
    forecast: &'a Forecast,
    since: Instant,
    /// Those that came since then; none before the first.
    tokens: Option<usize>,
}

impl Writing<'_> {
    /// So many more tokens are there `now`.
    pub(super) fn came(&mut self, tokens: usize, now: Instant) {
        let took = now - self.since;
        match &mut self.tokens {
            None => self.note(|paces| paces.first_token.note(1, took)),
            Some(before) => {
                *before += tokens;
                let tokens = *before;
                if tokens < MEASURED_TOGETHER {
                    return;
                }
                self.note(|paces| paces.token.note(tokens, took));
                self.forecast.company.note(self.forecast.writing.load(Ordering::Relaxed) as f64);
            }
        }
        (self.since, self.tokens) = (now, Some(0));
    }

    fn note(&self, note: impl Fn(&Paces)) {
        note(&self.forecast.lately);
        if self.forecast.writing.load(Ordering::Relaxed) == 1 {
            note(&self.forecast.alone);
        }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        let lately = &self.forecast.lately;
        let waited = self.since.elapsed();
        // Who was cut off before the first token came says that it takes so long at least.
        if self.tokens.is_none() && waited > lately.first_token.time_for(1) {
            lately.first_token.note(1, waited);
        }
        self.forecast.writing.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Notes 100 ms to the first token and `token_ms` for each, beside so many others.
    fn note(forecast: &Forecast, token_ms: u64, others: usize) {
        let start = Instant::now();
        let _others: Vec<Writing<'_>> = (0..others).map(|_| forecast.follow(start)).collect();
        for _ in 0..100 {
            let mut writing = forecast.follow(start);
            writing.came(1, start + Duration::from_millis(100));
            for token in 1..=8 {
                writing.came(1, start + Duration::from_millis(100 + token * token_ms));
            }
        }
    }

    /// Of a model that writes four at once.
    fn too_late(forecast: &Forecast, under_way: usize, left_ms: u64) -> Option<String> {
        let now = Instant::now();
        let deadline = now + Duration::from_millis(left_ms);
        forecast.too_late(Wanted { max_tokens: 64, enough_tokens: 12, deadline }, under_way, 4, now)
    }

    #[test]
    fn an_idle_model_and_an_unknown_one_get_the_benefit_of_the_doubt() {
        let forecast = Forecast::default();
        assert_eq!(too_late(&forecast, 64, 1), None);
        note(&forecast, 10, 3);
        assert_eq!(too_late(&forecast, 0, 1), None);
        assert!(too_late(&forecast, 64, 1).is_some());
    }

    #[test]
    fn all_of_a_passage_must_come_in_time_where_it_can_and_else_enough_of_it() {
        let forecast = Forecast::default();
        note(&forecast, 5, 0);
        note(&forecast, 10, 3);
        // A passage takes 420 ms alone and 740 ms in company, with the margin 588 and 1036 ms.
        assert!(too_late(&forecast, 3, 1030).is_some());
        assert_eq!(too_late(&forecast, 3, 1050), None);
        assert!(too_late(&forecast, 3, 600).is_some(), "alone it would be in time");
        // With less there is no hope of a whole one: 100 ms and 12 tokens will do.
        assert_eq!(too_late(&forecast, 3, 580), None);
        assert_eq!(too_late(&forecast, 3, 230), None);
        assert!(too_late(&forecast, 3, 210).is_some());
    }

    #[test]
    fn the_more_are_written_the_longer_each_takes() {
        let forecast = Forecast::default();
        note(&forecast, 5, 0);
        note(&forecast, 15, 10);
        // 5 ms a token alone and 15 ms among eleven: 1 ms more for each.
        for (writing, seconds) in [(1, 0.6), (6, 1.1), (21, 2.6)] {
            let forecast = forecast.seconds_for(100, writing);
            assert!((forecast - seconds).abs() < 0.001, "{forecast} s among {writing}");
        }
    }

    #[test]
    fn who_was_cut_off_before_the_first_token_counts() {
        let forecast = Forecast::default();
        note(&forecast, 10, 0);
        note(&forecast, 10, 3);
        let long_ago = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
        drop(forecast.follow(long_ago));
        // 10 % of 2 s, 90 % of 100 ms, and 12 tokens.
        assert!(too_late(&forecast, 3, 380).is_some());
        assert_eq!(too_late(&forecast, 3, 420), None);
    }

    #[test]
    fn who_has_to_wait_for_a_place_needs_time_for_that_too() {
        let forecast = Forecast::default();
        note(&forecast, 10, 3);
        // A quarter of a passage is the wait for the next of four places.
        assert!(too_late(&forecast, 4, 1290).is_some());
        assert_eq!(too_late(&forecast, 4, 1300), None);
        let detail = too_late(&forecast, 7, 900).unwrap();
        assert!(detail.contains("would take 2072 ms, and 900 ms are left"), "{detail}");
    }
}
