//! Whole runs over doubles: done once, resumed, changed, shared, and with stages done elsewhere.

mod changed;
mod elsewhere;
mod fake;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use expandr_models::gate::Gate;
use serde_json::json;

use self::fake::{Ears, FakeSteps};
use super::*;
use crate::folder::JsonLines;
use crate::preference::PreferenceLine;
use crate::steps::Model;
use crate::{Pair, ScoreLine, WrittenLine};

/// A folder with data, models and a run.
struct Bench {
    folder: PathBuf,
    /// Removes the folder at the end, if it is this bench's own.
    _kept: Option<tempfile::TempDir>,
    steps: FakeSteps,
    ears: Ears,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::at(folder.path()).keeping(folder)
    }

    fn keeping(self, folder: tempfile::TempDir) -> Self {
        Self { _kept: Some(folder), ..self }
    }

    /// 40 training pairs, four of them of test queries, and a collection of 12 documents and 4 queries.
    fn at(folder: &Path) -> Self {
        let data = folder.join("data");
        fs_err::create_dir_all(data.join("c/qrels")).unwrap();
        let topics: Vec<String> = (0..40).map(|n| format!("topic{n} river{}", n % 7)).collect();
        let pairs: Vec<String> = topics
            .iter()
            .map(|topic| {
                let pair = json!({
                    "query": format!("what is {topic}"),
                    "positive": format!("{topic} is a thing about {topic} and water"),
                    "negatives": ["a bridge is a thing", "a mill is another"],
                });
                pair.to_string()
            })
            .collect();
        fs_err::write(data.join("pairs.jsonl"), pairs.join("\n")).unwrap();
        let documents: Vec<String> = topics[..12]
            .iter()
            .enumerate()
            .map(|(n, topic)| json!({"_id": format!("d{n}"), "text": format!("{topic} flows")}).to_string())
            .collect();
        fs_err::write(data.join("c/corpus.jsonl"), documents.join("\n")).unwrap();
        let queries: Vec<String> = [0, 1, 5, 9]
            .iter()
            .map(|n| json!({"_id": format!("q{n}"), "text": format!("What is {}?", topics[*n])}).to_string())
            .collect();
        fs_err::write(data.join("c/queries.jsonl"), queries.join("\n")).unwrap();
        fs_err::write(data.join("c/qrels/test.tsv"), "q0\td0\t1\nq1\td1\t1\nq5\td5\t1\nq9\td9\t1\n").unwrap();
        let steps = FakeSteps::new(&folder.join("models"));
        Self { folder: folder.to_owned(), _kept: None, steps, ears: Ears::default() }
    }

    /// A collection `d` with the documents of `c` under other ids, so that its queries find other ones.
    fn second_collection(&self) {
        let (from, to) = (self.folder.join("data/c"), self.folder.join("data/d"));
        fs_err::create_dir_all(to.join("qrels")).unwrap();
        let corpus = read(&from.join("corpus.jsonl"));
        let shifted: Vec<String> = corpus
            .lines()
            .enumerate()
            .map(|(n, line)| line.replace(&format!("\"d{n}\""), &format!("\"d{}\"", (n + 1) % 12)))
            .collect();
        fs_err::write(to.join("corpus.jsonl"), shifted.join("\n")).unwrap();
        for file in ["queries.jsonl", "qrels/test.tsv"] {
            fs_err::copy(from.join(file), to.join(file)).unwrap();
        }
    }

    fn recipe(&self, overrides: &[&str]) -> Recipe {
        let text = format!(
            "output = {:?}\n[expander]\nmodel = \"language-model\"\n[encoder]\nmodel = \"encoder\"\n\
             [data]\nfolder = {:?}\ndpo_queries = 12\ndpo_dev_share = 0.25\nmax_negatives = 1\n\
             [candidates]\ntemperatures = [0.8, 1.0]\nsamples = 3\nmax_tokens = 10\n\
             [rewards]\nthreshold = 0.1\n\
             [[data.sources]]\nname = \"a\"\npath = \"pairs.jsonl\"\n[[evaluation.collections]]\npath = \"c\"\n",
            self.folder.join("run"),
            self.folder.join("data"),
        );
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Recipe::parse(&text, &overrides).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join("run").join(name)
    }

    async fn run(&mut self, overrides: &[&str], options: Options) -> Result<()> {
        self.ears = Ears::default();
        let recipe = self.recipe(overrides);
        Run::new(&recipe, options, &self.steps, &self.ears)?.run().await
    }

    fn plan(&self, overrides: &[&str], options: Options) -> Vec<PlannedStage> {
        let recipe = self.recipe(overrides);
        Run::new(&recipe, options, &self.steps, &self.ears).unwrap().plan().unwrap()
    }

    fn lines<T: serde::de::DeserializeOwned>(&self, name: &str) -> Vec<T> {
        JsonLines::open(&self.path(name)).unwrap().collect::<Result<_>>().unwrap()
    }

    fn hashes(&self, name: &str) -> BTreeMap<String, String> {
        let path = self.path("stages").join(format!("{name}.json"));
        Manifest::read(&path).unwrap().unwrap().outputs
    }
}

fn only(stages: &[Stage]) -> Options {
    Options { stages: Some(stages.to_vec()), ..Options::default() }
}

fn read(path: &Path) -> String {
    fs_err::read_to_string(path).unwrap()
}

#[tokio::test]
async fn a_recipe_becomes_a_report() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();

    let pairs: Vec<Pair> = bench.lines("pairs.jsonl");
    assert_eq!(pairs.len(), 36, "four training queries are test queries");
    let dpo = pairs.iter().filter(|pair| pair.part.trains_expander()).count();
    assert_eq!(dpo, 12);
    let candidates: Vec<WrittenLine> = bench.lines("candidates.jsonl");
    let answers: Vec<WrittenLine> = bench.lines("answers.jsonl");
    let scores: Vec<ScoreLine> = bench.lines("scores.jsonl");
    assert_eq!((candidates.len(), answers.len(), scores.len()), (12, 12, 12));
    assert!(
        candidates.iter().all(|line| line.texts.len() == 6) && answers.iter().all(|l| l.texts.len() == 1)
    );
    assert!(scores.iter().all(|line| line.gold.len() == 6 && line.gold.iter().all(|s| s.abs() <= 1.001)));
    let order: Vec<&str> =
        pairs.iter().filter(|pair| pair.part.trains_expander()).map(|pair| pair.id.as_str()).collect();
    assert_eq!(candidates.iter().map(|line| line.id.as_str()).collect::<Vec<_>>(), order);

    let train: Vec<PreferenceLine> = bench.lines("preferences.jsonl");
    let dev: Vec<PreferenceLine> = bench.lines("preferences.dev.jsonl");
    assert!(train.len() > 4 && !dev.is_empty() && train.len() + dev.len() <= 12);
    for line in train.iter().chain(&dev) {
        assert!(line.score_chosen > line.score_rejected);
        assert!(!line.chosen.text().starts_with("Passage:"), "lead-ins are taken away");
        let query = candidates.iter().find(|candidate| candidate.id == line.id).unwrap();
        assert!(line.prompt.text().contains(&query.query));
    }
    assert_eq!(bench.lines::<crate::example::ExampleLine>("examples.jsonl").len(), 22);
    for place in ["adapter/adapter_config.json", "expander/weights", "encoder/weights", "runs/scores.json"] {
        assert!(bench.path(place).is_file(), "{place}");
    }
    let report: Value = serde_json::from_str(&read(&bench.path("report.json"))).unwrap();
    let rows: Vec<&str> =
        report["rows"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
    assert_eq!(rows, ["expandr", "query", "ft"]);
    assert!(
        report["rows"][1]["average"]["ndcg@10"].as_f64().unwrap() > 0.5,
        "queries share words with documents"
    );
    assert!(read(&bench.path("report.md")).contains("| ExpandR |"));
    assert!(!bench.path("work/candidates").exists());
    assert_eq!(bench.ears.stages("stage_finished").len(), 14 + 2 + 4);

    // Once done it stays done.
    bench.run(&[], Options::default()).await.unwrap();
    assert!(bench.ears.stages("stage_started").is_empty());
    assert_eq!(bench.ears.stages("stage_skipped").len(), 20);
}

#[tokio::test]
async fn what_is_written_does_not_depend_on_order_or_concurrency() {
    let mut first = Bench::new();
    first.steps.concurrency = 1;
    let mut second = Bench::new();
    second.steps.concurrency = 9;
    let stages = [Stage::Pairs, Stage::Candidates, Stage::Answers, Stage::Scores, Stage::Preferences];
    first.run(&[], only(&stages)).await.unwrap();
    second.run(&[], only(&stages)).await.unwrap();
    for name in ["candidates", "answers", "scores", "preferences"] {
        assert_eq!(first.hashes(name), second.hashes(name), "{name}");
    }
    let mut other = Bench::new();
    other.run(&["seed=7"], only(&stages)).await.unwrap();
    assert_ne!(first.hashes("candidates"), other.hashes("candidates"));
    let texts: std::collections::BTreeSet<String> = first
        .lines::<WrittenLine>("candidates.jsonl")
        .into_iter()
        .flat_map(|line| line.texts.into_iter().map(|text| text.text))
        .collect();
    assert_eq!(texts.len(), 72, "every sample has a seed of its own");
}

#[tokio::test]
async fn an_interrupted_generation_goes_on_where_it_was() {
    let mut whole = Bench::new();
    whole.run(&[], only(&[Stage::Pairs, Stage::Candidates])).await.unwrap();

    let mut bench = Bench::new();
    bench.steps.prompts_left.store(5, Ordering::SeqCst);
    let error = bench.run(&[], only(&[Stage::Pairs, Stage::Candidates])).await.unwrap_err().to_string();
    assert!(error.contains("stage candidates") && error.contains("run the same command again"), "{error}");
    let journal = bench.path("work/candidates/journal.jsonl");
    let finished = read(&journal).lines().count();
    assert!((1..=5).contains(&finished), "{finished}");
    // A kill in the middle of a line.
    let torn = format!("{}{{\"id\":\"00", read(&journal));
    fs_err::write(&journal, torn).unwrap();
    let planned = bench.plan(&[], only(&[Stage::Candidates]));
    let candidates = planned.iter().find(|stage| stage.name == "candidates").unwrap();
    assert!(matches!(&candidates.status, Status::Todo { why, .. } if why.contains("goes on where it was")));

    bench.steps.prompts_left.store(usize::MAX, Ordering::SeqCst);
    let before = bench.steps.prompts.load(Ordering::SeqCst);
    bench.run(&[], only(&[Stage::Candidates])).await.unwrap();
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst) - before, 12 - finished);
    assert_eq!(bench.hashes("candidates"), whole.hashes("candidates"));
    let events = bench.ears.0.lock().unwrap();
    let first = events.iter().find(|event| event["event"] == "progress").unwrap();
    assert_eq!((&first["done"], &first["total"]), (&json!(finished), &json!(12)));
}

/// A run in a process of its own, for the test below to kill.
#[tokio::test]
#[ignore = "only for the test that kills it"]
async fn child() {
    let Some(folder) = std::env::var_os("EXPANDR_TEST_RUN") else { return };
    let mut bench = Bench::at(Path::new(&folder));
    bench.steps.token_delay = Duration::from_micros(300);
    bench.run(&[], Options::default()).await.unwrap();
}

#[test]
fn killed_at_any_point_it_comes_to_the_same_end() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut undisturbed = Bench::new();
    runtime.block_on(undisturbed.run(&[], Options::default())).unwrap();

    let bench = Bench::new();
    let mut kills = 0;
    for attempt in 0.. {
        assert!(attempt < 200, "it never comes to an end");
        let mut process = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["runner::tests::child", "--exact", "--ignored"])
            .env("EXPANDR_TEST_RUN", &bench.folder)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Longer every time, so that it ends on a slow machine as well.
        let patience = Duration::from_millis(40 + 13 * (attempt % 7) + 10 * attempt);
        let start = Instant::now();
        let status = loop {
            match process.try_wait().unwrap() {
                Some(status) => break Some(status),
                None if start.elapsed() > patience => break None,
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        match status {
            Some(status) => {
                assert!(status.success());
                break;
            }
            None => {
                process.kill().unwrap();
                process.wait().unwrap();
                kills += 1;
            }
        }
    }
    assert!(kills > 0, "the first attempt must be too short");
    for name in ["pairs", "candidates", "scores", "preferences", "dpo", "merge", "expansions", "contrastive"]
    {
        assert_eq!(bench.hashes(name), undisturbed.hashes(name), "{name} after {kills} kills");
    }
    assert_eq!(read(&bench.path("runs/scores.json")), read(&undisturbed.path("runs/scores.json")));
}

#[tokio::test]
async fn an_interrupted_trainer_finds_its_work_again() {
    let mut bench = Bench::new();
    *bench.steps.trainers_break.lock().unwrap() = true;
    let error = bench.run(&[], Options::default()).await.unwrap_err().to_string();
    assert!(error.contains("breaks at step 5"), "{error}");
    assert!(!bench.path("adapter").exists());
    *bench.steps.trainers_break.lock().unwrap() = false;
    bench.run(&[], only(&[Stage::Dpo])).await.unwrap();
    assert_eq!(*bench.steps.jobs.lock().unwrap(), ["dpo from step 5"]);
}

#[tokio::test]
async fn the_ablations_run_shared_stages_once() {
    let mut bench = Bench::new();
    bench.run(&[], Options { ablations: true, ..Options::default() }).await.unwrap();
    let finished = bench.ears.stages("stage_finished");
    let count = |name: &str| finished.iter().filter(|stage| stage.split('@').next() == Some(name)).count();
    assert_eq!((count("pairs"), count("candidates"), count("scores"), count("dpo")), (1, 1, 1, 3));
    assert_eq!((count("contrastive"), count("evaluation"), count("report")), (6, 10, 1));
    // Twelve candidates and answers each, 24 expansions and 4 test expansions for four language models.
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst), 12 + 12 + 4 * (24 + 4));
    let report: Value = serde_json::from_str(&read(&bench.path("report.json"))).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), 10);
    let pooled = report["comparisons"].as_array().unwrap();
    assert!(pooled.iter().any(|c| c["first"] == "without-self-reward" && c["second"] == "expandr"));

    // The rows of the recipe are then done already, but for the report over them.
    bench.run(&[], Options::default()).await.unwrap();
    assert_eq!(bench.ears.stages("stage_started"), ["report"]);
}

#[tokio::test]
async fn stages_need_those_before_them() {
    let mut bench = Bench::new();
    let error = bench.run(&[], only(&[Stage::Candidates])).await.unwrap_err().to_string();
    assert!(error.contains("stage candidates: needs stage pairs, which is not done"), "{error}");
    let error = bench.run(&[], only(&[Stage::WarmUp])).await.unwrap_err().to_string();
    assert!(
        error.contains("stage warm-up is no part of this run; its stages are pairs, candidates"),
        "{error}"
    );
}

#[tokio::test]
async fn a_plan_says_what_is_done_and_what_is_not() {
    let mut bench = Bench::new();
    bench.run(&[], only(&[Stage::Pairs, Stage::Answers])).await.unwrap();
    let status = |name: &str, overrides: &[&str]| {
        let planned = bench.plan(overrides, Options::default());
        planned.into_iter().find(|stage| stage.name == name).unwrap().status
    };
    let todo = |why: &str| Status::Todo { why: why.into(), afresh: false };
    assert_eq!((status("pairs", &[]), status("candidates", &[])), (Status::Done, todo("not done yet")));
    assert_eq!(status("scores", &[]), Status::Waits { needs: "candidates".into() });
    let refused = status("answers", &["answers.max_tokens=3"]);
    assert!(matches!(refused, Status::Refused { why } if why.contains("max_tokens: 512 → 3")));
    assert!(!bench.path("candidates.jsonl").exists(), "planning does nothing");

    // What is to be taken from elsewhere.
    let adopted = |name: &str, stage: Stage| {
        let planned = bench.plan(&[], Options { adopt: vec![stage], ..Options::default() });
        planned.into_iter().find(|stage| stage.name == name).unwrap().status
    };
    let missing = adopted("candidates", Stage::Candidates);
    assert!(matches!(missing, Status::Refused { why } if why.contains("isn't there; put it there first")));
    fs_err::write(bench.path("candidates.jsonl"), "{}").unwrap();
    assert_eq!(adopted("candidates", Stage::Candidates), todo("taken from elsewhere"));
    fs_err::create_dir_all(bench.path("adapter")).unwrap();
    assert_eq!(adopted("dpo", Stage::Dpo), Status::Waits { needs: "preferences".into() });
}

#[tokio::test]
async fn negatives_are_mined_and_a_weight_is_chosen() {
    let mut bench = Bench::new();
    let settings = [
        "contrastive.mined_negatives=2",
        "contrastive.mined_from=1",
        "contrastive.mined_to=8",
        "evaluation.query_weight=dev",
    ];
    bench.run(&settings, Options::default()).await.unwrap();
    let examples: Vec<crate::example::ExampleLine> = bench.lines("examples.jsonl");
    assert!(
        examples.iter().all(|line| line.negatives.len() == 3 && !line.negatives.contains(&line.positive))
    );
    // The encoder knows words: what shares the query's river is found before what doesn't.
    let river =
        |text: &str| text.split_whitespace().find(|word| word.starts_with("river")).unwrap().to_owned();
    let alike = examples.iter().flat_map(|line| {
        line.negatives[1..].iter().map(|negative| river(negative.as_str()) == river(&line.query))
    });
    assert!(
        alike.filter(|alike| *alike).count() > 11,
        "more than a quarter, where a seventh would be chance"
    );
    let weight: Value = serde_json::from_str(&read(&bench.path("weight.json"))).unwrap();
    let chosen = weight["query_weight"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&chosen) && weight["queries"] == 2);
    let dev: Vec<crate::example::ExampleLine> = bench.lines("examples.dev.jsonl");
    let passages = |lines: &[crate::example::ExampleLine]| -> std::collections::BTreeSet<String> {
        lines.iter().flat_map(|line| line.negatives.iter().chain([&line.positive])).cloned().collect()
    };
    let (few, all) = (passages(&dev), passages(&[dev, examples].concat()));
    assert!(few.len() < all.len() && weight["passages"] == all.len(), "those of both parts: {weight}");
    assert!(!bench.path("arms/ft/weight.json").exists());
}

#[tokio::test]
async fn joint_encoding_puts_the_query_before_its_expansion_and_writes_nothing_anew() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    let apart: Vec<crate::example::ExampleLine> = bench.lines("examples.jsonl");
    bench.ears.0.lock().unwrap().clear();
    bench
        .run(&["expansions.joint_encoding=true"], Options { redo: true, ..Options::default() })
        .await
        .unwrap();
    let joint: Vec<crate::example::ExampleLine> = bench.lines("examples.jsonl");
    assert!(!apart.is_empty());
    for (apart, joint) in apart.iter().zip(&joint) {
        let expected: Vec<String> =
            apart.expansions.iter().map(|text| format!("{} {text}", apart.query)).collect();
        assert_eq!((&joint.query, &joint.expansions), (&apart.query, &expected));
    }
    let started = bench.ears.stages("stage_started");
    assert!(
        started.contains(&"contrastive".to_owned()) && started.contains(&"evaluation".to_owned()),
        "{started:?}"
    );
    assert!(!started.iter().any(|stage| stage.contains("expansions")), "{started:?}");
}

#[tokio::test]
async fn a_gate_is_learnt_and_has_a_row_of_its_own() {
    let mut bench = Bench::new();
    let settings = ["gate.enabled=true", "data.retriever_dev_share=0.6"];
    bench.run(&settings, Options::default()).await.unwrap();
    let gate = Gate::read(&bench.path("gate.json")).unwrap();
    let figures = gate.trained_on();
    let dev = bench.lines::<crate::example::ExampleLine>("examples.dev.jsonl").len();
    assert!(dev > 10 && figures.queries == dev, "{dev} {figures:?}");
    assert_eq!((gate.query_weight(), gate.encoder()), (0.5, "hash-32@000000000000"));
    let manifest = Manifest::read(&bench.path("stages/gate.json")).unwrap().unwrap();
    assert_eq!(manifest.summary["share_skipped"], figures.share_skipped);
    // The doubles write words that have nothing to do with the query, so expansion loses.
    assert!(figures.gain_always < 0.0 && gate.threshold().is_none(), "{figures:?}");
    let report: Value = serde_json::from_str(&read(&bench.path("report.json"))).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["expandr", "query", "ft", "auto"]);
    let auto = &rows[3]["collections"][0];
    assert_eq!((&auto["skipped"], &auto["mean_words"]), (&json!(4), &json!(0.0)));
    assert!(read(&bench.path("report.md")).contains("The gate left unexpanded: 4 of 4 on c."));

    // With a gate that expands everything the row is ExpandR's own.
    let open = read(&bench.path("gate.json")).replace("\"threshold\": null", "\"threshold\": -2.0");
    let manifest = read(&bench.path("stages/gate.json"));
    let manifest =
        manifest.replace(&bench.hashes("gate")["gate.json"], &crate::seed::sha256(open.as_bytes()));
    fs_err::write(bench.path("gate.json"), open).unwrap();
    fs_err::write(bench.path("stages/gate.json"), manifest).unwrap();
    bench.run(&settings, Options::default()).await.unwrap();
    assert_eq!(bench.ears.stages("stage_started"), ["evaluation@auto", "report"]);
    let report: Value = serde_json::from_str(&read(&bench.path("report.json"))).unwrap();
    assert_eq!(report["rows"][3]["collections"], report["rows"][0]["collections"]);
    assert!(report["rows"][3]["collections"][0]["mean_words"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn a_warm_up_comes_first() {
    let mut bench = Bench::new();
    bench.run(&["warm_up.enabled=true"], Options::default()).await.unwrap();
    let jobs: Vec<String> = bench.steps.jobs.lock().unwrap().clone();
    assert_eq!(jobs[..3], ["warm-up from step 0", "merge from step 0", "dpo from step 0"]);
    let pairs: Vec<Pair> = bench.lines("pairs.jsonl");
    let manifest = Manifest::read(&bench.path("stages/warm-up.json")).unwrap().unwrap();
    let dpo_train =
        pairs.iter().filter(|p| p.part.trains_expander() && p.split == crate::Split::Train).count();
    assert_eq!(manifest.summary["train"], dpo_train);
}

#[tokio::test]
async fn two_runs_never_share_a_folder() {
    let bench = Bench::new();
    let _lock = Lock::take(&bench.path("")).unwrap();
    let recipe = bench.recipe(&[]);
    let mut run = Run::new(&recipe, Options::default(), &bench.steps, &bench.ears).unwrap();
    assert!(run.run().await.unwrap_err().to_string().contains("another run is at work"));
}
