//! `POST|GET /admin/jobs`, `GET /admin/jobs/{id}` and its `/events`, `POST …/cancel`, `POST …/resume`.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures::{Stream, stream};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::{
    AppState,
    body::JsonBody,
    problem::{Code, Problem},
};
use crate::jobs::{Follower, JobRecord, JobStatus, JobView, Jobs, LoggedEvent, request::JobRequest};

static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
static LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Longest idempotency key in bytes.
const KEY_BYTES: usize = 200;
/// Jobs of a list when the request doesn't say, and at most.
const LISTED: usize = 100;
const MOST_LISTED: usize = 1000;
/// A line of comment after so much silence, so that proxies keep the connection.
const ALIVE: Duration = Duration::from_secs(15);
/// After this a client that was cut off comes back.
const RETRY: Duration = Duration::from_secs(2);

/// Everything under /admin/jobs.
pub(super) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/admin/jobs", post(submit).get(list))
        .route("/admin/jobs/{id}", get(one))
        .route("/admin/jobs/{id}/events", get(events))
        .route("/admin/jobs/{id}/cancel", post(cancel))
        .route("/admin/jobs/{id}/resume", post(resume))
}

fn jobs(state: &AppState) -> Result<&Arc<Jobs>, Problem> {
    state.jobs.get().ok_or_else(|| Problem::new(Code::NotFound, "this server runs no jobs"))
}

/// Accepts a job: 202 with its place. With a known `Idempotency-Key` it is the job of then.
pub(super) async fn submit(
    State(state): State<Arc<AppState>>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<Value>,
) -> Result<Response, Problem> {
    let key = match headers.get(&IDEMPOTENCY_KEY) {
        Some(key) => Some(idempotency_key(key)?),
        None => None,
    };
    let request = JobRequest::parse(body)?;
    let record = Box::pin(jobs(&state)?.submit(request, key)).await?;
    Ok(accepted(&record))
}

fn idempotency_key(value: &HeaderValue) -> Result<&str, Problem> {
    let key = value.to_str().unwrap_or("");
    if key.is_empty() || key.len() > KEY_BYTES {
        let detail =
            format!("the Idempotency-Key header must have 1 to {KEY_BYTES} printable ASCII characters");
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    Ok(key)
}

fn accepted(record: &JobRecord) -> Response {
    let mut response = (StatusCode::ACCEPTED, Json(record.view())).into_response();
    if let Ok(place) = HeaderValue::from_str(&format!("/admin/jobs/{}", record.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    response
}

/// Which jobs to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Only jobs that stand like this.
    #[param(inline)]
    status: Option<JobStatus>,
    /// At most so many; default 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
}

/// Some jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobList<'a> {
    /// Newest first.
    jobs: Vec<JobView<'a>>,
}

/// The jobs, newest first.
pub(super) async fn list(
    State(state): State<Arc<AppState>>,
    parameters: Result<Query<ListParameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(parameters) = parameters.map_err(|error| {
        let wanted =
            "`status` takes queued, running, succeeded, failed, cancelled or interrupted, `limit` a number";
        Problem::new(Code::InvalidRequest, format!("{}; {wanted}", error.body_text()))
    })?;
    let limit = parameters.limit.unwrap_or(LISTED);
    if !(1..=MOST_LISTED).contains(&limit) {
        let detail = format!("`limit` {limit} is not between 1 and {MOST_LISTED}");
        return Err(Problem::new(Code::InvalidRequest, detail));
    }
    let records = jobs(&state)?.list(parameters.status, limit);
    let views = records.iter().map(JobRecord::view).collect();
    Ok(Json(JobList { jobs: views }).into_response())
}

/// One job.
pub(super) async fn one(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(Json(jobs(&state)?.get(&id)?.view()).into_response())
}

/// Stops a job; one at work is `cancelled` as soon as its process is dead.
pub(super) async fn cancel(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(accepted(&jobs(&state)?.cancel(&id).await?))
}

/// Lets a job that failed, was cancelled or was interrupted go on where it was.
pub(super) async fn resume(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    Ok(accepted(&jobs(&state)?.resume(&id).await?))
}

/// What happens to a job, as server-sent events. `Last-Event-ID` says what the client has seen; the stream ends with the job.
pub(super) async fn events(
    State(state): State<Arc<AppState>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = match headers.get(&LAST_EVENT_ID) {
        None => 0,
        Some(value) => value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            Problem::new(Code::InvalidRequest, "the Last-Event-ID header must be the number of an event")
        })?,
    };
    let jobs = jobs(&state)?;
    let follower = jobs.follow(&id, after)?;
    let events = stream_events(jobs.clone(), follower);
    let keep_alive = KeepAlive::new().interval(ALIVE).text("still here");
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

/// Ends with the job, and when the server stops.
fn stream_events(jobs: Arc<Jobs>, follower: Follower) -> impl Stream<Item = Result<Event, Infallible>> {
    let waiting: VecDeque<LoggedEvent> = VecDeque::new();
    stream::unfold((jobs, follower, waiting), |(jobs, mut follower, mut waiting)| async move {
        if waiting.is_empty() {
            let more = tokio::select! {
                more = follower.next() => more?,
                () = jobs.closed() => return None,
            };
            waiting.extend(more);
        }
        let LoggedEvent { id, event, data, .. } = waiting.pop_front()?;
        let event = Event::default().id(id.to_string()).event(event).retry(RETRY).data(data);
        Some((Ok(event), (jobs, follower, waiting)))
    })
}
