//! `/info`, `/livez`, `/readyz`, `/health` and `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    AppState,
    problem::{Code, Problem},
};
use crate::search::request::{MAX_EXPANSIONS, MAX_TOP_K};

/// What runs here, what it grants, and how far queued work is.
pub(super) async fn info(State(state): State<Arc<AppState>>) -> Json<Value> {
    let bundle = state.service.bundle();
    let settings = state.service.settings();
    let limits = &settings.limits;
    let defaults = state.service.grounds(&bundle).defaults;
    Json(json!({
        "name": "expandr",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": state.started.elapsed().as_secs(),
        "ready": state.ready(),
        "bundle": bundle.info(),
        "bundles": {
            "active": &*bundle.id,
            "previous": state.bundles.previous(),
            "activation": state.bundles.underway(),
            "last_activation": state.bundles.ended(),
        },
        "documents": bundle.index.stats().documents,
        "index": bundle.index.stats(),
        "ingest": state.spool.progress(),
        "feedback": state.feedback.info(),
        "limits": {
            "top_k": MAX_TOP_K,
            "query_bytes": limits.query_bytes,
            "body_bytes": state.limits.body_bytes,
            "bulk_body_bytes": state.limits.bulk_body_bytes,
            "document_bytes": state.limits.documents.document_bytes,
            "documents_per_request": state.limits.documents.documents_per_request,
            "batch_searches": state.limits.batch_searches,
            "embed_texts": state.limits.embed_texts,
            "concurrent_texts": state.service.admission().capacity(),
            "timeout_ms": limits.timeout_ms,
            "expansions": MAX_EXPANSIONS,
            "expansion_max_tokens": limits.max_tokens,
            "expansion_text_bytes": limits.expansion_text_bytes,
        },
        "defaults": {
            "ranking": limits.default_ranking,
            "expansion": defaults.expansion,
            "expansion_max_tokens": defaults.max_tokens,
            "expansion_temperature": defaults.temperature,
            "query_weight": defaults.query_weight,
            "expansion_timeout_ms": limits.expansion_timeout_ms,
            "expansion_min_partial_words": settings.min_partial_words,
        },
    }))
}

/// The process runs and answers.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// The server takes traffic: models are loaded, the index is open, no shutdown has begun.
pub(super) async fn readyz(State(state): State<Arc<AppState>>) -> Result<&'static str, Problem> {
    if state.ready() {
        Ok("ok\n")
    } else {
        Err(Problem::new(Code::Unavailable, "the server is shutting down"))
    }
}

/// Liveness and readiness with a few figures, for people and simple probes.
pub(super) async fn health(State(state): State<Arc<AppState>>) -> Response {
    let bundle = state.service.bundle();
    let ready = state.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = json!({
        "status": if ready { "ok" } else { "draining" },
        "bundle": &*bundle.id,
        "documents": bundle.index.stats().documents,
        "expander": bundle.expander.is_some(),
    });
    (status, Json(body)).into_response()
}

pub(super) async fn metrics(State(state): State<Arc<AppState>>) -> Result<Response, Problem> {
    let queued = state.spool.progress().queued;
    state.service.metrics().ingest_queued.set(i64::try_from(queued).unwrap_or(i64::MAX));
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
