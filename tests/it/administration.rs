//! The admin routes over doubles: datasets, the audit, and what must not get through.

use axum::{body::Body, http::Request};
use expandr::http::auth::Keys;
use futures::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::service::{Double, Setup};

const ADMIN: &str = "admin-key-0123456789";
const WRITE: &str = "write-key-0123456789";
const PAIR: &str = "{\"query\":\"q\",\"positive\":\"p\"}\n";

async fn double() -> Double {
    let keys = Keys::new(&[], &[WRITE.to_owned()], &[ADMIN.to_owned()], true).unwrap();
    Double::filled_with_key(Setup { keys, ..Setup::default() }, Some(ADMIN)).await
}

/// Sends a body of JSON lines; gives status and answer.
async fn put(double: &Double, path: &str, body: impl Into<Body>, key: Option<&str>) -> (u16, Value) {
    let mut request = Request::put(path).header("content-type", "application/x-ndjson");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = double.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

async fn get(double: &Double, path: &str) -> (u16, Value) {
    double.send("GET", path, None, Some(ADMIN)).await
}

fn audit_text(double: &Double) -> String {
    fs_err::read_to_string(double.folder.path().join("audit.ndjson")).unwrap()
}

fn dataset_files(double: &Double) -> usize {
    fs_err::read_dir(double.folder.path().join("datasets")).unwrap().count()
}

#[tokio::test]
async fn datasets_are_put_listed_read_and_deleted() {
    let double = double().await;
    let (status, answer) = put(&double, "/admin/datasets/mine", PAIR.repeat(2), Some(ADMIN)).await;
    assert_eq!((status, &answer["pairs"], &answer["replaced"]), (201, &json!(2), &json!(false)), "{answer}");
    let (status, answer) = put(&double, "/admin/datasets/mine", PAIR, Some(ADMIN)).await;
    assert_eq!((status, &answer["pairs"], &answer["replaced"]), (200, &json!(1), &json!(true)), "{answer}");
    let (_, list) = get(&double, "/admin/datasets").await;
    assert_eq!(
        (list["datasets"].as_array().unwrap().len(), &list["datasets"][0]["name"]),
        (1, &json!("mine"))
    );
    assert_eq!(get(&double, "/admin/datasets/mine").await.1["sha256"], answer["sha256"]);
    let lines = Request::get("/admin/datasets/mine")
        .header("authorization", format!("Bearer {ADMIN}"))
        .header("accept", "application/x-ndjson");
    let response = double.router.clone().oneshot(lines.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(axum::body::to_bytes(response.into_body(), 1000).await.unwrap(), PAIR);
    let delete = |_: ()| double.send("DELETE", "/admin/datasets/mine", None, Some(ADMIN));
    assert_eq!((delete(()).await.0, delete(()).await.0), (204, 404));
    assert_eq!((get(&double, "/admin/datasets/mine").await.0, dataset_files(&double)), (404, 0));
}

#[tokio::test]
async fn bad_uploads_name_their_lines_and_leave_nothing() {
    let double = double().await;
    let body = format!("{PAIR}{{\"query\":\"q\"}}\n{PAIR}nonsense\n");
    let (status, problem) = put(&double, "/admin/datasets/mine", body, Some(ADMIN)).await;
    assert_eq!((status, problem["errors"].as_array().unwrap().len()), (422, 2), "{problem}");
    for (error, line) in problem["errors"].as_array().unwrap().iter().zip(["line 2:", "line 4:"]) {
        assert!(error["detail"].as_str().unwrap().starts_with(line), "{problem}");
    }
    let (status, _) = put(&double, "/admin/datasets/mine", "", Some(ADMIN)).await;
    assert_eq!(status, 422);
    let (status, problem) = put(&double, "/admin/datasets/mine", PAIR.repeat(100_000), Some(ADMIN)).await;
    assert_eq!((status, &problem["code"]), (413, &json!("body_too_large")), "{problem}");
    assert_eq!(dataset_files(&double), 0);
    let (status, problem) = double.send("PUT", "/admin/datasets/mine", Some(json!({})), Some(ADMIN)).await;
    assert_eq!(status, 415, "{problem}");
}

#[tokio::test]
async fn names_can_not_leave_the_folder() {
    let double = double().await;
    for name in ["..%2Fmine", "%2e%2e", "a%2Fb", "a%00", "a.b", "-a", "%2Fetc%2Fpasswd", "%c3%a4"] {
        let path = format!("/admin/datasets/{name}");
        assert_eq!(put(&double, &path, PAIR, Some(ADMIN)).await.0, 422, "{name}");
        assert_eq!(get(&double, &path).await.0, 404, "{name}");
        assert_eq!(double.send("DELETE", &path, None, Some(ADMIN)).await.0, 404, "{name}");
    }
    assert_eq!(dataset_files(&double), 0);
    assert!(double.folder.path().join("audit.ndjson").exists());
}

#[tokio::test]
async fn only_admin_keys_get_in_and_the_others_are_written_down() {
    let double = double().await;
    for (key, expected) in [(None, 401), (Some("unknown-key-0123456789"), 401), (Some(WRITE), 403)] {
        assert_eq!(put(&double, "/admin/datasets/mine", PAIR, key).await.0, expected);
        for (method, path) in [
            ("GET", "/admin/feedback"),
            ("DELETE", "/admin/feedback"),
            ("GET", "/admin/audit"),
            ("GET", "/admin/datasets"),
        ] {
            assert_eq!(double.send(method, path, None, key).await.0, expected, "{method} {path}");
        }
    }
    assert_eq!(dataset_files(&double), 0);
    let (_, audit) = get(&double, "/admin/audit?limit=1000").await;
    let entries = audit["entries"].as_array().unwrap();
    let refused = |status: u16| entries.iter().filter(|entry| entry["status"] == status).count();
    assert_eq!((refused(401), refused(403)), (10, 5), "{audit}");
    assert!(entries.iter().all(|entry| entry["outcome"] == "refused"), "{audit}");
    for key in ["unknown-key", "write-key", "admin-key"] {
        assert!(!audit_text(&double).contains(key), "{key}");
    }
    let without = Double::new(Setup::default()).await;
    let (status, problem) = without.send("GET", "/admin/audit", None, Some(ADMIN)).await;
    assert_eq!(status, 404, "no admin key: no admin routes");
    assert!(problem["detail"].as_str().unwrap().contains("--admin-keys"), "{problem}");
}

#[tokio::test]
async fn actions_are_written_down_with_arguments_and_outcome() {
    let double = double().await;
    put(&double, "/admin/datasets/mine", PAIR, Some(ADMIN)).await;
    put(&double, "/admin/datasets/mine", "{}", Some(ADMIN)).await;
    double.send("DELETE", "/admin/feedback?document_id=7&query=who+am+I", None, Some(ADMIN)).await;
    let snapshot = json!({"wait_ms": 5, "api_key": "hunter22", "note": format!("my key is {ADMIN}")});
    double
        .send("POST", "/admin/snapshot", Some(json!({"wait_ms": 5, "api_key": "hunter22"})), Some(ADMIN))
        .await;
    double.send("POST", "/admin/snapshot", Some(snapshot), Some(ADMIN)).await;
    get(&double, "/admin/datasets").await; // a list: not written down
    let (_, audit) = get(&double, "/admin/audit").await;
    let entries = audit["entries"].as_array().unwrap();
    let shown: Vec<(&str, &str)> = entries
        .iter()
        .rev()
        .map(|entry| (entry["action"].as_str().unwrap(), entry["outcome"].as_str().unwrap()))
        .collect();
    let expected = [
        ("PUT /admin/datasets/mine", "done"),
        ("PUT /admin/datasets/mine", "refused"),
        ("DELETE /admin/feedback", "done"),
        ("POST /admin/snapshot", "done"),
        ("POST [the request repeats its key]", "done"),
    ];
    assert_eq!(shown, expected, "{audit}");
    let of = |at: usize| &entries[entries.len() - 1 - at];
    assert!(of(1)["detail"].as_str().unwrap().contains("line 1:"), "{audit}");
    assert_eq!(of(2)["arguments"]["parameters"]["document_id"], "7");
    assert_eq!(of(3)["arguments"]["body"], json!({"wait_ms": 5, "api_key": "[secret]"}));
    assert!(entries.iter().all(|entry| entry["key_id"].as_str().unwrap().len() == 8), "{audit}");
    assert!(
        entries.iter().all(|entry| entry["request_id"].is_string() && entry["took_ms"].is_number()),
        "{audit}"
    );
    let text = audit_text(&double);
    for secret in [ADMIN, "hunter22", "who", "am+I"] {
        assert!(!text.contains(secret), "{secret} is in {text}");
    }
    assert_eq!(get(&double, "/admin/audit?limit=0").await.0, 422);
    assert_eq!(get(&double, "/admin/audit?limit=2").await.1["entries"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_client_that_goes_away_is_written_down() {
    let double = double().await;
    let endless = futures::stream::iter([Ok::<_, std::io::Error>(PAIR)]).chain(futures::stream::pending());
    let upload = put(&double, "/admin/datasets/mine", Body::from_stream(endless), Some(ADMIN));
    assert!(tokio::time::timeout(std::time::Duration::from_millis(100), upload).await.is_err());
    for _ in 0..200 {
        if audit_text(&double).contains("dropped") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let entry: Value = serde_json::from_str(audit_text(&double).lines().next().unwrap()).unwrap();
    assert_eq!((&entry["outcome"], &entry["status"]), (&json!("dropped"), &Value::Null), "{entry}");
    assert_eq!(dataset_files(&double), 0);
}

#[tokio::test]
async fn a_large_body_of_an_admin_route_is_refused_and_written_down() {
    let double = double().await;
    let large = json!({"note": "x".repeat(2 << 20)});
    let (status, problem) = double.send("POST", "/admin/snapshot", Some(large), Some(ADMIN)).await;
    assert_eq!((status, &problem["code"]), (413, &json!("body_too_large")), "{problem}");
    let text = audit_text(&double);
    assert!(text.contains("\"status\":413") && text.len() < 2000, "{} bytes", text.len());
}
