//! Feedback over doubles: nothing is kept while it is off; what is kept, refused, deleted and trained on while it is on.

use std::{path::Path, time::Duration};

use axum::{body::Body, http::Request};
use expandr::{
    clock,
    feedback::{FeedbackSettings, PairCounts},
    http::auth::Keys,
};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::service::{Double, Setup};

const ADMIN: &str = "admin-key-0123456789";
const SECRET: &str = "an unmistakable query about frogs";

fn settings(on: bool) -> FeedbackSettings {
    FeedbackSettings { on, ..Setup::default().feedback }
}

fn setup(feedback: FeedbackSettings) -> Setup {
    Setup { keys: Keys::new(&[], &[], &[ADMIN.to_owned()], true).unwrap(), feedback, ..Setup::default() }
}

async fn double(on: bool) -> Double {
    Double::filled(setup(settings(on))).await
}

/// Searches and gives the request id.
async fn searched(double: &Double, query: &str) -> String {
    let (status, answer) = double.search(json!({"query": query, "expansion": false})).await;
    assert_eq!(status, 200, "{answer}");
    answer["request_id"].as_str().unwrap().to_owned()
}

async fn give(double: &Double, body: Value) -> (u16, Value) {
    double.send("POST", "/feedback", Some(body), None).await
}

async fn export(double: &Double) -> Vec<Value> {
    let request = Request::get("/admin/feedback").header("authorization", format!("Bearer {ADMIN}"));
    let response = double.router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    String::from_utf8(bytes.to_vec())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

async fn delete(double: &Double, parameters: &str) -> (u16, Value) {
    double.send("DELETE", &format!("/admin/feedback{parameters}"), None, Some(ADMIN)).await
}

/// The files below `folder` that hold `text`.
fn files_with(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_with(&path, text));
            continue;
        }
        match fs_err::read(&path) {
            Ok(bytes) if bytes.windows(text.len()).any(|part| part == text.as_bytes()) => {
                found.push(path.display().to_string());
            }
            Ok(_) => {}
            // The index's own threads remove what they have done with.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
        }
    }
    found
}

#[tokio::test]
async fn nothing_is_kept_while_it_is_off() {
    let double = double(false).await;
    let id = searched(&double, SECRET).await;
    double.send("POST", "/search/batch", Some(json!({"searches": [{"query": SECRET}]})), None).await;
    let (status, problem) =
        give(&double, json!({"request_id": id, "document_id": "c", "kind": "clicked"})).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("--feedback on"), "{problem}");
    let (_, info) = double.send("GET", "/info", None, None).await;
    assert_eq!((&info["feedback"]["on"], &info["feedback"]["recent_answers"]), (&json!(false), &json!(0)));
    assert!(!double.folder.path().join("feedback").exists());
    assert_eq!(files_with(double.folder.path(), SECRET), [""; 0]);
    assert_eq!(export(&double).await.len(), 0);
    assert_eq!(delete(&double, "").await.0, 200);
}

#[tokio::test]
async fn a_click_keeps_query_document_and_rank() {
    let double = double(true).await;
    let id = searched(&double, SECRET).await;
    assert_eq!(files_with(double.folder.path(), SECRET), [""; 0], "a search alone leaves nothing on disk");
    let (_, answer) = double.search(json!({"query": SECRET, "expansion": false})).await;
    let second = answer["hits"][1]["id"].as_str().unwrap();
    let (status, kept) =
        give(&double, json!({"request_id": id, "document_id": second, "kind": "clicked"})).await;
    assert_eq!((status, &kept["status"]), (201, &json!("kept")), "{kept}");
    assert!(!kept.to_string().contains(SECRET), "who knows a request id does not learn its query: {kept}");
    let events = export(&double).await;
    assert_eq!(events.len(), 1);
    let event = &events[0];
    assert_eq!(
        (&event["query"], &event["document_id"], &event["rank"]),
        (&json!(SECRET), &json!(second), &json!(2))
    );
    assert_eq!(
        (&event["request_id"], &event["relevant"], &event["bundle"]),
        (&json!(id), &Value::Null, &answer["bundle"])
    );
}

#[tokio::test]
async fn searches_of_a_batch_have_ids_of_their_own() {
    let double = double(true).await;
    let searches = json!({"searches": [{"query": "apples", "expansion": false}, {"query": "whales", "expansion": false}]});
    let (_, batch) = double.send("POST", "/search/batch", Some(searches), None).await;
    let id = &batch["results"][1]["request_id"];
    let (status, _) = give(&double, json!({"request_id": id, "document_id": "b", "kind": "clicked"})).await;
    assert_eq!((status, &export(&double).await[0]["query"]), (201, &json!("whales")));
}

#[tokio::test]
async fn what_can_not_be_meant_is_refused() {
    let double = double(true).await;
    let (_, answer) = double.search(json!({"query": "frogs", "expansion": false, "top_k": 1})).await;
    let (id, hit) = (&answer["request_id"], &answer["hits"][0]["id"]);
    let other = if hit == "a" { "b" } else { "a" };
    for (body, expected, pointer) in [
        (json!({"request_id": "unknown", "document_id": hit, "kind": "clicked"}), 404, None),
        (json!({"request_id": id, "document_id": other, "kind": "clicked"}), 422, Some("/document_id")),
        (
            json!({"request_id": id, "document_id": "nowhere", "kind": "judged", "relevant": true}),
            422,
            Some("/document_id"),
        ),
        (json!({"request_id": id, "document_id": hit, "kind": "judged"}), 422, Some("/relevant")),
        (
            json!({"request_id": id, "document_id": hit, "kind": "clicked", "relevant": true}),
            422,
            Some("/relevant"),
        ),
        (json!({"request_id": id, "document_id": hit, "kind": "seen"}), 422, Some("/kind")),
        (json!({"request_id": id, "document_id": "", "kind": "clicked"}), 422, Some("/document_id")),
        (
            json!({"request_id": "x".repeat(600), "document_id": hit, "kind": "clicked"}),
            422,
            Some("/request_id"),
        ),
        (json!({"request_id": id, "document_id": hit, "kind": "clicked", "query": "q"}), 422, Some("/query")),
    ] {
        let (status, problem) = give(&double, body.clone()).await;
        assert_eq!(status, expected, "{body} {problem}");
        if let Some(pointer) = pointer {
            assert_eq!(problem["errors"][0]["pointer"], pointer, "{body} {problem}");
        }
    }
    assert_eq!(export(&double).await.len(), 0);
    let judged = json!({"request_id": id, "document_id": other, "kind": "judged", "relevant": false});
    assert_eq!(give(&double, judged).await.0, 201, "a document that the answer did not have may be judged");
    assert_eq!(export(&double).await[0]["rank"], Value::Null);
}

#[tokio::test]
async fn deletion_takes_it_off_the_disk_and_out_of_memory() {
    let double = double(true).await;
    let (secret, other) = (searched(&double, SECRET).await, searched(&double, "whales").await);
    for id in [&secret, &other] {
        let (status, _) =
            give(&double, json!({"request_id": id, "document_id": "c", "kind": "clicked"})).await;
        assert_eq!(status, 201);
    }
    assert_eq!(files_with(double.folder.path(), SECRET).len(), 1);
    let (status, answer) = delete(&double, &format!("?query={}", SECRET.replace(' ', "%20"))).await;
    assert_eq!((status, &answer["deleted"], &answer["left"]), (200, &json!(1), &json!(1)), "{answer}");
    assert_eq!(files_with(double.folder.path(), SECRET), [""; 0], "not in the audit either");
    let (status, _) =
        give(&double, json!({"request_id": secret, "document_id": "c", "kind": "clicked"})).await;
    assert_eq!(status, 404, "a click after the deletion does not bring the query back");
    assert_eq!(delete(&double, "?before=2000-01-01&document_id=c").await.1["deleted"], 0);
    assert_eq!(delete(&double, "?before=yesterday").await.0, 422);
    assert_eq!(
        delete(&double, "?befor=2000-01-01").await.0,
        422,
        "a mistyped parameter must not delete everything"
    );
    assert_eq!(delete(&double, "?document_id=c").await.1["deleted"], 1);
    assert_eq!(double.state.feedback.days().len(), 0);
}

#[tokio::test]
async fn it_is_kept_for_its_retention_and_no_longer() {
    let double = double(true).await;
    let id = searched(&double, SECRET).await;
    give(&double, json!({"request_id": id, "document_id": "c", "kind": "clicked"})).await;
    let day = chrono::TimeDelta::days(1);
    assert_eq!(double.state.feedback.expire(clock::now() + day * 89).unwrap(), 0);
    assert_eq!(export(&double).await.len(), 1);
    assert_eq!(
        double.state.feedback.expire(clock::now() + day * 90 + chrono::TimeDelta::seconds(1)).unwrap(),
        1
    );
    assert_eq!(files_with(double.folder.path(), SECRET), [""; 0]);
}

#[tokio::test]
async fn disk_and_window_are_bounded() {
    let full = Double::filled(setup(FeedbackSettings { disk_bytes: 300, ..settings(true) })).await;
    let id = searched(&full, "frogs").await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(give(&full, json!({"request_id": id, "document_id": "c", "kind": "clicked"})).await.0);
    }
    assert_eq!((statuses[0], statuses[4]), (201, 429), "{statuses:?}");
    let short = FeedbackSettings { window: Duration::from_millis(1), ..settings(true) };
    let short = Double::filled(setup(short)).await;
    let id = searched(&short, "frogs").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(give(&short, json!({"request_id": id, "document_id": "c", "kind": "clicked"})).await.0, 404);
}

#[tokio::test]
async fn training_gets_pairs_of_what_was_found_useful() {
    let double = double(true).await;
    let frogs = [searched(&double, "frogs").await, searched(&double, " frogs ").await];
    let whales = searched(&double, "whales").await;
    let judged = |id: &str, document: &str, relevant: bool| json!({"request_id": id, "document_id": document, "kind": "judged", "relevant": relevant});
    let clicked =
        |id: &str, document: &str| json!({"request_id": id, "document_id": document, "kind": "clicked"});
    for body in [
        clicked(&frogs[0], "c"),
        clicked(&frogs[1], "c"),
        judged(&frogs[0], "a", true),
        judged(&frogs[1], "a", false), // a later judgment outweighs an earlier one,
        clicked(&frogs[0], "a"),       // and clicks
        clicked(&frogs[0], "b"),
        judged(&whales, "a", false),
    ] {
        assert_eq!(give(&double, body).await.0, 201);
    }
    assert_eq!(double.send("DELETE", "/documents/b", None, None).await.0, 204);
    let out = double.folder.path().join("pairs.jsonl");
    let counts = double.state.feedback.write_pairs(&double.state.service.bundle().index, &out).unwrap();
    let expected = PairCounts {
        events: 7,
        queries: 2,
        pairs: 1,
        negatives: 1,
        queries_without_positive: 1,
        missing_documents: 1,
        ..PairCounts::default()
    };
    assert_eq!(counts, expected);
    let lines: Vec<Value> = fs_err::read_to_string(&out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let pair = json!({"query": "frogs", "positive": "green frogs jump in ponds", "negatives": ["red apples grow on trees"]});
    assert_eq!(lines, [pair]);
    let example = expandr_training::readers::parse_pair(lines[0].to_string().as_bytes()).unwrap();
    assert_eq!((example.query.as_str(), example.negatives.len()), ("frogs", 1), "training reads it");
    // Nothing there: an empty file, and the counts say so.
    delete(&double, "").await;
    let none = double.state.feedback.write_pairs(&double.state.service.bundle().index, &out).unwrap();
    assert_eq!((none, fs_err::read(&out).unwrap().len()), (PairCounts::default(), 0));
}
