//! One request to the server, and what its answer says.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Url};
use serde_json::{Value, json};

use crate::answer::{self, SearchOutcome};
use crate::args::Args;
use crate::kinds::Kind;

/// The server under load. Cloning shares connections; [`Target::alone`] has its own.
#[derive(Clone)]
pub(crate) struct Target {
    client: Client,
    base: Url,
    headers: HeaderMap,
    timeout: Duration,
}

/// What came of one request.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The HTTP status, or why there was none: `timeout`, `connect`, `transport`, `malformed`.
    pub(crate) status: Result<u16, &'static str>,
    /// One a search; empty when the request failed as a whole.
    pub(crate) searches: Vec<SearchOutcome>,
    /// From the sending to the last byte of the answer.
    pub(crate) elapsed: Duration,
    /// What a failed request said, for the report.
    pub(crate) detail: Option<String>,
}

impl Target {
    pub(crate) fn new(args: &Args) -> Result<Self> {
        let base = Url::parse(&args.endpoint)
            .ok()
            .filter(|url| url.scheme() == "http")
            .with_context(|| format!("--endpoint {:?} is not an http:// URL", args.endpoint))?;
        let mut headers = HeaderMap::new();
        if let Some(key) = &args.key {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {key}")).context("--key can't stand in a header")?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let target = Self { client: Client::new(), base, headers, timeout: args.timeout.0 };
        target.alone()
    }

    /// The same server over a connection of one's own.
    pub(crate) fn alone(&self) -> Result<Self> {
        let client = Client::builder()
            .default_headers(self.headers.clone())
            .timeout(self.timeout)
            .no_proxy()
            .build()?;
        Ok(Self { client, ..self.clone() })
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base.as_str().trim_end_matches('/'))
    }

    /// What the server says about itself; null where it has no `/info`.
    pub(crate) async fn info(&self) -> Value {
        match self.client.get(self.url("info")).send().await {
            Ok(response) if response.status().is_success() => response.json().await.unwrap_or(Value::Null),
            _ => Value::Null,
        }
    }

    /// Whether this path answers 200.
    pub(crate) async fn answers(&self, path: &str) -> bool {
        let response = self.client.get(self.url(path.trim_start_matches('/'))).send().await;
        response.is_ok_and(|response| response.status().is_success())
    }

    /// Asks each query once, without a budget, so that its expansion is in the server's cache. Gives what did not come
    /// as wanted.
    ///
    /// # Errors
    ///
    /// A query that got no answer at all.
    pub(crate) async fn prime(&self, kind: &Kind, queries: &[String]) -> Result<Option<String>> {
        let kind = kind.unhurried();
        let mut degraded = 0;
        for query in queries {
            let outcome = self.send(&kind, vec![query.clone()]).await;
            ensure!(
                outcome.is_success(),
                "{query:?}, asked beforehand to be in the cache, was not answered ({}); raise --timeout",
                outcome.describe()
            );
            degraded += outcome.searches.iter().filter(|search| search.expansion == "degraded").count();
        }
        Ok((degraded > 0).then(|| {
            format!("{}: {degraded} of {} hot queries degraded when they were asked beforehand, and are in no cache", kind.name, queries.len())
        }))
    }

    /// Sends one request with these searches and reads the whole answer.
    pub(crate) async fn send(&self, kind: &Kind, queries: Vec<String>) -> Outcome {
        let start = Instant::now();
        let (path, body) = if kind.batch == 1 && queries.len() == 1 {
            ("search", kind.search_json(&queries[0]))
        } else {
            let searches: Vec<Value> = queries.iter().map(|query| kind.search_json(query)).collect();
            ("search/batch", json!({"searches": searches}))
        };
        let failed = |status, detail: String| Outcome {
            status,
            searches: Vec::new(),
            elapsed: start.elapsed(),
            detail: Some(detail.chars().take(300).collect()),
        };
        let response = match self.client.post(self.url(path)).json(&body).send().await {
            Ok(response) => response,
            Err(error) => return failed(Err(cause(&error)), format!("{:#}", anyhow::Error::from(error))),
        };
        let status = response.status();
        let server_timing = answer::server_timing(response.headers());
        let bytes = match response.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => return failed(Err(cause(&error)), format!("{:#}", anyhow::Error::from(error))),
        };
        let elapsed = start.elapsed();
        if !status.is_success() {
            return failed(Ok(status.as_u16()), String::from_utf8_lossy(&bytes).into_owned());
        }
        match answer::parse(&bytes, path == "search/batch", queries.len(), &server_timing) {
            Ok(searches) => Outcome { status: Ok(status.as_u16()), searches, elapsed, detail: None },
            Err(detail) => failed(Err("malformed"), detail),
        }
    }
}

impl Outcome {
    /// Whether the answer was a success as a whole.
    pub(crate) fn is_success(&self) -> bool {
        matches!(self.status, Ok(200..=299))
    }

    /// For a message.
    pub(crate) fn describe(&self) -> String {
        let status = match self.status {
            Ok(status) => format!("status {status}"),
            Err(kind) => kind.to_owned(),
        };
        match &self.detail {
            Some(detail) => format!("{status}: {detail}"),
            None => status,
        }
    }
}

fn cause(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "transport"
    }
}
