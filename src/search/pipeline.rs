//! The search pipeline: one deadline, raw search beside generation, average, search, and a raw answer when no
//! expansion came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use expandr_models::{Priority, TextKind};
use parking_lot::RwLock;
use serde::Serialize;
use tokio::time::{Instant as TokioInstant, timeout_at};

use super::{
    admission::Admission,
    answer::{DegradedReason, ExpansionReport, ExpansionStatus, SearchAnswer},
    average::{expanded_query, normalize},
    check::{CheckedExpansion, CheckedSearch, SearchLimits},
    expansion::{Passages, passages},
    flight::Flights,
    lookup::{Found, RawSide, fetch, search_index},
    request::OnFailure,
    timings::{Timings, milliseconds, timed},
};
use crate::{
    bundle::Bundle,
    http::problem::{Code, Problem},
    metrics::Metrics,
};

/// Raw hits that `explain` ranks, at least.
const EXPLAINED_RAW_HITS: usize = 100;

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
    /// Size of the expansion cache in bytes.
    pub cache_bytes: u64,
    /// How long a passage stays in the cache.
    pub cache_time_to_live: Duration,
}

/// Answers searches with the active bundle.
pub struct SearchService {
    bundle: RwLock<Arc<Bundle>>,
    flights: Flights,
    metrics: Arc<Metrics>,
    settings: SearchSettings,
    admission: Admission,
}

/// The answer of `POST /expand`.
#[derive(Debug, Serialize)]
pub struct ExpandAnswer {
    /// Names this request in logs.
    pub request_id: String,
    /// What became of the expansion.
    #[serde(flatten)]
    pub expansion: ExpansionReport,
    /// The bundle that answered.
    pub bundle: String,
    /// Wall time in milliseconds.
    pub took_ms: f64,
}

/// What a search with the query alone gives.
struct Raw {
    query_vector: Vec<f32>,
    found: Found,
    encode_ms: f64,
    search_ms: f64,
}

impl SearchService {
    /// A service whose active bundle is `bundle`.
    pub fn new(bundle: Bundle, metrics: Arc<Metrics>, settings: SearchSettings) -> Self {
        Self {
            bundle: RwLock::new(Arc::new(bundle)),
            flights: Flights::new(settings.cache_bytes, settings.cache_time_to_live),
            metrics,
            admission: Admission::new(settings.permits),
            settings,
        }
    }

    /// The active bundle. A request takes it once and is answered wholly by it.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.bundle.read().clone()
    }

    /// The service's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The permits.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// How the service searches.
    pub fn settings(&self) -> &SearchSettings {
        &self.settings
    }

    /// Brings the gauges up to date: called when metrics are read.
    pub fn refresh_gauges(&self) {
        let bundle = self.bundle();
        let metrics = &self.metrics;
        let set = |queue: &str, state: &str, value: usize| {
            metrics.queue.with_label_values(&[queue, state]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set("encoder", "queued", bundle.encoder.queued());
        if let Some(expander) = &bundle.expander {
            set("expander", "running", expander.running());
            set("expander", "waiting", expander.waiting());
        }
        set("admission", "running", self.admission.in_use());
        metrics.cache_entries.set(i64::try_from(self.flights.cached()).unwrap_or(i64::MAX));
        metrics.cache_bytes.set(i64::try_from(self.flights.cached_bytes()).unwrap_or(i64::MAX));
        let stats = bundle.index.stats();
        metrics.index_documents.set(i64::try_from(stats.documents).unwrap_or(i64::MAX));
        for (part, bytes) in [("store", stats.store_bytes), ("vectors", stats.vector_bytes)] {
            metrics.index_bytes.with_label_values(&[part]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Answers one search. `started` is when the request arrived: deadline and timings count from there.
    ///
    /// # Errors
    /// `overloaded` when the encoder has no place, `deadline_exceeded` when not even raw hits came in time,
    /// `expansion_failed` or `deadline_exceeded` when the expansion failed and the request asked for that.
    pub async fn search(
        &self,
        request: CheckedSearch,
        started: Instant,
        request_id: &str,
    ) -> Result<SearchAnswer, Problem> {
        let bundle = self.bundle();
        let deadline = TokioInstant::from_std(started) + Duration::from_millis(request.timeout_ms);
        let mut timings = Timings::default();

        let phase_start = Instant::now();
        let raw = async {
            let raw = timeout_at(deadline, self.search_raw(&bundle, &request)).await;
            raw.unwrap_or_else(|_| Err(deadline_exceeded(request.timeout_ms)))
        };
        let expansion = async {
            match &request.expansion {
                Some(expansion) => {
                    let passages = self.write_passages(&bundle, &request.query, expansion, started, deadline);
                    Ok(Some(timed(passages).await))
                }
                None => Ok(None),
            }
        };
        let (raw, written) = tokio::try_join!(raw, expansion)?;
        let parallel_ms = milliseconds(phase_start.elapsed());
        timings.encode_query_ms = raw.encode_ms;
        timings.search_raw_ms = raw.search_ms;

        let mut report = ExpansionReport::without(ExpansionStatus::Disabled);
        let mut expansion_vectors = Vec::new();
        let mut expanded = None;
        if let Some((passages, ms)) = written {
            timings.expansion_ms = ms;
            timings.first_token_ms = passages.first_token_ms;
            report = passages.report;
            if !report.texts.is_empty() {
                let found = self
                    .search_expanded(&bundle, &request, &raw, &mut report, deadline, &mut timings)
                    .await?;
                if let Some((vectors, found)) = found {
                    expansion_vectors = vectors;
                    expanded = Some(found);
                }
            }
            self.refuse_degraded(&request, &report)?;
        }
        let mut found = expanded.unwrap_or_else(|| raw.found.clone());
        found.hits.truncate(request.top_k);

        let searched = found.how;
        let raw = RawSide {
            keys: raw.found.hits.iter().map(|hit| hit.key).collect(),
            query_vector: raw.query_vector,
        };
        let fetch = fetch(&bundle, &request, found.hits, raw, expansion_vectors);
        let (hits, ms) = timed(fetch).await;
        timings.fetch_ms = ms;
        timings.finish(started.elapsed(), parallel_ms);
        self.metrics.observe_search(&report, &timings);
        Ok(SearchAnswer {
            request_id: request_id.to_owned(),
            hits: hits?,
            expansion: report,
            bundle: bundle.id.to_string(),
            searched,
            took_ms: timings.total_ms,
            timings,
        })
    }

    /// Writes the passages for a query without searching.
    ///
    /// # Errors
    /// As [`SearchService::search`], when the request asked to fail with the expansion.
    pub async fn expand(
        &self,
        query: &str,
        expansion: &CheckedExpansion,
        started: Instant,
        request_id: &str,
    ) -> Result<ExpandAnswer, Problem> {
        let bundle = self.bundle();
        let deadline =
            TokioInstant::from_std(started) + Duration::from_millis(self.settings.limits.timeout_ms);
        let passages = self.write_passages(&bundle, query, expansion, started, deadline).await;
        if expansion.on_failure == OnFailure::Fail && passages.report.status == ExpansionStatus::Degraded {
            return Err(failed_expansion(&passages.report));
        }
        Ok(ExpandAnswer {
            request_id: request_id.to_owned(),
            expansion: passages.report,
            bundle: bundle.id.to_string(),
            took_ms: milliseconds(started.elapsed()),
        })
    }

    async fn write_passages(
        &self,
        bundle: &Bundle,
        query: &str,
        expansion: &CheckedExpansion,
        started: Instant,
        deadline: TokioInstant,
    ) -> Passages {
        let own = TokioInstant::from_std(started) + Duration::from_millis(expansion.timeout_ms);
        let latest = deadline.checked_sub(self.settings.reserve).unwrap_or(deadline);
        let min_words = self.settings.min_partial_words;
        passages(bundle, &self.flights, &self.metrics, query, expansion, min_words, own.min(latest)).await
    }

    /// Embeds the query and searches with it alone.
    async fn search_raw(&self, bundle: &Arc<Bundle>, request: &CheckedSearch) -> Result<Raw, Problem> {
        let encoded =
            bundle.encoder.encode(TextKind::Query, Priority::Interactive, vec![request.query.clone()]);
        let (vectors, encode_ms) = timed(encoded).await;
        let mut query_vector = vectors?.pop().unwrap_or_default();
        normalize(&mut query_vector);
        let top_k = if request.explain { request.top_k.max(EXPLAINED_RAW_HITS) } else { request.top_k };
        let search = search_index(bundle, query_vector.clone(), top_k, request);
        let (found, search_ms) = search.await?;
        Ok(Raw { query_vector, found, encode_ms, search_ms })
    }

    /// Embeds the passages of `report`, averages, and searches. None, with `report` degraded, when there was no time or no
    /// place for that.
    async fn search_expanded(
        &self,
        bundle: &Arc<Bundle>,
        request: &CheckedSearch,
        raw: &Raw,
        report: &mut ExpansionReport,
        deadline: TokioInstant,
        timings: &mut Timings,
    ) -> Result<Option<(Vec<Vec<f32>>, Found)>, Problem> {
        let encoded = bundle.encoder.encode(TextKind::Document, Priority::Interactive, report.texts.clone());
        let (vectors, ms) = timed(timeout_at(deadline, encoded)).await;
        timings.encode_expansion_ms = ms;
        let mut vectors = match vectors {
            Ok(Ok(vectors)) => vectors,
            Ok(Err(expandr_models::Error::Overloaded { .. })) => {
                degrade(report, DegradedReason::Overloaded, "the encoder has no place");
                return Ok(None);
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => {
                degrade(report, DegradedReason::Timeout, "the passage was not embedded in time");
                return Ok(None);
            }
        };
        vectors.iter_mut().for_each(|vector| normalize(vector));
        let averaged = expanded_query(&raw.query_vector, &vectors, report.query_weight);
        if averaged.iter().all(|x| *x == 0.0) {
            // Query and passage point in opposite directions; no document is nearer than another.
            degrade(report, DegradedReason::EmptyOutput, "query and passage cancel each other out");
            return Ok(None);
        }
        let (found, ms) = search_index(bundle, averaged, request.top_k, request).await?;
        timings.search_ms = ms;
        Ok(Some((vectors, found)))
    }

    /// Turns a degraded answer into a problem where the request asked for that.
    fn refuse_degraded(&self, request: &CheckedSearch, report: &ExpansionReport) -> Result<(), Problem> {
        let fail = request.expansion.as_ref().is_some_and(|e| e.on_failure == OnFailure::Fail);
        if fail && report.status == ExpansionStatus::Degraded {
            Err(failed_expansion(report))
        } else {
            Ok(())
        }
    }
}

fn degrade(report: &mut ExpansionReport, reason: DegradedReason, detail: &str) {
    *report = ExpansionReport {
        reason: Some(reason),
        detail: Some(detail.to_owned()),
        output_tokens: report.output_tokens,
        ..ExpansionReport::without(ExpansionStatus::Degraded)
    };
}

fn failed_expansion(report: &ExpansionReport) -> Problem {
    let reason = report.reason.unwrap_or(DegradedReason::LlmError);
    let detail = report.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let code = if reason == DegradedReason::Timeout { Code::DeadlineExceeded } else { Code::ExpansionFailed };
    Problem {
        retry_after_seconds: (reason == DegradedReason::Overloaded).then_some(1),
        ..Problem::new(
            code,
            format!("no expansion ({}{detail}), and the request asked to fail in that case", reason.name()),
        )
    }
}

fn deadline_exceeded(timeout_ms: u64) -> Problem {
    Problem::new(
        Code::DeadlineExceeded,
        format!(
            "not even the raw hits were there within {timeout_ms} ms; allow more time or try again later"
        ),
    )
}
