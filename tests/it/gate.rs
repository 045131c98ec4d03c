//! Expansion `auto`: the gate skips or lets expand, and every answer says which.

use expandr_evaluation::{
    Collection,
    client::{Endpoint, EndpointOptions, EvaluationOptions, evaluate},
};
use expandr_models::{
    gate::{Combination, Features, Gate, Row},
    testing::{Script, ScriptedFailure},
};
use serde_json::{Value, json};

use crate::service::{Double, Setup};

/// A gate that expands where the best hit is far, and wants `query_weight` 0.75 then.
pub(crate) fn gate() -> Gate {
    let rows: Vec<Row> = (0..100)
        .map(|n| {
            let top1 = n as f32 / 100.0;
            Row { id: n.to_string(), features: Features::new("a", &[top1]), gain: 0.4 - f64::from(top1) }
        })
        .collect();
    let with = Combination {
        encoder: "hash-64@000000000000".into(),
        expander: None,
        query_weight: 0.75,
        joint_encoding: false,
    };
    let gate = Gate::fit(&rows, with);
    assert!(gate.threshold().is_some());
    gate
}

/// A query whose words stand in one document, and one whose words stand in none.
pub(crate) const NEAR: &str = "blue whales swim in oceans";
pub(crate) const FAR: &str = "which violin concerto";

async fn gated() -> Double {
    Double::filled(Setup { gate: Some(gate()), ..Setup::default() }).await
}

#[tokio::test]
async fn auto_skips_what_is_found_already_and_expands_the_rest() {
    let double = gated().await;
    let (status, near) = double.search(json!({"query": NEAR, "expansion": "auto", "explain": true})).await;
    assert_eq!(status, 200, "{near}");
    let expansion = &near["expansion"];
    assert_eq!((&expansion["status"], &expansion["reason"]), (&json!("skipped"), &json!("gate")), "{near}");
    assert_eq!((&expansion["texts"], &expansion["query_weight"]), (&json!([]), &json!(1.0)));
    assert_eq!(expansion["gate"]["expand"], false);
    assert!(
        expansion["gate"]["predicted_gain"].as_f64() <= expansion["gate"]["threshold"].as_f64(),
        "{near}"
    );
    assert_eq!(double.expander.counts().started, 0, "nothing is generated");
    let (_, raw) = double.search(json!({"query": NEAR, "expansion": false, "explain": true})).await;
    assert_eq!(near["hits"], raw["hits"], "the raw hits answer");

    let (_, far) = double.search(json!({"query": FAR, "expansion": {"mode": "auto"}, "explain": true})).await;
    let expansion = &far["expansion"];
    assert_eq!(
        (&expansion["status"], &expansion["gate"]["expand"]),
        (&json!("applied"), &json!(true)),
        "{far}"
    );
    assert!(expansion["gate"]["predicted_gain"].as_f64() > expansion["gate"]["threshold"].as_f64(), "{far}");
    assert_eq!((double.expander.counts().started, &expansion["query_weight"]), (1, &json!(0.75)));
    let given = json!({"query": FAR, "expansion": {"mode": "auto", "query_weight": 0.25}});
    let (_, given) = double.search(given).await;
    assert_eq!(given["expansion"]["query_weight"], 0.25);
    assert!(given["expansion"]["gate"].is_null(), "only with explain");

    let metrics = double.state.service.metrics().render().unwrap();
    for line in [
        "expandr_gate_decisions_total{decision=\"skip\"} 1",
        "expandr_gate_decisions_total{decision=\"expand\"} 2",
        "expandr_search_requests_total{expansion=\"skipped\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains("expandr_search_degraded_total{"), "skipping is no degradation");
}

#[tokio::test]
async fn the_gate_sees_the_numbers_that_training_sees() {
    let gate = gate();
    let double = gated().await;
    for query in [NEAR, FAR, "why do green frogs and red apples grow"] {
        let (_, raw) = double.search(json!({"query": query, "expansion": false})).await;
        let hits = raw["hits"].as_array().unwrap();
        let cosines: Vec<f32> = hits.iter().map(|hit| hit["score"].as_f64().unwrap() as f32).collect();
        let expected = gate.decide(&Features::new(query, &cosines));
        let (_, auto) = double.search(json!({"query": query, "expansion": "auto", "explain": true})).await;
        let said = auto["expansion"]["gate"]["predicted_gain"].as_f64().unwrap();
        assert!((said - expected.predicted_gain).abs() < 1e-12, "{query}: {said} {expected:?}");
        // The scores are cosines: the query's vector with each document's.
        let near = double.encoder.vector(query);
        let best = ["red apples grow on trees", "blue whales swim in oceans", "green frogs jump in ponds"]
            .map(|text| near.iter().zip(double.encoder.vector(text)).map(|(a, b)| a * b).sum::<f32>());
        let top1 = best.into_iter().fold(f32::MIN, f32::max);
        assert!((cosines[0] - top1).abs() < 1e-5, "{query}: {cosines:?} {best:?}");
    }
    // Depth and hybrid fusion change neither hits nor decision.
    for rest in [json!({"top_k": 1}), json!({"ranking": "hybrid"})] {
        let mut body = json!({"query": NEAR, "expansion": "auto", "explain": true});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let (_, answer) = double.search(body).await;
        let (_, plain) = double.search(json!({"query": NEAR, "expansion": "auto", "explain": true})).await;
        assert_eq!(answer["expansion"]["gate"], plain["expansion"]["gate"], "{rest}");
    }
}

#[tokio::test]
async fn the_gate_decides_for_cached_and_supplied_passages_too() {
    let double = gated().await;
    for query in [NEAR, FAR] {
        let (_, always) = double.search(json!({"query": query, "expansion": "always"})).await;
        assert_eq!(always["expansion"]["status"], "applied", "always asks no gate");
        assert_eq!(always["expansion"]["query_weight"], 0.5);
    }
    let status = async |query: &str, expansion: Value| {
        let (_, answer) = double.search(json!({"query": query, "expansion": expansion})).await;
        answer["expansion"]["status"].clone()
    };
    assert_eq!(status(NEAR, json!("auto")).await, "skipped");
    assert_eq!(status(FAR, json!("auto")).await, "cached");
    let texts = json!({"mode": "auto", "texts": ["a passage"]});
    assert_eq!(status(NEAR, texts.clone()).await, "skipped");
    assert_eq!(status(FAR, texts).await, "supplied");
}

#[tokio::test]
async fn what_the_gate_lets_through_can_fail_and_what_it_skips_cannot() {
    let script = Script { failure: ScriptedFailure::Start, ..Script::default() };
    let double = Double::filled(Setup { script, gate: Some(gate()), ..Setup::default() }).await;
    let strict = |query: &str| json!({"query": query, "expansion": {"mode": "auto", "on_failure": "fail"}});
    assert_eq!(double.search(strict(NEAR)).await.0, 200);
    assert_eq!(double.search(strict(FAR)).await.0, 503);
    let (_, answer) = double.search(json!({"query": FAR, "expansion": "auto"})).await;
    assert_eq!(answer["expansion"]["reason"], "llm_error");
}

#[tokio::test]
async fn without_a_gate_auto_is_refused() {
    let double = Double::filled(Setup::default()).await;
    let (status, problem) = double.search(json!({"query": NEAR, "expansion": "auto"})).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/expansion")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("--gate FILE"), "{problem}");
    let batch =
        json!({"searches": [{"query": NEAR, "expansion": "auto"}, {"query": NEAR, "expansion": false}]});
    let (_, answers) = double.send("POST", "/search/batch", Some(batch), None).await;
    assert_eq!(answers["results"][0]["errors"][0]["pointer"], "/searches/0/expansion", "{answers}");
    assert_eq!(answers["results"][1]["expansion"]["status"], "disabled");

    let double = gated().await;
    let expand = json!({"query": NEAR, "expansion": "auto"});
    let (status, problem) = double.send("POST", "/expand", Some(expand), None).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("nothing is searched here"), "{problem}");
}

#[tokio::test]
async fn a_gate_makes_another_bundle_and_is_named() {
    let (with, without) = (gated().await, Double::filled(Setup::default()).await);
    let info = async |double: &Double| double.send("GET", "/info", None, None).await.1["bundle"].clone();
    // Written and read it may differ in a last digit.
    let read = Gate::read(&with.folder.path().join("fitted.json")).unwrap();
    let (with, without) = (info(&with).await, info(&without).await);
    assert_ne!(with["id"], without["id"]);
    assert_eq!(with["gate"]["id"], read.id());
    assert_eq!(
        (&with["gate"]["query_weight"], &with["gate"]["trained_on"]["queries"]),
        (&json!(0.75), &json!(100))
    );
    assert!(without["gate"].is_null());
}

#[tokio::test]
async fn an_evaluation_counts_what_the_gate_skipped() {
    let double = gated().await;
    let url = double.serve().await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join("c").join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, text).unwrap();
    };
    write("corpus.jsonl", "{\"_id\":\"b\",\"text\":\"blue whales swim in oceans\"}\n");
    let queries = [("1", NEAR), ("2", FAR)].map(|(id, text)| json!({"_id": id, "text": text}).to_string());
    write("queries.jsonl", &queries.join("\n"));
    write("qrels/test.tsv", "1\tb\t1\n2\tb\t1\n");
    let collection = Collection::open(&folder.path().join("c"), None).unwrap();
    let mut options = EvaluationOptions::new(folder.path().join("run"));
    options.expansion = Some(json!({"mode": "auto"}));
    let endpoint = Endpoint::new(&url, None, EndpointOptions::default()).unwrap();
    let report = evaluate(&endpoint, &collection, &options, |_| {}).await.unwrap();
    assert_eq!((report.queries, report.degraded, report.skipped), (2, 0, 1));
    assert_eq!((report.expansions["skipped"], report.expansions["applied"]), (1, 1));
}
