//! One server: requests that wait and try again while it is overloaded or away.

use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// How long to wait for a server.
#[derive(Clone, Copy, Debug)]
pub struct EndpointOptions {
    /// For one answer.
    pub request_timeout: Duration,
    /// For one request in all, while the server is overloaded (429, 503) or away. Then the run fails; it can be resumed.
    pub patience: Duration,
}

impl Default for EndpointOptions {
    fn default() -> Self {
        Self { request_timeout: Duration::from_secs(600), patience: Duration::from_secs(120) }
    }
}

/// A search server.
#[derive(Clone, Debug)]
pub struct Endpoint {
    base: String,
    client: Client,
    key: Option<Key>,
    patience: Duration,
}

/// Never printed.
#[derive(Clone)]
struct Key(String);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Between attempts when the server doesn't say.
const PAUSE: Duration = Duration::from_secs(1);

impl Endpoint {
    /// A server by its base URL, with the bearer key if it wants one.
    ///
    /// # Errors
    /// When the URL is none of http or https.
    pub fn new(url: &str, key: Option<String>, options: EndpointOptions) -> Result<Self> {
        let base = url.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&base).ok();
        if !parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https")) {
            return Err(Error::Input(format!(
                "{url:?} is not a server's URL; write it like http://127.0.0.1:8080"
            )));
        }
        let client = Client::builder().timeout(options.request_timeout).build();
        let client =
            client.map_err(|error| Error::Input(format!("the HTTP client can't be set up: {error}")))?;
        Ok(Self { base, client, key: key.map(Key), patience: options.patience })
    }

    /// The base URL.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// What the server says about itself at `GET /info`; null where it has none.
    ///
    /// # Errors
    /// When it can't be reached, or wants another key.
    pub async fn info(&self) -> Result<Value> {
        let (status, body) = self.attempt(|| self.request(reqwest::Method::GET, "/info")).await?;
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            return Err(self.refused(status, &body));
        }
        if status.is_success() { self.parse(&body) } else { Ok(Value::Null) }
    }

    /// Posts a body and gives status and body of the answer. Waits and tries again as long as patience lasts when the
    /// server is overloaded or away.
    pub(super) async fn post(
        &self,
        path: &str,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Vec<u8>)> {
        self.attempt(|| {
            let request = self.request(reqwest::Method::POST, path);
            request.header(reqwest::header::CONTENT_TYPE, content_type).body(body.clone())
        })
        .await
    }

    /// Reads an answer.
    pub(super) fn parse<'a, T: Deserialize<'a>>(&self, body: &'a [u8]) -> Result<T> {
        serde_json::from_slice(body).map_err(|error| {
            self.failed(format!("its answer is of another form ({error}); is this a search server's URL?"))
        })
    }

    /// An error with what the server said.
    pub(super) fn refused(&self, status: StatusCode, body: &[u8]) -> Error {
        let problem = serde_json::from_slice(body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()));
        self.failed(format!("answered {status}: {}", describe_problem(&problem)))
    }

    pub(super) fn failed(&self, detail: impl Into<String>) -> Error {
        Error::Server { endpoint: self.base.clone(), detail: detail.into() }
    }

    /// How long a request may be tried in all.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        match &self.key {
            Some(Key(key)) => request.bearer_auth(key),
            None => request,
        }
    }

    async fn attempt(&self, request: impl Fn() -> RequestBuilder) -> Result<(StatusCode, Vec<u8>)> {
        let start = Instant::now();
        loop {
            let (problem, pause) = match request().send().await {
                Ok(response) => {
                    let status = response.status();
                    let retry_after = retry_after(response.headers());
                    match response.bytes().await {
                        Ok(body) if !is_temporary(status) => return Ok((status, body.into())),
                        Ok(body) => {
                            (format!("answered {status}: {}", String::from_utf8_lossy(&body)), retry_after)
                        }
                        Err(error) => (format!("broke off its answer: {error}"), None),
                    }
                }
                Err(error) if error.is_builder() => {
                    return Err(self.failed(format!("can't be asked: {error}")));
                }
                Err(error) => (format!("no answer: {}", with_causes(&error)), None),
            };
            let pause = pause.unwrap_or(PAUSE);
            if start.elapsed() + pause > self.patience {
                return Err(self.failed(format!(
                    "{problem}; gave up after {:.0} s. Once it answers again, the same command goes on where it stopped",
                    start.elapsed().as_secs_f64()
                )));
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// Overloaded, starting, stopping, or a proxy whose server is away.
pub(super) fn is_temporary(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// What a problem (RFC 9457) says, with the values that it points at.
pub(super) fn describe_problem(body: &Value) -> String {
    let detail = body["detail"].as_str().or(body["title"].as_str()).or(body.as_str()).unwrap_or("no detail");
    let mut text: String = detail.chars().take(500).collect();
    for error in body["errors"].as_array().into_iter().flatten().take(5) {
        let pointer = error["pointer"].as_str().unwrap_or_default();
        text.push_str(&format!(" [{pointer}: {}]", error["detail"].as_str().unwrap_or_default()));
    }
    text
}

fn with_causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
