//! Finished spans on their way to a collector: OTLP over HTTP in its JSON form
//! (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>). Nobody waits for a collector: where it is slow or away, spans are
//! dropped, and the log says how many.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;
use reqwest::{Client, Url};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Recorded;

/// Spans that may wait.
const WAITING: usize = 8192;
/// Spans of one request.
const AT_ONCE: usize = 512;
/// How long the first span of a request waits for others.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the collector has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where finished spans are put.
pub struct Outbox {
    spans: mpsc::Sender<Value>,
    dropped: Arc<AtomicU64>,
}

/// Takes spans out of the outbox and sends them.
pub struct Courier {
    spans: mpsc::Receiver<Value>,
    dropped: Arc<AtomicU64>,
    client: Client,
    endpoint: Url,
}

/// An outbox and its courier, who sends to `<endpoint>/v1/traces`.
///
/// # Errors
/// When `endpoint` is no URL of HTTP.
pub fn to(endpoint: &str) -> anyhow::Result<(Outbox, Courier)> {
    let refused =
        || format!("--otlp-endpoint `{endpoint}` is no URL of a collector; give e.g. http://localhost:4318");
    let base = Url::parse(endpoint).with_context(refused)?;
    anyhow::ensure!(["http", "https"].contains(&base.scheme()), refused());
    let mut url = base.clone();
    url.set_path(&format!("{}/v1/traces", base.path().trim_end_matches('/')));
    let client = Client::builder().timeout(PATIENCE).build().context("no HTTP client for the traces")?;
    let (sender, spans) = mpsc::channel(WAITING);
    let dropped = Arc::new(AtomicU64::new(0));
    Ok((
        Outbox { spans: sender, dropped: dropped.clone() },
        Courier { spans, dropped, client, endpoint: url },
    ))
}

impl Outbox {
    pub(super) fn put(&self, name: &'static str, recorded: Recorded) {
        if self.spans.try_send(span(name, recorded)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Courier {
    /// Sends what comes until `stop` is cancelled, and then what is there.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                count = self.spans.recv_many(&mut batch, AT_ONCE) => if count == 0 { return },
                () = stop.cancelled() => break,
            }
            // Others of the same trace are about to end.
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = stop.cancelled() => {}
            }
            while batch.len() < AT_ONCE
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            self.send(&mut batch).await;
        }
        while let Ok(span) = self.spans.try_recv() {
            batch.push(span);
        }
        if !batch.is_empty() {
            self.send(&mut batch).await;
        }
    }

    async fn send(&self, batch: &mut Vec<Value>) {
        let spans = std::mem::take(batch);
        let count = spans.len() as u64;
        let answer = self.client.post(self.endpoint.clone()).json(&request(spans)).send().await;
        let failure = match answer.and_then(reqwest::Response::error_for_status) {
            Ok(_) => None,
            Err(error) => {
                self.dropped.fetch_add(count, Ordering::Relaxed);
                Some(error.without_url().to_string())
            }
        };
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            let why = failure.unwrap_or_else(|| "the collector is too slow".to_owned());
            tracing::warn!(dropped, why, "spans of traces were dropped");
        }
    }
}

/// An `ExportTraceServiceRequest`.
fn request(spans: Vec<Value>) -> Value {
    let attributes = [
        attribute("service.name", &"expandr".into()),
        attribute("service.version", &env!("CARGO_PKG_VERSION").into()),
    ];
    json!({ "resourceSpans": [{
        "resource": { "attributes": attributes },
        "scopeSpans": [{ "scope": { "name": "expandr", "version": env!("CARGO_PKG_VERSION") }, "spans": spans }],
    }] })
}

/// A span of OTLP: identifiers in hexadecimal digits, integers of 64 bits as text.
fn span(name: &'static str, recorded: Recorded) -> Value {
    let Recorded { context, parent, started, left, fields } = recorded;
    let field =
        |wanted: &str| fields.iter().find(|(name, _)| *name == wanted).and_then(|(_, value)| value.as_str());
    let is_request = name == "request";
    let name = match (is_request, field("method"), field("route")) {
        (true, Some(method), Some(route)) => format!("{method} {route}"),
        _ => name.to_owned(),
    };
    let kind = match (is_request, field("otel.kind")) {
        (true, _) => 2,
        (_, Some("client")) => 3,
        _ => 1,
    };
    let failed = fields
        .iter()
        .any(|(name, value)| *name == STATUS && value.as_u64().is_some_and(|status| status >= 500));
    let attributes: Vec<Value> = fields
        .iter()
        .filter(|(name, _)| !matches!(*name, "otel.kind" | "trace_id"))
        .map(|(name, value)| attribute(convention(name), value))
        .collect();
    json!({
        "traceId": format!("{:032x}", context.trace_id),
        "spanId": format!("{:016x}", context.span_id),
        "parentSpanId": parent.map(|parent| format!("{parent:016x}")).unwrap_or_default(),
        "traceState": context.state.as_deref().unwrap_or(""),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": nanoseconds(started),
        "endTimeUnixNano": nanoseconds(left.unwrap_or_else(SystemTime::now)),
        "attributes": attributes,
        "status": if failed { json!({ "code": 2 }) } else { json!({}) },
    })
}

/// The field in which a request's span has its status.
pub(crate) const STATUS: &str = "http_status";

/// The names that OpenTelemetry's conventions have for our fields.
fn convention(name: &str) -> &str {
    match name {
        "method" => "http.request.method",
        "route" => "http.route",
        STATUS => "http.response.status_code",
        other => other,
    }
}

fn attribute(key: &str, value: &Value) -> Value {
    let value = match value {
        Value::Bool(value) => json!({ "boolValue": value }),
        Value::Number(number) if number.is_f64() => json!({ "doubleValue": number }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::String(text) => json!({ "stringValue": text }),
        other => json!({ "stringValue": other.to_string() }),
    };
    json!({ "key": key, "value": value })
}

fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

#[cfg(test)]
mod tests {
    use expandr_models::TraceContext;

    use super::*;

    #[test]
    fn a_span_is_written_as_otlp_asks() {
        let context = TraceContext { trace_id: 0xab, span_id: 0xcd, is_sampled: true, state: None };
        let fields = vec![("method", "POST".into()), ("route", "/search".into()), (STATUS, 503.into())];
        let started = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let left = Some(started + Duration::from_nanos(1));
        let span = span("request", Recorded { context, parent: Some(0xef), started, left, fields });
        assert_eq!(span["traceId"], "000000000000000000000000000000ab");
        assert_eq!(
            (&span["spanId"], &span["parentSpanId"]),
            (&json!("00000000000000cd"), &json!("00000000000000ef"))
        );
        assert_eq!(
            (&span["name"], &span["kind"], &span["status"]["code"]),
            (&json!("POST /search"), &json!(2), &json!(2))
        );
        assert_eq!(span["endTimeUnixNano"], "1700000000123456790");
        assert_eq!(
            span["attributes"][2],
            json!({"key": "http.response.status_code", "value": {"intValue": "503"}})
        );
    }

    #[test]
    fn only_urls_are_endpoints() {
        for wrong in ["", "collector:4318", "localhost", "grpc://localhost:4317"] {
            let error = to(wrong).err().unwrap();
            assert!(format!("{error:#}").contains("--otlp-endpoint"), "{error:#}");
        }
        assert_eq!(to("http://localhost:4318/otlp/").unwrap().1.endpoint.path(), "/otlp/v1/traces");
    }
}
