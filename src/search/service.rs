//! What answers searches: the active bundle, the caches, and who is let in.

use std::{sync::Arc, time::Duration};

use tokio::sync::OwnedSemaphorePermit;

use super::{
    admission::{Admission, refuse_long_wait},
    check::{CheckedSearch, SearchLimits},
    check_ranking::CheckedRanking,
    defaults::Grounds,
    flight::Flights,
    passage_vectors::PassageVectors,
    request::{ExpansionMode, SearchRequest},
};
use crate::{
    bundle::Bundle,
    bundles::{Live, Pause},
    http::problem::Problem,
    metrics::Metrics,
};

/// How a service searches.
#[derive(Clone, Debug)]
pub struct SearchSettings {
    /// What clients may ask for.
    pub limits: SearchLimits,
    /// A passage that its budget cut is used when it has at least this many words.
    pub min_partial_words: usize,
    /// Time before the deadline of a request that is kept for embedding and searching with the expansion.
    pub reserve: Duration,
    /// Texts that are worked on at once.
    pub permits: usize,
    /// The longest wait for the encoder with which a request is let in.
    pub max_wait: Duration,
    /// Size of the expansion cache in bytes, and of that of the passages' vectors.
    pub cache_bytes: u64,
    /// How long a passage stays in the cache.
    pub cache_time_to_live: Duration,
}

/// Answers searches with the active bundle.
pub struct SearchService {
    live: Arc<Live>,
    pub(super) flights: Flights,
    pub(super) passage_vectors: PassageVectors,
    pub(super) metrics: Arc<Metrics>,
    pub(super) settings: SearchSettings,
    admission: Admission,
}

impl SearchService {
    /// A service whose active bundle is `bundle`.
    pub fn new(bundle: Bundle, metrics: Arc<Metrics>, settings: SearchSettings) -> Self {
        metrics.set_bundle(&bundle);
        Self {
            live: Arc::new(Live::new(bundle)),
            flights: Flights::new(settings.cache_bytes, settings.cache_time_to_live),
            passage_vectors: PassageVectors::new(settings.cache_bytes, settings.cache_time_to_live),
            metrics,
            admission: Admission::new(settings.permits),
            settings,
        }
    }

    /// The active bundle. A request takes it once and is answered wholly by it.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.live.bundle()
    }

    /// The active bundle's place, through which writes go.
    pub fn live(&self) -> &Arc<Live> {
        &self.live
    }

    /// The service's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The permits.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Lets in a request that counts `texts`. `search` is what it asks for, where that is one search: then the wait for the
    /// encoder may be a tenth of its budget, or what is kept back for embedding the passage if that is more; and
    /// [`SearchSettings::max_wait`] at most, which counts for every other request.
    ///
    /// # Errors
    /// `overloaded` when the permits or the encoder's time don't suffice, `invalid_request` when they never will.
    pub fn admit(
        &self,
        bundle: &Bundle,
        search: Option<&CheckedSearch>,
        texts: usize,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        if search.is_none_or(|search| !matches!(search.ranking, CheckedRanking::Lexical)) {
            let patience = search.map_or(self.settings.max_wait, |search| self.patience(search));
            refuse_long_wait(bundle.encoder.expected_wait(), patience)?;
        }
        self.admission.admit(texts)
    }

    fn patience(&self, search: &CheckedSearch) -> Duration {
        // Passages that came with the request cost the expander no time.
        let written = search.expansion.as_ref().filter(|expansion| expansion.texts.is_none());
        let expansion_ms = written.map_or(u64::MAX, |expansion| expansion.timeout_ms);
        let budget = Duration::from_millis(search.timeout_ms.min(expansion_ms));
        (budget / 10).max(self.settings.reserve).min(self.settings.max_wait)
    }

    /// How the service searches.
    pub fn settings(&self) -> &SearchSettings {
        &self.settings
    }

    /// Checks a request against what the server grants and `bundle` has, which is to answer it.
    ///
    /// # Errors
    /// `invalid_request` that lists everything that is wrong.
    pub fn check(&self, bundle: &Bundle, request: SearchRequest) -> Result<CheckedSearch, Problem> {
        request.check(&self.settings.limits, &self.grounds(bundle))
    }

    /// What of `bundle` requests are checked against.
    pub fn grounds<'a>(&self, bundle: &'a Bundle) -> Grounds<'a> {
        Grounds::of(&self.settings.limits, bundle)
    }

    /// Refuses a bundle that lacks what the server's flags ask of every bundle.
    ///
    /// # Errors
    /// `invalid_request` that names flag and remedy.
    pub fn refuse_unfit(&self, bundle: &Bundle) -> Result<(), Problem> {
        let grounds = self.grounds(bundle);
        if grounds.defaults.expansion == ExpansionMode::Auto && grounds.gate.is_none() {
            let detail = "the server's default is --expansion auto, which needs a gate, and this bundle has none; give it \
                          one with --gate, or use --expansion always";
            return Err(Problem::field("", detail));
        }
        Ok(())
    }

    /// Puts `bundle` in the live one's place, which comes back; metrics follow. The proof that no write is under way is `pause`.
    pub(crate) fn replace_bundle(&self, bundle: Bundle, pause: &Pause) -> Arc<Bundle> {
        let bundle = Arc::new(bundle);
        let old = self.live.replace(bundle.clone(), pause);
        self.metrics.set_bundle(&bundle);
        old
    }

    /// Frees the cached passages of the bundle `old`, which answers no more, and their vectors.
    pub(crate) fn forget(&self, old: &str) {
        self.flights.forget(old);
        self.passage_vectors.forget(old);
    }

    /// Brings the gauges up to date: called when metrics are read.
    pub fn refresh_gauges(&self) {
        let bundle = self.bundle();
        let metrics = &self.metrics;
        let set = |queue: &str, state: &str, value: usize| {
            metrics.queue.with_label_values(&[queue, state]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set("encoder", "queued", bundle.encoder.queued());
        metrics.encoder_wait.set(bundle.encoder.expected_wait().as_secs_f64());
        if let Some(expander) = &bundle.expander {
            set("expander", "running", expander.running());
            set("expander", "waiting", expander.waiting());
        }
        set("admission", "running", self.admission.in_use());
        metrics.cache_entries.set(i64::try_from(self.flights.cached()).unwrap_or(i64::MAX));
        let cached_bytes = self.flights.cached_bytes() + self.passage_vectors.bytes();
        metrics.cache_bytes.set(i64::try_from(cached_bytes).unwrap_or(i64::MAX));
        let stats = bundle.index.stats();
        metrics.index_documents.set(i64::try_from(stats.documents).unwrap_or(i64::MAX));
        let lexical = stats.lexical.map_or(0, |lexical| lexical.file_bytes);
        let parts = [("store", stats.store_bytes), ("vectors", stats.vector_bytes), ("lexical", lexical)];
        for (part, bytes) in parts {
            metrics.index_bytes.with_label_values(&[part]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}
