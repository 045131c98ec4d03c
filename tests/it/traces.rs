//! Traces: a request goes on with its caller's, a language model on another server is told, and a collector gets the spans.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, header},
    response::{IntoResponse, Response},
    routing::post,
};
use expandr::traces::{Recorder, export};
use expandr_models::{
    expander::openai::{OpenAiExpander, OpenAiOptions},
    testing::{HashEncoder, Script, ScriptedExpander},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing_subscriber::prelude::*;

use crate::{
    doubles::{self, DoubleModels, ENCODER},
    service::{Double, Setup},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

/// What arrived at a server that only notes.
type Noted<T> = Arc<Mutex<Vec<T>>>;

/// An OpenAI-compatible server that notes the headers of its requests.
async fn language_model() -> (String, Noted<HeaderMap>) {
    let noted: Noted<HeaderMap> = Arc::default();
    let router = Router::new().route("/v1/chat/completions", post(write)).with_state(noted.clone());
    (format!("{}/v1", listen(router).await), noted)
}

async fn write(State(noted): State<Noted<HeaderMap>>, headers: HeaderMap) -> Response {
    noted.lock().push(headers);
    let events = [
        json!({"choices": [{"delta": {"content": "Whales are mammals that swim in the oceans."}}]})
            .to_string(),
        json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}).to_string(),
        "[DONE]".to_owned(),
    ];
    let body: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    ([(header::CONTENT_TYPE, "text/event-stream")], body).into_response()
}

/// A collector that notes the spans that it gets.
async fn collector() -> (String, Noted<Value>) {
    let noted: Noted<Value> = Arc::default();
    let router = Router::new().route("/v1/traces", post(collect)).with_state(noted.clone());
    (listen(router).await, noted)
}

async fn collect(State(noted): State<Noted<Value>>, Json(body): Json<Value>) -> Json<Value> {
    let resource = &body["resourceSpans"][0];
    assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "expandr");
    noted.lock().extend(resource["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned());
    Json(json!({}))
}

async fn listen(router: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router).into_future());
    format!("http://{address}")
}

/// A service whose passages are written by the server at `url`.
async fn service(url: &str) -> Double {
    let encoder = Arc::new(HashEncoder::new(64));
    let remote = Arc::new(OpenAiExpander::new(OpenAiOptions::new(url, "remote")).unwrap());
    let models = DoubleModels::with(encoder.clone(), remote);
    let unused = Arc::new(ScriptedExpander::new(Script::default()));
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let configured = doubles::configured(doubles::manifest("remote", ENCODER), Vec::new());
    let double = Double::open(folder, Setup::default(), models, encoder, unused, configured).await.unwrap();
    let documents = json!({"documents": [{"id": "b", "text": "blue whales swim in oceans"}]});
    assert_eq!(double.send("PUT", "/documents", Some(documents), None).await.0, 201);
    double
}

async fn search(double: &Double, query: &str, headers: &[(&str, &str)]) -> Value {
    let mut request = Request::post("/search").header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = Body::from(json!({ "query": query }).to_string());
    let response = double.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let answer: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(answer["expansion"]["status"], "applied", "{answer}");
    answer
}

/// Trace, span and flags of a `traceparent`.
fn parts(headers: &HeaderMap) -> (String, String, String) {
    let header = headers["traceparent"].to_str().unwrap();
    let [version, trace, span, flags] = header.split('-').collect::<Vec<_>>()[..] else { panic!("{header}") };
    assert_eq!((version, trace.len(), span.len()), ("00", 32, 16), "{header}");
    (trace.to_owned(), span.to_owned(), flags.to_owned())
}

#[tokio::test]
async fn a_search_is_part_of_its_callers_trace_and_so_is_the_language_model() {
    let (url, asked) = language_model().await;
    let (endpoint, spans) = collector().await;
    let (outbox, courier) = export::to(&endpoint).unwrap();
    let stop = CancellationToken::new();
    let courier = tokio::spawn(courier.run(stop.clone()));
    let recorder = Recorder::new(Some(outbox)).layer();
    let _recording = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder));
    let double = service(&url).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers =
        [("traceparent", parent.as_str()), ("tracestate", "rojo=1,congo=2"), ("x-request-id", "r-1")];
    search(&double, "whales in oceans", &headers).await;
    double.send("GET", "/readyz", None, None).await;

    let asked = asked.lock().clone();
    let (trace, generation, flags) = parts(&asked[0]);
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    assert_eq!(asked[0]["tracestate"], "rojo=1,congo=2");

    let of_the_search =
        || -> Vec<Value> { spans.lock().iter().filter(|span| span["traceId"] == TRACE).cloned().collect() };
    for _ in 0..100 {
        if of_the_search().len() >= 8 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.cancel();
    courier.await.unwrap();
    let found = of_the_search();
    let by_name: BTreeMap<&str, &Value> =
        found.iter().map(|span| (span["name"].as_str().unwrap(), span)).collect();
    let names: Vec<&str> = by_name.keys().copied().collect();
    let expected = [
        "POST /search",
        "encode_expansion",
        "encode_query",
        "expansion",
        "fetch",
        "generate",
        "search",
        "search_raw",
    ];
    assert_eq!(names, expected);
    let request = by_name["POST /search"];
    assert_eq!((&request["parentSpanId"], &request["kind"]), (&json!(CALLER), &json!(2)));
    let attribute = |key: &str| {
        let attributes = request["attributes"].as_array().unwrap();
        attributes
            .iter()
            .find(|attribute| attribute["key"] == key)
            .map(|attribute| attribute["value"].clone())
    };
    assert_eq!(attribute("http.response.status_code"), Some(json!({"intValue": "200"})));
    assert_eq!(attribute("request_id"), Some(json!({"stringValue": "r-1"})));
    assert_eq!(
        (&by_name["generate"]["spanId"], &by_name["generate"]["kind"]),
        (&json!(generation), &json!(3))
    );
    assert_eq!(by_name["generate"]["parentSpanId"], by_name["expansion"]["spanId"]);
    assert_eq!(by_name["expansion"]["parentSpanId"], request["spanId"]);
    let nanoseconds = |span: &Value, end: &str| span[end].as_str().unwrap().parse::<u64>().unwrap();
    for span in &found {
        let (start, end) = (nanoseconds(span, "startTimeUnixNano"), nanoseconds(span, "endTimeUnixNano"));
        assert!(start <= end && start >= nanoseconds(request, "startTimeUnixNano"), "{span}");
    }
    let is_probe = |span: &Value| span["name"] == "GET /readyz";
    assert!(!spans.lock().iter().any(is_probe), "probes are too many to be exported");
}

#[tokio::test]
async fn a_search_without_a_caller_begins_a_trace_that_nobody_records() {
    let (url, asked) = language_model().await;
    let recorder = Recorder::new(None).layer();
    let _recording = tracing::subscriber::set_default(tracing_subscriber::registry().with(recorder));
    let double = service(&url).await;
    search(&double, "one", &[]).await;
    search(&double, "two", &[("traceparent", "00-zz-zz-01"), ("tracestate", "rojo=1")]).await;
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    search(&double, "three", &[("traceparent", unsampled.as_str())]).await;
    let asked = asked.lock().clone();
    let told: Vec<_> = asked.iter().map(parts).collect();
    let traces: BTreeSet<&str> = told.iter().map(|(trace, ..)| trace.as_str()).collect();
    assert_eq!(traces.len(), 3, "each has its own: {told:?}");
    assert_eq!((told[2].0.as_str(), told[2].1 == CALLER), (TRACE, false));
    assert!(told.iter().all(|(.., flags)| flags == "00"), "{told:?}");
    assert!(!asked[1].contains_key("tracestate"), "it belongs to a traceparent that is none");
}
