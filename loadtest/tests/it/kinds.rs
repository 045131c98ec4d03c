//! Mixes of cached, fresh and batch queries.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::double::{Double, load_test};

const MIX: &str = r#"
title = "A mix"
rate = 100
duration = "2s"
hot = 3
objective = ["cached:p99<20s", "batch:errors<=0%", "fresh:applied>=100%"]

[[kind]]
name = "cached"
share = 0.5
queries = "hot"
expansion = "always"
timeout-ms = 300

[[kind]]
name = "fresh"
share = 0.3
queries = "fresh"
expansion = "always"
max-tokens = 32

[[kind]]
name = "batch"
share = 0.2
queries = "file"
batch = 4
expansion = "off"
top-k = 3
"#;

#[test]
fn a_scenario_mixes_kinds_each_with_its_own_figures() {
    let folder = tempfile::tempdir().unwrap();
    let queries = folder.path().join("queries.jsonl");
    let lines: Vec<String> = (0..20)
        .map(|number| json!({"_id": number.to_string(), "text": format!("query {number}")}).to_string())
        .collect();
    fs_err::write(&queries, lines.join("\n")).unwrap();
    let scenario = folder.path().join("mix.toml");
    fs_err::write(&scenario, MIX).unwrap();
    let run = load_test(
        Double::default(),
        &["--scenario", scenario.to_str().unwrap(), "--queries", queries.to_str().unwrap()],
    );
    assert!(run.output.status.success(), "{}", run.text());
    assert_eq!(run.report["title"], "A mix");
    let kinds = &run.load(0)["kinds"];
    let requests = |kind: &str| kinds[kind]["requests"].as_u64().unwrap();
    assert_eq!(requests("cached") + requests("fresh") + requests("batch"), 200);
    assert!((75..125).contains(&requests("cached")) && (20..60).contains(&requests("batch")), "{kinds}");
    assert_eq!(kinds["batch"]["searches"].as_u64(), Some(4 * requests("batch")));
    assert!(kinds["fresh"]["latency_ms"]["p99"].as_f64().is_some());

    let seen = run.double.queries.lock().unwrap();
    let with = |expansion: Value| seen.iter().filter(move |search| search["expansion"] == expansion);
    // Each hot query once beforehand, without a budget.
    assert_eq!(seen[..3].iter().filter(|search| search["expansion"] == json!({"mode": "always"})).count(), 3);
    let texts = |search: &Value| search["query"].as_str().unwrap().to_owned();
    let hot: HashSet<String> = with(json!({"mode": "always", "timeout_ms": 300})).map(texts).collect();
    assert_eq!(hot, HashSet::from(["query 0", "query 1", "query 2"].map(String::from)));
    let fresh: Vec<String> = with(json!({"mode": "always", "max_tokens": 32})).map(texts).collect();
    assert_eq!(fresh.iter().collect::<HashSet<_>>().len() as u64, requests("fresh"));
    assert!(with(json!(false)).all(|search| search["top_k"] == 3));
}

#[test]
fn batches_count_searches_and_their_problems() {
    let double = Double { shed_every: 2, ..Double::default() };
    let run = load_test(double, &["--query", "q", "--rate", "10", "--duration", "1s", "--batch", "4"]);
    assert!(run.output.status.success(), "{}", run.text());
    let load = run.load(0);
    assert_eq!(
        (&load["requests"], &load["searches"], &load["answered"], &load["refused"]),
        (&json!(10), &json!(40), &json!(20), &json!(20))
    );
    assert_eq!((&load["error_share"], &load["unexpected_share"]), (&json!(0.5), &json!(0.0)));
}

#[test]
fn hot_queries_that_degrade_beforehand_are_noted() {
    let double = Double { degrade_every: 1, ..Double::default() };
    let run = load_test(double, &["--query", "q", "--rate", "10", "--duration", "1s", "--cached", "1"]);
    assert!(run.text().contains("note: cached: 1 of 1 hot queries degraded"), "{}", run.text());
}
