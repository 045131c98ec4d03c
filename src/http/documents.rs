//! `PUT /documents`, `POST /documents/bulk`, `GET|DELETE /documents/{id}`, `POST /admin/snapshot`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use expandr_index::Document;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use tokio_util::io::StreamReader;
use utoipa::{IntoParams, ToSchema};

use super::{
    AppState,
    auth::Role,
    body::{JsonBody, lively, require_content_type},
    layers::RequestContext,
    problem::{Code, Problem},
};
use crate::documents::{BulkReport, DocumentInput, delete as delete_document, ingest_lines, store};

/// Documents to store.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PutDocuments)]
pub(super) struct PutRequest {
    /// Documents to store; one whose id is known replaces the old one.
    #[schema(min_items = 1, max_items = 1000)]
    documents: Vec<DocumentInput>,
}

/// What became of them.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WrittenDocuments)]
pub(super) struct WriteAnswer {
    /// Documents that are new.
    created: usize,
    /// Documents that replaced one of the same id.
    updated: usize,
    /// Wall time in milliseconds.
    took_ms: f64,
    /// Names this request in logs.
    request_id: String,
}

/// Stores a few documents. 201 when at least one is new, 200 otherwise; either way they are durable and searchable.
pub(super) async fn put(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    JsonBody(request): JsonBody<PutRequest>,
) -> Result<Response, Problem> {
    let limits = &state.limits.documents;
    let count = request.documents.len();
    if !(1..=limits.documents_per_request).contains(&count) {
        let most = limits.documents_per_request;
        let detail = format!("{count} documents are not between 1 and {most}; use /documents/bulk for more");
        return Err(Problem::field("/documents", detail));
    }
    let (mut documents, mut errors) = (Vec::with_capacity(count), Vec::new());
    for (i, input) in request.documents.into_iter().enumerate() {
        match input.check(limits, &format!("/documents/{i}")) {
            Ok(document) => documents.push(document),
            Err(error) => errors.push(error),
        }
    }
    if !errors.is_empty() {
        return Err(Problem::fields(errors));
    }
    let outcome = store(&state.service, documents).await?;
    let status = if outcome.created > 0 { StatusCode::CREATED } else { StatusCode::OK };
    let answer = WriteAnswer {
        created: outcome.created,
        updated: outcome.updated,
        took_ms: context.started.elapsed().as_secs_f64() * 1000.0,
        request_id: context.id.to_string(),
    };
    Ok((status, Json(answer)).into_response())
}

/// Parameters of a bulk request.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BulkParameters {
    /// `false`: answer 202 as soon as the body is durable, ingest later.
    #[serde(default = "yes")]
    wait: bool,
}

fn yes() -> bool {
    true
}

/// What became of a bulk request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BulkAnswer {
    #[serde(flatten)]
    report: BulkReport,
    /// Wall time in milliseconds.
    took_ms: f64,
    /// Names this request in logs.
    request_id: String,
}

/// A body that is safe on disk and will be ingested.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueuedBody)]
pub(super) struct QueuedAnswer {
    /// Names the body under `ingest` in `/info`.
    id: String,
    /// `queued`.
    status: &'static str,
    /// Where to look.
    progress: &'static str,
    /// Names this request in logs.
    request_id: String,
}

/// Stores many documents, one a line. 200 when every good line is durable and searchable (bad lines are listed); 202 with
/// `?wait=false` when the body is durable and will be ingested.
pub(super) async fn bulk(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    parameters: Result<Query<BulkParameters>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters
        .map_err(|error| Problem::field("", format!("{}; `wait` takes true or false", error.body_text())))?;
    require_content_type(request.headers(), &["application/x-ndjson", "application/jsonl"])?;
    let _permit = state.bulk_permits.try_acquire().map_err(|_| {
        Problem::overloaded(
            "as many bulk requests as the server reads at once are under way; try again later",
            2,
        )
    })?;
    let body = lively(request.into_body());
    if !parameters.wait {
        let id = state.spool.accept(body).await?;
        let answer = QueuedAnswer {
            id,
            status: "queued",
            progress: "/info shows it under ingest",
            request_id: context.id.to_string(),
        };
        return Ok((StatusCode::ACCEPTED, Json(answer)).into_response());
    }
    let mut left = state.limits.bulk_body_bytes;
    let stream = body.map_err(std::io::Error::other).and_then(move |chunk| {
        let within = (chunk.len() as u64) <= left;
        left = left.saturating_sub(chunk.len() as u64);
        futures::future::ready(if within { Ok(chunk) } else { Err(std::io::ErrorKind::FileTooLarge.into()) })
    });
    let reader = StreamReader::new(Box::pin(stream));
    let report = ingest_lines(&state.service, &state.limits.documents, reader).await?;
    let status = if report.received > 0 && report.failed == report.received {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::OK
    };
    let took_ms = context.started.elapsed().as_secs_f64() * 1000.0;
    Ok((status, Json(BulkAnswer { report, took_ms, request_id: context.id.to_string() })).into_response())
}

pub(super) async fn get(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<Json<Document>, Problem> {
    state.keys.authorize(&headers, Role::Read)?;
    let index = state.service.bundle().index.clone();
    let wanted = id.clone();
    match crate::search::blocking(move || index.get(&wanted)).await? {
        Some(document) => Ok(Json(document)),
        None => Err(no_document(&id)),
    }
}

pub(super) async fn delete(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    state.keys.authorize(&headers, Role::Write)?;
    if delete_document(&state.service, id.clone()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_document(&id))
    }
}

fn no_document(id: &str) -> Problem {
    Problem::new(Code::NotFound, format!("there is no document `{id}`"))
}

/// What became of a snapshot.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotAnswer {
    /// `written`.
    status: &'static str,
}

/// Writes the HNSW snapshot now.
pub(super) async fn snapshot(State(state): State<Arc<AppState>>) -> Result<Json<SnapshotAnswer>, Problem> {
    let index = state.service.bundle().index.clone();
    crate::search::blocking(move || index.snapshot()).await?;
    Ok(Json(SnapshotAnswer { status: "written" }))
}
