//! The search pipeline: one deadline, raw search beside generation and search by words, average, search, fuse, and a raw
//! answer when no expansion came.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use expandr_models::{
    Priority, TextKind,
    gate::{Decision, Features, Gate},
};
use serde::Serialize;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant as TokioInstant, timeout_at},
};
use tracing::{Instrument, debug_span};
use utoipa::ToSchema;

use super::{
    admission::{Admission, refuse_long_wait},
    answer::{ExpansionReport, ExpansionStatus, RawReason, SearchAnswer, Searched},
    average::{dot, expanded_query, normalize},
    check::{CheckedExpansion, CheckedSearch, SearchLimits},
    check_ranking::CheckedRanking,
    defaults::Grounds,
    expansion::{Passages, Writing, passages, texts_to_embed},
    failure::{deadline_exceeded, degrade, failed_expansion},
    flight::Flights,
    lookup::{Found, VectorSide, fetch, search_index, search_words},
    passage_vectors::PassageVectors,
    ranking::{self, Ranked},
    request::{ExpansionMode, OnFailure, SearchRequest},
    timings::{Timings, milliseconds, timed},
    watch::{Watched, Watcher},
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
    flights: Flights,
    passage_vectors: PassageVectors,
    metrics: Arc<Metrics>,
    settings: SearchSettings,
    admission: Admission,
}

/// The answer of `POST /expand`.
#[derive(Debug, Serialize, ToSchema)]
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

/// What a search is made of before passages are embedded.
struct Material {
    raw: Raw,
    /// The passages and the milliseconds that they took; none where no expansion is wanted.
    written: Option<(Passages, f64)>,
    /// What the gate said; none where it was not asked.
    decision: Option<Decision>,
}

/// What ranking gave, before the documents are read.
struct Outcome {
    ranked: Vec<Ranked>,
    report: ExpansionReport,
    searched: Searched,
    /// None when no vector was searched with.
    vectors: Option<VectorSide>,
    /// Wall time of what ran side by side.
    parallel_ms: f64,
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

    /// Answers one search with `bundle`, against which it was checked. `started` is when the request arrived: deadline and timings count from there.
    ///
    /// # Errors
    /// `overloaded` when the encoder has no place, `deadline_exceeded` when not even raw hits came in time,
    /// `expansion_failed` or `deadline_exceeded` when the expansion failed and the request asked for that.
    pub async fn search(
        &self,
        bundle: &Arc<Bundle>,
        request: CheckedSearch,
        started: Instant,
        request_id: &str,
    ) -> Result<SearchAnswer, Problem> {
        self.search_watched(bundle, request, started, request_id, &Watcher::silent()).await
    }

    /// As [`SearchService::search`], with the same answer; before it `watcher` hears of the raw hits and of the passages.
    ///
    /// # Errors
    /// As [`SearchService::search`].
    pub async fn search_watched(
        &self,
        bundle: &Arc<Bundle>,
        request: CheckedSearch,
        started: Instant,
        request_id: &str,
        watcher: &Watcher,
    ) -> Result<SearchAnswer, Problem> {
        let deadline = TokioInstant::from_std(started) + Duration::from_millis(request.timeout_ms);
        let mut timings = Timings::default();
        let watched = Watched::new(watcher, bundle, &request, started, request_id);

        let ranked = match request.ranking {
            CheckedRanking::Lexical => {
                self.rank_by_words(bundle, &request, &watched, deadline, &mut timings).await?
            }
            CheckedRanking::Dense | CheckedRanking::Hybrid(_) => {
                self.rank_by_vectors(bundle, &request, &watched, started, deadline, &mut timings).await?
            }
        };
        let Outcome { ranked, report, searched, vectors, parallel_ms } = ranked;
        let (hits, ms) =
            timed(fetch(bundle, &request, ranked, vectors).instrument(debug_span!("fetch"))).await;
        timings.fetch_ms = ms;
        timings.finish(started.elapsed(), parallel_ms);
        let ranking = request.ranking.kind();
        self.metrics.observe_search(&bundle.id, ranking, &report, &timings);
        Ok(SearchAnswer {
            request_id: request_id.to_owned(),
            hits: hits?,
            expansion: report,
            bundle: bundle.id.to_string(),
            ranking,
            searched,
            took_ms: timings.total_ms,
            timings,
        })
    }

    /// Ranks by words alone: no encoder, no language model.
    async fn rank_by_words(
        &self,
        bundle: &Arc<Bundle>,
        request: &CheckedSearch,
        watched: &Watched<'_>,
        deadline: TokioInstant,
        timings: &mut Timings,
    ) -> Result<Outcome, Problem> {
        let phase_start = Instant::now();
        let found = timeout_at(
            deadline,
            search_words(bundle, request.top_k, request).instrument(debug_span!("search_lexical")),
        )
        .await;
        let (hits, ms) = found.unwrap_or_else(|_| Err(deadline_exceeded(request.timeout_ms)))?;
        timings.search_lexical_ms = ms;
        watched.found_by_words(&hits).await?;
        Ok(Outcome {
            ranked: ranking::by_words(hits),
            report: ExpansionReport::without(ExpansionStatus::Disabled),
            searched: Searched { dense: None, lexical: true },
            vectors: None,
            parallel_ms: milliseconds(phase_start.elapsed()),
        })
    }

    /// Ranks by the averaged vector, or the query's alone, and fuses that with the ranking by words where asked for.
    async fn rank_by_vectors(
        &self,
        bundle: &Arc<Bundle>,
        request: &CheckedSearch,
        watched: &Watched<'_>,
        started: Instant,
        deadline: TokioInstant,
        timings: &mut Timings,
    ) -> Result<Outcome, Problem> {
        let phase_start = Instant::now();
        let material = self.gather(bundle, request, watched, started, deadline);
        let words = async {
            let CheckedRanking::Hybrid(fusion) = request.ranking else { return Ok(None) };
            let found = timeout_at(
                deadline,
                search_words(bundle, fusion.depth, request).instrument(debug_span!("search_lexical")),
            )
            .await;
            let words = found.unwrap_or_else(|_| Err(deadline_exceeded(request.timeout_ms)))?;
            watched.found_by_words(&words.0).await?;
            Ok(Some((fusion, words)))
        };
        let (Material { raw, written, decision }, words) = tokio::try_join!(material, words)?;
        let parallel_ms = milliseconds(phase_start.elapsed());
        timings.encode_query_ms = raw.encode_ms;
        timings.search_raw_ms = raw.search_ms;

        let mut report = ExpansionReport::without(ExpansionStatus::Disabled);
        let mut expanded = None;
        if let Some((passages, ms)) = written {
            timings.expansion_ms = ms;
            timings.first_token_ms = passages.first_token_ms;
            report = passages.report;
            if !report.texts.is_empty() {
                expanded =
                    self.search_expanded(bundle, request, &raw, &mut report, deadline, timings).await?;
            }
            self.refuse_degraded(request, &report)?;
            report.gate = decision.filter(|_| request.explain);
        }
        let raw_keys = raw.found.hits.iter().map(|hit| hit.key).collect();
        let (expansion_vectors, dense) = expanded.unwrap_or((Vec::new(), raw.found));
        let vectors = VectorSide { query_vector: raw.query_vector, expansion_vectors, raw_keys };
        let searched = Searched { dense: Some(dense.how), lexical: words.is_some() };
        let fuse_start = Instant::now();
        let ranked = match words {
            None => ranking::by_vectors(dense.hits, request.top_k),
            Some((fusion, (lexical, ms))) => {
                timings.search_lexical_ms = ms;
                ranking::fuse(&dense.hits, &lexical, fusion, request.top_k)
            }
        };
        if searched.lexical {
            timings.fuse_ms = milliseconds(fuse_start.elapsed());
        }
        Ok(Outcome { ranked, report, searched, vectors: Some(vectors), parallel_ms })
    }

    /// Searches with the query alone and gets the passages: side by side, or, where the gate is to see the raw hits first,
    /// one after the other.
    async fn gather(
        &self,
        bundle: &Arc<Bundle>,
        request: &CheckedSearch,
        watched: &Watched<'_>,
        started: Instant,
        deadline: TokioInstant,
    ) -> Result<Material, Problem> {
        let raw = async {
            let raw = timeout_at(deadline, self.search_raw(bundle, request)).await;
            let raw = raw.unwrap_or_else(|_| Err(deadline_exceeded(request.timeout_ms)))?;
            watched.found_by_vector(&raw.found, &raw.query_vector).await?;
            Ok::<_, Problem>(raw)
        };
        let Some(expansion) = &request.expansion else {
            return Ok(Material { raw: raw.await?, written: None, decision: None });
        };
        let watcher = watched.watcher();
        let passages =
            timed(self.write_passages(bundle, &request.query, expansion, watcher, started, deadline));
        let Some(gate) = bundle.gate.as_deref().filter(|_| expansion.gated) else {
            let (raw, written) = tokio::try_join!(raw, async { Ok(passages.await) })?;
            return Ok(Material { raw, written: Some(written), decision: None });
        };
        let raw = raw.await?;
        let decision = self.ask_gate(gate, &request.query, &raw);
        let written = if decision.expand { passages.await } else { (Passages::skipped(), 0.0) };
        Ok(Material { raw, written: Some(written), decision: Some(decision) })
    }

    /// Query and documents are normalised, so that the scores of the raw hits are cosines.
    fn ask_gate(&self, gate: &Gate, query: &str, raw: &Raw) -> Decision {
        let cosines: Vec<f32> = raw.found.hits.iter().map(|hit| hit.score).collect();
        let decision = gate.decide(&Features::new(query, &cosines));
        self.metrics.count_gate_decision(decision.expand);
        decision
    }

    /// Writes the passages for a query with `bundle`, without searching.
    ///
    /// # Errors
    /// As [`SearchService::search`], when the request asked to fail with the expansion.
    pub async fn expand(
        &self,
        bundle: &Arc<Bundle>,
        query: &str,
        expansion: &CheckedExpansion,
        started: Instant,
        request_id: &str,
    ) -> Result<ExpandAnswer, Problem> {
        let deadline =
            TokioInstant::from_std(started) + Duration::from_millis(self.settings.limits.timeout_ms);
        let silent = Watcher::silent();
        let passages = self.write_passages(bundle, query, expansion, &silent, started, deadline).await;
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
        watcher: &Watcher,
        started: Instant,
        deadline: TokioInstant,
    ) -> Passages {
        let own = TokioInstant::from_std(started) + Duration::from_millis(expansion.timeout_ms);
        let latest = deadline.checked_sub(self.settings.reserve).unwrap_or(deadline);
        let writing = Writing {
            bundle,
            flights: &self.flights,
            metrics: &self.metrics,
            watcher,
            min_partial_words: self.settings.min_partial_words,
            deadline: own.min(latest),
        };
        passages(&writing, query, expansion).instrument(debug_span!("expansion")).await
    }

    /// Embeds the query and searches with it alone.
    async fn search_raw(&self, bundle: &Arc<Bundle>, request: &CheckedSearch) -> Result<Raw, Problem> {
        let encoded =
            bundle.encoder.encode(TextKind::Query, Priority::Interactive, vec![request.query.clone()]);
        let (vectors, encode_ms) = timed(encoded.instrument(debug_span!("encode_query"))).await;
        let mut query_vector = vectors?.pop().unwrap_or_default();
        normalize(&mut query_vector);
        let search = search_index(bundle, query_vector.clone(), ranking::raw_depth(request), request);
        let (found, search_ms) = search.instrument(debug_span!("search_raw")).await?;
        Ok(Raw { query_vector, found, encode_ms, search_ms })
    }

    /// Embeds the passages of `report`, averages, searches, and adds to `report` how far that led from the query. None, with
    /// `report` degraded, when there was no time or no place for that.
    async fn search_expanded(
        &self,
        bundle: &Arc<Bundle>,
        request: &CheckedSearch,
        raw: &Raw,
        report: &mut ExpansionReport,
        deadline: TokioInstant,
        timings: &mut Timings,
    ) -> Result<Option<(Vec<Vec<f32>>, Found)>, Problem> {
        let texts = texts_to_embed(&request.query, report);
        let encoded = self.passage_vectors.get(&bundle.id, &*bundle.encoder, texts);
        let (vectors, ms) =
            timed(timeout_at(deadline, encoded).instrument(debug_span!("encode_expansion"))).await;
        timings.encode_expansion_ms = ms;
        let mut vectors = match vectors {
            Ok(Ok((vectors, counts))) => {
                self.metrics.count_passage_vectors(counts.kept, counts.made);
                vectors
            }
            Ok(Err(expandr_models::Error::Overloaded { .. })) => {
                degrade(report, RawReason::Overloaded, "the encoder has no place");
                return Ok(None);
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_elapsed) => {
                degrade(report, RawReason::Timeout, "the passage was not embedded in time");
                return Ok(None);
            }
        };
        vectors.iter_mut().for_each(|vector| normalize(vector));
        let averaged = expanded_query(&raw.query_vector, &vectors, report.query_weight);
        if averaged.iter().all(|x| *x == 0.0) {
            // Query and passage point in opposite directions; no document is nearer than another.
            degrade(report, RawReason::EmptyOutput, "query and passage cancel each other out");
            return Ok(None);
        }
        let search = search_index(bundle, averaged, ranking::expanded_depth(request), request);
        let (found, ms) = search.instrument(debug_span!("search")).await?;
        timings.search_ms = ms;
        let cosines = vectors.iter().map(|vector| dot(&raw.query_vector, vector));
        report.query_cosine = Some(cosines.sum::<f32>() / vectors.len() as f32);
        report.raw_overlap_at_10 = ranking::overlap(&raw.found.hits, &found.hits);
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
