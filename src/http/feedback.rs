//! `POST /feedback`, `GET|DELETE /admin/feedback`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use chrono::NaiveDate;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use utoipa::{IntoParams, ToSchema};

use super::{
    AppState,
    body::JsonBody,
    layers::RequestContext,
    problem::{Code, FieldError, Problem},
};
use crate::{
    clock,
    feedback::{Deleted, Feedback, GivenFeedback, Selection},
};

/// Longest request id and document id in bytes.
const ID_BYTES: usize = 512;

/// Feedback that is durable.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeptFeedback {
    /// `kept`.
    status: &'static str,
    /// Names this request in logs.
    request_id: String,
}

/// Keeps a piece of feedback; the 201 means that it is durable.
pub(super) async fn give(
    State(state): State<Arc<AppState>>,
    Extension(context): Extension<RequestContext>,
    JsonBody(given): JsonBody<GivenFeedback>,
) -> Result<Response, Problem> {
    let ids = [("/request_id", &given.request_id), ("/document_id", &given.document_id)];
    let wrong: Vec<FieldError> = ids
        .into_iter()
        .filter(|(_, id)| id.is_empty() || id.len() > ID_BYTES)
        .map(|(pointer, id)| FieldError {
            pointer: pointer.to_owned(),
            detail: format!("has {} bytes, 1 to {ID_BYTES} are allowed", id.len()),
        })
        .collect();
    if !wrong.is_empty() {
        return Err(Problem::fields(wrong));
    }
    let _permit = state.feedback.admit()?;
    let (feedback, index) = (state.feedback.clone(), state.service.bundle().index.clone());
    blocking(move || feedback.record(&index, &given)).await?;
    let answer = KeptFeedback { status: "kept", request_id: context.id.to_string() };
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// All events as JSON lines, oldest first.
pub(super) async fn export(State(state): State<Arc<AppState>>) -> Response {
    let content_type = (header::CONTENT_TYPE, "application/x-ndjson");
    ([content_type], Body::from_stream(days(state.feedback.clone()))).into_response()
}

fn days(feedback: Arc<Feedback>) -> impl Stream<Item = std::io::Result<axum::body::Bytes>> {
    let days = feedback.days();
    stream::iter(days)
        .then(move |day| open_day(feedback.clone(), day))
        .try_filter_map(|opened| async move { Ok(opened) })
        .map_ok(|(file, bytes)| ReaderStream::new(tokio::fs::File::from_std(file).take(bytes)))
        .try_flatten()
}

async fn open_day(feedback: Arc<Feedback>, day: NaiveDate) -> std::io::Result<Option<(std::fs::File, u64)>> {
    let opened = tokio::task::spawn_blocking(move || feedback.open_day(day)).await;
    let opened = opened.map_err(std::io::Error::other)??;
    Ok(opened.map(|(file, bytes)| (file.into_parts().0, bytes)))
}

/// Which events to delete.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParameters {
    /// Events given before this date or RFC 3339 time.
    before: Option<String>,
    /// Events about this document.
    document_id: Option<String>,
    /// Events of this query.
    query: Option<String>,
}

/// Deletes what is selected, or everything; the 200 means that it is off the disk.
pub(super) async fn delete(
    State(state): State<Arc<AppState>>,
    parameters: Result<Query<DeleteParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Deleted>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::field("", error.body_text()))?;
    let before = parameters.before.as_deref().map(clock::parse).transpose();
    let before = before.map_err(|detail| Problem::field("", format!("before: {detail}")))?;
    let DeleteParameters { document_id, query, .. } = parameters;
    let feedback = state.feedback.clone();
    let selection = Selection { before, document_id, query };
    Ok(Json(blocking(move || feedback.delete(&selection)).await?))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            tracing::error!(%error, "work on feedback ended early");
            Err(Problem::new(Code::Internal, "feedback failed; see the log under this request's id"))
        }
    }
}
