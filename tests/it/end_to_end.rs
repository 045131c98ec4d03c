//! The real binary with the real default weights.

use serde_json::{Value, json};

use crate::process::Server;

const DOCUMENTS: &[(&str, &str)] = &[
    ("sky", "Sunlight is scattered by the molecules of the air, and blue light is scattered the most."),
    ("vitamin", "Vitamin D helps the body to absorb calcium, which keeps bones strong."),
    ("rome", "The Roman Empire fell in the west in the year 476, when Odoacer deposed the last emperor."),
    ("bread", "Yeast turns sugar into carbon dioxide, whose bubbles make the dough rise before baking."),
    (
        "tide",
        "The gravity of the moon pulls the water of the oceans, so that the tides rise and fall twice a day.",
    ),
    ("id with/odd?chars #1", "Volcanoes erupt when molten rock from below the crust reaches the surface."),
];

fn ids(answer: &Value) -> Vec<&str> {
    answer["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn searches_expansions_and_bad_requests() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &[]);
    server.put(DOCUMENTS).await;

    // A raw search finds what it should.
    let (status, raw) =
        server.post("/search", json!({"query": "why is the sky blue", "expansion": false})).await;
    assert_eq!(status, 200, "{raw}");
    assert_eq!(ids(&raw)[0], "sky");
    assert_eq!(raw["expansion"]["status"], "disabled");
    assert!(raw["bundle"].as_str().unwrap().starts_with("bundle-"));

    // An expansion is written, used, explained, and cached.
    let expanded = json!({
        "query": "why is the sky blue", "top_k": 3, "explain": true,
        "expansion": {"max_tokens": 24, "timeout_ms": 25000},
    });
    let (status, first) = server.post("/search", expanded.clone()).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["expansion"]["status"], "applied", "{first}");
    assert!(first["expansion"]["texts"][0].as_str().unwrap().split_whitespace().count() >= 8);
    assert!((1..=24).contains(&first["expansion"]["output_tokens"].as_u64().unwrap()));
    let explain = &first["hits"][0]["explain"];
    let cosines =
        (explain["query_cosine"].as_f64().unwrap(), explain["expansion_cosines"][0].as_f64().unwrap());
    let score = first["hits"][0]["score"].as_f64().unwrap();
    assert!((score - (cosines.0 + cosines.1) / 2.0).abs() < 1e-3, "score {score} is the mean of {cosines:?}");
    assert!(explain["rank_without_expansion"].as_u64().is_some());
    let (_, second) = server.post("/search", expanded).await;
    assert_eq!(second["expansion"]["status"], "cached");
    assert_eq!(second["expansion"]["texts"], first["expansion"]["texts"]);
    assert_eq!(ids(&second), ids(&first));

    // A budget that is too small gives the raw hits, and says so.
    let tiny = json!({"query": "how does bread rise", "expansion": {"timeout_ms": 1}});
    let (status, degraded) = server.post("/search", tiny).await;
    assert_eq!((status, &degraded["expansion"]["status"]), (200, &json!("degraded")), "{degraded}");
    assert_eq!(degraded["expansion"]["reason"], "timeout");
    assert_eq!(ids(&degraded)[0], "bread");
    let strict = json!({"query": "how do tides work", "expansion": {"timeout_ms": 1, "on_failure": "fail"}});
    let (status, problem) = server.post("/search", strict).await;
    assert_eq!((status, &problem["code"]), (504, &json!("deadline_exceeded")), "{problem}");

    // Supplied passages skip the language model.
    let supplied = json!({"query": "old history", "expansion": {"texts": ["The last Roman emperor was deposed by Odoacer."]}});
    let (_, answer) = server.post("/search", supplied).await;
    assert_eq!((&answer["expansion"]["status"], ids(&answer)[0]), (&json!("supplied"), "rome"));

    bad_requests(&server).await;
    other_routes(&server).await;
    assert_eq!(server.terminate(), 0);
}

async fn bad_requests(server: &Server) {
    let long = "x".repeat(20_000);
    let cases = [
        (json!({"query": ""}), 422, "/query"),
        (json!({"query": long}), 422, "/query"),
        (json!({"query": "q", "top_k": 1001}), 422, "/top_k"),
        (json!({"query": "q", "top_k": "ten"}), 422, "/top_k"),
        (json!({"query": "q", "colour": "blue"}), 422, "/colour"),
        (json!({"query": "q", "expansion": {"temperature": 9}}), 422, "/expansion/temperature"),
        (json!({"query": "q", "filter": {"near": {"a": 1}}}), 422, "/filter"),
        (json!({}), 422, ""),
    ];
    for (body, expected, pointer) in cases {
        let (status, problem) = server.post("/search", body.clone()).await;
        assert_eq!(status, expected, "{body} {problem}");
        assert_eq!(problem["code"], "invalid_request", "{problem}");
        let found = problem["errors"][0]["pointer"].as_str().unwrap();
        assert!(found.starts_with(pointer), "{problem}");
        assert!(!problem["request_id"].as_str().unwrap().is_empty());
    }
    let raw = |body: &'static str, content_type: &'static str| {
        let request = server.client.post(format!("{}/search", server.url));
        request.header("content-type", content_type).body(body).send()
    };
    let malformed = raw("{\"query\": ", "application/json").await.unwrap();
    assert_eq!(malformed.status(), 400);
    assert_eq!(malformed.headers()["content-type"], "application/problem+json");
    assert_eq!(raw("{\"query\": \"q\"}", "text/plain").await.unwrap().status(), 415);
    // The server answers before it has read the body and then closes the connection: a client of its own.
    let huge = reqwest::Client::new()
        .post(format!("{}/search", server.url))
        .header("content-type", "application/json");
    assert_eq!(huge.body(vec![b' '; 9 * 1024 * 1024]).send().await.unwrap().status(), 413);
    assert_eq!(server.get("/nowhere").await.0, 404);
    assert_eq!(server.get("/search").await.0, 405);
    assert_eq!(server.get("/documents/unknown").await.0, 404);
    let admin = server.client.post(format!("{}/admin/snapshot", server.url)).send().await.unwrap();
    assert_eq!(admin.status(), 404, "without an admin key there are no admin routes");
}

async fn other_routes(server: &Server) {
    let (status, document) = server.get("/documents/id%20with%2Fodd%3Fchars%20%231").await;
    assert_eq!((status, &document["id"]), (200, &json!("id with/odd?chars #1")));
    let (status, expand) =
        server.post("/expand", json!({"query": "what is yeast", "expansion": {"max_tokens": 12}})).await;
    assert_eq!((status, &expand["status"]), (200, &json!("applied")), "{expand}");
    let (status, vectors) = server.post("/embed", json!({"inputs": ["one", "two"]})).await;
    assert_eq!((status, vectors.as_array().unwrap().len()), (200, 2));
    assert_eq!(vectors[0].as_array().unwrap().len(), 384);
    let batch = json!({"searches": [{"query": "sky", "expansion": false}, {"query": ""}]});
    let (status, results) = server.post("/search/batch", batch).await;
    assert_eq!(status, 200);
    assert_eq!(results["results"][0]["hits"][0]["id"], "sky");
    assert_eq!(results["results"][1]["errors"][0]["pointer"], "/searches/1/query");
    let (_, info) = server.get("/info").await;
    assert_eq!(info["documents"], DOCUMENTS.len());
    assert_eq!(info["bundle"]["expander"]["engine"], "batched");
    assert_eq!(info["bundle"]["expander"]["honours_seed"], true);
    // The same seed gives the same sample: the shorter passage is the beginning of the longer one.
    let sampled = |max_tokens: usize| {
        let expansion = json!({"temperature": 1, "seed": 7, "max_tokens": max_tokens, "timeout_ms": 25000});
        server.post("/expand", json!({"query": "what is yeast", "expansion": expansion}))
    };
    let (short, long) = (sampled(10).await.1, sampled(14).await.1);
    let (short, long) = (short["texts"][0].as_str().unwrap(), long["texts"][0].as_str().unwrap());
    assert!(long.starts_with(short), "`{long}` does not start with `{short}`");
    for path in ["/livez", "/readyz", "/health"] {
        assert_eq!(server.get(path).await.0, 200, "{path}");
    }
    let metrics =
        server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    for line in [
        "expandr_search_requests_total{expansion=\"applied\"} 1",
        "expandr_search_degraded_total{reason=\"timeout\"} 1",
        "expandr_index_documents 6",
        "expandr_stage_duration_seconds_count{stage=\"expansion\"}",
        "http_request_duration_seconds_count",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_restart_keeps_documents_and_queued_bodies() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--expander", "none"];
    let server = Server::start(folder.path(), &flags);
    server.put(DOCUMENTS).await;
    let deleted = server.client.delete(format!("{}/documents/rome", server.url)).send().await.unwrap();
    assert_eq!(deleted.status(), 204);
    let line =
        json!({"_id": "queued", "title": "Glaciers", "text": "Ice that flows slowly downhill."}).to_string();
    let request = server.client.post(format!("{}/documents/bulk?wait=false", server.url));
    let accepted = request.header("content-type", "application/x-ndjson").body(line).send().await.unwrap();
    assert_eq!(accepted.status(), 202);
    assert_eq!(server.terminate(), 0);

    let server = Server::start(folder.path(), &flags);
    let (_, answer) = server.post("/search", json!({"query": "calcium and bones"})).await;
    assert_eq!(ids(&answer)[0], "vitamin");
    assert_eq!(
        answer["expansion"]["status"], "disabled",
        "without a language model there is nothing to switch on"
    );
    assert_eq!(server.get("/documents/rome").await.0, 404);
    let mut found = 404;
    for _ in 0..200 {
        found = server.get("/documents/queued").await.0;
        if found == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(found, 200, "a body accepted with 202 is ingested, if need be after the restart");
}
