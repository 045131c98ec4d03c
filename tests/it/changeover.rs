//! From one bundle to another over doubles of encoder and expander: nothing is lost, nothing is mixed, and whatever ends an
//! activation early leaves one whole bundle.
//!
//! The two bundles differ in everything that an answer shows: the encoders have other vectors (of other lengths), and the
//! prompts make the language model write other passages.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use expandr::{
    bundles::{ActivationProgress, Configured, Stage},
    http::{auth::Keys, problem::Code},
};
use expandr_models::{
    bundle::{BUNDLE_FILE, Defaults, ExpansionDefault, Manifest},
    expander::{PromptTemplate, Q2D, clean},
    testing::{HashEncoder, Script},
};
use serde_json::{Value, json};

use crate::{
    doubles::{self, ENCODER},
    service::{Double, Setup},
};

const OTHER: &str = "other";
const OTHER_PROMPT: &str = "Write about this: {}";
const ADMIN: &str = "admin-key-0123456789";

fn setup() -> Setup {
    let keys = Keys::new(&[], &[], &[ADMIN.to_owned()], true).unwrap();
    // Few tokens at once and no delay: the expansions of these tests take no time.
    Setup {
        keys,
        permits: 512,
        script: Script { natural_length: 12, ..Script::default() },
        ..Setup::default()
    }
}

fn first() -> Manifest {
    doubles::manifest("double", ENCODER)
}

fn other() -> Manifest {
    Manifest { prompt: Some(OTHER_PROMPT.into()), ..doubles::manifest("second", OTHER) }
}

/// A double, and the other bundle registered beside its own.
struct Bench {
    double: Double,
    encoders: [Arc<HashEncoder>; 2],
    ids: [String; 2],
}

impl Bench {
    async fn new(delay: Duration) -> Self {
        let double = Double::new(setup()).await;
        let second = Arc::new(HashEncoder::new(48).with_id("other-48@000000000001").with_delay(delay));
        double.models.add(OTHER, second.clone());
        let folder = double.folder.path().join("made");
        doubles::write(&folder, other());
        let id = double.state.bundles.import(&folder, None).await.unwrap();
        let ids = [double.state.bundles.active(), id];
        Self { encoders: [double.encoder.clone(), second], ids, double }
    }

    /// The same folder opened again, as after a crash.
    async fn reopened(self, configured: Configured) -> anyhow::Result<Self> {
        let Self { double, encoders, ids } = self;
        let (folder, models) = (double.folder.clone(), double.models.clone());
        let expander = double.expander.clone();
        drop(double);
        let double = Double::open(folder, setup(), models, encoders[0].clone(), expander, configured).await?;
        Ok(Self { double, encoders, ids })
    }

    async fn again(self) -> Self {
        self.reopened(doubles::configured(first(), Vec::new())).await.unwrap()
    }

    async fn put(&self, id: &str, text: &str) {
        let body = json!({"documents": [{"id": id, "text": text}]});
        let (status, answer) = self.double.send("PUT", "/documents", Some(body), None).await;
        assert!(status == 200 || status == 201, "{answer}");
    }

    async fn fill(&self, count: usize) {
        for first in (0..count).step_by(50) {
            let documents: Vec<Value> = (first..count.min(first + 50))
                .map(|n| json!({"id": format!("d{n}"), "text": text(n)}))
                .collect();
            let body = json!({ "documents": documents });
            assert_eq!(self.double.send("PUT", "/documents", Some(body), None).await.0, 201);
        }
    }

    async fn admin(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.double.send(method, path, body, Some(ADMIN)).await
    }

    async fn activate(&self, which: usize) -> (u16, Value) {
        self.change(&format!("/admin/bundles/{}/activate", self.ids[which])).await
    }

    /// Activates or rolls back and waits for the end, which on a busy machine may come after the answer.
    async fn change(&self, path: &str) -> (u16, Value) {
        let (status, answer) = self.admin("POST", path, Some(json!({"wait_ms": 15_000}))).await;
        if status != 202 {
            return (status, answer);
        }
        for _ in 0..600 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (_, bundles) = self.admin("GET", "/admin/bundles", None).await;
            if bundles["activation"].is_null() {
                let ended = &bundles["last_activation"];
                let status = if ended["problem"].is_null() { 200 } else { 500 };
                return (status, ended["activation"].clone());
            }
        }
        panic!("{path} has no end: {answer}");
    }

    /// Which bundle answers; that on the disk is the same.
    fn active(&self) -> usize {
        let active = self.double.state.bundles.active();
        let written = fs_err::read(self.double.folder.path().join("active.json")).unwrap();
        let written: Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(written["active"], active, "memory and disk agree");
        self.ids.iter().position(|id| *id == active).unwrap()
    }

    /// Every document with its text, as `GET /documents/{id}` and the index's own listing give them.
    fn documents(&self) -> BTreeMap<String, String> {
        let index = self.double.state.service.bundle().index.clone();
        let all = index.iterate(None, 100_000).unwrap();
        assert_eq!(all.len(), index.len());
        all.into_iter().map(|stored| (stored.document.id, stored.document.text)).collect()
    }

    /// That an answer is wholly by the bundle that it names: passage, query's vector, document's vector.
    fn check(&self, query: &str, answer: &Value) -> usize {
        let which = self.ids.iter().position(|id| answer["bundle"] == id.as_str()).unwrap();
        let encoder = &self.encoders[which];
        let prompt = PromptTemplate::for_query([Q2D, OTHER_PROMPT][which]).unwrap();
        let passage = clean(&self.double.expander.text_for(&prompt.render(&[query]).unwrap(), 64));
        assert_eq!(answer["expansion"]["texts"][0], passage, "bundle {which}: {answer}");
        let (query_vector, passage_vector) = (encoder.vector(query), encoder.vector(&passage));
        for hit in answer["hits"].as_array().unwrap() {
            let vector = encoder.vector(hit["text"].as_str().unwrap());
            if hit["explain"]["query_cosine"].is_null() {
                // Overwritten between the search and this look at its vector.
                assert!(hit["id"].as_str().unwrap().contains('-'), "nobody writes it: {hit}");
                continue;
            }
            for (stated, expected) in [
                (&hit["explain"]["query_cosine"], dot(&vector, &query_vector)),
                (&hit["explain"]["expansion_cosines"][0], dot(&vector, &passage_vector)),
            ] {
                assert!((stated.as_f64().unwrap() - expected).abs() < 1e-4, "bundle {which}: {hit}");
            }
        }
        which
    }
}

fn dot(one: &[f32], other: &[f32]) -> f64 {
    one.iter().zip(other).map(|(a, b)| f64::from(a * b)).sum()
}

fn text(n: usize) -> String {
    let topic = ["rivers", "engines", "violins", "proteins", "markets", "comets", "bridges"][n % 7];
    format!("Document number {n} is about {topic} and mentions token{n}.")
}

fn silent(_: ActivationProgress) {}

/// What clients did, as far as it was acknowledged: id → text, none for deleted.
type Acknowledged = Arc<parking_lot::Mutex<BTreeMap<String, Option<String>>>>;

/// Writes, overwrites and deletes until `stop`; gives what was acknowledged.
async fn write_on(bench: Arc<Bench>, stop: Arc<AtomicBool>, writer: usize, acknowledged: Acknowledged) {
    for round in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let (kept, changed, gone) =
            (format!("w{writer}-{round}"), format!("changed-{writer}"), format!("gone-{writer}"));
        bench.put(&kept, &text(round)).await;
        acknowledged.lock().insert(kept, Some(text(round)));
        bench.put(&changed, &text(round)).await;
        acknowledged.lock().insert(changed, Some(text(round)));
        if round % 2 == 0 {
            bench.put(&gone, "soon gone").await;
            acknowledged.lock().insert(gone, Some("soon gone".into()));
        } else {
            let path = format!("/documents/{gone}");
            assert_eq!(bench.double.send("DELETE", &path, None, None).await.0, 204);
            acknowledged.lock().insert(gone, None);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn search_on(bench: Arc<Bench>, stop: Arc<AtomicBool>, seen: Arc<[AtomicUsize; 2]>) {
    for round in 0.. {
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let query = format!("which rivers and engines {}", round % 50);
        let body = json!({"query": query, "top_k": 5, "explain": true});
        let (status, answer) = bench.double.search(body).await;
        assert_eq!(status, 200, "{answer}");
        seen[bench.check(&query, &answer)].fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

fn assert_holds(bench: &Bench, acknowledged: &Acknowledged, filled: usize) {
    let documents = bench.documents();
    for n in 0..filled {
        assert_eq!(documents.get(&format!("d{n}")), Some(&text(n)));
    }
    let acknowledged = acknowledged.lock();
    let mut count = filled;
    for (id, text) in acknowledged.iter() {
        assert_eq!(documents.get(id), text.as_ref(), "{id}");
        count += usize::from(text.is_some());
    }
    assert_eq!(documents.len(), count, "no document more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_mixed_while_bundles_change_under_load() {
    const FILLED: usize = 400;
    let bench = Arc::new(Bench::new(Duration::from_millis(2)).await);
    bench.fill(FILLED).await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
    let seen = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let mut tasks = Vec::new();
    for n in 0..4 {
        tasks.push(tokio::spawn(write_on(bench.clone(), stop.clone(), n, acknowledged.clone())));
        tasks.push(tokio::spawn(search_on(bench.clone(), stop.clone(), seen.clone())));
    }
    for round in 0..6 {
        let which = (round + 1) % 2;
        let (status, answer) = if round % 2 == 0 {
            bench.activate(which).await
        } else {
            bench.change("/admin/bundles/rollback").await
        };
        assert_eq!(status, 200, "{answer}");
        assert_eq!((bench.active(), &answer["active"]), (which, &json!(bench.ids[which])));
        assert_eq!(answer["previous"], bench.ids[1 - which]);
        if round == 0 {
            assert!(answer["embedded"].as_u64().unwrap() >= FILLED as u64, "{answer}");
        } else if round > 1 {
            assert!(answer["kept"].as_u64().unwrap() >= FILLED as u64, "only what is new: {answer}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    assert!(seen.iter().all(|seen| seen.load(Ordering::SeqCst) > 0), "both have answered: {seen:?}");
    assert_holds(&bench, &acknowledged, FILLED);
    // The other side, whose index was closed and lay on the disk meanwhile.
    assert_eq!(bench.activate(1 - bench.active()).await.0, 200);
    assert_holds(&bench, &acknowledged, FILLED);
    // And after a restart.
    let bench = Arc::into_inner(bench).unwrap().again().await;
    assert_holds(&bench, &acknowledged, FILLED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_bodies_go_on_through_an_activation() {
    let bench = Arc::new(Bench::new(Duration::from_millis(5)).await);
    bench.fill(200).await;
    let lines: String =
        (0..600).map(|n| format!("{}\n", json!({"id": format!("b{n}"), "text": text(n)}))).collect();
    let bulk = {
        let (bench, lines) = (bench.clone(), lines.clone());
        tokio::spawn(async move { bench.double.bulk("/documents/bulk", lines).await })
    };
    let (status, queued) = bench.double.bulk("/documents/bulk?wait=false", lines.replace("\"b", "\"q")).await;
    assert_eq!(status, 202, "{queued}");
    let state = &bench.double.state;
    let token = tokio_util::sync::CancellationToken::new();
    let worker = tokio::spawn(state.spool.clone().work(state.service.clone(), token.clone()));
    assert_eq!(bench.activate(1).await.0, 200);
    let (status, report) = bulk.await.unwrap();
    assert_eq!((status, &report["created"]), (200, &json!(600)), "{report}");
    for _ in 0..1000 {
        if state.spool.progress().queued == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    token.cancel();
    worker.await.unwrap();
    let documents = bench.documents();
    assert_eq!((documents.len(), bench.active()), (1400, 1));
    assert!(
        (0..600)
            .all(|n| documents.contains_key(&format!("b{n}")) && documents.contains_key(&format!("q{n}")))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_activation_at_a_time_and_everybody_sees_it() {
    let bench = Arc::new(Bench::new(Duration::from_millis(150)).await);
    bench.fill(60).await;
    let path = format!("/admin/bundles/{}/activate", bench.ids[1]);
    let (status, accepted) = bench.admin("POST", &path, Some(json!({"wait_ms": 1}))).await;
    assert_eq!((status, &accepted["activation"]["bundle"]), (202, &json!(bench.ids[1])), "{accepted}");
    for (path, body) in [(path.as_str(), None), (path.as_str(), Some(json!({"wait_ms": 5000})))] {
        let (status, problem) = bench.admin("POST", path, body).await;
        assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "{problem}");
    }
    let (_, info) = bench.admin("GET", "/info", None).await;
    assert_eq!(info["bundles"]["activation"]["bundle"], bench.ids[1], "{info}");
    assert_eq!(info["bundle"]["id"], bench.ids[0], "the old one serves");
    for _ in 0..1000 {
        if bench.double.state.bundles.underway().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (_, listed) = bench.admin("GET", "/admin/bundles", None).await;
    assert_eq!((&listed["active"], &listed["previous"]), (&json!(bench.ids[1]), &json!(bench.ids[0])));
    assert_eq!(listed["activation"], Value::Null);
    assert_eq!(listed["last_activation"]["activation"]["embedded"], 60, "{listed}");
    assert_eq!(listed["bundles"].as_array().unwrap().len(), 2);
    let (_, info) = bench.admin("GET", "/info", None).await;
    assert_eq!((&info["bundle"]["id"], &info["bundle"]["name"]), (&json!(bench.ids[1]), &json!("second")));
    assert_eq!(info["bundle"]["prompt"], OTHER_PROMPT);
    let metrics = bench.double.state.service.metrics().render().unwrap();
    let named =
        |id: &str| metrics.lines().any(|line| line.starts_with("expandr_build_info") && line.contains(id));
    assert!(named(&bench.ids[1]) && !named(&bench.ids[0]), "{metrics}");
    // What is active already needs nothing.
    let (status, again) = bench.activate(1).await;
    assert_eq!((status, &again["changed"], &again["previous"]), (200, &json!(false), &json!(bench.ids[0])));
}

#[tokio::test]
async fn unknown_bundles_and_wrong_bodies_are_refused() {
    let bench = Bench::new(Duration::ZERO).await;
    for id in ["bundle-000000000000", "..", "%2e%2e%2f"] {
        let (status, problem) = bench.admin("POST", &format!("/admin/bundles/{id}/activate"), None).await;
        assert_eq!(status, 404, "{id} {problem}");
    }
    let (status, problem) = bench.admin("POST", "/admin/bundles/rollback", None).await;
    assert_eq!((status, &problem["code"]), (409, &json!("conflict")), "there is none before: {problem}");
    let path = format!("/admin/bundles/{}/activate", bench.ids[1]);
    for (body, pointer) in [(json!({"wait": 3}), "/wait"), (json!({"wait_ms": 10_000_000}), "/wait_ms")] {
        let (status, problem) = bench.admin("POST", &path, Some(body)).await;
        assert_eq!((status, &problem["errors"][0]["pointer"]), (422, &json!(pointer)), "{problem}");
    }
    assert_eq!(bench.double.send("GET", "/admin/bundles", None, None).await.0, 401);
    assert_eq!(bench.active(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_at_any_stage_leaves_the_old_bundle_and_the_next_try_goes_on() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(150).await;
    // The encoder fails in the middle.
    let second = bench.encoders[1].clone();
    let fail_late =
        move |at: ActivationProgress| second.set_failing(at.stage == Stage::Embed && at.done >= 64);
    let problem = bench.double.state.bundles.activate(&bench.ids[1], &fail_late).await.unwrap_err();
    assert_eq!((problem.code, bench.active()), (Code::Internal, 0), "{}", problem.detail);
    bench.encoders[1].set_failing(false);
    bench.put("between", "written between two tries").await;
    // The disk refuses active.json.
    let obstacle = bench.double.folder.path().join("active.json.unfinished");
    fs_err::create_dir(&obstacle).unwrap();
    let problem = bench.double.state.bundles.activate(&bench.ids[1], &silent).await.unwrap_err();
    assert!(problem.detail.contains("active.json"), "{}", problem.detail);
    assert_eq!(bench.active(), 0);
    fs_err::remove_dir(&obstacle).unwrap();
    let (status, answer) = bench.double.search(json!({"query": "rivers", "explain": true})).await;
    assert_eq!((status, bench.check("rivers", &answer)), (200, 0));
    bench.put("after", "written after both").await;
    let done = bench.double.state.bundles.activate(&bench.ids[1], &silent).await.unwrap();
    assert_eq!((done.kept, done.embedded), (151, 1), "what was embedded is kept");
    assert_eq!((bench.documents().len(), bench.active()), (152, 1));
    let (_, info) = bench.admin("GET", "/info", None).await;
    assert_eq!(info["bundles"]["last_activation"]["problem"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_torn_activation_starts_again_with_one_whole_bundle() {
    for torn in [Stage::Prove, Stage::Load, Stage::Embed, Stage::Follow, Stage::Switch, Stage::Retire] {
        let bench = Bench::new(Duration::ZERO).await;
        bench.fill(150).await;
        let (bundles, id) = (bench.double.state.bundles.clone(), bench.ids[1].clone());
        let task = tokio::spawn(async move {
            let tear = move |at: ActivationProgress| {
                assert!(at.stage != torn || (torn == Stage::Embed && at.done == 0), "torn")
            };
            bundles.activate(&id, &tear).await
        });
        assert!(task.await.unwrap_err().is_panic(), "{torn:?}");
        // It goes on as if nothing had been begun, or as if it had ended.
        let expected = usize::from(torn == Stage::Retire);
        assert_eq!(bench.active(), expected, "{torn:?}");
        bench.put("late", "written afterwards").await;
        let bench = bench.again().await;
        assert_eq!(bench.active(), expected, "{torn:?} after a restart");
        assert_eq!(bench.documents().len(), 151, "{torn:?}");
        let (_, answer) = bench.double.search(json!({"query": "comets", "explain": true})).await;
        assert_eq!(bench.check("comets", &answer), expected);
        let (status, answer) = bench.activate(1 - expected).await;
        assert_eq!((status, bench.documents().len()), (200, 151), "{torn:?} {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_activation_leaves_the_old_bundle_whole() {
    let bench = Arc::new(Bench::new(Duration::from_millis(20)).await);
    bench.fill(300).await;
    for after_ms in [1, 7, 30, 90] {
        let (bundles, id) = (bench.double.state.bundles.clone(), bench.ids[1].clone());
        let task = tokio::spawn(async move { bundles.activate(&id, &silent).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        task.abort();
        let _ = task.await;
        assert_eq!((bench.active(), bench.double.state.bundles.underway()), (0, None));
        bench.put(&format!("n{after_ms}"), "more").await;
    }
    let (status, answer) = bench.activate(1).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(bench.documents().len(), 304);
}

#[tokio::test]
async fn with_the_same_encoder_the_index_is_shared_and_nothing_is_embedded() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(100).await;
    let folder = bench.double.folder.path().join("prompted");
    let prompted = Manifest { prompt: Some("Say: {}".into()), ..doubles::manifest("prompted", ENCODER) };
    doubles::write(&folder, prompted);
    let id = bench.double.state.bundles.import(&folder, None).await.unwrap();
    let before = bench.double.state.service.bundle().index.clone();
    let done = bench.double.state.bundles.activate(&id, &silent).await.unwrap();
    assert_eq!((done.embedded, done.kept), (0, 100));
    let now = bench.double.state.service.bundle();
    assert!(Arc::ptr_eq(&now.index, &before) && now.prompt.text() == "Say: {}");
    bench.put("late", "the index takes writes").await;
    assert_eq!(bench.documents().len(), 101);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reindexing_embeds_everything_anew_and_takes_the_old_ones_place() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(130).await;
    for round in 1..=2 {
        let done = bench.double.state.bundles.reindex(&silent).await.unwrap();
        assert_eq!((done.embedded, done.active.as_str()), (130, bench.ids[0].as_str()));
        assert_eq!(done.previous, None);
        let folders = fs_err::read_dir(bench.double.folder.path().join("indexes")).unwrap();
        let names: Vec<String> =
            folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        assert_eq!(names, [format!("of-hash-64-000000000000~{}", round + 1)], "the old one is gone");
    }
    let bench = bench.again().await;
    assert_eq!((bench.documents().len(), bench.active()), (130, 0));
    let (_, answer) = bench.double.search(json!({"query": "violins", "explain": true})).await;
    bench.check("violins", &answer);
}

#[tokio::test]
async fn indexes_that_no_rollback_leads_to_are_removed() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(20).await;
    let third = Arc::new(HashEncoder::new(32).with_id("third-32@000000000002"));
    bench.double.models.add("third", third);
    let folder = bench.double.folder.path().join("third");
    doubles::write(&folder, doubles::manifest("third", "third"));
    let id = bench.double.state.bundles.import(&folder, None).await.unwrap();
    assert_eq!(bench.activate(1).await.0, 200);
    bench.double.state.bundles.activate(&id, &silent).await.unwrap();
    let has = |name: &str| bench.double.folder.path().join("indexes").join(name).exists();
    assert!(!has("of-hash-64-000000000000"), "neither active nor before");
    assert!(has("of-other-48-000000000001") && has("of-third-32-000000000002"));
    assert_eq!(bench.activate(0).await.0, 200, "it is embedded anew");
    assert_eq!(bench.documents().len(), 20);
}

#[tokio::test]
async fn an_import_is_proved_and_the_same_bundle_is_one() {
    let bench = Bench::new(Duration::ZERO).await;
    let folder = bench.double.folder.path().join("made");
    let import = |path: &Path| bench.admin("POST", "/admin/bundles/import", Some(json!({"path": path})));
    let (status, answer) = import(&folder).await;
    assert_eq!((status, &answer["id"]), (201, &json!(bench.ids[1])), "by its content");
    let renamed = json!({"path": folder, "name": "another name"});
    assert_eq!(bench.admin("POST", "/admin/bundles/import", Some(renamed)).await.1["id"], bench.ids[1]);

    let manifest = fs_err::read_to_string(folder.join(BUNDLE_FILE)).unwrap();
    let foreign = bench.double.folder.path().join("foreign");
    fs_err::create_dir(&foreign).unwrap();
    let refused = |text: String, expected: &'static str| {
        fs_err::write(foreign.join(BUNDLE_FILE), text).unwrap();
        let foreign = foreign.clone();
        async move {
            let (status, problem) = import(&foreign).await;
            assert_eq!(status, 422, "{problem}");
            assert!(problem["detail"].as_str().unwrap().contains(expected), "{expected}: {problem}");
        }
    };
    refused("{".into(), "not a manifest").await;
    refused(manifest.replace("\"format\": 1", "\"format\": 7"), "`format` is 7").await;
    refused(manifest.replace("\"name\"", "\"colour\""), "unknown field `colour`").await;
    refused(manifest.replace("\"files\": {", "\"files\": {\"../x\": \"0\""), "not a plain path").await;
    refused(manifest.replace("\"other\"", "\"nowhere\""), "`nowhere` is nowhere").await;
    let stated = r#""ids": {"encoder": "else@1", "expander": "scripted@000000000000"}"#;
    refused(manifest.replace("\"ids\": null", stated), "it was made for encoder else@1").await;
    fs_err::write(foreign.join("extra"), "x").unwrap();
    refused(manifest.clone(), "doesn't know this file").await;
    let (status, problem) = import(Path::new("/nowhere")).await;
    assert_eq!(status, 422, "{problem}");
    assert_eq!(bench.double.state.bundles.list().len(), 2);
}

#[tokio::test]
async fn a_registered_bundle_that_was_damaged_is_not_activated() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(3).await;
    let folder = bench.double.state.bundles.manifest_folder(&bench.ids[1]);
    fs_err::write(folder.join("slipped-in"), "x").unwrap();
    let (status, problem) = bench.activate(1).await;
    assert_eq!(status, 422, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("slipped-in"), "{problem}");
    fs_err::remove_file(folder.join("slipped-in")).unwrap();
    let changed = fs_err::read_to_string(folder.join(BUNDLE_FILE)).unwrap().replace("second", "third");
    fs_err::write(folder.join(BUNDLE_FILE), changed).unwrap();
    let (status, problem) = bench.activate(1).await;
    assert_eq!((status, bench.active()), (422, 0), "{problem}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_activated_survives_a_restart_and_changed_flags_do_not_wait() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(80).await;
    assert_eq!(bench.activate(1).await.0, 200);
    let bench = bench.again().await;
    assert_eq!(bench.active(), 1, "the same flags: what was activated serves");

    // Other flags, another encoder, documents: in the background.
    let third = Arc::new(HashEncoder::new(32).with_id("third-32@000000000002"));
    bench.double.models.add("third", third);
    let flags = || doubles::configured(doubles::manifest("flags", "third"), Vec::new());
    let bench = bench.reopened(flags()).await.unwrap();
    assert_eq!(bench.active(), 1, "the old one serves meanwhile");
    // Killed before that has happened: it is still to be done.
    let bench = bench.reopened(flags()).await.unwrap();
    bench.double.state.bundles.activate_configured().await.unwrap().unwrap();
    let active = bench.double.state.bundles.get(&bench.double.state.bundles.active()).unwrap();
    assert_eq!((active.name.as_str(), bench.documents().len()), ("flags", 80));
    assert_eq!(bench.double.state.bundles.previous().as_ref(), Some(&bench.ids[1]));

    // The same flags again, after a rollback: the rollback holds.
    bench.double.state.bundles.rollback(&silent).await.unwrap();
    let bench = bench.reopened(flags()).await.unwrap();
    assert_eq!(bench.active(), 1);

    // The same encoder: at once.
    let prompted = Manifest { prompt: Some("Say: {}".into()), ..doubles::manifest("prompted", OTHER) };
    let bench = bench.reopened(doubles::configured(prompted, Vec::new())).await.unwrap();
    assert_eq!(bench.double.state.service.bundle().prompt.text(), "Say: {}");
    assert_eq!(bench.documents().len(), 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_an_encoder_that_is_gone_brings_the_documents_along() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(70).await;
    // The weights behind the same name are others now: retrained in place.
    let retrained = Arc::new(HashEncoder::new(40).with_id("hash-40@000000000009"));
    bench.double.models.add(ENCODER, retrained.clone());
    let bench = bench.again().await;
    let bundle = bench.double.state.service.bundle();
    assert_eq!((bundle.encoder.info().id.as_str(), bundle.index.len()), ("hash-40@000000000009", 70));
    let cosine = dot(&bundle.index.vector("d7").unwrap().unwrap(), &retrained.vector(&text(7)));
    assert!((cosine - 1.0).abs() < 1e-5, "{cosine}");
}

#[tokio::test]
async fn a_first_start_over_anothers_documents_says_what_to_do() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(5).await;
    fs_err::remove_file(bench.double.folder.path().join("active.json")).unwrap();
    let flags = doubles::configured(doubles::manifest("flags", OTHER), Vec::new());
    let (folder, models) = (bench.double.folder.clone(), bench.double.models.clone());
    let Err(error) = bench.reopened(flags).await else { panic!("it must be refused") };
    let error = format!("{error:#}");
    assert!(error.contains("5 documents of encoder hash-64") && error.contains("start it once"), "{error}");
    // With that encoder, everything is there.
    let encoder = Arc::new(HashEncoder::new(64));
    let expander = Arc::new(expandr_models::testing::ScriptedExpander::new(Script::default()));
    let configured = doubles::configured(first(), Vec::new());
    let double = Double::open(folder, setup(), models, encoder, expander, configured).await.unwrap();
    assert_eq!(double.state.service.bundle().index.len(), 5);
}

#[tokio::test]
async fn a_bundles_defaults_hold_where_flags_are_silent() {
    let bench = Bench::new(Duration::ZERO).await;
    bench.fill(5).await;
    let defaults = Defaults {
        expansion: Some(ExpansionDefault::Always),
        query_weight: Some(0.8),
        max_tokens: Some(7),
        ..Defaults::default()
    };
    let folder = bench.double.folder.path().join("defaults");
    doubles::write(&folder, Manifest { defaults, ..doubles::manifest("defaults", ENCODER) });
    let id = bench.double.state.bundles.import(&folder, None).await.unwrap();
    bench.double.state.bundles.activate(&id, &silent).await.unwrap();
    let (_, answer) = bench.double.search(json!({"query": "rivers"})).await;
    let weight = answer["expansion"]["query_weight"].as_f64().unwrap();
    assert!((weight - 0.8).abs() < 1e-6, "{answer}");
    assert_eq!(answer["expansion"]["output_tokens"], 7);
    let (_, answer) = bench.double.search(json!({"query": "rivers", "expansion": {"max_tokens": 9}})).await;
    assert_eq!(answer["expansion"]["output_tokens"], 9, "who says gets what they say");
    let (_, info) = bench.admin("GET", "/info", None).await;
    assert_eq!(info["defaults"]["expansion_max_tokens"], 7);
    // The server's flags go before.
    let Bench { double, encoders, .. } = bench;
    let (folder, models, expander) = (double.folder.clone(), double.models.clone(), double.expander.clone());
    drop(double);
    let flags = Defaults { max_tokens: Some(5), ..Defaults::default() };
    let configured = doubles::configured(first(), Vec::new());
    let setup = Setup { flags, ..setup() };
    let double =
        Double::open(folder, setup, models, encoders[0].clone(), expander, configured).await.unwrap();
    let (_, answer) = double.search(json!({"query": "rivers"})).await;
    assert_eq!(answer["expansion"]["output_tokens"], 5, "{answer}");
    assert_eq!(double.state.service.bundle().name.as_ref(), "defaults");
}
