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
use tokio::time::{Instant as TokioInstant, timeout_at};
use tracing::{Instrument, debug_span};

use super::{
    answer::{ExpansionReport, ExpansionStatus, RawReason, SearchAnswer, Searched},
    average::{dot, expanded_query, normalize},
    check::CheckedSearch,
    check_ranking::CheckedRanking,
    expansion::{Passages, texts_to_embed},
    failure::{deadline_exceeded, degrade, failed_expansion},
    lookup::{Found, VectorSide, fetch, search_index, search_words},
    ranking::{self, Ranked},
    request::OnFailure,
    service::SearchService,
    timings::{Timings, milliseconds, timed},
    watch::{Watched, Watcher},
};
use crate::{bundle::Bundle, http::problem::Problem};

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
        let version = bundle.index.version();
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
        let (Material { mut raw, written, decision }, mut words) = tokio::try_join!(material, words)?;
        let parallel_ms = milliseconds(phase_start.elapsed());
        timings.encode_query_ms = raw.encode_ms;
        timings.search_raw_ms = raw.search_ms;

        let mut report = ExpansionReport::without(ExpansionStatus::Disabled);
        let mut expanded = None;
        let waited = written.is_some();
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
        // A passage takes its time, in which documents may have been written again, under new keys.
        if waited && bundle.index.version() != version {
            if let Some((fusion, words)) = &mut words {
                *words = again(search_words(bundle, fusion.depth, request), deadline, words.clone()).await?;
            }
            if expanded.is_none() {
                let search =
                    search_index(bundle, raw.query_vector.clone(), ranking::raw_depth(request), request);
                let (found, ms) = again(search, deadline, (raw.found, 0.0)).await?;
                raw.found = found;
                timings.search_ms += ms;
            }
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

/// What a search gives when it is done again; what it gave `before` when there is no time left.
async fn again<T>(
    search: impl Future<Output = Result<T, Problem>>,
    deadline: TokioInstant,
    before: T,
) -> Result<T, Problem> {
    timeout_at(deadline, search).await.unwrap_or(Ok(before))
}
