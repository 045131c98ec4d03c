//! Where the time of a search goes. One struct feeds the response, the span, the `server-timing` header and the
//! histograms.

use std::time::{Duration, Instant};

use serde::Serialize;
use utoipa::ToSchema;

/// Wall time of each stage in milliseconds; 0 for a stage that did not run. `encode_query` and `search_raw`, `expansion`, and
/// `search_lexical` run side by side; the others follow one another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
pub struct Timings {
    /// Embedding the query, queue included.
    pub encode_query_ms: f64,
    /// Searching with the query alone.
    pub search_raw_ms: f64,
    /// Searching by words.
    pub search_lexical_ms: f64,
    /// Getting the passages: cache, queue and generation.
    pub expansion_ms: f64,
    /// From the request for a passage to its first token; 0 when none was generated.
    pub first_token_ms: f64,
    /// Embedding the passages, queue included.
    pub encode_expansion_ms: f64,
    /// Searching with the averaged vector.
    pub search_ms: f64,
    /// Putting the rankings by vectors and by words together.
    pub fuse_ms: f64,
    /// Reading the documents and, if asked for, explaining the hits.
    pub fetch_ms: f64,
    /// What the service itself took: the total less the stages on the longest path.
    pub own_ms: f64,
    /// From the request's arrival to the answer.
    pub total_ms: f64,
}

/// Runs a future and says how long it took, in milliseconds.
pub async fn timed<T>(future: impl Future<Output = T>) -> (T, f64) {
    let start = Instant::now();
    let value = future.await;
    (value, milliseconds(start.elapsed()))
}

/// A duration in milliseconds.
pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Timings {
    /// Fills in the total and the service's own share. `parallel_ms` is the wall time of the phase in which the raw
    /// search, the expansion and the search by words ran side by side.
    pub fn finish(&mut self, total: Duration, parallel_ms: f64) {
        self.total_ms = milliseconds(total);
        let raw = self.encode_query_ms + self.search_raw_ms;
        let first_phase = raw.max(self.expansion_ms).max(self.search_lexical_ms).min(parallel_ms);
        let later = self.encode_expansion_ms + self.search_ms + self.fuse_ms + self.fetch_ms;
        self.own_ms = (self.total_ms - first_phase - later).max(0.0);
    }

    /// Every stage with its name and milliseconds, those that ran.
    pub fn stages(&self) -> impl Iterator<Item = (&'static str, f64)> {
        [
            ("encode_query", self.encode_query_ms),
            ("search_raw", self.search_raw_ms),
            ("search_lexical", self.search_lexical_ms),
            ("expansion", self.expansion_ms),
            ("first_token", self.first_token_ms),
            ("encode_expansion", self.encode_expansion_ms),
            ("search", self.search_ms),
            ("fuse", self.fuse_ms),
            ("fetch", self.fetch_ms),
            ("own", self.own_ms),
            ("total", self.total_ms),
        ]
        .into_iter()
        .filter(|(_, ms)| *ms > 0.0)
    }

    /// The value of the `server-timing` header.
    pub fn server_timing(&self) -> String {
        let parts: Vec<String> = self.stages().map(|(name, ms)| format!("{name};dur={ms:.3}")).collect();
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_time_is_what_the_longest_path_leaves() {
        let mut timings = Timings {
            encode_query_ms: 10.0,
            search_raw_ms: 2.0,
            expansion_ms: 50.0,
            encode_expansion_ms: 15.0,
            search_ms: 2.0,
            fetch_ms: 1.0,
            ..Timings::default()
        };
        timings.finish(Duration::from_millis(70), 50.5);
        assert!((timings.own_ms - 2.0).abs() < 1e-6, "{timings:?}");
        assert!(timings.server_timing().starts_with("encode_query;dur=10.000, search_raw;dur=2.000"));
    }
}
