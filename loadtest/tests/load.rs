//! The real binary against a small server that answers in the wire form.

use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// How the double behaves; and what it has seen.
#[derive(Default)]
struct Double {
    delay: Duration,
    /// Every n-th search is answered 429.
    shed_every: usize,
    /// Every n-th search degrades.
    degrade_every: usize,
    /// Only this bearer key may read.
    key: Option<&'static str>,
    searches: AtomicUsize,
    queries: std::sync::Mutex<Vec<Value>>,
}

fn every(number: usize, n: usize) -> bool {
    n > 0 && number.is_multiple_of(n)
}

impl Double {
    fn answer(&self, search: &Value) -> Result<Value, StatusCode> {
        let number = self.searches.fetch_add(1, Ordering::Relaxed) + 1;
        self.queries.lock().unwrap().push(search.clone());
        if every(number, self.shed_every) {
            return Err(StatusCode::TOO_MANY_REQUESTS);
        }
        let expansion = if every(number, self.degrade_every) {
            json!({"status": "degraded", "reason": "timeout", "texts": [], "output_tokens": 0})
        } else if search["expansion"] == json!(false) {
            json!({"status": "disabled", "texts": [], "output_tokens": 0})
        } else {
            json!({"status": "applied", "texts": ["a passage"], "output_tokens": 5})
        };
        Ok(json!({
            "hits": [{"rank": 1, "id": "d1", "score": 0.5, "title": "", "text": "t", "metadata": {}}],
            "expansion": expansion, "bundle": "b1", "took_ms": 2.0,
            "timings": {"encode_query_ms": 1.5, "own_ms": 0.5}, "request_id": "r",
        }))
    }
}

async fn search(State(double): State<Arc<Double>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Some(key) = double.key {
        let expected = format!("Bearer {key}");
        if headers.get("authorization").is_none_or(|value| value != expected.as_str()) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
    }
    tokio::time::sleep(double.delay).await;
    match double.answer(&body) {
        Ok(answer) => Json(answer).into_response(),
        Err(status) => status.into_response(),
    }
}

async fn batch(State(double): State<Arc<Double>>, Json(body): Json<Value>) -> Json<Value> {
    let searches = body["searches"].as_array().cloned().unwrap_or_default();
    let results: Vec<Value> = searches
        .iter()
        .map(|search| double.answer(search).unwrap_or_else(|_| json!({"code": "overloaded"})))
        .collect();
    Json(json!({ "results": results }))
}

/// Serves the double while the binary runs, and gives its output and report.
fn load_test(double: Double, flags: &[&str]) -> (Output, Value, Arc<Double>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let double = Arc::new(double);
    let router = Router::new()
        .route("/search", post(search))
        .route("/search/batch", post(batch))
        .route("/info", get(|| async { Json(json!({"version": "double"})) }))
        .with_state(Arc::clone(&double));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_expandr-loadtest"))
        .args(["--endpoint", &endpoint, "--report", report.to_str().unwrap(), "--warmup", "0s"])
        .args(flags)
        .output()
        .unwrap();
    let report = fs_err::read(report).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    (output, report, double)
}

fn stdout(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_open_loop_keeps_its_rate_and_charges_for_waiting() {
    let double = Double { delay: Duration::from_millis(200), ..Double::default() };
    let flags = ["--query", "q", "--rate", "40", "--duration", "2s", "--expansion", "off"];
    let (output, report, double) = load_test(double, &flags);
    assert!(output.status.success(), "{}", stdout(&output));
    let load = &report["loads"][0];
    // Arrivals didn't wait for the 200 ms of each answer: a closed loop would have managed 10 requests.
    assert_eq!(load["requests"], 80);
    assert_eq!(load["statuses"]["200"], 80);
    assert_eq!(load["expansion"]["disabled"], 80);
    assert!(load["latency_ms"]["p50"].as_f64().unwrap() >= 199.0, "{load}");
    assert_eq!(load["bundles"], json!(["b1"]));
    assert_eq!(report["server"]["version"], "double");
    assert_eq!(double.queries.lock().unwrap()[0], json!({"query": "q", "top_k": 10, "expansion": false}));
}

#[test]
fn a_closed_loop_runs_each_number_of_connections() {
    let double = Double { delay: Duration::from_millis(50), ..Double::default() };
    let flags = ["--query", "q", "--connections", "1,8", "--duration", "1s", "--top-k", "3"];
    let (output, report, _) = load_test(double, &flags);
    assert!(output.status.success(), "{}", stdout(&output));
    let requests: Vec<u64> = (0..2).map(|load| report["loads"][load]["requests"].as_u64().unwrap()).collect();
    assert!(requests[0] <= 20 && requests[1] > 2 * requests[0], "{requests:?}");
    let own = &report["loads"][1]["server_ms"]["own"];
    assert!((own["p50"].as_f64().unwrap() - 0.5).abs() < 0.01, "{own}");
    assert!(stdout(&output).contains("closed loop, 8 connections"));
}

#[test]
fn objectives_decide_the_exit_code() {
    let degrading = || Double { degrade_every: 4, shed_every: 10, ..Double::default() };
    let flags =
        ["--query", "q", "--rate", "100", "--duration", "1s", "--expansion", "always", "--max-tokens", "64"];
    let with = |objectives: &[&'static str]| {
        let mut all: Vec<&str> = flags.to_vec();
        for objective in objectives {
            all.extend(["--objective", *objective]);
        }
        load_test(degrading(), &all)
    };
    let (output, report, double) = with(&["errors<0.1%", "p99<10s"]);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert!(stdout(&output).contains("MISSED  errors<0.1%"), "{}", stdout(&output));
    assert!(stdout(&output).contains("holds   p99<10s"), "{}", stdout(&output));
    assert_eq!(report["loads"][0]["statuses"]["429"], 10);
    // Numbers divisible by 4 and not by 10: 25 less 5.
    assert_eq!(report["loads"][0]["degraded_by_reason"]["timeout"], 20);
    assert_eq!(double.queries.lock().unwrap()[0]["expansion"], json!({"mode": "always", "max_tokens": 64}));
    let (output, _, _) = with(&["errors<=10%", "degraded<50%", "own.p50<1ms"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
}

#[test]
fn batches_count_searches_and_their_problems() {
    let double = Double { shed_every: 2, ..Double::default() };
    let flags = ["--query", "q", "--rate", "10", "--duration", "1s", "--batch", "4"];
    let (output, report, _) = load_test(double, &flags);
    assert!(output.status.success(), "{}", stdout(&output));
    let load = &report["loads"][0];
    assert_eq!(
        (&load["requests"], &load["searches"], &load["answered"]),
        (&json!(10), &json!(40), &json!(20))
    );
    assert_eq!(load["error_share"], 0.5);
}

#[test]
fn cached_repeats_and_keys_reach_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let queries = folder.path().join("queries.jsonl");
    fs_err::write(&queries, "{\"_id\":\"1\",\"text\":\"one\"}\n{\"_id\":\"2\",\"text\":\"two\"}\n").unwrap();
    let double = Double { key: Some("secret"), ..Double::default() };
    let path = queries.to_str().unwrap();
    let flags = [
        "--queries",
        path,
        "--rate",
        "50",
        "--duration",
        "1s",
        "--cached",
        "0.5",
        "--hot",
        "1",
        "--key",
        "secret",
    ];
    let (output, report, double) = load_test(double, &flags);
    assert!(output.status.success(), "{}", stdout(&output));
    assert!(!report.to_string().contains("secret"));
    let seen = double.queries.lock().unwrap();
    let hot = seen.iter().filter(|search| search["query"] == "one").count();
    assert_eq!(seen.len(), 51, "50, and the hot query once beforehand");
    assert!((10..45).contains(&hot), "{hot}");
}

#[test]
fn a_server_that_is_not_there_and_broken_flags_give_exit_code_2() {
    let run =
        |flags: &[&str]| Command::new(env!("CARGO_BIN_EXE_expandr-loadtest")).args(flags).output().unwrap();
    let dead = [
        "--endpoint",
        "http://127.0.0.1:1",
        "--query",
        "q",
        "--rate",
        "5",
        "--duration",
        "300ms",
        "--warmup",
        "0s",
    ];
    let output = run(&dead);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stdout(&output).contains("no request was answered; the first failure was: connect"),
        "{}",
        stdout(&output)
    );
    for (flags, wrong) in [
        (&["--query", "q", "--rate", "5", "--endpoint", "localhost"][..], "not an http:// URL"),
        (&["--query", "q", "--rate", "0"][..], "--rate must be above 0"),
        (&["--query", "q", "--rate", "1", "--objective", "p99"][..], "write an objective like"),
        (&["--queries", "/nowhere.jsonl", "--rate", "1"][..], "/nowhere.jsonl"),
    ] {
        let output = run(flags);
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(stdout(&output).contains(wrong), "{flags:?}: {}", stdout(&output));
    }
}
