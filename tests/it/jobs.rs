//! Jobs through the router, over the doubles of encoder and expander and with a shell script for what computes; and jobs of the real binary: a retraining over HTTP while searches go on, killed on its way, refused by one rule and promoted by
//! another.
//!
//! `EXPANDR_KILL_ROUNDS` sets how often the job's process and the server are killed, in turn (default 1: each once).

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, http::Request};
use clap::Parser;
use expandr::{
    http::auth::Keys,
    jobs::{ChildSettings, Jobs, JobsSettings, ServiceHost},
    server::ServeOptions,
};
use futures::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::{
    process::Server,
    service::{Double, Setup},
};

pub(crate) const KEY: &str = "an-admin-key-0123456789";
const SMOKE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/training/recipes/smoke");
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/training/recipes");

fn start(folder: &Path) -> Server {
    let flags = [
        "--admin-keys",
        KEY,
        "--recipes-dir",
        RECIPES,
        "--data-dir",
        SMOKE,
        "--job-attempts",
        "100",
        "--job-nice",
        "0",
    ];
    Server::start(folder, &flags)
}

async fn admin(server: &Server, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = server.client.request(method, format!("{}{path}", server.url)).bearer_auth(KEY);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap_or_default())
}

/// What the script does for an evaluation: it has found that both bundles are alike.
const EVALUATES: &str = r#"
evaluate_bundles() {
    echo '{"event":"stage_started","stage":"candidate/collection","why":"asked for"}'
    echo '{"event":"progress","stage":"candidate/collection","unit":"queries","done":2,"total":4,"eta_seconds":1.5}'
    [ -e "$job/../go" ] || exec sleep 60
    echo '{"metric":"ndcg@10","candidate":"a","against":null,"collections":[],"average":null,"decided_on":[]}' > "$job/evaluation/outcome.json"
    echo '{"event":"stage_finished","stage":"candidate/collection","seconds":1,"summary":null}'
}
"#;

/// A service over doubles that runs jobs.
pub(crate) struct Workshop {
    double: Double,
    pub(crate) router: axum::Router,
    pub(crate) folder: tempfile::TempDir,
    _working: tokio_util::sync::DropGuard,
}

impl Workshop {
    pub(crate) async fn open() -> Self {
        let keys = Keys::new(&["a-read-key-0123456789".into()], &[], &[KEY.into()], true).unwrap();
        let double = Double::filled(Setup { keys, ..Setup::default() }).await;
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("behaviour.sh"), EVALUATES).unwrap();
        let settings = JobsSettings {
            folder: folder.path().to_owned(),
            recipes_dir: RECIPES.into(),
            data_dir: SMOKE.into(),
            models_dir: folder.path().join("models"),
            child: ChildSettings {
                program: concat!(env!("CARGO_MANIFEST_DIR"), "/src/jobs/tests/fake_child.sh").into(),
                memory_bytes: None,
                niceness: 0,
                api_key: None,
            },
            attempts: 3,
            queue: 4,
            kept: 10,
            serve: serde_json::to_value(Serve::parse_from(["serve"]).options).unwrap(),
        };
        let state = &double.state;
        let host = ServiceHost {
            bundles: state.bundles.clone(),
            service: state.service.clone(),
            datasets: state.datasets.clone(),
            feedback: state.feedback.clone(),
            audit: state.audit.clone(),
        };
        let jobs = Arc::new(Jobs::open(settings, Arc::new(host)).unwrap());
        assert!(state.jobs.set(jobs.clone()).is_ok());
        let stop = tokio_util::sync::CancellationToken::new();
        tokio::spawn(jobs.work(stop.clone()));
        Self { router: expandr::http::router(state.clone()), double, folder, _working: stop.drop_guard() }
    }

    /// Status, `location` and body of an answer; `headers` besides the admin's key.
    async fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, &str)],
    ) -> (u16, Option<String>, String) {
        let mut request =
            Request::builder().method(method).uri(path).header("authorization", format!("Bearer {KEY}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = body.map_or(Body::empty(), |body| Body::from(body.to_string()));
        let request = request.header("content-type", "application/json").body(body).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let location = response.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, location, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn json(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let (status, _, text) = self.send(method, path, body, &[]).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn until(&self, place: &str, status: &str) -> Value {
        let start = Instant::now();
        loop {
            let (_, job) = self.json("GET", place, None).await;
            if job["status"] == status {
                return job;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "{place} is not {status}: {job}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    options: ServeOptions,
}

#[tokio::test]
async fn jobs_are_started_watched_and_ended_over_http() {
    let workshop = Workshop::open().await;
    let body = json!({"kind": "evaluate", "collections": ["collection"]});
    let key = [("idempotency-key", "once")];
    let (status, location, text) = workshop.send("POST", "/admin/jobs", Some(body.clone()), &key).await;
    assert_eq!(status, 202, "{text}");
    let place = location.unwrap();
    let job: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(place, format!("/admin/jobs/{}", job["id"].as_str().unwrap()));
    assert_eq!(
        (&job["kind"], &job["status"], &job["attempts"]),
        (&json!("evaluate"), &json!("queued"), &json!(0))
    );
    assert_eq!(job["request"]["collections"], json!(["collection"]));
    let (status, again, _) = workshop.send("POST", "/admin/jobs", Some(body), &key).await;
    assert_eq!((status, again.as_ref()), (202, Some(&place)));
    let other = json!({"kind": "snapshot"});
    let (status, _, text) = workshop.send("POST", "/admin/jobs", Some(other), &key).await;
    assert_eq!(status, 422, "{text}");

    let job = workshop.until(&place, "running").await;
    assert_eq!(workshop.json("POST", &format!("{place}/resume"), None).await.0, 409, "{job}");
    let start = Instant::now();
    loop {
        let (_, job) = workshop.json("GET", &place, None).await;
        if job["stage"] == "evaluate/candidate/collection" && job["progress"]["done"] == 2 {
            let progress = &job["progress"];
            assert_eq!(
                (&progress["fraction"], &progress["eta_seconds"]),
                (&json!(0.5), &json!(1.5)),
                "{job}"
            );
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{job}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(workshop.json("POST", &format!("{place}/cancel"), None).await.0, 202);
    workshop.until(&place, "cancelled").await;
    fs_err::write(workshop.folder.path().join("go"), "").unwrap();
    assert_eq!(workshop.json("POST", &format!("{place}/resume"), None).await.0, 202);
    let job = workshop.until(&place, "succeeded").await;
    assert_eq!((&job["attempts"], &job["problem"]), (&json!(2), &json!(null)), "{job}");

    let (status, _, text) = workshop.send("GET", &format!("{place}/events"), None, &[]).await;
    assert_eq!(status, 200);
    let ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert!(ids.len() >= 8, "{text}");
    assert!(text.contains("event: progress") && text.contains("event: stage"), "{text}");
    let (_, _, rest) = workshop
        .send("GET", &format!("{place}/events"), None, &[("last-event-id", ids[ids.len() - 2])])
        .await;
    assert_eq!(rest.matches("id: ").count(), 1, "{rest}");
    assert!(rest.contains("\"status\":\"succeeded\""), "{rest}");
}

#[tokio::test]
async fn what_is_wrong_with_a_job_is_said_with_the_usual_problems() {
    let workshop = Workshop::open().await;
    let (status, problem) = workshop
        .json("POST", "/admin/jobs", Some(json!({"kind": "evaluate", "collections": ["colection"]})))
        .await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/collections/0")), "{problem}");
    let (status, problem) =
        workshop.json("POST", "/admin/jobs", Some(json!({"kind": "snapshot", "x": 1}))).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/x")), "{problem}");
    let body = json!({"kind": "evaluate", "collections": ["collection"], "expansion": {"count": 99}});
    let (status, problem) = workshop.json("POST", "/admin/jobs", Some(body)).await;
    assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!("/expansion/count")), "{problem}");
    for (method, path, expected) in [
        ("GET", "/admin/jobs/job-unknown", 404),
        ("GET", "/admin/jobs/job-unknown/events", 404),
        ("POST", "/admin/jobs/job-unknown/cancel", 404),
        ("GET", "/admin/jobs?status=asleep", 422),
        ("GET", "/admin/jobs?limit=0", 422),
        ("DELETE", "/admin/jobs", 405),
    ] {
        let (status, problem) = workshop.json(method, path, None).await;
        assert_eq!(status, expected, "{method} {path}: {problem}");
    }
    let (status, _) = workshop.double.send("GET", "/admin/jobs", None, Some("a-read-key-0123456789")).await;
    assert_eq!(status, 403);
    let (status, _) = workshop.double.send("GET", "/admin/jobs", None, None).await;
    assert_eq!(status, 401);
}

#[tokio::test]
async fn a_reindexing_and_a_snapshot_of_the_real_service_are_jobs() {
    let workshop = Workshop::open().await;
    for kind in ["reindex", "snapshot"] {
        let (status, location, text) =
            workshop.send("POST", "/admin/jobs", Some(json!({"kind": kind})), &[]).await;
        assert_eq!(status, 202, "{text}");
        let job = workshop.until(&location.unwrap(), "succeeded").await;
        assert!(job["result"].is_object(), "{job}");
        if kind == "reindex" {
            assert_eq!(job["result"]["embedded"], 3, "{job}");
        }
    }
    let (_, listed) = workshop.json("GET", "/admin/jobs?status=succeeded&limit=1", None).await;
    assert_eq!(listed["jobs"][0]["kind"], "snapshot", "the newest first: {listed}");
    let search = json!({"query": "red apples", "expansion": false});
    let (status, answer) = workshop.double.send("POST", "/search", Some(search), Some(KEY)).await;
    assert_eq!((status, &answer["hits"][0]["id"]), (200, &json!("a")), "{answer}");
}

/// The smoke corpus, so that a change of bundles has something to embed.
async fn fill(server: &Server) -> usize {
    let corpus = fs_err::read_to_string(Path::new(SMOKE).join("collection/corpus.jsonl")).unwrap();
    let request = server.client.post(format!("{}/documents/bulk", server.url)).bearer_auth(KEY);
    let response =
        request.header("content-type", "application/x-ndjson").body(corpus.clone()).send().await.unwrap();
    let report: Value = response.json().await.unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    corpus.lines().count()
}

/// Searches that go on beside everything else; every answer must be whole, and of a bundle that it names.
struct Searches {
    url: Arc<Mutex<Option<String>>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Searches {
    fn start() -> Self {
        let (url, stop, answered) = (
            Arc::new(Mutex::new(None::<String>)),
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (from, stopped, counter) = (url.clone(), stop.clone(), answered.clone());
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut bundles: Vec<String> = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let at = from.lock().unwrap().clone();
                if let Some(at) = at {
                    let expand = bundles.len() % 2 == 1;
                    let body = json!({"query": "which bird wades", "expansion": expand, "top_k": 3});
                    let sent = client.post(format!("{at}/search")).bearer_auth(KEY).json(&body).send().await;
                    // Only a server that is being killed may leave a search without its answer.
                    if let Ok(response) = sent {
                        let status = response.status();
                        if let Ok(answer) = response.json::<Value>().await {
                            assert!(status.is_success(), "{status}: {answer}");
                            assert_eq!(answer["hits"].as_array().unwrap().len(), 3, "{answer}");
                            let bundle = answer["bundle"].as_str().unwrap().to_owned();
                            if bundles.last() != Some(&bundle) {
                                bundles.push(bundle);
                            }
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                    } else {
                        assert!(
                            from.lock().unwrap().is_none(),
                            "a search failed, and nobody killed the server"
                        );
                    }
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
            bundles
        });
        Self { url, stop, answered, task }
    }

    /// From now on at this server; none while it is killed.
    fn at(&self, url: Option<&str>) {
        *self.url.lock().unwrap() = url.map(str::to_owned);
    }

    /// The bundles that answered, in order, and how many answers there were.
    async fn end(self) -> (Vec<String>, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let bundles = self.task.await.unwrap();
        (bundles, self.answered.load(Ordering::Relaxed))
    }
}

/// The process of the job at work: what has the job's id on its command line.
fn child_of(job: &str) -> Option<u32> {
    for entry in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_string_lossy().parse::<u32>().ok() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let is_child = line.contains("\0train\0") || line.contains("evaluate-bundles");
        if is_child && line.contains(job) && !line.starts_with("nice") {
            return Some(pid);
        }
    }
    None
}

fn kill_9(pid: u32) {
    let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
}

/// Anything but the same in every round; the moments need not be reproducible, their spread must be.
fn moment(round: usize) -> Duration {
    Duration::from_millis(900 + (round as u64 * 2_347) % 5_100)
}

async fn until_ended(server: &Server, job: &str) -> Value {
    let start = Instant::now();
    loop {
        let (status, record) = admin(server, "GET", &format!("/admin/jobs/{job}"), None).await;
        assert_eq!(status, 200, "{record}");
        if !matches!(record["status"].as_str(), Some("queued" | "running")) {
            return record;
        }
        assert!(start.elapsed() < Duration::from_secs(600), "{record}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// All events of a job, as a client reads them that was cut off once.
async fn stream(server: &Server, job: &str, after: u64) -> Vec<(u64, Value)> {
    let request = server.client.get(format!("{}/admin/jobs/{job}/events", server.url)).bearer_auth(KEY);
    let response = request.header("last-event-id", after.to_string()).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut bytes = response.bytes_stream();
    let mut text = String::new();
    while let Some(piece) = bytes.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    let mut events = Vec::new();
    for block in text.split("\n\n") {
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let (Some(id), Some(data)) = (field("id:"), field("data:")) {
            events.push((id.parse().unwrap(), serde_json::from_str(data).unwrap()));
        }
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retraining_over_http_survives_kills_is_refused_and_then_promoted() {
    let rounds: usize =
        std::env::var("EXPANDR_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    let folder = tempfile::tempdir().unwrap();
    let mut server = start(folder.path());
    let documents = fill(&server).await;
    let (_, info) = admin(&server, "GET", "/info", None).await;
    let old = info["bundle"]["id"].as_str().unwrap().to_owned();
    let searches = Searches::start();
    searches.at(Some(&server.url));

    // A rule that can't hold: thirty queries can't reach such a level.
    let body = json!({
        "kind": "retrain", "recipe": "smoke", "name": "smoke-tuned", "evaluate": {"max_queries": 8},
        "promotion": {"when": "significant", "alpha": 1e-9, "max_regression": 1.0},
    });
    let (status, job) = admin(&server, "POST", "/admin/jobs", Some(body)).await;
    assert_eq!(status, 202, "{job}");
    let job = job["id"].as_str().unwrap().to_owned();
    let mut kills = 0;
    for round in 0..rounds {
        tokio::time::sleep(moment(2 * round)).await;
        if let Some(pid) = child_of(&job) {
            kill_9(pid);
            kills += 1;
        }
        tokio::time::sleep(moment(2 * round + 1)).await;
        searches.at(None);
        server.kill();
        let start_again = Instant::now();
        while child_of(&job).is_some() {
            assert!(start_again.elapsed() < Duration::from_secs(10), "a child outlived its server");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server = start(folder.path());
        searches.at(Some(&server.url));
        let (_, info) = admin(&server, "GET", "/info", None).await;
        assert_eq!(info["documents"], documents, "{info}");
        let (_, record) = admin(&server, "GET", &format!("/admin/jobs/{job}"), None).await;
        println!("round {round}: {} in {} after {kills} kills", record["status"], record["stage"]);
    }
    let record = until_ended(&server, &job).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    assert!(record["attempts"].as_u64().unwrap() as usize > kills.max(rounds), "{record}");
    let result = &record["result"];
    assert_eq!(
        (&result["decision"]["promote"], &result["activation"]),
        (&json!(false), &json!(null)),
        "{result}"
    );
    assert_eq!(result["against"], json!(old));
    let collections = result["evaluation"]["collections"].as_array().unwrap();
    assert_eq!((collections.len(), &collections[0]["queries"]), (1, &json!(8)), "{result}");
    let trained = &record["progress"]["trainings"]["dpo"];
    assert!(trained["loss"].is_number() && trained["reward_margin"].is_number(), "{record}");
    let new = result["bundle"].as_str().unwrap().to_owned();
    let (_, info) = admin(&server, "GET", "/info", None).await;
    assert_eq!(info["bundle"]["id"], json!(old));

    // The same again under another rule: what was done is taken from the first job, and the bundle is the same.
    let body = json!({
        "kind": "retrain", "recipe": "smoke", "name": "smoke-tuned", "evaluate": {"max_queries": 4},
        "promotion": {"when": "always"},
    });
    let (status, second) = admin(&server, "POST", "/admin/jobs", Some(body)).await;
    assert_eq!(status, 202, "{second}");
    let second = second["id"].as_str().unwrap().to_owned();
    let whole = stream(&server, &second, 0).await;
    let record = until_ended(&server, &second).await;
    assert_eq!(record["status"], "succeeded", "{record}");
    assert_eq!(record["result"]["activation"]["active"], json!(new), "{record}");
    let (_, info) = admin(&server, "GET", "/info", None).await;
    assert_eq!((&info["bundle"]["id"], &info["documents"]), (&json!(new), &json!(documents)), "{info}");
    let ids: Vec<u64> = whole.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
    assert_eq!(whole.last().unwrap().1["job"]["status"], "succeeded");
    let rest = stream(&server, &second, ids.len() as u64 - 2).await;
    assert_eq!(rest, whole[whole.len() - 2..], "a client that comes back gets what it has not seen");

    // The new bundle answers, also after a restart.
    tokio::time::sleep(Duration::from_millis(300)).await;
    searches.at(None);
    let (bundles, answered) = searches.end().await;
    assert_eq!(bundles, [old, new.clone()], "{answered} answers");
    assert_eq!(server.terminate(), 0);
    let server = start(folder.path());
    let (_, info) = admin(&server, "GET", "/info", None).await;
    assert_eq!(info["bundle"]["id"], json!(new));
    let (_, listed) = admin(&server, "GET", "/admin/jobs?status=succeeded", None).await;
    assert_eq!(listed["jobs"].as_array().unwrap().len(), 2);
}

/// Searches one after the other on so many connections for a while; their times in milliseconds.
async fn measure(
    server: &Server,
    connections: usize,
    time: Duration,
    body: &(dyn Fn(usize) -> Value + Sync),
) -> Vec<f64> {
    let end = Instant::now() + time;
    let ask = |connection: usize| {
        let (client, url) = (server.client.clone(), format!("{}/search", server.url));
        let bodies: Vec<Value> = (0..30).map(|i| body(connection * 7 + i)).collect();
        tokio::spawn(async move {
            let mut times = Vec::new();
            for body in bodies.iter().cycle() {
                if Instant::now() > end {
                    break;
                }
                let sent = Instant::now();
                let request = client.post(&url).bearer_auth(KEY).json(body);
                let answer: Value = request.send().await.unwrap().json().await.unwrap();
                assert!(answer["hits"].is_array(), "{answer}");
                times.push(sent.elapsed().as_secs_f64() * 1000.0);
                // A pace that leaves the machine some air, so that waiting for one's turn is not all that is measured.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            times
        })
    };
    let tasks: Vec<_> = (0..connections).map(ask).collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await.unwrap());
    }
    times
}

fn quantile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[((times.len() as f64 * share) as usize).min(times.len() - 1)]
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A measurement: `cargo test --release --workspace --test it -- --ignored --nocapture latency_beside_a_training`. The job's process is
/// stopped and let go on in turn, so that what else happens on the machine is the same for both sides.
/// `EXPANDR_MEASURE_SECONDS` (default 20) is the time that each side gets for each kind of search in each stage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test: it prints ratios"]
async fn latency_beside_a_training() {
    const SLICES: u32 = 5;
    let seconds: u64 =
        std::env::var("EXPANDR_MEASURE_SECONDS").ok().and_then(|seconds| seconds.parse().ok()).unwrap_or(20);
    let slice = Duration::from_secs(seconds) / SLICES;
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--admin-keys", KEY, "--recipes-dir", RECIPES, "--data-dir", SMOKE];
    let server = Server::start(folder.path(), &flags);
    fill(&server).await;
    let queries: Vec<String> = fs_err::read_to_string(Path::new(SMOKE).join("collection/queries.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
        .collect();
    let raw = |i: usize| json!({"query": queries[i % queries.len()], "expansion": false});
    let cached = |i: usize| {
        let expansion = json!({"max_tokens": 8, "timeout_ms": 25_000});
        json!({"query": queries[i % queries.len()], "expansion": expansion})
    };
    let kinds: [(&str, &(dyn Fn(usize) -> Value + Sync)); 2] = [("raw", &raw), ("cached", &cached)];
    for i in 0..queries.len() {
        let (status, answer) = admin(&server, "POST", "/search", Some(cached(i))).await;
        assert_eq!(status, 200, "{answer}");
    }
    // Long enough in each kind of work: generation, preference training, contrastive training.
    let overrides = json!({"candidates.samples": 16, "candidates.max_tokens": 64, "dpo.epochs": 40, "contrastive.epochs": 200});
    let job = json!({"kind": "retrain", "recipe": "smoke", "overrides": overrides});
    let (status, job) = admin(&server, "POST", "/admin/jobs", Some(job)).await;
    assert_eq!(status, 202, "{job}");
    let id = job["id"].as_str().unwrap();
    println!("milliseconds; 4 connections, 10 ms between searches; stopped and running in turn");
    for stage in ["train/candidates", "train/dpo", "train/contrastive"] {
        let start = Instant::now();
        loop {
            let (_, record) = admin(&server, "GET", &format!("/admin/jobs/{id}"), None).await;
            assert!(matches!(record["status"].as_str(), Some("queued" | "running")), "{record}");
            if record["stage"] == stage && record["progress"]["done"].as_u64() > Some(0) {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(900), "{stage} does not come: {record}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let pid = child_of(id).unwrap();
        for (name, body) in kinds {
            let (mut alone, mut beside) = (Vec::new(), Vec::new());
            for _ in 0..SLICES {
                signal(pid, "-STOP");
                alone.extend(measure(&server, 4, slice, body).await);
                signal(pid, "-CONT");
                beside.extend(measure(&server, 4, slice, body).await);
            }
            let figures =
                [0.5, 0.99].map(|share| (quantile(&mut alone, share), quantile(&mut beside, share)));
            let [(p50, p50_beside), (p99, p99_beside)] = figures;
            println!(
                "{stage:<18} {name:<7} {} and {} searches  p50 {p50:.2} -> {p50_beside:.2} ({:.2})  p99 {p99:.2} -> {p99_beside:.2} ({:.2})",
                alone.len(),
                beside.len(),
                p50_beside / p50,
                p99_beside / p99
            );
        }
    }
    admin(&server, "POST", &format!("/admin/jobs/{id}/cancel"), None).await;
}
