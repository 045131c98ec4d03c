//! Request bodies: size limits and strict JSON whose errors point at the value in question.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use futures::{Stream, StreamExt};
use serde::de::DeserializeOwned;

use super::problem::{Code, Problem};

/// A JSON body of at most the router's body limit.
pub struct JsonBody<T>(pub T);

impl<T, S> FromRequest<S> for JsonBody<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        require_content_type(request.headers(), &["application/json"])?;
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == axum::http::StatusCode::PAYLOAD_TOO_LARGE {
                too_large()
            } else {
                Problem::new(Code::MalformedJson, format!("the body could not be read: {rejection}"))
            }
        })?;
        parse(&bytes).map(Self)
    }
}

/// The problem of a body over the limit.
pub fn too_large() -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        "the body exceeds the limit that /info gives as limits.body_bytes; send less at a time, or use \
         /documents/bulk for documents",
    )
}

/// The problem of a bulk body over the limit.
pub fn bulk_too_large() -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        "the body exceeds the limit that /info gives as limits.bulk_body_bytes; send it in parts",
    )
}

/// The longest that a client may be silent in the middle of a large body.
const SILENCE: Duration = Duration::from_secs(120);

/// A large body whose client is not silent for long: one that is gone without a word would keep its place for good. Only the
/// time counts in which something is waited for.
pub fn lively(body: Body) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + Unpin {
    silent_at_most(SILENCE, body)
}

fn silent_at_most(
    silence: Duration,
    body: Body,
) -> impl Stream<Item = Result<Bytes, axum::Error>> + Send + Unpin {
    let chunks = futures::stream::unfold(Some(body.into_data_stream()), move |body| async move {
        let mut body = body?;
        match tokio::time::timeout(silence, body.next()).await {
            Ok(chunk) => Some((chunk?, Some(body))),
            Err(_) => {
                let silent = format!("nothing came for {silence:?}");
                Some((Err(axum::Error::new(silent)), None))
            }
        }
    });
    // A refused body is read on after its end.
    Box::pin(chunks.fuse())
}

/// The most that is read of a body that was refused.
const REFUSED_BYTES: usize = 1 << 20;
/// The longest that is waited for it.
const REFUSED_TIME: Duration = Duration::from_secs(1);

/// Reads the rest of a refused body, if it is small: a client that is still sending when the connection is closed never
/// hears why.
pub async fn drain(body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin)) {
    let read = async {
        let mut bytes = 0;
        while let Some(Ok(chunk)) = body.next().await {
            bytes += chunk.len();
            if bytes > REFUSED_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(REFUSED_TIME, read).await;
}

/// Refuses a body whose content type is none of `accepted` (parameters such as `charset` are ignored).
pub fn require_content_type(headers: &HeaderMap, accepted: &[&str]) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = given.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    if accepted.contains(&essence.as_str()) {
        return Ok(());
    }
    let found = if given.is_empty() { "no content type".to_owned() } else { format!("`{given}`") };
    Err(Problem::new(
        Code::UnsupportedMediaType,
        format!(
            "this route takes {}, the request has {found}; set the Content-Type header",
            accepted.join(" or ")
        ),
    ))
}

/// Reads a value that is JSON already, as strictly as a body.
///
/// # Errors
/// `invalid_request` with the JSON pointer.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer = json_pointer(error.path());
        Problem::field(pointer, without_position(&error.into_inner()))
    })
}

/// Parses JSON strictly.
///
/// # Errors
/// `malformed_json` for what isn't JSON, `invalid_request` with the JSON pointer for what is JSON but not a `T`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let pointer = json_pointer(error.path());
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => Problem::field(pointer, without_position(&inner)),
            _ => malformed(&inner),
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(Code::MalformedJson, format!("the body is not valid JSON: {error}"))
}

/// serde's message without its trailing " at line 1 column 9": the pointer says where.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    match message.rfind(" at line ") {
        Some(at) => message[..at].to_owned(),
        None => message,
    }
}

fn json_pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path.iter() {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => {
                pointer.push_str(&format!("/{}", key.replace('~', "~0").replace('/', "~1")))
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[allow(dead_code)]
        items: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[allow(dead_code)]
        size: usize,
    }

    #[test]
    fn errors_point_at_the_value() {
        let problem = parse::<Outer>(br#"{"items":[{"size":1},{"size":-1}]}"#).unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest);
        assert_eq!(problem.errors[0].pointer, "/items/1/size");
        assert!(!problem.errors[0].detail.contains("line"), "{problem:?}");
    }

    #[test]
    fn unknown_fields_are_named() {
        let problem = parse::<Outer>(br#"{"items":[{"size":1,"colour":2}]}"#).unwrap_err();
        assert!(problem.errors[0].detail.contains("unknown field `colour`"), "{problem:?}");
        assert_eq!(problem.errors[0].pointer, "/items/0/colour");
    }

    #[tokio::test]
    async fn a_client_that_falls_silent_is_given_up() {
        let chunks =
            |count| futures::stream::iter((0..count).map(|_| Ok::<_, axum::Error>(Bytes::from("x"))));
        let mut whole = lively(Body::from_stream(chunks(3)));
        let read: Vec<_> = (&mut whole).collect().await;
        assert!(read.len() == 3 && read.iter().all(Result::is_ok) && whole.next().await.is_none());
        let silent = chunks(2).chain(futures::stream::pending());
        let silence = Duration::from_millis(20);
        let broken: Vec<_> = silent_at_most(silence, Body::from_stream(silent)).collect().await;
        let error = broken[2].as_ref().unwrap_err().to_string();
        assert!(broken.len() == 3 && error.contains("nothing came for 20ms"), "{error}");
    }

    #[test]
    fn what_is_not_json_is_malformed() {
        for text in ["", "{", "{\"items\":[]} x", "\u{1}"] {
            assert_eq!(parse::<Outer>(text.as_bytes()).unwrap_err().code, Code::MalformedJson, "{text}");
        }
    }
}
