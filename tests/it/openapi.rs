//! `GET /openapi.json`: that `docs/openapi.json` is current, that it has every route and no other, and that what it says of
//! answers holds for answers.

use std::collections::BTreeSet;

use axum::{body::Body, http::Request};
use expandr::http::{auth::Keys, openapi};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::service::{Double, Setup};

const KEY: &str = "admin-key-of-16-or-more";
const METHODS: [&str; 5] = ["GET", "PUT", "POST", "DELETE", "PATCH"];

async fn double() -> Double {
    let keys = Keys::new(&[], &[], &[KEY.to_owned()], true).unwrap();
    Double::filled(Setup { keys, ..Setup::default() }).await
}

#[test]
fn the_committed_description_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    let committed = fs_err::read_to_string(path).unwrap_or_default();
    assert!(
        committed == openapi::text(),
        "docs/openapi.json is not what the types say now; write it anew: cargo run --release -- openapi > docs/openapi.json"
    );
}

/// The paths that the sources of the router register, with OpenAPI's way of writing parameters.
fn registered() -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/http");
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let source = fs_err::read_to_string(&path).unwrap();
        for rest in source.split(".route(").skip(1) {
            let quoted = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
            paths.insert(quoted.expect("a path is written where it is registered").replace("{*", "{"));
        }
    }
    paths
}

#[tokio::test]
async fn it_has_every_route_and_no_other() {
    let document = openapi::document();
    let described: BTreeSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(described, registered());
    let double = double().await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let concrete = path.replace("{id}", "some-id").replace("{name}", "some-name");
        for method in METHODS {
            let (status, answer) = double.send(method, &concrete, None, Some(KEY)).await;
            let is_taken = status != 405;
            let is_described = item.get(method.to_lowercase()).is_some();
            assert_eq!(is_taken, is_described, "{method} {path}: {status} {answer}");
        }
    }
}

#[tokio::test]
async fn methods_that_a_route_does_not_take_are_refused_with_those_that_it_takes() {
    let double = double().await;
    for (path, allowed) in [("/search", "POST"), ("/documents/bulk", "POST"), ("/admin/bundles", "GET,HEAD")]
    {
        let request =
            Request::builder().method("PATCH").uri(path).header("authorization", format!("Bearer {KEY}"));
        let response = double.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], allowed, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
}

#[test]
fn every_reference_leads_somewhere_and_nothing_is_left_over() {
    let document = openapi::document();
    let mut references = BTreeSet::new();
    collect(document, &mut references);
    for reference in &references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        assert!(references.contains(&format!("#/components/schemas/{name}")), "nothing names {name}");
    }
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
                references.insert(reference.to_owned());
            }
            members.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

#[test]
fn limits_and_strictness_are_those_of_the_types() {
    let schemas = &openapi::document()["components"]["schemas"];
    let search = &schemas["SearchRequest"];
    assert_eq!(search["additionalProperties"], false);
    assert_eq!(search["required"], json!(["query"]));
    assert_eq!(search["properties"]["top_k"]["maximum"], 1000);
    assert_eq!(schemas["Ranking"]["enum"], json!(["dense", "lexical", "hybrid"]));
    assert_eq!(schemas["HitExplanation"]["required"], Value::Null, "flattened options are absent, not null");
    let retrain = schemas["JobRequest"]["oneOf"].as_array().unwrap();
    for kind in retrain {
        assert!(kind["properties"]["kind"].is_object(), "{kind}");
        assert_eq!(kind["additionalProperties"], false, "{kind}");
    }
}

#[tokio::test]
async fn answers_have_the_members_that_are_described() {
    let double = double().await;
    let document = openapi::document();
    for (method, path, body) in [
        ("POST", "/search", json!({"query": "apples on trees", "explain": true})),
        ("POST", "/search", json!({"query": "apples on trees", "expansion": false, "include_text": false})),
        ("POST", "/expand", json!({"query": "apples on trees"})),
        ("GET", "/info", Value::Null),
        ("GET", "/health", Value::Null),
        ("GET", "/admin/bundles", Value::Null),
        ("GET", "/admin/audit", Value::Null),
        ("GET", "/admin/datasets", Value::Null),
    ] {
        let (status, answer) =
            double.send(method, path, Some(body).filter(|body| !body.is_null()), Some(KEY)).await;
        assert_eq!(status, 200, "{answer}");
        let operation = &document["paths"][path][method.to_lowercase()];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        check(document, schema, &answer, path);
    }
}

/// Every required member is there, and every member that is there is described.
fn check(document: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        return check(document, document.pointer(&reference[1..]).unwrap(), value, at);
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let is_null = |choice: &&Value| choice["type"] == "null";
        if let ([other], false) =
            (&choices.iter().filter(|c| !is_null(c)).collect::<Vec<_>>()[..], value.is_null())
        {
            return check(document, other, value, at);
        }
        return;
    }
    if let (Some(properties), Some(members)) = (schema["properties"].as_object(), value.as_object()) {
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(members.contains_key(required.as_str().unwrap()), "{at} lacks {required}");
        }
        for (name, member) in members {
            let described = properties.get(name);
            let described = described.unwrap_or_else(|| panic!("{at}/{name} is not described"));
            check(document, described, member, &format!("{at}/{name}"));
        }
    }
    for item in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], item, &format!("{at}/0"));
    }
}

#[tokio::test]
async fn it_and_its_page_need_no_key_and_nothing_from_elsewhere() {
    let keys = Keys::new(&["read-key-of-16-or-more".into()], &[], &[KEY.into()], false).unwrap();
    let double = Double::new(Setup { keys, ..Setup::default() }).await;
    let (status, served) = double.send("GET", "/openapi.json", None, None).await;
    assert_eq!((status, &served), (200, openapi::document()));
    let request = Request::get("/docs").body(Body::empty()).unwrap();
    let response = double.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert!(
        response.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'")
    );
    let page = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let page = String::from_utf8(page.to_vec()).unwrap();
    for path in openapi::document()["paths"].as_object().unwrap().keys() {
        assert!(page.contains(path.as_str()), "{path}");
    }
    for foreign in ["<script", "http://", "https://", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}
