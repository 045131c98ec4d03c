//! The real binary with real weights: activations and rollbacks under load, and kill -9 in the middle of them.
//!
//! The two bundles have the default encoder and its first two layers. `EXPANDR_ACTIVATION_ROUNDS` sets the number of activations
//! (default 4), `EXPANDR_ACTIVATION_CONNECTIONS` the searches at once (default 32), `EXPANDR_KILL_ROUNDS` the number of kills
//! (default 2), `EXPANDR_KILL_SEED` their moments.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use expandr_models::{
    bundle::{self, EncoderPart, Manifest},
    trainable::truncate_layers,
    weights::DEFAULT_ENCODER,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::process::{Server, models_dir};

const ADMIN: &str = "admin-key-0123456789";
/// However busy the machine is, nobody is told to come back later: an answer that is missing is a failed change-over.
const FLAGS: [&str; 8] =
    ["--expander", "none", "--admin-keys", ADMIN, "--max-wait-ms", "60000", "--reserve-ms", "20000"];
const FIXED: usize = 120;

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn text(n: usize) -> String {
    let topic = ["rivers", "engines", "violins", "proteins", "markets", "comets", "bridges"][n % 7];
    format!("Document number {n} is about {topic} and mentions token{n}.")
}

fn query(n: usize) -> Value {
    let query = ["how do engines work", "the sound of violins", "where rivers end"][n % 3];
    let expansion = if n.is_multiple_of(2) { json!(false) } else { json!({"texts": [text(n % 20)]}) };
    json!({"query": query, "top_k": 5, "filter": {"eq": {"kind": "fixed"}}, "include_text": false, "expansion": expansion})
}
const QUERIES: usize = 60;

/// A bundle with the first two layers of the default encoder.
fn shallow(folder: &Path) -> PathBuf {
    let bundle = folder.join("shallow");
    truncate_layers(&models_dir().join(DEFAULT_ENCODER), &bundle.join("encoder"), 2).unwrap();
    let encoder = EncoderPart { model: "encoder".into(), adapter: None };
    bundle::write(&bundle, &mut Manifest::new("shallow", "2026-11-26T15:00:00Z", encoder, None)).unwrap();
    bundle
}

async fn admin(server: &Server, method: reqwest::Method, path: &str, body: Value) -> (u16, Value) {
    let request = server.client.request(method, format!("{}{path}", server.url)).bearer_auth(ADMIN);
    let response = request.json(&body).send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn post(server: &Server, path: &str, body: Value) -> (u16, Value) {
    admin(server, reqwest::Method::POST, path, body).await
}

async fn import(server: &Server, folder: &Path) -> String {
    let (status, answer) = post(server, "/admin/bundles/import", json!({"path": folder})).await;
    assert_eq!(status, 201, "{answer}");
    answer["id"].as_str().unwrap().to_owned()
}

async fn fill(server: &Server) {
    let documents: Vec<Value> = (0..FIXED)
        .map(|n| json!({"id": format!("fixed-{n}"), "text": text(n), "metadata": {"kind": "fixed"}}))
        .collect();
    let request =
        server.client.put(format!("{}/documents", server.url)).json(&json!({ "documents": documents }));
    assert_eq!(request.send().await.unwrap().status(), 201);
}

/// What each bundle answers to each query: ids and scores.
type Expected = HashMap<(String, usize), Vec<(String, f64)>>;

fn hits(answer: &Value) -> Vec<(String, f64)> {
    let hits = answer["hits"].as_array().unwrap();
    hits.iter().map(|hit| (hit["id"].as_str().unwrap().to_owned(), hit["score"].as_f64().unwrap())).collect()
}

async fn expect(server: &Server, expected: &mut Expected) {
    for n in 0..QUERIES {
        let (status, answer) = server.post("/search", query(n)).await;
        assert_eq!(status, 200, "{answer}");
        expected.insert((answer["bundle"].as_str().unwrap().to_owned(), n), hits(&answer));
    }
}

/// What the searches of a load came to.
#[derive(Default)]
struct Load {
    searches: AtomicUsize,
    failures: Mutex<Vec<String>>,
    by_bundle: Mutex<BTreeMap<String, usize>>,
    latencies_ms: Mutex<Vec<f64>>,
}

impl Load {
    async fn run(
        self: Arc<Self>,
        url: String,
        connection: usize,
        expected: Arc<Expected>,
        stop: Arc<AtomicBool>,
    ) {
        let client = reqwest::Client::new();
        for round in 0.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let n = (connection * 7 + round) % QUERIES;
            let start = Instant::now();
            let failure = match client.post(format!("{url}/search")).json(&query(n)).send().await {
                Err(error) => Some(format!("{error:?}")),
                Ok(response) => {
                    let status = response.status().as_u16();
                    let answer: Value = response.json().await.unwrap_or_default();
                    let bundle = answer["bundle"].as_str().unwrap_or_default().to_owned();
                    let same =
                        expected.get(&(bundle.clone(), n)).is_some_and(|hits_then| near(hits_then, &answer));
                    *self.by_bundle.lock().entry(bundle).or_default() += 1;
                    (status != 200 || !same).then(|| format!("{status} query {n}: {answer}"))
                }
            };
            self.latencies_ms.lock().push(start.elapsed().as_secs_f64() * 1000.0);
            self.searches.fetch_add(1, Ordering::SeqCst);
            self.failures.lock().extend(failure);
        }
    }

    /// Percentiles since they were asked for last.
    fn latencies(&self) -> (usize, f64, f64) {
        let mut taken = std::mem::take(&mut *self.latencies_ms.lock());
        taken.sort_by(f64::total_cmp);
        let at = |share: f64| {
            taken.get(((taken.len() as f64 * share) as usize).min(taken.len().saturating_sub(1)))
        };
        (taken.len(), at(0.5).copied().unwrap_or(0.0), at(0.99).copied().unwrap_or(0.0))
    }
}

/// The same documents with the same scores; those of a hit's place may be equal to the last digits of a vector.
fn near(then: &[(String, f64)], answer: &Value) -> bool {
    let Some(now) = answer["hits"].as_array() else { return false };
    then.len() == now.len()
        && then
            .iter()
            .zip(now)
            .all(|((_, score), hit)| (hit["score"].as_f64().unwrap_or(-9.0) - score).abs() < 1e-4)
        && then.first().map(|(id, _)| id.as_str()) == now.first().and_then(|hit| hit["id"].as_str())
}

/// Resident memory of the server in MiB.
fn resident_mib(server: &Server) -> f64 {
    let status = fs_err::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

/// Resident memory of the server once what it freed has gone back to the system, which happens in the course of a second.
async fn settled_mib(server: &Server) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(250)).await;
        least = least.min(resident_mib(server));
    }
    least
}

/// Writes, overwrites and deletes until `stop` or the server's end; notes what was acknowledged, none for deleted.
async fn write_on(
    url: String,
    acknowledged: Arc<Mutex<BTreeMap<String, Option<usize>>>>,
    stop: Arc<AtomicBool>,
) {
    let client = reqwest::Client::new();
    let first = acknowledged.lock().len();
    for round in first.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        for (id, deleted) in
            [(format!("moving-{round}"), false), ("changed".into(), false), ("gone".into(), round % 2 == 1)]
        {
            let request = if deleted {
                client.delete(format!("{url}/documents/{id}"))
            } else {
                let document = json!({"id": id, "text": text(round), "metadata": {"kind": "moving"}});
                client.put(format!("{url}/documents")).json(&json!({"documents": [document]}))
            };
            match request.send().await {
                Ok(response) if response.status().is_success() || (deleted && response.status() == 404) => {
                    acknowledged.lock().insert(id, (!deleted).then_some(round));
                }
                Ok(response) => panic!("a write failed: {} {:?}", response.status(), response.text().await),
                Err(_) => return, // killed
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// That every acknowledged document is there as it was written. The last write of all may have come further than its answer.
async fn assert_holds(server: &Server, acknowledged: &BTreeMap<String, Option<usize>>, killed: bool) {
    for n in 0..FIXED {
        let (status, document) = server.get(&format!("/documents/fixed-{n}")).await;
        assert_eq!((status, document["text"].as_str()), (200, Some(text(n).as_str())), "fixed-{n}");
    }
    let newest = acknowledged.values().flatten().max().copied().unwrap_or(0);
    for (id, round) in acknowledged {
        let (status, document) = server.get(&format!("/documents/{id}")).await;
        let found = document["text"].as_str().map(str::to_owned);
        let expected = round.map(text);
        let unanswered = killed && ["changed", "gone"].contains(&id.as_str());
        let later =
            unanswered && (found.is_none() || found == Some(text(newest + 1)) || found == Some(text(newest)));
        assert!(found == expected || later, "{id}: {status} {found:?} instead of {expected:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_change_under_load_without_a_failed_request() {
    let rounds = number("EXPANDR_ACTIVATION_ROUNDS", 4);
    let connections = number("EXPANDR_ACTIVATION_CONNECTIONS", 32);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&folder.path().join("service"), &FLAGS);
    fill(&server).await;
    let mut expected = Expected::new();
    expect(&server, &mut expected).await;
    let (_, info) = server.get("/info").await;
    let deep = info["bundle"]["id"].as_str().unwrap().to_owned();
    let other = import(&server, &shallow(folder.path())).await;
    let activate = format!("/admin/bundles/{other}/activate");
    let (status, answer) = post(&server, &activate, json!({"wait_ms": 30_000})).await;
    assert_eq!(status, 200, "{answer}");
    expect(&server, &mut expected).await;
    assert_eq!(expected.len(), 2 * QUERIES);
    assert_eq!(post(&server, "/admin/bundles/rollback", json!({"wait_ms": 30_000})).await.0, 200);

    let (load, stop, expected) =
        (Arc::new(Load::default()), Arc::new(AtomicBool::new(false)), Arc::new(expected));
    let acknowledged = Arc::default();
    let mut tasks = vec![tokio::spawn(write_on(server.url.clone(), Arc::clone(&acknowledged), stop.clone()))];
    for n in 0..connections {
        tasks.push(tokio::spawn(load.clone().run(server.url.clone(), n, expected.clone(), stop.clone())));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (count, p50, p99) = load.latencies();
    println!("before: {count} searches, p50 {p50:.1} ms, p99 {p99:.1} ms, {:.1} MiB", resident_mib(&server));
    let mut memory = Vec::new();
    for round in 1..=rounds {
        let path = if round % 2 == 1 { activate.as_str() } else { "/admin/bundles/rollback" };
        let (status, answer) = post(&server, path, json!({"wait_ms": 30_000})).await;
        let active = if round % 2 == 1 { &other } else { &deep };
        assert_eq!((status, &answer["active"]), (200, &json!(active)), "round {round}: {answer}");
        memory.push(settled_mib(&server).await);
        let (count, p50, p99) = load.latencies();
        println!(
            "round {round}: {:.0} ms, writes waited {:.0} ms, {} embedded, {} kept; {count} searches, p50 {p50:.1} ms, p99 \
             {p99:.1} ms; {:.1} MiB",
            answer["took_ms"].as_f64().unwrap(),
            answer["writes_paused_ms"].as_f64().unwrap(),
            answer["embedded"],
            answer["kept"],
            memory[round - 1]
        );
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    let failures = std::mem::take(&mut *load.failures.lock());
    println!(
        "{} searches, {} failed; by bundle: {:?}",
        load.searches.load(Ordering::SeqCst),
        failures.len(),
        load.by_bundle.lock()
    );
    assert!(failures.is_empty(), "{} failed, the first: {}", failures.len(), failures[0]);
    assert_eq!(load.by_bundle.lock().len(), 2, "both have answered");
    let acknowledged = acknowledged.lock().clone();
    assert_holds(&server, &acknowledged, false).await;
    // The bundles differ in size: the first and the last activation of the same one are compared.
    let first = (rounds + 1) % 2;
    let growth = (memory[rounds - 1] / memory[first] - 1.0) * 100.0;
    println!("memory after the last activation against the first of the same bundle: {growth:+.1} %");
    // A few rounds tell a bundle that stays in memory; what an allocator keeps at hand takes many to tell.
    let allowed = if rounds >= 10 { 5.0 } else { 50.0 };
    assert!(growth < allowed, "memory has grown by {growth:.1} %: {memory:?}");
    assert_eq!(server.terminate(), 0);
}

/// The next of a series of numbers below `below`, the same in every run (Knuth's MMIX generator).
fn draw(state: &mut u64, below: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) % below.max(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_an_activation_leaves_a_whole_bundle_and_every_document() {
    let rounds = number("EXPANDR_KILL_ROUNDS", 2);
    let mut moment = number("EXPANDR_KILL_SEED", 1) as u64;
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("service");
    let mut server = Server::start(&service, &FLAGS);
    fill(&server).await;
    let mut expected = Expected::new();
    expect(&server, &mut expected).await;
    let (_, info) = server.get("/info").await;
    let ids =
        [info["bundle"]["id"].as_str().unwrap().to_owned(), import(&server, &shallow(folder.path())).await];
    let path = |which: usize| format!("/admin/bundles/{}/activate", ids[which]);
    let (status, answer) = post(&server, &path(1), json!({"wait_ms": 30_000})).await;
    assert_eq!(status, 200, "{answer}");
    let whole_ms = answer["took_ms"].as_f64().unwrap() as u64;
    expect(&server, &mut expected).await;
    let (expected, acknowledged) = (Arc::new(expected), Arc::default());
    let mut outcomes = [0, 0];
    for round in 0..rounds {
        let (_, info) = server.get("/info").await;
        let active = ids.iter().position(|id| info["bundle"]["id"] == id.as_str()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let writer = tokio::spawn(write_on(server.url.clone(), Arc::clone(&acknowledged), stop.clone()));
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (status, answer) = post(&server, &path(1 - active), json!({"wait_ms": 0})).await;
        assert!(status == 202 || status == 200, "{answer}");
        let after_ms = draw(&mut moment, 2 * whole_ms);
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        server.kill();
        writer.await.unwrap();

        server = Server::start(&service, &FLAGS);
        let (_, info) = server.get("/info").await;
        let now = ids.iter().position(|id| info["bundle"]["id"] == id.as_str());
        let now = now.unwrap_or_else(|| panic!("neither bundle: {info}"));
        outcomes[usize::from(now != active)] += 1;
        let acknowledged = acknowledged.lock().clone();
        println!(
            "round {round}: killed {after_ms} ms into an activation of {whole_ms} ms: {} serves; {} documents acknowledged",
            if now == active { "the old bundle" } else { "the new one" },
            acknowledged.values().flatten().count() + FIXED
        );
        assert_holds(&server, &acknowledged, true).await;
        for n in 0..QUERIES {
            let (status, answer) = server.post("/search", query(n)).await;
            assert_eq!((status, answer["bundle"].as_str()), (200, Some(ids[now].as_str())), "{answer}");
            assert!(near(&expected[&(ids[now].clone(), n)], &answer), "round {round}, query {n}: {answer}");
        }
    }
    println!("{} kills: the old bundle {} times, the new one {} times", rounds, outcomes[0], outcomes[1]);
    assert_eq!(server.terminate(), 0);
}
