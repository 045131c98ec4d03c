//! The real router and pipeline over doubles of encoder and expander: no weights, every failure on demand.

use std::{sync::Arc, time::Duration};

use axum::{Router, body::Body, http::Request};
use expandr::{
    audit::Audit,
    bundles::{self, BundleSettings, Bundles, Configured},
    datasets::Datasets,
    documents::{DocumentLimits, Spool},
    feedback::{Feedback, FeedbackSettings},
    http::{AppState, HttpLimits, Operations, auth::Keys, router},
    metrics::Metrics,
    search::{SearchSettings, check::SearchLimits, request::Ranking},
};
use expandr_index::IndexConfig;
use expandr_models::{
    bundle::Defaults,
    gate::{GATE_FILE, Gate},
    testing::{HashEncoder, Script, ScriptedExpander, ScriptedFailure},
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::doubles::{self, DoubleModels, ENCODER};

/// A service over doubles, with handles to what happens inside.
pub(crate) struct Double {
    pub(crate) router: Router,
    pub(crate) state: Arc<AppState>,
    pub(crate) encoder: Arc<HashEncoder>,
    pub(crate) expander: Arc<ScriptedExpander>,
    pub(crate) models: Arc<DoubleModels>,
    pub(crate) folder: Arc<tempfile::TempDir>,
}

/// What differs from the usual double.
pub(crate) struct Setup {
    pub(crate) script: Script,
    pub(crate) encoder_delay: Duration,
    pub(crate) permits: usize,
    pub(crate) keys: Keys,
    pub(crate) lexical: bool,
    pub(crate) gate: Option<Gate>,
    pub(crate) flags: Defaults,
    pub(crate) feedback: FeedbackSettings,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            script: Script::default(),
            encoder_delay: Duration::ZERO,
            permits: 64,
            keys: Keys::new(&[], &[], &[], true).unwrap(),
            lexical: true,
            gate: None,
            flags: Defaults::default(),
            feedback: FeedbackSettings {
                on: false,
                retention: Duration::from_secs(90 * 86_400),
                window: Duration::from_secs(3600),
                memory_bytes: 1 << 20,
                disk_bytes: 1 << 20,
            },
        }
    }
}

impl Double {
    pub(crate) async fn new(setup: Setup) -> Self {
        let encoder = Arc::new(HashEncoder::new(64).with_delay(setup.encoder_delay));
        let expander = Arc::new(ScriptedExpander::new(setup.script.clone()));
        let models = DoubleModels::with(encoder.clone(), expander.clone());
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let mut manifest = doubles::manifest("double", ENCODER);
        let mut files = Vec::new();
        if let Some(gate) = &setup.gate {
            let path = folder.path().join("fitted.json");
            fs_err::write(&path, gate.to_json().unwrap()).unwrap();
            files.push((GATE_FILE.to_owned(), path));
            manifest.gate = Some(GATE_FILE.into());
        }
        let configured = doubles::configured(manifest, files);
        Self::open(folder, setup, models, encoder, expander, configured).await.unwrap()
    }

    /// A double whose folder may have been another's.
    pub(crate) async fn open(
        folder: Arc<tempfile::TempDir>,
        setup: Setup,
        models: Arc<DoubleModels>,
        encoder: Arc<HashEncoder>,
        expander: Arc<ScriptedExpander>,
        configured: Configured,
    ) -> anyhow::Result<Self> {
        let template = IndexConfig { lexical: setup.lexical, ..IndexConfig::new("", 1) };
        let opened = bundles::open(folder.path(), template, models.clone(), configured).await?;
        let settings = SearchSettings {
            limits: SearchLimits {
                query_bytes: 1000,
                expansion_text_bytes: 10_000,
                max_tokens: 256,
                timeout_ms: 20_000,
                expansion_timeout_ms: 10_000,
                flags: setup.flags,
                default_ranking: Ranking::Dense,
                lexical: setup.lexical,
            },
            min_partial_words: 5,
            reserve: Duration::from_millis(50),
            permits: setup.permits,
            max_wait: Duration::from_millis(500),
            cache_bytes: 1 << 20,
            cache_time_to_live: Duration::from_secs(60),
        };
        let documents = DocumentLimits { document_bytes: 10_000, documents_per_request: 100 };
        let limits = HttpLimits {
            body_bytes: 1 << 20,
            bulk_body_bytes: 1 << 20,
            batch_searches: 16,
            embed_texts: 16,
            request_timeout: Duration::from_secs(30),
            documents,
        };
        let spool = Spool::open(&folder.path().join("queue"), 1 << 20, documents)?;
        let metrics = Arc::new(Metrics::new()?);
        let (service, bundles) = Bundles::serve(opened, metrics, settings, BundleSettings::default());
        let operations = Operations {
            feedback: Arc::new(Feedback::open(&folder.path().join("feedback"), setup.feedback)?),
            datasets: Arc::new(Datasets::open(&folder.path().join("datasets"), 1 << 20)?),
            audit: Arc::new(Audit::open(&folder.path().join("audit.ndjson"), 1 << 20)?),
        };
        let state = Arc::new(AppState::new(service, spool, operations, bundles, setup.keys, limits));
        Ok(Self { router: router(state.clone()), state, encoder, expander, models, folder })
    }

    /// A double with three documents.
    pub(crate) async fn filled(setup: Setup) -> Self {
        Self::filled_with_key(setup, None).await
    }

    /// The same for a service whose documents want a key.
    pub(crate) async fn filled_with_key(setup: Setup, key: Option<&str>) -> Self {
        let double = Self::new(setup).await;
        let documents = json!({"documents": [
            {"id": "a", "text": "red apples grow on trees", "metadata": {"kind": "fruit", "year": 2001}},
            {"id": "b", "text": "blue whales swim in oceans", "metadata": {"kind": "animal", "year": 2005}},
            {"id": "c", "text": "green frogs jump in ponds", "metadata": {"kind": "animal", "year": 2010}},
        ]});
        let (status, answer) = double.send("PUT", "/documents", Some(documents), key).await;
        assert_eq!(status, 201, "{answer}");
        double
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        key: Option<&str>,
    ) -> (u16, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = match body {
            Some(json) => {
                request = request.header("content-type", "application/json");
                Body::from(json.to_string())
            }
            None => Body::empty(),
        };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    /// Sends lines of NDJSON.
    pub(crate) async fn bulk(&self, path: &str, lines: String) -> (u16, Value) {
        let request = Request::post(path).header("content-type", "application/x-ndjson");
        let request = request.body(Body::from(lines)).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, serde_json::from_slice(&bytes).unwrap_or_default())
    }

    pub(crate) async fn search(&self, body: Value) -> (u16, Value) {
        self.send("POST", "/search", Some(body), None).await
    }

    /// Serves it on a free port for as long as the test's runtime lives; gives its URL.
    pub(crate) async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(axum::serve(listener, self.router.clone()).into_future());
        format!("http://{address}")
    }

    /// Waits until no generation runs or waits.
    async fn idle(&self) {
        use expandr_models::Expander;
        for _ in 0..500 {
            if self.expander.running() == 0 && self.expander.waiting() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("a generation is still running");
    }
}

fn slow() -> Script {
    Script { token_delay: Duration::from_millis(20), natural_length: 100, ..Script::default() }
}

#[tokio::test]
async fn every_failure_of_the_language_model_degrades_and_says_why() {
    for (failure, reason) in [
        (ScriptedFailure::Start, "llm_error"),
        (ScriptedFailure::After(3), "llm_error"),
        (ScriptedFailure::Cut(3), "llm_error"),
        (ScriptedFailure::Overloaded, "overloaded"),
        (ScriptedFailure::Empty, "empty_output"),
        (ScriptedFailure::Hang, "timeout"),
    ] {
        let double =
            Double::filled(Setup { script: Script { failure, ..Script::default() }, ..Setup::default() })
                .await;
        let (status, answer) =
            double.search(json!({"query": "whales in oceans", "expansion": {"timeout_ms": 200}})).await;
        assert_eq!(status, 200, "{failure:?} {answer}");
        assert_eq!(answer["expansion"]["status"], "degraded", "{failure:?}");
        assert_eq!(answer["expansion"]["reason"], reason, "{failure:?}");
        assert_eq!(answer["hits"][0]["id"], "b", "the raw hits answer");
        assert_eq!(answer["expansion"]["query_weight"], 1.0);
        let strict = json!({"query": "whales", "expansion": {"timeout_ms": 200, "on_failure": "fail"}});
        let (status, problem) = double.search(strict).await;
        let expected = if reason == "timeout" { 504 } else { 503 };
        assert_eq!(status, expected, "{failure:?} {problem}");
        let metrics = double.state.service.metrics().render().unwrap();
        assert!(
            metrics.contains(&format!("expandr_search_degraded_total{{reason=\"{reason}\"}} 1")),
            "{metrics}"
        );
    }
}

#[tokio::test]
async fn a_budget_keeps_the_part_that_is_there() {
    let double = Double::filled(Setup { script: slow(), ..Setup::default() }).await;
    let (_, answer) = double.search(json!({"query": "frogs", "expansion": {"timeout_ms": 500}})).await;
    assert_eq!(answer["expansion"]["status"], "applied", "{answer}");
    assert_eq!(answer["expansion"]["cut"], true);
    let words = answer["expansion"]["texts"][0].as_str().unwrap().split_whitespace().count();
    assert!((5..60).contains(&words), "{words} words");
    double.idle().await;
    assert_eq!(double.expander.counts().cancelled, 1, "the rest is not generated");
    // A cut passage is not the whole one: it must not be served from the cache.
    let (_, again) = double.search(json!({"query": "frogs", "expansion": {"timeout_ms": 500}})).await;
    assert_eq!(again["expansion"]["status"], "applied");
}

#[tokio::test]
async fn documents_that_are_written_again_during_a_generation_are_found() {
    for (ranking, token_ms, timeout_ms, status) in
        [("dense", 400, 600, "degraded"), ("hybrid", 20, 5000, "applied")]
    {
        let script = Script { token_delay: Duration::from_millis(token_ms), ..slow() };
        let double = Arc::new(Double::filled(Setup { script, ..Setup::default() }).await);
        let search = {
            let double = double.clone();
            let expansion = json!({"timeout_ms": timeout_ms, "max_tokens": 40});
            let body =
                json!({"query": "green frogs", "ranking": ranking, "explain": true, "expansion": expansion});
            tokio::spawn(async move { double.search(body).await })
        };
        tokio::time::sleep(Duration::from_millis(150)).await;
        let again = json!({"documents": [
            {"id": "a", "text": "red apples grow on trees"},
            {"id": "b", "text": "blue whales swim in oceans"},
            {"id": "c", "text": "green frogs jump in ponds"},
        ]});
        assert_eq!(double.send("PUT", "/documents", Some(again), None).await.0, 200);
        let (_, answer) = search.await.unwrap();
        assert_eq!(answer["expansion"]["status"], status, "{answer}");
        assert_eq!(answer["hits"].as_array().unwrap().len(), 3, "{ranking}: {answer}");
        if ranking == "hybrid" {
            let frogs = answer["hits"].as_array().unwrap().iter().find(|hit| hit["id"] == "c").unwrap();
            assert!(
                frogs["explain"]["dense"].is_object() && frogs["explain"]["lexical"].is_object(),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn identical_queries_share_one_generation() {
    let double = Double::filled(Setup { script: slow(), ..Setup::default() }).await;
    let searches = (0..20).map(|i| {
        let query = if i % 2 == 0 { "green  frogs" } else { " green frogs" };
        double.search(json!({"query": query, "expansion": {"max_tokens": 10}}))
    });
    let answers = futures::future::join_all(searches).await;
    assert_eq!(double.expander.counts().started, 1);
    for (status, answer) in &answers {
        assert_eq!((*status, &answer["expansion"]["texts"]), (200, &answers[0].1["expansion"]["texts"]));
        assert_eq!(answer["hits"], answers[0].1["hits"]);
    }
    let (_, cached) = double.search(json!({"query": "green frogs", "expansion": {"max_tokens": 10}})).await;
    assert_eq!(cached["expansion"]["status"], "cached");
    let (_, other) = double.search(json!({"query": "green frogs", "expansion": {"max_tokens": 11}})).await;
    assert_eq!(other["expansion"]["status"], "applied", "other decoding parameters are another passage");
}

#[tokio::test]
async fn a_dropped_request_stops_its_generation_but_not_its_neighbours() {
    let double = Arc::new(Double::filled(Setup { script: slow(), ..Setup::default() }).await);
    let request = |query: &'static str| {
        let double = double.clone();
        tokio::spawn(
            async move { double.search(json!({"query": query, "expansion": {"max_tokens": 40}})).await },
        )
    };
    let (alone, first, second) = (request("dropped"), request("shared"), request("shared"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(double.expander.counts().started, 2);
    alone.abort();
    first.abort();
    let (status, answer) = second.await.unwrap();
    assert_eq!((status, &answer["expansion"]["status"]), (200, &json!("applied")), "{answer}");
    double.idle().await;
    let counts = double.expander.counts();
    assert_eq!((counts.cancelled, counts.finished), (1, 1), "{counts:?}");
}

#[tokio::test]
async fn a_passage_that_would_come_too_late_is_not_begun() {
    let double = Arc::new(Double::filled(Setup { script: slow(), ..Setup::default() }).await);
    let ask = |query: String, expansion: Value| {
        let double = double.clone();
        async move { double.search(json!({"query": query, "expansion": expansion})).await }
    };
    // Four places, and 64 tokens of 20 ms.
    let busy: Vec<_> =
        (0..4).map(|n| tokio::spawn(ask(format!("frogs {n}"), json!({"timeout_ms": 9000})))).collect();
    while double.expander.counts().tokens < 40 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (status, late) = ask("whales".into(), json!({"timeout_ms": 600})).await;
    assert_eq!((status, &late["expansion"]["reason"]), (200, &json!("overloaded")), "{late}");
    assert!(late["expansion"]["detail"].as_str().unwrap().contains("this one would take"), "{late}");
    assert!(late["took_ms"].as_f64().unwrap() < 500.0, "its budget is not waited for: {late}");
    let (status, strict) = ask("whales".into(), json!({"timeout_ms": 600, "on_failure": "fail"})).await;
    assert_eq!((status, &strict["code"]), (503, &json!("expansion_failed")), "{strict}");
    assert_eq!(double.expander.counts().started, 4);
    // Who wants what is being written gets it, and who has the time gets a place.
    let (_, joined) = ask("frogs 0".into(), json!({"timeout_ms": 600})).await;
    assert_eq!(joined["expansion"]["status"], "applied", "{joined}");
    let (_, patient) = ask("whales".into(), json!({"timeout_ms": 9000, "max_tokens": 20})).await;
    assert_eq!(patient["expansion"]["status"], "applied", "{patient}");
    for busy in busy {
        assert_eq!(busy.await.unwrap().1["expansion"]["status"], "applied");
    }
}

#[tokio::test]
async fn who_would_wait_too_long_for_the_encoder_is_told_to_come_back() {
    let double = Double::filled(Setup::default()).await;
    let search = |expansion: Value| json!({"query": "a", "expansion": expansion});
    let budget = search(json!({"timeout_ms": 300}));
    // The budget is for writing; there is nothing to write here.
    let written = search(json!({"texts": ["a text"], "timeout_ms": 300}));
    for (wait_ms, statuses) in [(0, [200; 4]), (60, [200, 429, 200, 200]), (600, [429; 4])] {
        double.encoder.set_expected_wait_ms(wait_ms);
        let embed = json!({"inputs": "a"});
        let requests = [
            ("/search", search(json!(false))),
            ("/search", budget.clone()),
            ("/search", written.clone()),
            ("/embed", embed),
        ];
        for ((path, body), expected) in requests.into_iter().zip(statuses) {
            let (status, answer) = double.send("POST", path, Some(body), None).await;
            assert_eq!(status, expected, "{path} with a wait of {wait_ms} ms: {answer}");
        }
    }
    let batch = json!({"searches": [search(json!(false))]});
    let (status, answer) = double.send("POST", "/search/batch", Some(batch), None).await;
    assert_eq!((status, &answer["code"]), (429, &json!("overloaded")), "{answer}");
    assert!(answer["detail"].as_str().unwrap().contains("600 ms"), "{answer}");
    let words = json!({"query": "a", "ranking": "lexical", "expansion": false});
    assert_eq!(double.search(words).await.0, 200, "a search by words needs no encoder");
}

#[tokio::test]
async fn overload_is_refused_early_and_counted_per_text() {
    let setup = Setup { encoder_delay: Duration::from_millis(300), permits: 4, ..Setup::default() };
    let double = Arc::new(Double::filled(setup).await);
    let batch = json!({"searches": [{"query": "1", "expansion": false}, {"query": "2", "expansion": false}, {"query": "3", "expansion": false}]});
    let held = {
        let double = double.clone();
        tokio::spawn(async move { double.send("POST", "/search/batch", Some(batch), None).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    let two = json!({"query": "q", "expansion": {"count": 2, "temperature": 1}});
    let (status, problem) = double.search(two.clone()).await;
    assert_eq!((status, &problem["code"]), (429, &json!("overloaded")), "{problem}");
    assert_eq!(double.search(json!({"query": "q", "expansion": false})).await.0, 200, "one place is left");
    assert_eq!(held.await.unwrap().0, 200);
    assert_eq!(double.search(two).await.0, 200, "places come back");
    let five = vec![json!({"query": "q", "expansion": false}); 5];
    let (status, problem) = double.send("POST", "/search/batch", Some(json!({"searches": five})), None).await;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid_request")), "{problem}");
}

#[tokio::test]
async fn the_deadline_is_one_for_the_whole_request() {
    let setup = Setup { encoder_delay: Duration::from_millis(400), ..Setup::default() };
    let double = Double::filled(setup).await;
    let (status, problem) = double.search(json!({"query": "q", "timeout_ms": 100})).await;
    assert_eq!((status, &problem["code"]), (504, &json!("deadline_exceeded")), "{problem}");
    // Enough for the query, not for the passage too: the raw hits answer.
    let (status, answer) = double.search(json!({"query": "frogs", "timeout_ms": 600})).await;
    assert_eq!((status, &answer["expansion"]["reason"]), (200, &json!("timeout")), "{answer}");
}

#[tokio::test]
async fn a_batch_answers_as_single_searches_do() {
    let double = Double::filled(Setup::default()).await;
    let searches = [
        json!({"query": "apples", "expansion": false}),
        json!({"query": "whales", "top_k": 2}),
        json!({"query": "frogs", "filter": {"eq": {"kind": "animal"}}, "expansion": {"texts": ["ponds"]}}),
    ];
    let (_, batch) = double.send("POST", "/search/batch", Some(json!({ "searches": searches })), None).await;
    for (i, search) in searches.into_iter().enumerate() {
        let (_, single) = double.search(search).await;
        assert_eq!(batch["results"][i]["hits"], single["hits"]);
        assert_eq!(batch["results"][i]["expansion"]["texts"], single["expansion"]["texts"]);
    }
}

#[tokio::test]
async fn hits_leave_their_texts_out_where_asked() {
    let double = Double::filled(Setup::default()).await;
    let search = json!({"query": "apples", "expansion": false, "explain": true});
    let (_, whole) = double.search(search.clone()).await;
    let (status, short) = double.search(merged(&search, json!({"include_text": false}))).await;
    assert_eq!(status, 200, "{short}");
    let (whole, short) = (whole["hits"].as_array().unwrap(), short["hits"].as_array().unwrap());
    assert_eq!((whole.len(), short.len()), (3, 3));
    for (whole, short) in whole.iter().zip(short) {
        assert!(whole["text"].is_string() && whole["title"].is_string() && whole["metadata"].is_object());
        let mut expected = whole.as_object().unwrap().clone();
        expected.retain(|name, _| !["title", "text", "metadata"].contains(&name.as_str()));
        assert_eq!(short, &Value::Object(expected));
    }
    let (status, problem) = double.search(merged(&search, json!({"include_text": "no"}))).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/include_text")), "{problem}");
}

fn merged(search: &Value, more: Value) -> Value {
    let mut search = search.as_object().unwrap().clone();
    search.extend(more.as_object().unwrap().clone());
    Value::Object(search)
}

#[tokio::test]
async fn filters_select_by_metadata() {
    let double = Double::filled(Setup::default()).await;
    let filter = json!({"and": [{"eq": {"kind": "animal"}}, {"not": {"range": {"year": {"lt": 2006}}}}]});
    let (_, answer) = double.search(json!({"query": "anything", "filter": filter, "expansion": false})).await;
    let ids: Vec<&str> =
        answer["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["c"], "{answer}");
}

#[tokio::test]
async fn a_broken_encoder_is_an_error_and_not_the_end() {
    let double = Double::filled(Setup::default()).await;
    double.encoder.set_failing(true);
    let (status, problem) = double.search(json!({"query": "q"})).await;
    assert_eq!((status, &problem["code"]), (500, &json!("internal")), "{problem}");
    double.encoder.set_failing(false);
    assert_eq!(double.search(json!({"query": "q"})).await.0, 200);
}

#[tokio::test]
async fn keys_guard_their_routes() {
    let key = |name: &str| format!("{name}-key-0123456789");
    let keys = Keys::new(&[key("read")], &[key("write")], &[key("admin")], false).unwrap();
    let double = Double::new(Setup { keys, ..Setup::default() }).await;
    let search = || Some(json!({"query": "q", "expansion": false}));
    let put = || Some(json!({"documents": [{"id": "a/b", "text": "t"}]}));
    for (method, path, body, key, expected) in [
        ("POST", "/search", search(), None, 401),
        ("POST", "/search", search(), Some(key("other")), 401),
        ("POST", "/search", search(), Some(key("read")), 200),
        ("PUT", "/documents", put(), Some(key("read")), 403),
        ("PUT", "/documents", put(), Some(key("write")), 201),
        ("GET", "/documents/a%2Fb", None, None, 401),
        ("GET", "/documents/a%2Fb", None, Some(key("read")), 200),
        ("DELETE", "/documents/a%2Fb", None, Some(key("read")), 403),
        ("DELETE", "/documents/a%2Fb", None, Some(key("write")), 204),
        ("POST", "/admin/snapshot", None, Some(key("write")), 403),
        ("POST", "/admin/snapshot", None, Some(key("admin")), 200),
        ("GET", "/livez", None, None, 200),
    ] {
        let (status, answer) = double.send(method, path, body, key.as_deref()).await;
        assert_eq!(status, expected, "{method} {path} {key:?} {answer}");
    }
}

#[tokio::test]
async fn readiness_ends_before_liveness() {
    let double = Double::filled(Setup::default()).await;
    assert_eq!(double.send("GET", "/readyz", None, None).await.0, 200);
    double.state.draining.store(true, std::sync::atomic::Ordering::Relaxed);
    let (status, problem) = double.send("GET", "/readyz", None, None).await;
    assert_eq!((status, &problem["code"]), (503, &json!("unavailable")));
    assert_eq!(double.send("GET", "/livez", None, None).await.0, 200);
    assert_eq!(double.search(json!({"query": "still answered"})).await.0, 200);
}

#[tokio::test]
async fn bulk_lines_are_stored_one_by_one() {
    let double = Double::new(Setup::default()).await;
    let body = "{\"_id\":\"1\",\"text\":\"one\"}\n\n{\"id\":\"2\"}\nnot json\n{\"id\":\"3\",\"title\":\"three\",\"text\":\"\"}\n";
    let request = |body: &'static str| {
        let request = Request::post("/documents/bulk").header("content-type", "application/x-ndjson");
        double.router.clone().oneshot(request.body(Body::from(body)).unwrap())
    };
    let response = request(body).await.unwrap();
    assert_eq!(response.status(), 200);
    let report: Value =
        serde_json::from_slice(&axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
            .unwrap();
    assert_eq!(
        (&report["received"], &report["created"], &report["failed"]),
        (&json!(4), &json!(2), &json!(2))
    );
    assert_eq!((&report["errors"][0]["line"], &report["errors"][1]["line"]), (&json!(3), &json!(4)));
    assert_eq!(request("not json").await.unwrap().status(), 422, "no line was good");
    assert_eq!(double.send("GET", "/documents/3", None, None).await.1["title"], "three");
    // What only the index would refuse is one line's affair, too.
    let deep = format!("{}1{}", "[".repeat(20), "]".repeat(20));
    let lines = format!(
        "{{\"id\":\"5\",\"text\":\"five\"}}\n{{\"id\":\"6\",\"text\":\"t\",\"metadata\":{{\"m\":{deep}}}}}\n{{\"id\":\"bulk\",\"text\":\"seven\"}}\n"
    );
    let (status, report) = double.bulk("/documents/bulk", lines).await;
    assert_eq!(
        (status, &report["created"], &report["errors"][0]["line"]),
        (200, &json!(2), &json!(2)),
        "{report}"
    );
    assert_eq!(double.send("GET", "/documents/%62ulk", None, None).await.1["text"], "seven");
    for path in ["/documents/bulk", "/documents/bulk?wait=false"] {
        let (status, problem) = double.bulk(path, "{\"id\":\"4\",\"text\":\"four\"}\n".repeat(50_000)).await;
        assert_eq!((status, &problem["code"]), (413, &json!("body_too_large")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains("limits.bulk_body_bytes"), "{path}: {problem}");
    }
}

#[tokio::test]
async fn a_queued_body_goes_on_after_the_lines_that_are_dealt_with() {
    let double = Double::new(Setup::default()).await;
    let queue = double.folder.path().join("left");
    fs_err::create_dir(&queue).unwrap();
    let lines: Vec<String> =
        (1..4).map(|n| json!({"id": format!("left{n}"), "text": "t"}).to_string()).collect();
    let reached =
        json!({"line": 1, "report": {"received": 1, "created": 1, "updated": 0, "failed": 0, "errors": []}});
    fs_err::write(queue.join("one.ndjson"), lines.join("\n")).unwrap();
    fs_err::write(queue.join("one.reached"), reached.to_string()).unwrap();
    fs_err::write(queue.join("gone.reached"), reached.to_string()).unwrap();
    fs_err::write(queue.join("two.partial"), &lines[0]).unwrap();
    let limits = DocumentLimits { document_bytes: 10_000, documents_per_request: 100 };
    let spool = Arc::new(Spool::open(&queue, 1 << 20, limits).unwrap());
    let mut left: Vec<_> =
        fs_err::read_dir(&queue).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["one.ndjson", "one.reached"], "what belongs to no body is cleared away");
    let stop = tokio_util::sync::CancellationToken::new();
    let worker = tokio::spawn(spool.clone().work(double.state.service.clone(), stop.clone()));
    while spool.progress().queued > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.cancel();
    worker.await.unwrap();
    let report = spool.progress().finished[0].report.clone().unwrap();
    assert_eq!((report.received, report.created, report.failed), (3, 3, 0));
    let mut statuses = Vec::new();
    for n in 1..4 {
        statuses.push(double.send("GET", &format!("/documents/left{n}"), None, None).await.0);
    }
    assert_eq!(statuses, [404, 200, 200], "the first line is not written again");
    assert_eq!(fs_err::read_dir(&queue).unwrap().count(), 0);
}
