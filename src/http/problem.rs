//! Errors as RFC 9457 `application/problem+json`.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// One thing that is wrong with a request's body or parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) of the value in question; empty for the whole body.
    pub pointer: String,
    /// What is wrong and the remedy.
    pub detail: String,
}

/// What kind of problem: the stable, machine-readable `code` of an answer. Each has one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ProblemCode)]
pub enum Code {
    /// The body isn't JSON.
    MalformedJson,
    /// The body is JSON, but not a valid request.
    InvalidRequest,
    /// No or an unknown key.
    Unauthorized,
    /// The key's role may not do this.
    Forbidden,
    /// No such route or document.
    NotFound,
    /// The route exists, the method does not.
    MethodNotAllowed,
    /// What is asked for doesn't go with what the server is doing or has done.
    Conflict,
    /// The body exceeds the limit.
    BodyTooLarge,
    /// The body's content type isn't what the route takes.
    UnsupportedMediaType,
    /// Every permit or queue place is taken.
    Overloaded,
    /// The expansion failed and the request asked to fail with it.
    ExpansionFailed,
    /// The deadline passed.
    DeadlineExceeded,
    /// The server is starting or shutting down.
    Unavailable,
    /// A bug or a broken disk: logged with the request id.
    Internal,
}

impl Code {
    /// All of them, in the order of their statuses.
    pub(super) const ALL: [Self; 14] = [
        Self::MalformedJson,
        Self::Unauthorized,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::InvalidRequest,
        Self::Overloaded,
        Self::Internal,
        Self::ExpansionFailed,
        Self::Unavailable,
        Self::DeadlineExceeded,
    ];

    /// Its name on the wire.
    pub(super) fn name(self) -> String {
        let name = serde_json::to_value(self).ok();
        name.as_ref().and_then(|name| name.as_str()).unwrap_or("internal").to_owned()
    }

    /// The HTTP status that goes with the code.
    pub fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson => StatusCode::BAD_REQUEST,
            Self::InvalidRequest => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::ExpansionFailed | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::MalformedJson => "the body is not valid JSON",
            Self::InvalidRequest => "the request is not valid",
            Self::Unauthorized => "a valid key is needed",
            Self::Forbidden => "this key may not do that",
            Self::NotFound => "not found",
            Self::MethodNotAllowed => "method not allowed",
            Self::Conflict => "the request conflicts with the state of the server",
            Self::BodyTooLarge => "the body is too large",
            Self::UnsupportedMediaType => "unsupported content type",
            Self::Overloaded => "the service is overloaded",
            Self::ExpansionFailed => "the expansion failed",
            Self::DeadlineExceeded => "the deadline passed",
            Self::Unavailable => "the service is not available",
            Self::Internal => "internal error",
        }
    }
}

/// An answer that reports a problem. It carries everything but the request id, which the outermost layer adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The kind of problem.
    pub code: Code,
    /// What happened to this request, and the remedy.
    pub detail: String,
    /// What is wrong with which part of the body.
    pub errors: Vec<FieldError>,
    /// Seconds after which a new try makes sense (`Retry-After`).
    pub retry_after_seconds: Option<u64>,
}

/// The wire form of a [`Problem`].
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// `urn:expandr:problem:` and the code.
    r#type: String,
    /// What kind of problem, for people.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What kind of problem, for programs.
    code: Code,
    /// What happened to this request, and the remedy.
    detail: &'a str,
    /// Everything that is wrong with the request; absent where there is nothing to point at.
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
    /// Names this request in logs.
    request_id: &'a str,
}

impl Problem {
    /// A problem of this kind.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), errors: Vec::new(), retry_after_seconds: None }
    }

    /// A request whose value at `pointer` is wrong.
    pub fn field(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::fields(vec![FieldError { pointer: pointer.into(), detail: detail.into() }])
    }

    /// A request in which several values are wrong; `errors` must not be empty.
    pub fn fields(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => one.detail.clone(),
            [one] => format!("{}: {}", one.pointer, one.detail),
            several => format!("{} values are not valid", several.len()),
        };
        Self { code: Code::InvalidRequest, detail, errors, retry_after_seconds: None }
    }

    /// Overload, with the time after which a new try makes sense.
    pub fn overloaded(detail: impl Into<String>, retry_after_seconds: u64) -> Self {
        Self { retry_after_seconds: Some(retry_after_seconds), ..Self::new(Code::Overloaded, detail) }
    }

    /// Puts `prefix` before every pointer: for a value that is part of a larger body.
    pub fn under(mut self, prefix: &str) -> Self {
        for error in &mut self.errors {
            error.pointer.insert_str(0, prefix);
        }
        self
    }

    /// The wire form.
    pub fn body<'a>(&'a self, request_id: &'a str) -> ProblemBody<'a> {
        ProblemBody {
            r#type: format!("urn:expandr:problem:{}", self.code.name()),
            title: self.code.title(),
            status: self.code.status().as_u16(),
            code: self.code,
            detail: &self.detail,
            errors: &self.errors,
            request_id,
        }
    }

    /// The whole HTTP response.
    pub fn into_response_with(self, request_id: &str) -> Response {
        let body = serde_json::to_vec(&self.body(request_id)).unwrap_or_default();
        let content_type = (header::CONTENT_TYPE, "application/problem+json");
        let mut response = (self.code.status(), [content_type], body).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Leaves the problem in the response's extensions: the outermost layer knows the request id and writes the body.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<expandr_models::Error> for Problem {
    fn from(error: expandr_models::Error) -> Self {
        use expandr_models::Error;
        match error {
            Error::Overloaded { .. } => Self::overloaded(error.to_string(), 1),
            Error::Input(detail) => Self::field("", detail),
            Error::Checkpoint { .. }
            | Error::Engine { .. }
            | Error::Weights(_)
            | Error::Io(_)
            | Error::Tensor(_) => {
                tracing::error!(%error, "a model failed");
                Self::new(Code::Internal, format!("a model failed: {error}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_has_the_members_of_rfc_9457_and_ours() {
        let problem = Problem::field("/top_k", "must be between 1 and 1000");
        let body = serde_json::to_value(problem.body("r-1")).unwrap();
        assert_eq!(body["type"], "urn:expandr:problem:invalid_request");
        assert_eq!(body["status"], 422);
        assert_eq!(body["code"], "invalid_request");
        assert_eq!(body["errors"][0]["pointer"], "/top_k");
        assert_eq!(body["request_id"], "r-1");
        assert!(body["detail"].as_str().unwrap().contains("between 1 and 1000"));
    }

    #[test]
    fn overload_tells_when_to_come_back() {
        let response = Problem::overloaded("full", 2).into_response_with("r");
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }

    #[test]
    fn pointers_move_with_the_value() {
        let problem = Problem::field("/query", "is empty").under("/searches/3");
        assert_eq!(problem.errors[0].pointer, "/searches/3/query");
    }
}
