//! The commands of operators, as processes, against a mock of the admin routes that speaks their wire forms.

use std::{
    net::SocketAddr,
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::process::BINARY;

const KEY: &str = "admin-key-0123456789";

/// What the mock was asked, and what it answers.
#[derive(Default)]
struct Mock {
    /// Method, path with parameters, and body of every request.
    asked: Vec<(String, Value)>,
    headers: Vec<HeaderMap>,
    job: Value,
    /// Event texts that a connection gets; the stream then stays open or ends.
    events: Vec<String>,
    stream_stays_open: bool,
    /// What `GET /admin/bundles` answers, one after another; the last stays.
    bundles: Vec<Value>,
}

type Shared = Arc<Mutex<Mock>>;

/// Starts the mock; `address` lets it come back where it was.
async fn serve(mock: &Shared, address: &str) -> (SocketAddr, JoinHandle<()>) {
    let router = Router::new()
        .route("/admin/jobs", post(start).get(list))
        .route("/admin/jobs/{id}", get(job))
        .route("/admin/jobs/{id}/events", get(events))
        .route("/admin/jobs/{id}/cancel", post(act))
        .route("/admin/jobs/{id}/resume", post(act))
        .route("/admin/bundles", get(bundles))
        .route("/admin/bundles/{id}/activate", post(change))
        .route("/admin/bundles/rollback", post(change))
        .route("/admin/bundles/import", post(|| async { Json(json!({"id": "bundle-new"})) }))
        .layer(axum::middleware::from_fn_with_state(mock.clone(), remember))
        .with_state(mock.clone());
    let mut bound = TcpListener::bind(address).await;
    for _ in 0..100 {
        if bound.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        bound = TcpListener::bind(address).await;
    }
    let listener = bound.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

async fn remember(State(mock): State<Shared>, request: Request, next: axum::middleware::Next) -> Response {
    let (parts, body) = request.into_parts();
    if parts.headers.get(header::AUTHORIZATION).is_none_or(|value| value != &format!("Bearer {KEY}")) {
        return problem(StatusCode::UNAUTHORIZED, "the key is not known");
    }
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let asked = format!("{} {}", parts.method, parts.uri);
    {
        let mut mock = mock.lock().unwrap();
        mock.asked.push((asked, serde_json::from_slice(&bytes).unwrap_or_default()));
        mock.headers.push(parts.headers.clone());
    }
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

fn problem(status: StatusCode, detail: &str) -> Response {
    (status, [(header::CONTENT_TYPE, "application/problem+json")], json!({"detail": detail}).to_string())
        .into_response()
}

async fn start(State(mock): State<Shared>) -> Response {
    let job = mock.lock().unwrap().job.clone();
    (StatusCode::ACCEPTED, [(header::LOCATION, "/admin/jobs/job-1")], Json(job)).into_response()
}

async fn list(State(mock): State<Shared>) -> Json<Value> {
    let job = mock.lock().unwrap().job.clone();
    Json(json!({"jobs": [job]}))
}

async fn job(State(mock): State<Shared>, Path(id): Path<String>) -> Response {
    if id != "job-1" {
        return problem(StatusCode::NOT_FOUND, &format!("there is no job `{id}`"));
    }
    Json(mock.lock().unwrap().job.clone()).into_response()
}

async fn act(State(mock): State<Shared>) -> Json<Value> {
    Json(mock.lock().unwrap().job.clone())
}

async fn events(State(mock): State<Shared>) -> Response {
    let mock = mock.lock().unwrap();
    let told = futures::stream::iter(mock.events.clone()).map(Ok::<_, std::io::Error>);
    let stream =
        if mock.stream_stays_open { told.chain(futures::stream::pending()).boxed() } else { told.boxed() };
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
}

async fn bundles(State(mock): State<Shared>) -> Json<Value> {
    let mut mock = mock.lock().unwrap();
    Json(if mock.bundles.len() > 1 { mock.bundles.remove(0) } else { mock.bundles[0].clone() })
}

async fn change(State(mock): State<Shared>) -> Response {
    (StatusCode::ACCEPTED, Json(mock.lock().unwrap().bundles[0].clone())).into_response()
}

fn running(stage: &str, done: u64) -> Value {
    json!({"id": "job-1", "kind": "retrain", "status": "running", "stage": stage, "attempts": 1, "created_at": "2026-11-26T15:00:00.000Z",
        "progress": {"unit": "steps", "done": done, "total": 10, "fraction": done as f64 / 10.0, "eta_seconds": 65.0, "loss": 0.5, "stages_done": 0},
        "result": null, "problem": null})
}

fn ended(status: &str) -> Value {
    let (result, problem) = match status {
        "succeeded" => (json!({"decision": {"activated": false}}), Value::Null),
        _ => (Value::Null, json!({"detail": "out of memory"})),
    };
    json!({"id": "job-1", "kind": "retrain", "status": status, "stage": null, "attempts": 1, "progress": null, "result": result, "problem": problem})
}

/// An event as jobs write it: a change of status with the whole job, progress with its stage.
fn event(id: u64, job: &Value) -> String {
    let data = if job["status"] == "running" {
        json!({"id": id, "event": "progress", "stage": job["stage"], "progress": job["progress"]})
    } else {
        json!({"id": id, "event": "status", "job": job})
    };
    format!("id: {id}\nevent: {}\ndata: {data}\n\n", data["event"].as_str().unwrap())
}

fn mock(job: Value) -> Shared {
    Arc::new(Mutex::new(Mock { job, stream_stays_open: true, ..Mock::default() }))
}

fn command(address: SocketAddr, line: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(BINARY);
    command
        .args(line.split(' '))
        .env("EXPANDR_ENDPOINT", format!("http://{address}"))
        .env("EXPANDR_ADMIN_KEY", KEY);
    command.env_remove("EXPANDR_KEY").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(address: SocketAddr, line: &str) -> (i32, String, String) {
    let output = tokio::time::timeout(Duration::from_secs(60), command(address, line).output()).await;
    told(output.unwrap_or_else(|_| panic!("`{line}` did not end")).unwrap())
}

/// Exit code, standard output and standard error.
fn told(output: Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_started_listed_shown_cancelled_and_resumed() {
    let mock = mock(running("dpo", 3));
    let (address, _server) = serve(&mock, "127.0.0.1:0").await;
    let line = "jobs start retrain --recipe smoke --set dpo.epochs=1 --collection scifact --when not_worse --idempotency-key k-1";
    assert_eq!(run(address, line).await, (0, "job-1\n".to_owned(), String::new()));
    {
        let mock = mock.lock().unwrap();
        let (asked, body) = &mock.asked[0];
        assert_eq!(asked, "POST /admin/jobs");
        let expected = json!({"kind": "retrain", "recipe": "smoke", "overrides": {"dpo.epochs": 1},
            "evaluate": {"collections": ["scifact"]}, "promotion": {"when": "not_worse"}});
        assert_eq!(*body, expected);
        assert_eq!(mock.headers[0]["idempotency-key"], "k-1");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body.json");
    fs_err::write(&file, "{\"kind\": \"snapshot\", \"later\": 1}").unwrap();
    assert_eq!(run(address, &format!("jobs start --body {}", file.display())).await.0, 0);
    assert_eq!(mock.lock().unwrap().asked[1].1, json!({"kind": "snapshot", "later": 1}), "sent as it is");
    let (code, out, _) = run(address, "jobs list --status running --limit 5").await;
    assert!(code == 0 && out.contains("job-1") && out.contains("dpo") && out.contains("30 %"), "{out}");
    let (code, out, _) = run(address, "jobs show job-1").await;
    assert_eq!((code, serde_json::from_str::<Value>(&out).unwrap()), (0, running("dpo", 3)));
    let (code, _, err) = run(address, "jobs show ../bundles").await;
    assert!(code == 1 && err.contains("there is no job `../bundles`"), "{err}");
    assert_eq!(run(address, "jobs cancel job-1").await.0, 0);
    assert_eq!(run(address, "jobs resume job-1").await.0, 0);
    let asked: Vec<String> = mock.lock().unwrap().asked.iter().map(|(asked, _)| asked.clone()).collect();
    let expected = [
        "POST /admin/jobs",
        "POST /admin/jobs",
        "GET /admin/jobs?status=running&limit=5",
        "GET /admin/jobs/job-1",
        "GET /admin/jobs/..%2Fbundles",
        "POST /admin/jobs/job-1/cancel",
        "POST /admin/jobs/job-1/resume",
    ];
    assert_eq!(asked, expected);
    let (code, _, err) = run(address, "jobs list --key another-key-0123456789").await;
    assert!(code == 1 && err.contains("the key is not known") && !err.contains("another-key"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_tells_progress_and_how_it_ended() {
    for (status, expected) in [("succeeded", 0), ("failed", 4), ("cancelled", 5), ("interrupted", 6)] {
        let mock = mock(running("pairs", 0));
        let told = [
            running("dpo", 1),
            running("dpo", 5),
            running("dpo", 5),
            running("contrastive", 2),
            ended(status),
        ];
        mock.lock().unwrap().events = told.iter().zip(1..).map(|(job, id)| event(id, job)).collect();
        let (address, _server) = serve(&mock, "127.0.0.1:0").await;
        let after = mock.clone();
        let ends = tokio::spawn(async move {
            // The job itself says so from when its events were asked for.
            loop {
                if after.lock().unwrap().asked.iter().any(|(asked, _)| asked.ends_with("/events")) {
                    after.lock().unwrap().job = ended(status);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let (code, out, err) = run(address, "jobs watch job-1").await;
        ends.await.unwrap();
        assert_eq!(code, expected, "{err}");
        let lines = [
            "retrain job-1: running",
            "stage pairs",
            "stage dpo",
            "dpo 10 % 1/10 steps, 1 min 5 s left, loss 0.5000",
            "dpo 50 %",
            "stage contrastive",
            &format!("retrain job-1: {status}"),
        ];
        let mut from = 0;
        for line in lines {
            let at =
                err[from..].find(line).unwrap_or_else(|| panic!("`{line}` is not in its place in\n{err}"));
            from += at + line.len();
        }
        assert_eq!(err.matches("dpo 50 %").count(), 1, "what was told is not told again:\n{err}");
        if status == "succeeded" {
            assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["decision"]["activated"], false);
        } else {
            assert!(err.contains("out of memory"), "{err}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_outlives_the_server() {
    let mock = mock(running("dpo", 1));
    mock.lock().unwrap().events = vec![event(41, &running("dpo", 2)), event(42, &running("dpo", 4))];
    let (address, server) = serve(&mock, "127.0.0.1:0").await;
    let watching = tokio::spawn(async move { run(address, "jobs watch job-1 --patience 30").await });
    let asked_for_events = |mock: &Shared| {
        let mock = mock.lock().unwrap();
        mock.asked.iter().filter(|(asked, _)| asked.ends_with("/events")).count()
    };
    while asked_for_events(&mock) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.abort();
    // Connections of the old server live on in their tasks: end its streams as a killed process would.
    mock.lock().unwrap().stream_stays_open = false;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!watching.is_finished());
    {
        let mut mock = mock.lock().unwrap();
        mock.events = vec![event(43, &running("contrastive", 9)), event(44, &ended("succeeded"))];
        mock.job = running("contrastive", 8);
    }
    let (_, server) = serve(&mock, &address.to_string()).await;
    while asked_for_events(&mock) == 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    mock.lock().unwrap().job = ended("succeeded");
    let (code, _, err) = watching.await.unwrap();
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("trying again") && err.contains("stage contrastive"), "{err}");
    let mock = mock.lock().unwrap();
    let resumed =
        mock.asked.iter().zip(&mock.headers).rfind(|((asked, _), _)| asked.ends_with("/events")).unwrap();
    assert_eq!(resumed.1["last-event-id"], "42", "it goes on after what it has seen");
    server.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_ends_when_the_server_stays_away_or_knows_no_such_job() {
    let mock = mock(running("dpo", 1));
    mock.lock().unwrap().stream_stays_open = false;
    let (address, server) = serve(&mock, "127.0.0.1:0").await;
    let (code, _, err) = run(address, "jobs watch job-2").await;
    assert!(code == 1 && err.contains("there is no job `job-2`"), "{err}");
    let watching = tokio::spawn(async move { run(address, "jobs watch job-1 --patience 2").await });
    while mock.lock().unwrap().asked.len() < 4 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.abort();
    let _ = server.await;
    let (code, _, err) = watching.await.unwrap();
    assert!(code == 1 && err.contains("without being watched"), "{err}");
    let (code, _, err) = run(address, "jobs watch job-1").await;
    assert!(code == 1 && err.contains("is `expandr serve` running there?"), "{err}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_are_changed_and_waited_for() {
    let state = |active: &str, previous: &str, activation: Value| {
        json!({"active": active, "previous": previous, "activation": activation,
            "bundles": [{"id": "bundle-1", "name": "one", "created_at": "2026-11-26T15:00:00Z"}, {"id": "bundle-2", "name": "two"}]})
    };
    let under_way = json!({"stage": "embedding", "done": 1, "total": 2});
    let mock = mock(Value::Null);
    let (address, _server) = serve(&mock, "127.0.0.1:0").await;
    let set = |bundles: Vec<Value>| mock.lock().unwrap().bundles = bundles;
    set(vec![state("bundle-1", "", Value::Null)]);
    let (code, out, _) = run(address, "bundles list").await;
    assert!(code == 0 && out.contains("bundle-1  one   active") && out.contains("bundle-2"), "{out}");
    let before = state("bundle-1", "bundle-0", under_way.clone());
    set(vec![before.clone(), before.clone(), state("bundle-2", "bundle-1", Value::Null)]);
    let (code, out, err) = run(address, "bundles activate bundle-2").await;
    assert_eq!((code, out.as_str()), (0, "bundle-2 is active, bundle-1 was before\n"), "{err}");
    assert!(
        mock.lock().unwrap().asked.iter().any(|(asked, _)| asked == "POST /admin/bundles/bundle-2/activate")
    );
    let mut failed = state("bundle-1", "bundle-0", Value::Null);
    failed["last_activation"] = json!({"problem": "gate.json is not what its hash says"});
    set(vec![before.clone(), failed]);
    let (code, _, err) = run(address, "bundles activate bundle-2").await;
    assert!(code == 1 && err.contains("bundle-1 is still active: gate.json is not"), "{err}");
    set(vec![before.clone(), before.clone(), state("bundle-0", "bundle-1", Value::Null)]);
    assert_eq!(run(address, "bundles rollback").await.1, "bundle-0 is active, bundle-1 was before\n");
    set(vec![before]);
    let (code, out, _) = run(address, "bundles activate bundle-2 --no-wait").await;
    assert!(code == 0 && out.contains("under way"), "{out}");
    assert_eq!(run(address, "bundles import /tmp/x --name new").await.1, "bundle-new\n");
    assert_eq!(mock.lock().unwrap().asked.last().unwrap().1, json!({"path": "/tmp/x", "name": "new"}));
}
