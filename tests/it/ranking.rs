//! Rankings by vectors, by words and by both, and how far an expansion leads from its query.

use std::{collections::HashMap, time::Duration};

use expandr_models::testing::{Script, ScriptedFailure};
use serde_json::{Value, json};

use crate::service::{Double, Setup};

/// Thirty documents more, of words that repeat in turns, so that rankings differ.
async fn with_more() -> Double {
    let double = Double::filled(Setup::default()).await;
    let words = ["whales", "rivers", "engines", "apples", "violins", "ponds", "bridges"];
    let documents: Vec<Value> = (0..30)
        .map(|n| {
            let text: Vec<&str> = (0..4 + n % 5).map(|i| words[(n * 3 + i * i + n * i) % words.len()]).collect();
            json!({"id": format!("d{n}"), "title": words[n % 7], "text": text.join(" "), "metadata": {"parity": n % 2}})
        })
        .collect();
    let (status, answer) =
        double.send("PUT", "/documents", Some(json!({"documents": documents})), None).await;
    assert_eq!(status, 201, "{answer}");
    double
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn words_are_found_without_models() {
    let script = Script { failure: ScriptedFailure::Hang, ..Script::default() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    double.encoder.set_failing(true);
    let body = json!({"query": "Where do WHALES swim? (\"+-~ AND blue:whale*", "ranking": "lexical", "explain": true});
    let (status, answer) = double.search(body).await;
    assert_eq!((status, ids(&answer)), (200, vec!["b"]), "{answer}");
    assert_eq!((&answer["ranking"], &answer["searched"]), (&json!("lexical"), &json!("lexical")));
    assert_eq!(answer["expansion"]["status"], "disabled");
    let hit = &answer["hits"][0];
    assert_eq!(hit["explain"], json!({"lexical": {"rank": 1, "score": hit["score"]}}));
    let timings = &answer["timings"];
    assert!(timings["search_lexical_ms"].as_f64().unwrap() > 0.0 && timings["encode_query_ms"] == 0.0);
    assert_eq!(double.expander.counts().started, 0);
    let (status, answer) = double.search(json!({"query": "the of ?!", "ranking": "lexical"})).await;
    assert_eq!((status, ids(&answer).len()), (200, 0), "nothing to find is no error");
}

#[tokio::test]
async fn writes_are_found_by_their_words_at_once() {
    let double = Double::filled(Setup::default()).await;
    let found = async |query: &str| {
        let (_, answer) = double.search(json!({"query": query, "ranking": "lexical"})).await;
        ids(&answer).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let put = json!({"documents": [{"id": "a", "title": "pears", "text": "yellow pears ripen"}, {"id": "z", "text": "zebras"}]});
    assert_eq!(double.send("PUT", "/documents", Some(put), None).await.0, 201);
    assert_eq!((found("apples").await, found("pear").await), (vec![], vec!["a".to_owned()]));
    assert_eq!(found("zebra").await, ["z"]);
    assert_eq!(double.send("DELETE", "/documents/z", None, None).await.0, 204);
    assert!(found("zebra").await.is_empty());
}

#[tokio::test]
async fn hybrid_is_the_fusion_of_the_two_rankings() {
    let double = with_more().await;
    let expansion = json!({"texts": ["violins over the ponds"]});
    let ranked = async |ranking: &str, rest: Value| {
        let mut body =
            json!({"query": "whales and apples", "ranking": ranking, "top_k": 100, "explain": true});
        body.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let (status, answer) = double.search(body).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let dense = ranked("dense", json!({"expansion": expansion})).await;
    let lexical = ranked("lexical", json!({})).await;
    assert_eq!(dense["hits"].as_array().unwrap().len(), 33);
    assert!((5..33).contains(&ids(&lexical).len()));
    let hybrid = json!({"k": 10, "dense_weight": 0.5, "lexical_weight": 2});
    let fused = ranked("hybrid", json!({"expansion": expansion, "hybrid": hybrid})).await;
    assert_eq!((&fused["ranking"], &fused["searched"]), (&json!("hybrid"), &json!("exact+lexical")));
    assert_eq!(fused["expansion"]["status"], "supplied");

    let place = |answer: &Value| -> HashMap<String, Value> {
        let place = |hit: &Value| json!({"rank": hit["rank"], "score": hit["score"]});
        let hits = answer["hits"].as_array().unwrap().iter();
        hits.map(|hit| (hit["id"].as_str().unwrap().to_owned(), place(hit))).collect()
    };
    let (dense_places, lexical_places) = (place(&dense), place(&lexical));
    let mut previous = f64::INFINITY;
    for hit in fused["hits"].as_array().unwrap() {
        let id = hit["id"].as_str().unwrap();
        let share = |places: &HashMap<String, Value>, weight: f64| {
            places.get(id).map_or(0.0, |place| weight / (10.0 + place["rank"].as_f64().unwrap()))
        };
        let expected = share(&dense_places, 0.5) + share(&lexical_places, 2.0);
        let score = hit["score"].as_f64().unwrap();
        assert!((score - expected).abs() < 1e-6 && score <= previous, "{hit}");
        previous = score;
        let explain = &hit["explain"];
        assert_eq!(&explain["dense"], &dense_places[id]);
        assert_eq!(explain["lexical"], lexical_places.get(id).cloned().unwrap_or_default());
        assert!(explain["query_cosine"].is_number() && explain["expansion_cosines"][0].is_number());
    }
    assert_eq!(ids(&fused).len(), 33);
    let words_only = json!({"expansion": false, "hybrid": {"dense_weight": 0}});
    assert_eq!(ids(&ranked("hybrid", words_only).await), ids(&lexical));
    // Only the ten best of each are fused, so that those further down come from one ranking at most.
    let (_, shallow) = double
        .search(json!({"query": "whales and apples", "ranking": "hybrid", "expansion": false, "hybrid": {"depth": 10}}))
        .await;
    assert_eq!(ids(&shallow).len(), 10);
}

#[tokio::test]
async fn hybrid_without_its_expansion_says_so_and_uses_the_raw_ranking() {
    let script = Script { failure: ScriptedFailure::Start, ..Script::default() };
    let double = Double::filled(Setup { script, ..Setup::default() }).await;
    let body =
        |expansion: Value| json!({"query": "green whales", "ranking": "hybrid", "expansion": expansion});
    let (status, degraded) = double.search(body(json!(true))).await;
    assert_eq!((status, &degraded["expansion"]["reason"]), (200, &json!("llm_error")), "{degraded}");
    let (_, raw) = double.search(body(json!(false))).await;
    assert_eq!(degraded["hits"], raw["hits"]);
    let (status, problem) = double.search(body(json!({"on_failure": "fail"}))).await;
    assert_eq!((status, &problem["code"]), (503, &json!("expansion_failed")));
}

#[tokio::test]
async fn filters_hold_for_every_ranking() {
    let double = with_more().await;
    for ranking in ["dense", "lexical", "hybrid"] {
        let body = json!({"query": "whales", "ranking": ranking, "top_k": 50, "expansion": false, "filter": {"eq": {"parity": 1}}});
        let (_, answer) = double.search(body).await;
        let odd = ids(&answer).iter().all(|id| id[1..].parse::<u32>().is_ok_and(|n| n % 2 == 1));
        assert!(odd && !ids(&answer).is_empty(), "{ranking} {answer}");
        let (_, nothing) = double
            .search(json!({"query": "whales", "ranking": ranking, "expansion": false, "filter": {"eq": {"parity": 7}}}))
            .await;
        assert_eq!(ids(&nothing).len(), 0, "{ranking}");
    }
}

#[tokio::test]
async fn contradictions_are_named() {
    let double = Double::filled(Setup::default()).await;
    for (search, pointer, word) in [
        (json!({"query": "q", "ranking": "lexical", "expansion": true}), "/expansion", "leave it out"),
        (json!({"query": "q", "ranking": "words"}), "/ranking", "unknown variant"),
        (json!({"query": "q", "hybrid": {"k": 5}}), "/hybrid", "hybrid"),
        (json!({"query": "q", "ranking": "hybrid", "hybrid": {"depth": 3}}), "/hybrid/depth", "top_k"),
    ] {
        let (status, problem) = double.search(search.clone()).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{problem}");
        let batch = json!({"searches": [{"query": "whales", "ranking": "lexical"}, search]});
        let (status, answer) = double.send("POST", "/search/batch", Some(batch), None).await;
        if status == 200 {
            assert_eq!(ids(&answer["results"][0]), ["b"]);
            assert_eq!(answer["results"][1]["errors"][0]["pointer"], format!("/searches/1{pointer}"));
        }
    }
    let without = Double::filled(Setup { lexical: false, ..Setup::default() }).await;
    for ranking in ["lexical", "hybrid"] {
        let (status, problem) = without.search(json!({"query": "q", "ranking": ranking})).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/ranking")), "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("--lexical on"), "{problem}");
    }
    assert_eq!(without.search(json!({"query": "whales"})).await.0, 200);
}

#[tokio::test]
async fn an_expansion_tells_how_far_it_leads_from_its_query() {
    let double = with_more().await;
    let search = async |expansion: Value, top_k: usize| {
        let body = json!({"query": "whales in rivers", "top_k": top_k, "expansion": expansion});
        double.search(body).await.1
    };
    let same = search(json!({"texts": ["whales in rivers"]}), 2).await;
    assert!((same["expansion"]["query_cosine"].as_f64().unwrap() - 1.0).abs() < 1e-5, "{same}");
    assert_eq!(same["expansion"]["raw_overlap_at_10"], 1.0);

    let texts = json!(["violins and engines", "bridges", "apples on trees"]);
    let expansion = json!({"texts": texts, "query_weight": 0.5});
    // Three hits are asked for; ten are compared.
    let other = search(expansion.clone(), 3).await;
    assert_eq!(ids(&other).len(), 3);
    let (raw, expanded) = (search(json!(false), 10).await, search(expansion, 10).await);
    let common = ids(&expanded).into_iter().filter(|id| ids(&raw).contains(id)).count();
    assert!((1..10).contains(&common), "{common}");
    let overlap = other["expansion"]["raw_overlap_at_10"].as_f64().unwrap();
    assert!((overlap - common as f64 / 10.0).abs() < 1e-6, "{overlap} {common}");

    let inputs = json!({"inputs": ["whales in rivers", texts[0], texts[1], texts[2]]});
    let (_, vectors) = double.send("POST", "/embed", Some(inputs), None).await;
    let vector = |n: usize| -> Vec<f64> { serde_json::from_value(vectors[n].clone()).unwrap() };
    let cosine = |n: usize| vector(0).iter().zip(vector(n)).map(|(a, b)| a * b).sum::<f64>();
    let expected = (cosine(1) + cosine(2) + cosine(3)) / 3.0;
    assert!((other["expansion"]["query_cosine"].as_f64().unwrap() - expected).abs() < 1e-5);

    assert!(
        raw["expansion"].get("query_cosine").is_none() && raw["expansion"].get("raw_overlap_at_10").is_none()
    );
    let metrics = double.state.service.metrics().render().unwrap();
    for name in ["query_cosine", "raw_overlap_at_10"] {
        assert!(metrics.contains(&format!("expandr_expansion_{name}_count 3")), "{metrics}");
    }
    assert!(metrics.contains("expandr_search_rankings_total{ranking=\"dense\"} 4"), "{metrics}");
}

#[tokio::test]
async fn words_do_not_wait_for_a_slow_encoder() {
    let setup = Setup { encoder_delay: Duration::from_millis(400), ..Setup::default() };
    let double = Double::filled(setup).await;
    let (status, answer) =
        double.search(json!({"query": "frogs", "ranking": "lexical", "timeout_ms": 200})).await;
    assert_eq!((status, ids(&answer)), (200, vec!["c"]), "{answer}");
    let (status, _) = double.search(json!({"query": "frogs", "ranking": "hybrid", "timeout_ms": 200})).await;
    assert_eq!(status, 504, "hybrid needs the vector");
}
