//! The layer that writes down who administered, and `GET /admin/audit`.

use std::{sync::Arc, time::Instant};

use axum::{
    Json,
    body::Body,
    extract::{Query, Request, State},
    http::{Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    AppState,
    auth::{Role, bearer, key_id},
    body::too_large,
    layers::RequestContext,
    problem::{Code, Problem},
};
use crate::{
    audit::{Actor, Audit, Entry, Outcome, fingerprint},
    clock,
};

/// Most entries of an answer.
const MOST_ENTRIES: usize = 1000;

/// Writes down what passes: everything that changes something, reads of what users sent, and whatever is refused. Other reads
/// (lists, the progress of a job) are too many for that.
pub(super) async fn audit(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let allowed = state.keys.authorize(request.headers(), Role::Admin).is_ok();
    let mut pending = Pending::begin(&state, &request);
    // Who has no key may not make the server read a body.
    let request = if allowed && !has_lines(&request) {
        match pending.read_body(request, state.limits.body_bytes).await {
            Ok(request) => request,
            Err(problem) => {
                let response = problem.into_response();
                pending.end(Ending::of(&response)).await;
                return response;
            }
        }
    } else {
        request
    };
    let response = next.run(request).await;
    pending.end(Ending::of(&response)).await;
    response
}

/// Whether the body is one of lines, which may be larger than memory.
fn has_lines(request: &Request) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    matches!(essence.as_str(), "application/x-ndjson" | "application/jsonl")
}

/// Reads that are written down.
fn is_confidential(path: &str) -> bool {
    path == "/admin/feedback" || path == "/admin/audit" || path.starts_with("/admin/datasets/")
}

/// A request that has no answer yet. Dropped without one, it is written down as such.
struct Pending {
    audit: Arc<Audit>,
    entry: Option<Entry>,
    key: Option<String>,
    started: Instant,
    /// A read that is written down only when it is refused.
    is_quiet: bool,
}

impl Pending {
    fn begin(state: &AppState, request: &Request) -> Self {
        let key = bearer(request.headers()).map(str::to_owned);
        let context = request.extensions().get::<RequestContext>();
        let path = request.uri().path();
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let entry = Entry {
            time: clock::now(),
            actor: Actor::Client,
            key_id: key.as_deref().map(key_id),
            action: format!("{} {path}", request.method()),
            arguments: parameters(request.uri()),
            outcome: Outcome::Dropped,
            status: None,
            detail: None,
            request_id: context.map(|context| context.id.to_string()),
            took_ms: None,
            refusals_left_out: 0,
        };
        Self {
            audit: state.audit.clone(),
            entry: Some(entry),
            key,
            started: context.map_or_else(Instant::now, |context| context.started),
            is_quiet: is_read && !is_confidential(path),
        }
    }

    /// Takes a body into the arguments, and passes it on.
    async fn read_body(&mut self, request: Request, limit: usize) -> Result<Request, Problem> {
        let (parts, body) = request.into_parts();
        let mut chunks = body.into_data_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                Problem::new(Code::MalformedJson, format!("the body could not be read: {error}"))
            })?;
            if bytes.len() + chunk.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        if let (Some(entry), false) = (&mut self.entry, bytes.is_empty()) {
            let body = serde_json::from_slice(&bytes)
                .unwrap_or_else(|_| json!(format!("{} bytes that are no JSON", bytes.len())));
            let mut arguments = std::mem::take(&mut entry.arguments).as_object().cloned().unwrap_or_default();
            arguments.insert("body".to_owned(), body);
            entry.arguments = Value::Object(arguments);
        }
        Ok(Request::from_parts(parts, Body::from(bytes)))
    }

    async fn end(mut self, ending: Ending) {
        let Some(mut entry) = self.entry.take() else { return };
        let status = ending.status;
        if self.is_quiet && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return;
        }
        entry.status = Some(status.as_u16());
        entry.took_ms = Some(self.started.elapsed().as_secs_f64() * 1000.0);
        entry.detail = ending.detail;
        entry.outcome = match status {
            status if status.is_server_error() => Outcome::Failed,
            status if status.is_client_error() => Outcome::Refused,
            _ => Outcome::Done,
        };
        self.audit.record_request(entry, self.key.as_deref()).await;
    }
}

/// How a request was answered.
struct Ending {
    status: StatusCode,
    detail: Option<String>,
}

impl Ending {
    fn of(response: &Response) -> Self {
        let problem = response.extensions().get::<Problem>();
        Self { status: response.status(), detail: problem.map(|problem| problem.detail.clone()) }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(mut entry) = self.entry.take() else { return };
        if self.is_quiet {
            return;
        }
        entry.took_ms = Some(self.started.elapsed().as_secs_f64() * 1000.0);
        let (audit, key) = (self.audit.clone(), self.key.take());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { audit.record_request(entry, key.as_deref()).await });
        }
    }
}

/// The parameters of a request. A user's query is not written down: it may be there because it is to be deleted.
fn parameters(uri: &Uri) -> Value {
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(uri) else {
        return json!({"parameters": "not readable"});
    };
    if pairs.is_empty() {
        return Value::Null;
    }
    let member = |(name, value): (String, String)| {
        let value = if name == "query" { fingerprint(&value) } else { value };
        (name, Value::String(value))
    };
    json!({"parameters": pairs.into_iter().map(member).collect::<Map<String, Value>>()})
}

/// How many entries.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LastParameters {
    /// At most so many; default 100.
    #[param(minimum = 1, maximum = 1000)]
    #[serde(default = "hundred")]
    limit: usize,
}

fn hundred() -> usize {
    100
}

/// Lines of the audit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AuditAnswer {
    /// Newest first.
    entries: Vec<Entry>,
}

/// The last entries, newest first.
pub(super) async fn last(
    State(state): State<Arc<AppState>>,
    parameters: Result<Query<LastParameters>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<AuditAnswer>, Problem> {
    let Query(parameters) = parameters.map_err(|error| Problem::field("", error.body_text()))?;
    if !(1..=MOST_ENTRIES).contains(&parameters.limit) {
        return Err(Problem::field(
            "",
            format!("limit: {} is not between 1 and {MOST_ENTRIES}", parameters.limit),
        ));
    }
    let audit = state.audit.clone();
    let entries = tokio::task::spawn_blocking(move || audit.last(parameters.limit))
        .await
        .map_err(std::io::Error::other)
        .and_then(|entries| entries)
        .map_err(|error| Problem::new(Code::Internal, format!("the audit can't be read: {error}")))?;
    Ok(Json(AuditAnswer { entries }))
}
