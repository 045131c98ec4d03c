//! `PUT|GET|DELETE /admin/datasets/{name}` and `GET /admin/datasets`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio_util::io::ReaderStream;
use utoipa::ToSchema;

use super::{
    AppState,
    body::{drain, lively, require_content_type},
    layers::RequestContext,
    problem::{Code, Problem},
};
use crate::datasets::Dataset;

/// A stored dataset.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StoredDataset)]
pub(super) struct PutAnswer {
    #[serde(flatten)]
    dataset: Dataset,
    /// Whether there was one of this name before.
    replaced: bool,
    /// Wall time in milliseconds.
    took_ms: f64,
    /// Names this request in logs.
    request_id: String,
}

/// Stores a body as a dataset. 201, or 200 when it replaced one; either way it is durable.
pub(super) async fn put(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    require_content_type(request.headers(), &["application/x-ndjson", "application/jsonl"])?;
    let _permit = state.bulk_permits.try_acquire().map_err(|_| {
        Problem::overloaded(
            "as many large bodies as the server reads at once are under way; try again later",
            2,
        )
    })?;
    let mut body = lively(request.into_body());
    let put = state.datasets.put(&name, &mut body).await;
    if put.is_err() {
        drain(&mut body).await;
    }
    let (dataset, replaced) = put?;
    let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
    let took_ms = context.started.elapsed().as_secs_f64() * 1000.0;
    let answer = PutAnswer { dataset, replaced, took_ms, request_id: context.id.to_string() };
    Ok((status, Json(answer)).into_response())
}

/// All datasets.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DatasetList {
    /// By name.
    datasets: Vec<Dataset>,
}

pub(super) async fn list(State(state): State<Arc<AppState>>) -> Json<DatasetList> {
    Json(DatasetList { datasets: state.datasets.list() })
}

/// What is known of a dataset, or its lines for a client that accepts `application/x-ndjson`.
pub(super) async fn get(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let wants_lines = headers
        .get_all(header::ACCEPT)
        .iter()
        .any(|value| value.to_str().is_ok_and(|value| value.contains("application/x-ndjson")));
    if !wants_lines {
        return Ok(Json(state.datasets.get(&name)?).into_response());
    }
    let path = state.datasets.path(&name)?;
    let file = tokio::fs::File::open(&path).await.map_err(|_| {
        Problem::new(Code::NotFound, "the dataset was replaced or deleted meanwhile; try again")
    })?;
    let content_type = (header::CONTENT_TYPE, "application/x-ndjson");
    Ok(([content_type], Body::from_stream(ReaderStream::new(file))).into_response())
}

pub(super) async fn delete(
    State(state): State<Arc<AppState>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    let datasets = state.datasets.clone();
    match tokio::task::spawn_blocking(move || datasets.delete(&name)).await {
        Ok(deleted) => deleted.map(|()| StatusCode::NO_CONTENT),
        Err(error) => Err(Problem::new(Code::Internal, format!("deleting ended early: {error}"))),
    }
}
