//! Dashboard and alerts (`deploy/`) ask for nothing that `/metrics` doesn't have: every metric, and every label that a
//! selector names, is in a scrape of a service that has searched, written, activated and run a job. `deploy/check.py` asks
//! Prometheus itself.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use axum::{body::Body, http::Request};
use expandr::http::auth::Keys;
use expandr_models::testing::{HashEncoder, Script, ScriptedFailure};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    doubles,
    gate::{FAR, NEAR, gate},
    service::{Double, Setup},
};

const ADMIN: &str = "admin-key-0123456789";

/// Labels that Prometheus adds when it scrapes.
const ADDED: [&str; 2] = ["instance", "job"];

/// A metric and the `(label, value)` that its selector wants; no value where it is a regular expression.
#[derive(Debug, PartialEq)]
struct Selector {
    metric: String,
    labels: Vec<(String, Option<String>)>,
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'
}

/// The selectors of our metrics in a text with PromQL in it. Figures that rules record (`expandr:…`) are among them.
fn selectors(text: &str) -> Vec<Selector> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !is_name(bytes[at]) {
            at += 1;
            continue;
        }
        let start = at;
        while at < bytes.len() && is_name(bytes[at]) {
            at += 1;
        }
        let name = &text[start..at];
        let ours = ["expandr_", "expandr:", "http_request_", "process_"];
        if !ours.iter().any(|prefix| name.starts_with(prefix)) || name.ends_with(':') {
            continue;
        }
        let mut labels = Vec::new();
        if bytes.get(at) == Some(&b'{') {
            let end = at + text[at..].find('}').unwrap();
            for matcher in text[at + 1..end].split(',').filter(|matcher| !matcher.is_empty()) {
                let sign = matcher.find(['=', '!']).unwrap();
                let (label, condition) = matcher.split_at(sign);
                let value = condition.strip_prefix("=\"").map(|value| value.trim_end_matches('"').to_owned());
                labels.push((label.to_owned(), value));
            }
            at = end;
        }
        found.push(Selector { metric: name.to_owned(), labels });
    }
    found
}

/// Every series of a scrape: the labels of each, by name.
fn series(scrape: &str) -> BTreeMap<String, Vec<BTreeMap<String, String>>> {
    let mut found: BTreeMap<String, Vec<BTreeMap<String, String>>> = BTreeMap::new();
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').unwrap_or((line.split(' ').next().unwrap(), "}"));
        let labels = labels.rsplit_once('}').unwrap().0;
        let pairs = labels.split("\",").filter_map(|pair| pair.split_once("=\""));
        let pairs = pairs.map(|(label, value)| (label.to_owned(), value.trim_end_matches('"').to_owned()));
        found.entry(name.to_owned()).or_default().push(pairs.collect());
    }
    found
}

fn read(path: &str) -> String {
    fs_err::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// All that is asked: the dashboard's queries, and the rules without their comments.
fn asked() -> Vec<String> {
    fn walk(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| walk(value, found)),
            Value::Object(members) => {
                for (key, value) in members {
                    match value {
                        Value::String(text) if ["expr", "query", "definition"].contains(&&**key) => {
                            found.push(text.clone());
                        }
                        _ => walk(value, found),
                    }
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&serde_json::from_str(&read("deploy/grafana/dashboards/expandr.json")).unwrap(), &mut found);
    let alerts = read("deploy/alerts.yml");
    found.extend(alerts.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned));
    found
}

/// A scrape of a service in which everything has happened that is counted by its kind.
async fn scrape() -> String {
    let keys = Keys::new(&[], &[], &[ADMIN.to_owned()], true).unwrap();
    let setup = Setup { gate: Some(gate()), keys, ..Setup::default() };
    let double = Double::filled(setup).await;
    for body in [
        json!({"query": "whales"}),
        json!({"query": "whales", "ranking": "hybrid"}),
        json!({"query": NEAR, "expansion": "auto"}),
        json!({"query": FAR, "expansion": "auto"}),
    ] {
        let (status, answer) = double.search(body).await;
        assert_eq!(status, 200, "{answer}");
    }
    double.models.add("other", Arc::new(HashEncoder::new(48).with_id("other-48@000000000001")));
    let folder = double.folder.path().join("made");
    doubles::write(&folder, doubles::manifest("second", "other"));
    let id = double.state.bundles.import(&folder, None).await.unwrap();
    let path = format!("/admin/bundles/{id}/activate");
    let (status, answer) = double.send("POST", &path, Some(json!({"wait_ms": 15_000})), Some(ADMIN)).await;
    assert_eq!(status, 200, "{answer}");
    // The double has no jobs; a server with an admin key shows them like this.
    double.state.service.metrics().set_jobs(&[]);
    // Degraded answers, those of another service.
    let script = Script { failure: ScriptedFailure::Start, ..Script::default() };
    let broken = Double::filled(Setup { script, ..Setup::default() }).await;
    broken.search(json!({"query": "whales"})).await;
    format!("{}{}", metrics(&double).await, metrics(&broken).await)
}

async fn metrics(double: &Double) -> String {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let response = double.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_what_metrics_have() {
    let scrape = series(&scrape().await);
    let texts = asked();
    assert!(texts.len() > 60, "{} texts", texts.len());
    let alerts = read("deploy/alerts.yml");
    let recorded: Vec<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- record: ")).collect();
    let mut metrics = Vec::new();
    for text in &texts {
        for Selector { metric, labels } in selectors(text) {
            if metric.starts_with("expandr:") {
                assert!(
                    recorded.contains(&&*metric),
                    "no rule records {metric}, which this asks for: {text}"
                );
                continue;
            }
            let known = scrape.get(&metric);
            let known =
                known.unwrap_or_else(|| panic!("/metrics has no {metric}, which this asks for: {text}"));
            for (label, value) in labels.iter().filter(|(label, _)| !ADDED.contains(&&**label)) {
                // What makes no difference here: which statuses, routes and ends there have been.
                let value = value.as_ref().filter(|_| !["status", "route"].contains(&&**label));
                let fits = |series: &BTreeMap<String, String>| {
                    series.get(label).is_some_and(|has| value.is_none_or(|value| has == value))
                };
                assert!(known.iter().any(fits), "no series of {metric} has {label} {value:?}: {text}");
            }
            metrics.push(metric);
        }
    }
    metrics.sort();
    metrics.dedup();
    assert!(metrics.len() >= 25, "only {metrics:?}");
}

#[test]
fn selectors_are_found() {
    let text = r#"sum by (process) (rate(expandr_a_total{x="1",instance=~"$i",y!="2"}[5m])) / process_b or expandr:c:d > 1"#;
    let selector = |metric: &str, labels: &[(&str, Option<&str>)]| Selector {
        metric: metric.into(),
        labels: labels.iter().map(|(label, value)| ((*label).into(), value.map(Into::into))).collect(),
    };
    assert_eq!(
        selectors(text),
        [
            selector("expandr_a_total", &[("x", Some("1")), ("instance", None), ("y", None)]),
            selector("process_b", &[]),
            selector("expandr:c:d", &[]),
        ]
    );
}
