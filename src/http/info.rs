//! `/info`, `/livez`, `/readyz`, `/health` and `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use expandr_index::IndexStats;
use expandr_models::expander::MAX_EXPANSIONS;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    AppState,
    bundles::Changeover,
    problem::{Code, Problem},
};
use crate::{
    bundle::BundleInfo,
    documents::SpoolProgress,
    feedback::FeedbackInfo,
    search::request::{ExpansionMode, MAX_TOP_K, Ranking},
};

/// What runs here, what it grants, and how far queued work is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Info<'a> {
    /// `expandr`.
    name: &'static str,
    /// Of the server.
    version: &'static str,
    /// Since the server started.
    uptime_seconds: u64,
    /// Whether it takes traffic.
    ready: bool,
    /// What answers now.
    bundle: BundleInfo<'a>,
    /// Which bundle is active, and the change to another.
    bundles: Changeover,
    /// Documents that can be found.
    documents: usize,
    /// Sizes and health of the index.
    index: IndexStats,
    /// Bodies that were accepted with 202.
    ingest: SpoolProgress,
    /// What users found useful.
    feedback: FeedbackInfo,
    /// What requests may ask for.
    limits: GrantedLimits,
    /// What a request gets that doesn't say.
    defaults: GrantedDefaults,
}

/// What requests may ask for.
#[derive(Debug, Serialize, ToSchema)]
struct GrantedLimits {
    /// Most hits.
    top_k: usize,
    /// Longest query.
    query_bytes: usize,
    /// Largest JSON body.
    body_bytes: usize,
    /// Largest body of `/documents/bulk`.
    bulk_body_bytes: u64,
    /// Largest document.
    document_bytes: usize,
    /// Most documents of one `PUT /documents`.
    documents_per_request: usize,
    /// Most searches of one batch.
    batch_searches: usize,
    /// Most texts of one `/embed`.
    embed_texts: usize,
    /// Texts that are worked on at once; further requests get 429.
    concurrent_texts: usize,
    /// Longest deadline of a search.
    timeout_ms: u64,
    /// Most passages of one query.
    expansions: usize,
    /// Most tokens of a passage.
    expansion_max_tokens: usize,
    /// Longest passage that a request may bring.
    expansion_text_bytes: usize,
}

/// What a request gets that doesn't say.
#[derive(Debug, Serialize, ToSchema)]
struct GrantedDefaults {
    /// What ranks.
    ranking: Ranking,
    /// Whether to expand.
    expansion: ExpansionMode,
    /// Passages that are written and averaged.
    expansion_count: usize,
    /// Most tokens of a passage.
    expansion_max_tokens: usize,
    /// 0 is greedy.
    expansion_temperature: f32,
    /// The query's share; null: the gate's where it decides, else 0.5.
    query_weight: Option<f32>,
    /// Whether a passage is embedded behind its query, as one text; null: as the gate's were where it decides, else not.
    joint_encoding: Option<bool>,
    /// Budget of an expansion.
    expansion_timeout_ms: u64,
    /// Words that a passage which its budget cut must have to be used.
    expansion_min_partial_words: usize,
}

pub(super) async fn info(State(state): State<Arc<AppState>>) -> Response {
    let bundle = state.service.bundle();
    let settings = state.service.settings();
    let limits = &settings.limits;
    let defaults = state.service.grounds(&bundle).defaults;
    let index = bundle.index.stats();
    let info = Info {
        name: "expandr",
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: state.started.elapsed().as_secs(),
        ready: state.ready(),
        bundle: bundle.info(),
        bundles: Changeover::of(&state.bundles),
        documents: index.documents,
        index,
        ingest: state.spool.progress(),
        feedback: state.feedback.info(),
        limits: GrantedLimits {
            top_k: MAX_TOP_K,
            query_bytes: limits.query_bytes,
            body_bytes: state.limits.body_bytes,
            bulk_body_bytes: state.limits.bulk_body_bytes,
            document_bytes: state.limits.documents.document_bytes,
            documents_per_request: state.limits.documents.documents_per_request,
            batch_searches: state.limits.batch_searches,
            embed_texts: state.limits.embed_texts,
            concurrent_texts: state.service.admission().capacity(),
            timeout_ms: limits.timeout_ms,
            expansions: MAX_EXPANSIONS,
            expansion_max_tokens: limits.max_tokens,
            expansion_text_bytes: limits.expansion_text_bytes,
        },
        defaults: GrantedDefaults {
            ranking: limits.default_ranking,
            expansion: defaults.expansion,
            expansion_count: defaults.count,
            expansion_max_tokens: defaults.max_tokens,
            expansion_temperature: defaults.temperature,
            query_weight: defaults.query_weight,
            joint_encoding: defaults.joint_encoding,
            expansion_timeout_ms: limits.expansion_timeout_ms,
            expansion_min_partial_words: settings.min_partial_words,
        },
    };
    Json(info).into_response()
}

/// The process runs and answers, and is better left alone.
pub(super) async fn livez(State(state): State<Arc<AppState>>) -> Result<&'static str, Problem> {
    if state.store_failed() { Err(store_failed()) } else { Ok("ok\n") }
}

fn store_failed() -> Problem {
    let detail = "the disk failed under the documents, and they are not written and hardly read any more; see that it has room and \
                  is well, then restart the server";
    Problem::new(Code::Unavailable, detail)
}

/// The server takes traffic: models are loaded, the index is open, no shutdown has begun.
pub(super) async fn readyz(State(state): State<Arc<AppState>>) -> Result<&'static str, Problem> {
    if state.store_failed() {
        Err(store_failed())
    } else if state.ready() {
        Ok("ok\n")
    } else {
        Err(Problem::new(Code::Unavailable, "the server is shutting down"))
    }
}

/// A few figures of health.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, `draining`, or `failed`: the disk failed under the documents, restart the server.
    status: &'static str,
    /// The bundle that answers.
    bundle: String,
    /// Documents that can be found.
    documents: usize,
    /// Whether there is a language model.
    expander: bool,
}

/// Liveness and readiness with a few figures, for people and simple probes.
pub(super) async fn health(State(state): State<Arc<AppState>>) -> Response {
    let bundle = state.service.bundle();
    let ready = state.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Health {
        status: match state.store_failed() {
            true => "failed",
            false if ready => "ok",
            false => "draining",
        },
        bundle: bundle.id.to_string(),
        documents: bundle.index.stats().documents,
        expander: bundle.expander.is_some(),
    };
    (status, Json(body)).into_response()
}

pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, Problem> {
    let queued = state.spool.progress().queued;
    state.service.metrics().ingest_queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
    if let Some(jobs) = state.jobs.get() {
        state.service.metrics().set_jobs(&jobs.list(None, usize::MAX));
    }
    let service = state.service.clone();
    let text = tokio::task::spawn_blocking(move || {
        service.refresh_gauges();
        service.metrics().render()
    })
    .await
    .map_err(|error| Problem::new(Code::Internal, format!("metrics: {error}")))?
    .map_err(|error| Problem::new(Code::Internal, format!("metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
