//! A server whose latency and refusals are programmed, and the binary under test beside it.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

/// How the double behaves; and what it has seen.
#[derive(Default)]
pub(crate) struct Double {
    pub(crate) delay: Duration,
    /// Every n-th search is answered 429.
    pub(crate) shed_every: usize,
    /// Every n-th search degrades.
    pub(crate) degrade_every: usize,
    /// Nothing is answered between these two moments, counted from the first search.
    pub(crate) stall: Option<(Duration, Duration)>,
    /// One search at a time, so many a second; who would have to wait longer than 50 ms is answered 429.
    pub(crate) capacity: Option<f64>,
    /// With more requests at once than this, all are answered 500.
    pub(crate) breaks_above: Option<usize>,
    /// Only this bearer key may read.
    pub(crate) key: Option<&'static str>,
    pub(crate) searches: AtomicUsize,
    pub(crate) queries: Mutex<Vec<Value>>,
    pub(crate) state: State,
}

/// What the double keeps for itself.
#[derive(Default)]
pub(crate) struct State {
    under_way: AtomicUsize,
    first: Mutex<Option<Instant>>,
    next_free: Mutex<Option<Instant>>,
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

    /// Waits as long as the programme says.
    async fn wait(&self) -> Result<(), StatusCode> {
        if let Some((from, to)) = self.stall {
            let first = *self.state.first.lock().unwrap().get_or_insert_with(Instant::now);
            if (from..to).contains(&first.elapsed()) {
                tokio::time::sleep_until((first + to).into()).await;
            }
        }
        if let Some(capacity) = self.capacity {
            let done = self.take_turn(Duration::from_secs_f64(1.0 / capacity))?;
            tokio::time::sleep_until(done.into()).await;
        }
        tokio::time::sleep(self.delay).await;
        Ok(())
    }

    fn take_turn(&self, service: Duration) -> Result<Instant, StatusCode> {
        let now = Instant::now();
        let mut next_free = self.state.next_free.lock().unwrap();
        let start = next_free.map_or(now, |free| free.max(now));
        if start - now > Duration::from_millis(50) {
            return Err(StatusCode::TOO_MANY_REQUESTS);
        }
        *next_free = Some(start + service);
        Ok(start + service)
    }

    pub(crate) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/search", post(search))
            .route("/search/batch", post(batch))
            .route("/info", get(|| async { Json(json!({"version": "double"})) }))
            .route("/readyz", get(|| async { "ready" }))
            .with_state(Arc::clone(self))
    }
}

async fn search(
    axum::extract::State(double): axum::extract::State<Arc<Double>>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    if let Some(key) = double.key {
        let expected = format!("Bearer {key}");
        if headers.get("authorization").is_none_or(|value| value != expected.as_str()) {
            return StatusCode::UNAUTHORIZED.into_response();
        }
    }
    let under_way = double.state.under_way.fetch_add(1, Ordering::Relaxed) + 1;
    let waited = double.wait().await;
    double.state.under_way.fetch_sub(1, Ordering::Relaxed);
    if double.breaks_above.is_some_and(|most| under_way > most) {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    match waited.and_then(|()| double.answer(&body)) {
        Ok(answer) => Json(answer).into_response(),
        Err(status) => status.into_response(),
    }
}

async fn batch(
    axum::extract::State(double): axum::extract::State<Arc<Double>>,
    Json(body): Json<Value>,
) -> Json<Value> {
    let searches = body["searches"].as_array().cloned().unwrap_or_default();
    let results: Vec<Value> = searches
        .iter()
        .map(|search| double.answer(search).unwrap_or_else(|_| json!({"code": "overloaded", "status": 429})))
        .collect();
    Json(json!({ "results": results }))
}

/// What a run of the binary gave.
pub(crate) struct Run {
    pub(crate) output: Output,
    pub(crate) report: Value,
    pub(crate) page: String,
    pub(crate) double: Arc<Double>,
}

impl Run {
    /// Everything that was printed.
    pub(crate) fn text(&self) -> String {
        printed(&self.output)
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    pub(crate) fn load(&self, index: usize) -> &Value {
        &self.report["loads"][index]
    }
}

pub(crate) fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

pub(crate) fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_expandr-loadtest"))
}

/// Serves the double at the endpoint that is given, for as long as the runtime lives.
pub(crate) fn serve(double: &Arc<Double>) -> (tokio::runtime::Runtime, String) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let router = double.router();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async move { axum::serve(listener, router).await });
    (runtime, endpoint)
}

/// Serves the double while the binary runs.
pub(crate) fn load_test(double: Double, flags: &[&str]) -> Run {
    let double = Arc::new(double);
    let (_runtime, endpoint) = serve(&double);
    let folder = tempfile::tempdir().unwrap();
    let (report, page) = (folder.path().join("report.json"), folder.path().join("pages/report.html"));
    let mut command = binary();
    if !flags.contains(&"--warmup") {
        command.args(["--warmup", "0s"]);
    }
    let output = command
        .args(["--endpoint", &endpoint, "--cooldown", "0s"])
        .args(["--report", report.to_str().unwrap(), "--html", page.to_str().unwrap()])
        .args(flags)
        .output()
        .unwrap();
    let report = fs_err::read(report).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    let page = fs_err::read_to_string(page).unwrap_or_default();
    Run { output, report, page, double }
}
