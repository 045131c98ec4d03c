//! A search server in a few lines: hits by shared words, and misbehaviour on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

#[derive(Default)]
pub(crate) struct Double {
    pub(crate) documents: Mutex<BTreeMap<String, String>>,
    /// Every search that arrived, in order.
    pub(crate) seen: Mutex<Vec<Value>>,
    pub(crate) requests: AtomicUsize,
    pub(crate) answered: AtomicUsize,
    /// This many requests are first refused with 429.
    pub(crate) overloaded_requests: usize,
    /// The member of a batch with this text is refused with a 503 the first time.
    pub(crate) overloaded_query: Option<&'static str>,
    /// After this many answers every request is refused.
    pub(crate) dies_after: Option<usize>,
    /// After this many answers another bundle answers.
    pub(crate) changes_after: Option<usize>,
    /// Every n-th answer is degraded.
    pub(crate) degrades_every: Option<usize>,
    /// Every n-th answer is skipped by the gate.
    pub(crate) skips_every: Option<usize>,
    /// The status of every other answer.
    pub(crate) status: Option<&'static str>,
    /// Refuses searches with this member as an unknown one.
    pub(crate) unknown_field: Option<&'static str>,
    /// Only this bearer key is let in.
    pub(crate) key: Option<&'static str>,
    /// BM25's k1, as told at /info.
    pub(crate) k1: f64,
}

fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn problem(status: StatusCode, detail: &str) -> Response {
    let body =
        json!({"status": status.as_u16(), "detail": detail, "errors": [{"pointer": "/x", "detail": "y"}]});
    (status, [("retry-after", "0")], Json(body)).into_response()
}

impl Double {
    fn answer(&self, search: &Value) -> Value {
        let query = search["query"].as_str().unwrap();
        let first_time = !self.seen.lock().unwrap().contains(search);
        self.seen.lock().unwrap().push(search.clone());
        if query.is_empty() {
            return json!({"status": 422, "detail": "the query is empty"});
        }
        if first_time && self.overloaded_query == Some(query) {
            return json!({"status": 503, "detail": "no place"});
        }
        let number = self.answered.fetch_add(1, Ordering::SeqCst) + 1;
        let asked = words(query);
        let score = |text: &String| asked.intersection(&words(text)).count() as f32 / asked.len() as f32;
        let documents = self.documents.lock().unwrap();
        let mut hits: Vec<(&String, f32)> = documents.iter().map(|(id, text)| (id, score(text))).collect();
        hits.sort_by(|a, b| b.1.total_cmp(&a.1));
        hits.truncate(usize::try_from(search["top_k"].as_u64().unwrap()).unwrap());
        let hits: Vec<Value> =
            hits.into_iter().map(|(id, score)| json!({"id": id, "score": score, "text": "…"})).collect();
        let degraded = self.degrades_every.is_some_and(|every| number.is_multiple_of(every));
        let expansion = if degraded {
            json!({"status": "degraded", "reason": "timeout", "texts": [], "output_tokens": 0, "cut": false})
        } else if self.skips_every.is_some_and(|every| number.is_multiple_of(every)) {
            json!({"status": "skipped", "reason": "gate", "texts": [], "output_tokens": 0, "cut": false, "query_weight": 1.0})
        } else {
            let status = self.status.unwrap_or("applied");
            json!({"status": status, "texts": [format!("about {query}")], "output_tokens": 4, "cut": number == 1, "query_weight": 0.5,
                "query_cosine": 0.5 + 0.25 * (number % 2) as f64, "raw_overlap_at_10": 0.7})
        };
        let bundle = if self.changes_after.is_some_and(|after| number > after) { "new" } else { "old" };
        json!({"hits": hits, "expansion": expansion, "bundle": bundle, "took_ms": 1.5})
    }

    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        if let Some(key) = self.key
            && headers.get("authorization").is_none_or(|value| value != format!("Bearer {key}").as_str())
        {
            return Some(problem(StatusCode::UNAUTHORIZED, "a key is needed"));
        }
        if self.dies_after.is_some_and(|after| self.answered.load(Ordering::SeqCst) >= after) {
            return Some(problem(StatusCode::SERVICE_UNAVAILABLE, "shutting down"));
        }
        let number = self.requests.fetch_add(1, Ordering::SeqCst);
        (number < self.overloaded_requests).then(|| problem(StatusCode::TOO_MANY_REQUESTS, "no place"))
    }
}

async fn batch(State(double): State<Arc<Double>>, headers: HeaderMap, Json(body): Json<Value>) -> Response {
    if let Some(refusal) = double.refusal(&headers) {
        return refusal;
    }
    if let Some(field) = double.unknown_field
        && !body["searches"][0][field].is_null()
    {
        return problem(StatusCode::UNPROCESSABLE_ENTITY, &format!("/searches/0/{field}: unknown field"));
    }
    let results: Vec<Value> =
        body["searches"].as_array().unwrap().iter().map(|search| double.answer(search)).collect();
    Json(json!({ "results": results })).into_response()
}

async fn bulk(State(double): State<Arc<Double>>, headers: HeaderMap, body: String) -> Response {
    if let Some(refusal) = double.refusal(&headers) {
        return refusal;
    }
    let (mut created, mut updated, mut errors) = (0, 0, Vec::new());
    for (index, line) in body.lines().enumerate() {
        let document: Value = serde_json::from_str(line).unwrap();
        let text = format!("{} {}", document["title"].as_str().unwrap(), document["text"].as_str().unwrap());
        if words(&text).is_empty() {
            errors.push(json!({"line": index + 1, "pointer": "/text", "detail": "holds no word"}));
            continue;
        }
        match double.documents.lock().unwrap().insert(document["id"].as_str().unwrap().to_owned(), text) {
            Some(_) => updated += 1,
            None => created += 1,
        }
    }
    let status = if created + updated > 0 { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    let report = json!({"received": body.lines().count(), "created": created, "updated": updated, "failed": errors.len(), "errors": errors});
    (status, Json(report)).into_response()
}

async fn info(State(double): State<Arc<Double>>, headers: HeaderMap) -> Response {
    if let (Some(_), Some(refusal)) = (double.key, double.refusal(&headers)) {
        return refusal;
    }
    let documents = double.documents.lock().unwrap().len();
    let index = json!({"lexical": {"bm25": {"k1": double.k1}}});
    Json(json!({"version": "double", "documents": documents, "limits": {"top_k": 1000}, "index": index}))
        .into_response()
}

/// Serves it on a free port for as long as the test's runtime lives; gives its URL.
pub(crate) async fn serve(double: Arc<Double>) -> String {
    let router = Router::new()
        .route("/search/batch", post(batch))
        .route("/documents/bulk", post(bulk))
        .route("/info", get(info))
        .with_state(double);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}
