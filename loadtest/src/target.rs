//! One request to the server, and what its answer says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Url};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::Args;

/// The server under load. Cloning shares connections; [`Target::alone`] has its own.
#[derive(Clone)]
pub(crate) struct Target {
    client: Client,
    base: Url,
    headers: HeaderMap,
    timeout: Duration,
    top_k: usize,
    batch: usize,
    expansion: Option<Value>,
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

/// What one search's answer says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SearchOutcome {
    /// `applied`, `cached`, `supplied`, `skipped`, `disabled`, `degraded`; `problem` for a failed member of a batch.
    pub(crate) expansion: String,
    /// Why it degraded.
    pub(crate) reason: Option<String>,
    /// Tokens of the expansions.
    pub(crate) output_tokens: u64,
    /// The bundle that answered.
    pub(crate) bundle: Option<String>,
    /// The server's own measurements in milliseconds, by name: `took`, its stages, and `own`.
    pub(crate) times_ms: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Answer {
    hits: Option<Vec<Value>>,
    expansion: Option<ExpansionAnswer>,
    bundle: Option<Value>,
    took_ms: Option<f64>,
    #[serde(default)]
    timings: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct ExpansionAnswer {
    status: String,
    reason: Option<String>,
    #[serde(default)]
    output_tokens: u64,
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
        let target = Self {
            client: Client::new(),
            base,
            headers,
            timeout: args.timeout.0,
            top_k: args.top_k,
            batch: args.batch,
            expansion: args.expansion_json(),
        };
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

    /// Searches a request carries.
    pub(crate) fn batch(&self) -> usize {
        self.batch
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

    /// Asks each query once, so that its expansion is in the server's cache.
    pub(crate) async fn prime(&self, queries: &[String]) -> Result<()> {
        for query in queries {
            let outcome = self.send(vec![query.clone()]).await;
            ensure!(
                outcome.is_success(),
                "{query:?}, asked beforehand for --cached, was not answered ({}); raise --timeout or --timeout-ms",
                outcome.describe()
            );
        }
        Ok(())
    }

    /// Sends one request with these searches and reads the whole answer.
    pub(crate) async fn send(&self, queries: Vec<String>) -> Outcome {
        let start = Instant::now();
        let (path, body) = if self.batch == 1 && queries.len() == 1 {
            ("search", self.search_json(&queries[0]))
        } else {
            let searches: Vec<Value> = queries.iter().map(|query| self.search_json(query)).collect();
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
            Err(error) => return failed(Err(kind(&error)), format!("{:#}", anyhow::Error::from(error))),
        };
        let status = response.status();
        let server_timing = server_timing(response.headers());
        let bytes = match response.bytes().await {
            Ok(bytes) => bytes,
            Err(error) => return failed(Err(kind(&error)), format!("{:#}", anyhow::Error::from(error))),
        };
        let elapsed = start.elapsed();
        if !status.is_success() {
            return failed(Ok(status.as_u16()), String::from_utf8_lossy(&bytes).into_owned());
        }
        match parse(&bytes, path == "search/batch", queries.len(), &server_timing) {
            Ok(searches) => Outcome { status: Ok(status.as_u16()), searches, elapsed, detail: None },
            Err(detail) => failed(Err("malformed"), detail),
        }
    }

    fn search_json(&self, query: &str) -> Value {
        let mut search = json!({"query": query, "top_k": self.top_k});
        if let Some(expansion) = &self.expansion {
            search["expansion"] = expansion.clone();
        }
        search
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

fn kind(error: &reqwest::Error) -> &'static str {
    if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else {
        "transport"
    }
}

/// The `dur` values of a `server-timing` header, in milliseconds.
fn server_timing(headers: &HeaderMap) -> BTreeMap<String, f64> {
    let mut times = BTreeMap::new();
    for value in headers.get_all("server-timing") {
        for entry in value.to_str().unwrap_or_default().split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let duration = parts.find_map(|part| part.strip_prefix("dur=")).and_then(|dur| dur.parse().ok());
            if let (false, Some(duration)) = (name.is_empty(), duration) {
                times.insert(name.to_owned(), duration);
            }
        }
    }
    times
}

fn parse(
    bytes: &[u8],
    batch: bool,
    expected: usize,
    server_timing: &BTreeMap<String, f64>,
) -> Result<Vec<SearchOutcome>, String> {
    let broken = |error: serde_json::Error| format!("the answer is not of this wire form: {error}");
    if !batch {
        let answer: Answer = serde_json::from_slice(bytes).map_err(broken)?;
        if answer.hits.is_none() {
            return Err("the answer has no `hits`".into());
        }
        return Ok(vec![outcome(answer, server_timing)]);
    }
    #[derive(Deserialize)]
    struct Batch {
        results: Vec<Answer>,
    }
    let batch: Batch = serde_json::from_slice(bytes).map_err(broken)?;
    if batch.results.len() != expected {
        return Err(format!("{} results for {expected} searches", batch.results.len()));
    }
    Ok(batch.results.into_iter().map(|answer| outcome(answer, &BTreeMap::new())).collect())
}

/// An answer without hits is the problem of one member of a batch. `own` is what the server reports as its own time;
/// where it reports none, `own_at_most` is `took` less the longest stage.
fn outcome(answer: Answer, server_timing: &BTreeMap<String, f64>) -> SearchOutcome {
    if answer.hits.is_none() {
        return SearchOutcome { expansion: "problem".into(), ..SearchOutcome::default() };
    }
    let mut times_ms: BTreeMap<String, f64> = server_timing.clone();
    for (name, value) in &answer.timings {
        if let Some(milliseconds) = value.as_f64() {
            times_ms.insert(name.trim_end_matches("_ms").to_owned(), milliseconds);
        }
    }
    let longest =
        times_ms.iter().filter(|(name, _)| *name != "total").map(|(_, time)| *time).fold(0.0, f64::max);
    if let Some(took) = answer.took_ms {
        if !times_ms.contains_key("own") && !times_ms.is_empty() {
            times_ms.insert("own_at_most".into(), (took - longest).max(0.0));
        }
        times_ms.insert("took".into(), took);
    }
    let bundle = answer.bundle.map(|bundle| match bundle {
        Value::String(name) => name,
        other => other.to_string(),
    });
    let expansion = answer.expansion;
    SearchOutcome {
        reason: expansion.as_ref().and_then(|expansion| expansion.reason.clone()),
        output_tokens: expansion.as_ref().map_or(0, |expansion| expansion.output_tokens),
        expansion: expansion.map_or_else(|| "unstated".into(), |expansion| expansion.status),
        bundle,
        times_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_timing_entries() {
        let mut headers = HeaderMap::new();
        headers.append(
            "server-timing",
            HeaderValue::from_static("encode;desc=\"q\";dur=1.5, cache;hit, own;dur=0.2"),
        );
        assert_eq!(server_timing(&headers), BTreeMap::from([("encode".into(), 1.5), ("own".into(), 0.2)]));
    }

    #[test]
    fn an_answer_tells_its_times() {
        let body = br#"{"hits":[],"expansion":{"status":"degraded","reason":"timeout","output_tokens":7},"bundle":"b1",
            "took_ms":30.5,"timings":{"encode_query_ms":4.0,"expansion_ms":25.0}}"#;
        let outcome = parse(body, false, 1, &BTreeMap::new()).unwrap().remove(0);
        assert_eq!((outcome.expansion.as_str(), outcome.reason.as_deref()), ("degraded", Some("timeout")));
        assert_eq!((outcome.output_tokens, outcome.bundle.as_deref()), (7, Some("b1")));
        assert_eq!(outcome.times_ms["own_at_most"], 5.5);
        assert_eq!(outcome.times_ms["took"], 30.5);
    }

    #[test]
    fn the_servers_own_time_is_taken_when_it_says_so() {
        let body = br#"{"hits":[],"took_ms":3.0,"timings":{"own_ms":0.4,"search_ms":2.0}}"#;
        let outcome = parse(body, false, 1, &BTreeMap::new()).unwrap().remove(0);
        assert_eq!(outcome.times_ms["own"], 0.4);
        assert!(!outcome.times_ms.contains_key("own_at_most"));
        assert_eq!(outcome.expansion, "unstated");
    }

    #[test]
    fn malformed_answers_are_told_apart() {
        let none = BTreeMap::new();
        assert!(parse(b"<html>", false, 1, &none).unwrap_err().contains("wire form"));
        assert!(parse(b"{}", false, 1, &none).unwrap_err().contains("no `hits`"));
        assert!(
            parse(br#"{"results":[{"hits":[]}]}"#, true, 2, &none).unwrap_err().contains("1 results for 2")
        );
        let batch =
            parse(br#"{"results":[{"hits":[]},{"code":"bad_query","status":400}]}"#, true, 2, &none).unwrap();
        assert_eq!(batch[1].expansion, "problem");
    }
}
