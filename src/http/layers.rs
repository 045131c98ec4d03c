//! The layers around every route: request id, log span, metrics, problem bodies, keys, time limit.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::{Instrument, Span, field::Empty};
use uuid::Uuid;

use super::{
    AppState,
    auth::Role,
    body::too_large,
    problem::{Code, Problem},
};
use crate::traces;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// When a request arrived and what it is called.
#[derive(Clone, Debug)]
pub(super) struct RequestContext {
    pub(super) id: Arc<str>,
    pub(super) started: Instant,
}

/// The outermost layer: gives the request its id and span, writes problem bodies, and counts the answer.
pub(super) async fn observe(
    State(state): State<Arc<AppState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let started = Instant::now();
    let id: Arc<str> = request_id(&request).into();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("(none)", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(RequestContext { id: id.clone(), started });
    let quiet = matches!(route.as_str(), "/livez" | "/readyz" | "/health" | "/metrics");
    let span = request_span(&id, &method, &route, request.headers(), quiet);
    let mut response = next.run(request).instrument(span.clone()).await;
    // A 405 says what the route takes; writing the problem anew must not lose that.
    let allow = response.headers_mut().remove(header::ALLOW);
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = problem.into_response_with(&id);
    } else if response.status().is_client_error() && !is_json(&response) {
        // A rejection of the framework itself, such as a path that isn't UTF-8.
        response = rejected(response.status()).into_response_with(&id);
    }
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, allow);
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID.clone(), value);
    }
    let status = response.status().as_u16();
    let took = started.elapsed();
    state.service.metrics().observe_http(method.as_str(), &route, status, took);
    let took_ms = took.as_secs_f64() * 1000.0;
    span.in_scope(|| {
        if quiet {
            tracing::debug!(status, took_ms, "answered");
        } else {
            tracing::info!(status, took_ms, "answered");
        }
    });
    span.record(traces::export::STATUS, status);
    response
}

/// The request's span, in its caller's trace.
fn request_span(id: &str, method: &Method, route: &str, headers: &HeaderMap, quiet: bool) -> Span {
    let span = tracing::info_span!("request", request_id = %id, %method, route, trace_id = Empty, http_status = Empty);
    traces::go_on(&span, headers);
    if quiet {
        traces::leave_out(&span);
    }
    if let Some(place) = traces::of(&span).filter(|place| place.is_sampled) {
        span.record("trace_id", format!("{:032x}", place.trace_id));
    }
    span
}

fn rejected(status: StatusCode) -> Problem {
    if status == StatusCode::PAYLOAD_TOO_LARGE {
        return too_large();
    }
    let detail =
        "the request could not be read; its path must be percent-encoded UTF-8, its body must be complete";
    Problem::new(Code::InvalidRequest, detail)
}

fn is_json(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.contains("json"))
}

/// The client's own id where it is short and printable, else a new one.
fn request_id(request: &Request) -> String {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => {
            id.to_owned()
        }
        _ => Uuid::new_v4().to_string(),
    }
}

/// Lets requests pass that may act as the role.
pub(super) async fn authorize(
    State((state, role)): State<(Arc<AppState>, Role)>,
    request: Request,
    next: Next,
) -> Response {
    match state.keys.authorize(request.headers(), role) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Ends what takes longer than anything may; searches end themselves before, at their own deadline.
pub(super) async fn time_limit(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let limit = state.limits.request_timeout;
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(response) => response,
        Err(_elapsed) => {
            let detail = format!("the request took longer than {} ms", limit.as_millis());
            Problem::new(Code::DeadlineExceeded, detail).into_response()
        }
    }
}
