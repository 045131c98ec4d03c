//! What passages do to a search: how they are embedded, averaged, and how many are written.

use expandr_models::bundle::Defaults;
use serde_json::{Value, json};

use crate::service::{Double, Setup};

#[tokio::test]
async fn joint_encoding_embeds_the_passage_behind_the_query() {
    let double = Double::filled(Setup::default()).await;
    let ask = async |text: &str, rest: Value| {
        let mut expansion = json!({"texts": [text], "query_weight": 0.3});
        expansion.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        let (status, answer) = double.search(json!({"query": "old rivers", "expansion": expansion})).await;
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let joint = ask("herons wade", json!({"joint_encoding": true})).await;
    let by_hand = ask("old rivers herons wade", json!({})).await;
    let apart = ask("herons wade", json!({"joint_encoding": false})).await;
    assert_eq!(joint["hits"], by_hand["hits"]);
    assert_ne!(joint["hits"], apart["hits"]);
    assert_eq!(joint["expansion"]["joint_encoding"], true);
    assert_eq!(joint["expansion"]["texts"], json!(["herons wade"]), "what was written, without the query");
    assert!(apart["expansion"].get("joint_encoding").is_none());
}

#[tokio::test]
async fn an_expansion_is_averaged_with_the_query() {
    let double = Double::filled(Setup::default()).await;
    let body = json!({"query": "apples on trees", "explain": true, "expansion": {"query_weight": 0.25, "count": 2, "temperature": 1, "seed": 3}});
    let (status, answer) = double.search(body).await;
    assert_eq!((status, &answer["expansion"]["status"]), (200, &json!("applied")), "{answer}");
    assert_eq!(answer["expansion"]["texts"].as_array().unwrap().len(), 2);
    for hit in answer["hits"].as_array().unwrap() {
        let explain = &hit["explain"];
        let cosines: Vec<f64> =
            explain["expansion_cosines"].as_array().unwrap().iter().map(|c| c.as_f64().unwrap()).collect();
        let expected =
            0.25 * explain["query_cosine"].as_f64().unwrap() + 0.75 * (cosines[0] + cosines[1]) / 2.0;
        assert!((hit["score"].as_f64().unwrap() - expected).abs() < 1e-4, "{hit}");
    }
}

#[tokio::test]
async fn the_server_says_how_many_passages_a_search_gets_that_does_not() {
    let flags = Defaults { count: Some(3), temperature: Some(0.8), ..Defaults::default() };
    let double = Double::filled(Setup { flags, permits: 4, ..Setup::default() }).await;
    let (status, answer) = double.search(json!({"query": "apples on trees"})).await;
    assert_eq!((status, &answer["expansion"]["status"]), (200, &json!("applied")), "{answer}");
    assert_eq!(answer["expansion"]["texts"].as_array().unwrap().len(), 3);
    let greedy = json!({"query": "apples on trees", "expansion": {"temperature": 0}});
    let (status, answer) = double.search(greedy).await;
    assert_eq!((status, answer["expansion"]["texts"].as_array().unwrap().len()), (200, 1), "{answer}");
    let (_, info) = double.send("GET", "/info", None, None).await;
    let defaults = &info["defaults"];
    assert_eq!((&defaults["expansion_count"], &info["limits"]["expansions"]), (&json!(3), &json!(8)));
    // Three places each, and there are four.
    let two = json!({"searches": [{"query": "apples"}, {"query": "trees"}]});
    let (status, problem) = double.send("POST", "/search/batch", Some(two), None).await;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid_request")), "{problem}");
    assert!(problem.to_string().contains("counts 6 texts"), "{problem}");
    // One that is refused by itself counts as one.
    let one = json!({"searches": [{"query": "apples"}, {"query": " "}]});
    let (status, answer) = double.send("POST", "/search/batch", Some(one), None).await;
    let results = answer["results"].as_array().unwrap();
    assert_eq!((status, results[0]["expansion"]["texts"].as_array().unwrap().len()), (200, 3), "{answer}");
    assert_eq!(results[1]["code"], "invalid_request", "{answer}");
}
