//! Jobs from acceptance to their end, over a double of the service and a shell script in the binary's place.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use clap::Parser;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    ChildSettings, Host, JobRecord, JobStatus, Jobs, JobsSettings, Tell,
    outcome::{CollectionOutcome, Compared, EvaluationOutcome, SideOutcome},
    request::JobRequest,
};
use crate::{
    http::problem::{Code, Problem},
    server::ServeOptions,
};

const FAKE_CHILD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/jobs/tests/fake_child.sh");
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/training/recipes");

/// A run that trains at once.
const TRAINS: &str = r#"
train() {
    echo '{"event":"stage_started","stage":"dpo","why":"not done yet"}'
    echo '{"event":"progress","stage":"dpo","unit":"steps","done":1,"total":2,"eta_seconds":3.5,"figures":{"loss":0.6,"reward_margin":0.1}}'
    echo '{"event":"progress","stage":"dpo","unit":"steps","done":2,"total":2,"eta_seconds":0,"figures":{"loss":0.5,"reward_margin":0.3,"learning_rate":1e-5}}'
    echo '{"event":"stage_finished","stage":"dpo","seconds":1.0,"summary":{}}'
    echo '{"event":"stage_started","stage":"contrastive","why":"not done yet"}'
    echo '{"event":"something_new"}'
    mkdir -p "$job/run/encoder"
    echo '{"event":"stage_finished","stage":"contrastive","seconds":1.0,"summary":{}}'
}
evaluate_bundles() {
    cp "$job/../outcome.json" "$job/evaluation/outcome.json"
}
"#;

/// The service's double: bundles are names.
struct FakeHost {
    folder: PathBuf,
    active: Mutex<String>,
    /// What was asked of it, in order.
    calls: Mutex<Vec<String>>,
    /// Activations that are refused because another is under way.
    conflicts: Mutex<usize>,
}

impl FakeHost {
    fn called(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

#[async_trait]
impl Host for FakeHost {
    fn active_bundle(&self) -> String {
        self.active.lock().unwrap().clone()
    }

    fn bundle_folder(&self, id: &str) -> Option<PathBuf> {
        id.starts_with("bundle-").then(|| self.folder.join(id))
    }

    fn check_expansion(&self, expansion: &Value) -> Result<(), Problem> {
        let known = !expansion["count"].is_string();
        if known { Ok(()) } else { Err(Problem::field("/expansion/count", "is no number")) }
    }

    async fn package(&self, run: &Path, out: &Path, _: &str, parents: Vec<String>) -> Result<(), Problem> {
        assert!(run.join("encoder").is_dir());
        fs_err::create_dir_all(out).unwrap();
        self.called(format!("package of {}", parents.join(",")));
        Ok(())
    }

    async fn import(&self, folder: &Path, _: Option<&str>) -> Result<String, Problem> {
        assert!(folder.is_dir());
        self.called("import");
        Ok("bundle-new".into())
    }

    async fn activate(&self, id: &str, tell: Tell<'_>) -> Result<Value, Problem> {
        {
            let mut conflicts = self.conflicts.lock().unwrap();
            if *conflicts > 0 {
                *conflicts -= 1;
                return Err(Problem::new(Code::Conflict, "another one is under way"));
            }
        }
        tell("embed", 1, 1);
        self.called(format!("activate {id}"));
        id.clone_into(&mut self.active.lock().unwrap());
        Ok(json!({"active": id}))
    }

    async fn reindex(&self, tell: Tell<'_>) -> Result<Value, Problem> {
        tell("embed", 0, 1);
        self.called("reindex");
        while self.folder.join("wait before the switch").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tell("switch", 0, 0);
        self.called("switch");
        while self.folder.join("wait after the switch").exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(json!({"reindexed": true}))
    }

    async fn snapshot(&self) -> Result<Value, Problem> {
        self.called("snapshot");
        Ok(json!({"status": "written"}))
    }

    fn copy_dataset(&self, name: &str, target: &Path) -> Result<(), Problem> {
        fs_err::hard_link(self.folder.join(format!("{name}.jsonl")), target).unwrap();
        Ok(())
    }

    fn datasets(&self) -> Vec<String> {
        vec!["mine".into()]
    }

    async fn write_feedback(&self, _: &Path) -> Result<usize, Problem> {
        Err(Problem::new(Code::NotFound, "feedback is switched off; --feedback on switches it on"))
    }

    fn audit(&self, _: &str, _: Value, _: Result<(), &str>) {}
}

/// A jobs folder with everything around it.
struct World {
    folder: tempfile::TempDir,
    host: Arc<FakeHost>,
    settings: JobsSettings,
}

#[derive(Parser)]
struct Serve {
    #[command(flatten)]
    options: ServeOptions,
}

impl World {
    fn new(behaviour: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let jobs = folder.path().join("jobs");
        fs_err::create_dir_all(&jobs).unwrap();
        fs_err::write(jobs.join("behaviour.sh"), behaviour).unwrap();
        fs_err::write(folder.path().join("mine.jsonl"), "{\"query\": \"q\", \"positive\": \"p\"}\n").unwrap();
        // Checkpoints by name, as far as acceptance looks at them.
        for (name, more) in [("smollm2-135m-instruct", None), ("all-minilm-l6-v2", Some("modules.json"))] {
            let checkpoint = folder.path().join("models").join(name);
            fs_err::create_dir_all(&checkpoint).unwrap();
            for file in ["config.json", "tokenizer.json", "model.safetensors"].into_iter().chain(more) {
                fs_err::write(checkpoint.join(file), "{}").unwrap();
            }
        }
        let serve = Serve::try_parse_from(["serve"]).unwrap().options;
        let settings = JobsSettings {
            folder: jobs,
            recipes_dir: RECIPES.into(),
            data_dir: Path::new(RECIPES).join("smoke"),
            models_dir: folder.path().join("models"),
            child: ChildSettings {
                program: FAKE_CHILD.into(),
                memory_bytes: None,
                niceness: 0,
                api_key: None,
            },
            attempts: 3,
            queue: 2,
            kept: 5,
            serve: serde_json::to_value(serve).unwrap(),
        };
        let host = Arc::new(FakeHost {
            folder: folder.path().to_owned(),
            active: Mutex::new("bundle-old".into()),
            calls: Mutex::default(),
            conflicts: Mutex::new(0),
        });
        Self { folder, host, settings }
    }

    fn outcome(&self, difference: f64, p_value: f64) {
        let compared = Some(Compared { queries: 30, difference, p_value, ..Compared::default() });
        let collection = CollectionOutcome {
            name: "collection".into(),
            against: Some(SideOutcome::default()),
            compared,
            ..CollectionOutcome::default()
        };
        let outcome = EvaluationOutcome {
            decided_on: vec!["collection".into()],
            collections: vec![collection],
            average: compared,
            ..EvaluationOutcome::default()
        };
        let text = serde_json::to_vec(&outcome).unwrap();
        fs_err::write(self.settings.folder.join("outcome.json"), text).unwrap();
    }

    fn open(&self) -> Arc<Jobs> {
        Arc::new(Jobs::open(self.settings.clone(), self.host.clone()).unwrap())
    }

    /// Opens the jobs and lets them run until the guard is dropped.
    fn run(&self) -> (Arc<Jobs>, tokio_util::sync::DropGuard) {
        let (jobs, stop) = (self.open(), CancellationToken::new());
        tokio::spawn(jobs.clone().work(stop.clone()));
        (jobs, stop.drop_guard())
    }
}

fn request(body: Value) -> JobRequest {
    JobRequest::parse(body).unwrap()
}

fn retrain(promotion: Value) -> JobRequest {
    request(json!({"kind": "retrain", "recipe": "smoke", "promotion": promotion}))
}

async fn until(jobs: &Jobs, id: &str, status: JobStatus) -> JobRecord {
    let start = Instant::now();
    loop {
        let record = jobs.get(id).unwrap();
        if record.status == status {
            return record;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{id} is not {status:?}: {record:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn events(jobs: &Jobs, id: &str) -> Vec<Value> {
    let mut follower = jobs.follow(id, 0).unwrap();
    let mut seen = Vec::new();
    while let Some(more) = follower.next().await {
        seen.extend(more.into_iter().map(|event| serde_json::from_str::<Value>(&event.data).unwrap()));
    }
    seen
}

fn pointers(problem: &Problem) -> Vec<&str> {
    problem.errors.iter().map(|error| error.pointer.as_str()).collect()
}

#[tokio::test]
async fn a_retraining_is_watched_evaluated_decided_and_activated() {
    let world = World::new(TRAINS);
    world.outcome(0.05, 0.01);
    let (jobs, _guard) = world.run();
    let job = jobs.submit(retrain(json!({"when": "significant"})), None).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Succeeded).await;
    let result = record.result.unwrap();
    assert_eq!(result["bundle"], "bundle-new");
    assert_eq!(result["against"], "bundle-old");
    assert_eq!(
        (&result["decision"]["promote"], &result["decision"]["p_value"]),
        (&json!(true), &json!(0.01))
    );
    assert_eq!(result["activation"]["active"], "bundle-new");
    assert_eq!(world.host.calls(), ["package of bundle-old", "import", "activate bundle-new"]);
    assert_eq!((record.attempts, record.stage), (1, None));
    let trained = &record.progress.trainings["dpo"];
    assert_eq!(
        (&trained["loss"], &trained["reward_margin"], &trained["steps"]),
        (&json!(0.5), &json!(0.3), &json!(2))
    );

    let events = events(&jobs, &job.id).await;
    let ids: Vec<u64> = events.iter().map(|event| event["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, (1..=ids.len() as u64).collect::<Vec<_>>());
    let stages: Vec<&str> =
        events.iter().filter(|e| e["event"] == "stage").map(|e| e["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["train/dpo", "train/contrastive", "package", "import", "activate"]);
    let statuses: Vec<&str> = events
        .iter()
        .filter(|e| e["event"] == "status")
        .map(|e| e["job"]["status"].as_str().unwrap())
        .collect();
    assert_eq!(statuses, ["queued", "running", "succeeded"]);
    let step = events.iter().find(|event| event["event"] == "progress").unwrap();
    let progress = &step["progress"];
    assert_eq!(
        (&progress["step"], &progress["steps"], &progress["fraction"]),
        (&json!(1), &json!(2), &json!(0.5))
    );
    assert_eq!((&progress["eta_seconds"], &progress["reward_margin"]), (&json!(3.5), &json!(0.1)));

    // What ran is what was checked: the whole recipe, with the run in the job's folder.
    let recipe = fs_err::read_to_string(world.settings.folder.join(&job.id).join("recipe.toml")).unwrap();
    assert!(recipe.contains("dpo_queries = 12") && recipe.contains(&job.id), "{recipe}");
}

#[tokio::test]
async fn a_rule_that_does_not_hold_leaves_the_live_bundle() {
    let world = World::new(TRAINS);
    let (jobs, _guard) = world.run();
    for (difference, p_value, when) in
        [(0.05, 0.2, "significant"), (-0.5, 0.5, "not_worse"), (0.5, 0.001, "never")]
    {
        world.outcome(difference, p_value);
        let job = jobs.submit(retrain(json!({ "when": when })), None).await.unwrap();
        let result = until(&jobs, &job.id, JobStatus::Succeeded).await.result.unwrap();
        assert_eq!(
            (&result["decision"]["promote"], &result["activation"]),
            (&json!(false), &json!(null)),
            "{when}"
        );
        assert_eq!(world.host.active_bundle(), "bundle-old", "{when}");
    }
}

#[tokio::test]
async fn an_activation_waits_for_its_turn_and_a_changed_live_bundle_is_not_replaced() {
    let changes = TRAINS.replace(
        "evaluate_bundles() {",
        "evaluate_bundles() {\n    while [ ! -e \"$job/../go\" ]; do sleep 0.02; done",
    );
    let world = World::new(&changes);
    world.outcome(0.05, 0.01);
    let (jobs, _guard) = world.run();
    let job = jobs.submit(retrain(json!({"when": "significant"})), None).await.unwrap();
    let start = Instant::now();
    while !world.settings.folder.join(&job.id).join("evaluation.json").exists() {
        assert!(start.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    "bundle-other".clone_into(&mut world.host.active.lock().unwrap());
    fs_err::write(world.settings.folder.join("go"), "").unwrap();
    let result = until(&jobs, &job.id, JobStatus::Succeeded).await.result.unwrap();
    assert_eq!(result["decision"]["promote"], false);
    let why = result["decision"]["why"].as_str().unwrap();
    assert!(why.contains("bundle-other became active"), "{why}");
    assert_eq!(world.host.active_bundle(), "bundle-other");
}

#[tokio::test]
async fn failures_say_what_the_child_said_and_can_be_resumed() {
    let behaviour = format!("{TRAINS}\ntrain_well() {{ :; }}\n");
    let fails = behaviour.replace(
        "train() {",
        "train() {\n    [ -e \"$job/../mended\" ] || { echo 'error: the disk is too small' >&2; exit 1; }",
    );
    let world = World::new(&fails);
    let (jobs, _guard) = world.run();
    world.outcome(0.0, 1.0);
    let job = jobs.submit(retrain(json!({})), None).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Failed).await;
    let problem = record.problem.unwrap();
    assert_eq!(problem["detail"], "train failed: the disk is too small");
    assert!(problem["type"].as_str().unwrap().starts_with("urn:expandr:problem:"), "{problem}");
    fs_err::write(world.settings.folder.join("mended"), "").unwrap();
    jobs.resume(&job.id).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Succeeded).await;
    assert_eq!((record.attempts, record.problem), (2, None));
    assert_eq!(jobs.resume(&job.id).await.unwrap_err().code, Code::Conflict);
    assert_eq!(jobs.cancel(&job.id).await.unwrap_err().code, Code::Conflict);
}

#[tokio::test]
async fn a_killed_child_is_begun_again_until_that_was_too_often() {
    let killed = TRAINS.replace(
        "train() {",
        "train() {\n    n=$(cat \"$job/n\" 2>/dev/null || echo 0); echo $((n + 1)) > \"$job/n\"; [ \"$n\" -ge \"$(cat \"$job/../kills\")\" ] || kill -9 $$",
    );
    let world = World::new(&killed);
    world.outcome(0.0, 1.0);
    fs_err::write(world.settings.folder.join("kills"), "2").unwrap();
    let (jobs, _guard) = world.run();
    let job = jobs.submit(retrain(json!({})), None).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Succeeded).await;
    assert_eq!(record.attempts, 3, "killed twice");

    fs_err::write(world.settings.folder.join("kills"), "4").unwrap();
    let job = jobs.submit(retrain(json!({})), None).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Interrupted).await;
    assert_eq!(record.attempts, 3);
    assert!(record.problem.unwrap()["detail"].as_str().unwrap().contains("resume"));
    jobs.resume(&job.id).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Succeeded).await;
    assert_eq!(record.attempts, 5, "killed once more");
}

#[tokio::test]
async fn jobs_are_cancelled_while_they_wait_and_while_they_run() {
    let world =
        World::new(&TRAINS.replace("train() {", "train() {\n    [ -e \"$job/../go\" ] || exec sleep 60"));
    world.outcome(0.0, 1.0);
    let (jobs, _guard) = world.run();
    let first = jobs.submit(retrain(json!({})), None).await.unwrap();
    until(&jobs, &first.id, JobStatus::Running).await;
    let second = jobs.submit(request(json!({"kind": "snapshot"})), None).await.unwrap();
    assert_eq!(jobs.cancel(&second.id).await.unwrap().status, JobStatus::Cancelled);
    jobs.cancel(&first.id).await.unwrap();
    let record = until(&jobs, &first.id, JobStatus::Cancelled).await;
    assert!(record.finished_at.is_some() && record.problem.is_none());
    assert!(world.host.calls().is_empty());
    fs_err::write(world.settings.folder.join("go"), "").unwrap();
    jobs.resume(&first.id).await.unwrap();
    until(&jobs, &first.id, JobStatus::Succeeded).await;
    assert_eq!(jobs.get(&second.id).unwrap().status, JobStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_live_bundle_is_seen_to_its_end() {
    let world = World::new(TRAINS);
    let (jobs, _guard) = world.run();
    let reached = async |call: &str| {
        while !world.host.calls().iter().any(|known| known == call) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let wait = world.host.folder.join("wait before the switch");
    fs_err::write(&wait, "").unwrap();
    let early = jobs.submit(request(json!({"kind": "reindex"})), None).await.unwrap();
    reached("reindex").await;
    jobs.cancel(&early.id).await.unwrap();
    until(&jobs, &early.id, JobStatus::Cancelled).await;
    fs_err::remove_file(&wait).unwrap();

    let wait = world.host.folder.join("wait after the switch");
    fs_err::write(&wait, "").unwrap();
    let late = jobs.submit(request(json!({"kind": "reindex"})), None).await.unwrap();
    reached("switch").await;
    jobs.cancel(&late.id).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(jobs.get(&late.id).unwrap().status, JobStatus::Running);
    fs_err::remove_file(&wait).unwrap();
    let record = until(&jobs, &late.id, JobStatus::Succeeded).await;
    assert_eq!(record.result.unwrap()["reindexed"], true, "it did happen, and says so");
}

#[test]
fn a_restarted_server_goes_on_without_doing_twice_what_is_remembered() {
    let slow = TRAINS
        .replace("evaluate_bundles() {", "evaluate_bundles() {\n    [ -e \"$job/../go\" ] || exec sleep 60");
    let world = World::new(&slow);
    world.outcome(0.05, 0.01);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let killed = runtime();
    let id = killed.block_on(async {
        let (jobs, guard) = world.run();
        let job = jobs.submit(retrain(json!({"when": "significant"})), Some("key")).await.unwrap();
        let start = Instant::now();
        while !world.settings.folder.join(&job.id).join("evaluation.json").exists() {
            assert!(start.elapsed() < Duration::from_secs(30));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::mem::forget(guard);
        job.id
    });
    // Nobody says goodbye.
    killed.shutdown_timeout(Duration::from_secs(10));
    "bundle-new".clone_into(&mut world.host.active.lock().unwrap());
    fs_err::write(world.settings.folder.join("go"), "").unwrap();
    runtime().block_on(async {
        let (jobs, _guard) = world.run();
        let record = until(&jobs, &id, JobStatus::Succeeded).await;
        assert_eq!((record.attempts, record.broken_off), (2, 1));
        let result = record.result.unwrap();
        assert_eq!(result["against"], "bundle-old", "what was live when the evaluation began");
        let calls = world.host.calls();
        assert_eq!(calls, ["package of bundle-old", "import", "activate bundle-new"]);
        let again = jobs.submit(retrain(json!({"when": "significant"})), Some("key")).await.unwrap();
        assert_eq!(again.id, id, "keys survive a restart, too");
    });
}

#[test]
fn an_orderly_stop_is_not_held_against_a_job() {
    let world =
        World::new(&TRAINS.replace("train() {", "train() {\n    [ -e \"$job/../go\" ] || exec sleep 60"));
    world.outcome(0.0, 1.0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let id = runtime.block_on(async {
        let (jobs, stop) = (world.open(), CancellationToken::new());
        let work = tokio::spawn(jobs.clone().work(stop.clone()));
        let job = jobs.submit(retrain(json!({})), None).await.unwrap();
        until(&jobs, &job.id, JobStatus::Running).await;
        stop.cancel();
        work.await.unwrap();
        let record = jobs.get(&job.id).unwrap();
        assert_eq!((record.status, record.broken_off), (JobStatus::Queued, 0));
        job.id
    });
    drop(runtime);
    fs_err::write(world.settings.folder.join("go"), "").unwrap();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let (jobs, _guard) = world.run();
        assert_eq!(until(&jobs, &id, JobStatus::Succeeded).await.attempts, 2);
    });
}

#[tokio::test]
async fn keys_name_one_request_and_the_queue_is_bounded() {
    let world = World::new(TRAINS);
    let jobs = world.open(); // nobody works
    let snapshot = || request(json!({"kind": "snapshot"}));
    let first = jobs.submit(snapshot(), Some("a")).await.unwrap();
    assert_eq!(jobs.submit(snapshot(), Some("a")).await.unwrap().id, first.id);
    let other = jobs.submit(request(json!({"kind": "reindex"})), Some("a")).await.unwrap_err();
    assert_eq!(other.code, Code::InvalidRequest);
    jobs.submit(snapshot(), None).await.unwrap();
    let full = jobs.submit(snapshot(), None).await.unwrap_err();
    assert_eq!((full.code, full.retry_after_seconds), (Code::Overloaded, Some(60)));
    assert_eq!(jobs.submit(snapshot(), Some("a")).await.unwrap().id, first.id, "also while it is full");
    let listed: Vec<u64> =
        jobs.list(Some(JobStatus::Queued), 10).iter().map(|record| record.number).collect();
    assert_eq!(listed, [2, 1]);
    assert_eq!(jobs.list(None, 1).len(), 1);
    assert_eq!(jobs.get("job-unknown").unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn old_jobs_are_forgotten_with_their_folders_and_keys() {
    let world = World::new(TRAINS);
    let (jobs, _guard) = world.run();
    let mut ids = Vec::new();
    for i in 0..7 {
        let job = jobs.submit(request(json!({"kind": "snapshot"})), Some(&format!("key-{i}"))).await.unwrap();
        until(&jobs, &job.id, JobStatus::Succeeded).await;
        ids.push(job.id);
    }
    let start = Instant::now();
    while jobs.get(&ids[1]).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(30), "the second of seven must go: five are kept");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!world.settings.folder.join(&ids[1]).exists() && jobs.get(&ids[2]).is_ok());
    let again = jobs.submit(request(json!({"kind": "snapshot"})), Some("key-0")).await.unwrap();
    assert!(!ids.contains(&again.id), "a forgotten job's key is free again");
}

#[tokio::test]
async fn what_cannot_work_is_refused_at_once() {
    let world = World::new(TRAINS);
    let jobs = world.open();
    let cases = [
        (json!({"kind": "retrain", "recipe": "smke"}), vec!["/recipe"], "did you mean `smoke`"),
        (json!({"kind": "retrain", "recipe": "../smoke"}), vec!["/recipe"], "not a plain path"),
        (json!({"kind": "retrain", "recipe_toml": "nonsense ="}), vec!["/recipe_toml"], "TOML"),
        (
            json!({"kind": "retrain", "recipe": "smoke", "overrides": {"dpo.epoch": 1}}),
            vec!["/overrides/dpo.epoch"],
            "did you mean",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "overrides": {"encoder.model": "no-such-encoder"}}),
            vec!["/overrides/encoder.model"],
            "no-such-encoder",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "overrides": {"data.folder": "/etc"}}),
            vec!["/overrides/data.folder"; 2],
            "No such file",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "stages": ["pears"]}),
            vec!["/stages/0"],
            "no stage `pears`",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "stages": ["candidates"]}),
            vec!["/stages"],
            "needs stage pairs",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "pairs": {"datasets": ["mne"]}}),
            vec!["/pairs/datasets/0"],
            "did you mean `mine`",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "pairs": {"feedback": true}}),
            vec!["/pairs/feedback"],
            "--feedback on",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "pairs": {"only": true}}),
            vec!["/pairs/only"],
            "no pairs",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "evaluate": {"collections": ["colection", ".."]}}),
            vec!["/evaluate/collections/0", "/evaluate/collections/1"],
            "did you mean `collection`",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "promotion": {"collections": ["scifact"]}}),
            vec!["/promotion/collections/0"],
            "not evaluated",
        ),
        (
            json!({"kind": "retrain", "recipe": "smoke", "overrides": {"evaluation.collections": []}, "promotion": {"when": "not_worse"}}),
            vec!["/promotion/when"],
            "nothing to compare on",
        ),
        (
            json!({"kind": "evaluate", "collections": ["collection"], "bundle": "elsewhere", "expansion": {"count": "x"}}),
            vec!["/expansion/count", "/bundle"],
            "no bundle `elsewhere`",
        ),
        (
            json!({"kind": "evaluate", "collections": ["collection"], "bundle": "bundle-a", "against": "bundle-a"}),
            vec!["/against"],
            "itself",
        ),
        (json!({"kind": "import", "path": "collection", "what": "encoder"}), vec!["/path"], "config.json"),
        (json!({"kind": "import", "path": "/etc", "what": "bundle"}), vec!["/path"], "--data-dir"),
    ];
    for (body, expected, part) in cases {
        let problem = jobs.submit(request(body.clone()), None).await.unwrap_err();
        assert_eq!(problem.code, Code::InvalidRequest, "{body}: {problem:?}");
        let found = pointers(&problem);
        assert!(found.iter().zip(&expected).all(|(a, b)| a == b), "{body}: {problem:?}");
        let said = problem.errors.iter().any(|error| error.detail.contains(part));
        assert!(said, "{body}: {problem:?}");
    }
    assert!(jobs.list(None, 10).is_empty());
    let left: Vec<_> = fs_err::read_dir(&world.settings.folder).unwrap().flatten().collect();
    assert!(left.iter().all(|entry| !entry.file_name().to_string_lossy().starts_with("job-")), "{left:?}");
}

#[tokio::test]
async fn data_sets_are_frozen_when_the_job_is_accepted() {
    let world = World::new(TRAINS);
    let jobs = world.open();
    let body = json!({"kind": "retrain", "recipe": "smoke", "pairs": {"datasets": ["mine"], "only": true}});
    let job = jobs.submit(request(body), None).await.unwrap();
    // A dataset is replaced by a rename.
    let mine = world.folder.path().join("mine.jsonl");
    fs_err::write(world.folder.path().join("next"), "other\n").unwrap();
    fs_err::rename(world.folder.path().join("next"), &mine).unwrap();
    let folder = world.settings.folder.join(&job.id);
    let frozen = fs_err::read_to_string(folder.join("data/dataset-0.jsonl")).unwrap();
    assert!(frozen.contains("positive"), "{frozen}");
    let recipe = fs_err::read_to_string(folder.join("recipe.toml")).unwrap();
    assert!(recipe.contains("dataset-mine") && !recipe.contains("invented"), "{recipe}");
    let body = json!({"kind": "retrain", "recipe": "smoke", "pairs": {"datasets": ["mine"]}});
    let job = jobs.submit(request(body), None).await.unwrap();
    let recipe = fs_err::read_to_string(world.settings.folder.join(&job.id).join("recipe.toml")).unwrap();
    assert!(recipe.contains("dataset-mine") && recipe.contains("invented"), "{recipe}");
}

#[tokio::test]
async fn what_the_service_does_itself_is_a_job_as_well() {
    let world = World::new(TRAINS);
    world.outcome(0.0, 1.0);
    let (jobs, _guard) = world.run();
    for kind in ["snapshot", "reindex"] {
        let job = jobs.submit(request(json!({ "kind": kind })), None).await.unwrap();
        assert!(until(&jobs, &job.id, JobStatus::Succeeded).await.result.is_some());
    }
    let body = json!({"kind": "evaluate", "collections": ["collection"], "bundle": "bundle-a"});
    let job = jobs.submit(request(body), None).await.unwrap();
    let record = until(&jobs, &job.id, JobStatus::Succeeded).await;
    assert_eq!(record.result.unwrap()["evaluation"]["decided_on"], json!(["collection"]));
    assert_eq!(
        record.memory.against.as_deref(),
        Some("bundle-old"),
        "the live bundle, unless another is named"
    );
    assert_eq!(world.host.calls(), ["snapshot", "reindex", "switch"]);
}
