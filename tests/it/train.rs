//! `expandr train` with the smoke recipe and the real default weights: every stage, killed on its way, and served.
//!
//! `EXPANDR_KILL_ROUNDS` sets the number of runs that are killed (default 1), four times each.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::process::{BINARY, Server, models_dir};

const RECIPE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/training/recipes/smoke.toml");
/// Where a run is killed, in the order in which it gets there.
const KILLED_IN: [&str; 4] = ["candidates", "dpo", "expansions", "contrastive"];
/// What everything else follows from.
const OUTCOMES: [(&str, &str); 6] = [
    ("candidates", "candidates.jsonl"),
    ("preferences", "preferences.jsonl"),
    ("dpo", "adapter"),
    ("expansions", "expansions.jsonl"),
    ("contrastive", "encoder"),
    ("test-expansions", "test-expansions.jsonl"),
];

/// Runs the recipe into `out`; killed at the `moment`-th event of a stage, if one is named. Gives the events.
fn train(out: &Path, killed: Option<(&str, usize)>) -> Vec<Value> {
    let mut child = Command::new(BINARY)
        .args(["train", RECIPE, "--progress", "json", "--out"])
        .arg(out)
        .arg("--models-dir")
        .arg(models_dir())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut events: Vec<Value> = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        events.push(serde_json::from_str(&line.unwrap()).unwrap());
        let seen =
            |stage: &str| events.iter().filter(|e| e["stage"] == stage && e["event"] == "progress").count();
        if killed.is_some_and(|(stage, moment)| seen(stage) >= moment) {
            child.kill().unwrap();
            child.wait().unwrap();
            return events;
        }
    }
    assert!(child.wait().unwrap().success(), "{events:?}");
    events
}

fn hashes(run: &Path) -> Vec<String> {
    let hash = |(stage, output): (&str, &str)| {
        let manifest = fs_err::read(run.join("stages").join(format!("{stage}.json"))).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        format!("{output} {}", manifest["outputs"][output].as_str().unwrap())
    };
    OUTCOMES.map(hash).to_vec()
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["event"] == kind).count()
}

#[tokio::test]
async fn a_killed_run_ends_like_another_and_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let events = train(&whole, None);
    assert!(count(&events, "stage_finished") >= 12, "{events:?}");
    let expected = hashes(&whole);

    let rounds =
        std::env::var("EXPANDR_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(1);
    for round in 1..=rounds {
        let killed = folder.path().join(format!("killed-{round}"));
        for stage in KILLED_IN {
            let events = train(&killed, Some((stage, round + 1)));
            assert_eq!(count(&events, "finished"), 0, "stage {stage} must be reached, and not outlived");
        }
        train(&killed, None);
        assert_eq!(hashes(&killed), expected, "round {round}");
    }

    // Everything is there, and nothing is done again.
    let again = train(&whole, None);
    assert_eq!(count(&again, "stage_started"), 0, "{again:?}");
    let report: Value = serde_json::from_slice(&fs_err::read(whole.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["rows"].as_array().unwrap().len(), 3, "{report}");

    // Two runs with the same outcome are, together, what each is.
    let pooled = folder.path().join("pooled");
    let runs = [&whole, &folder.path().join("killed-1")];
    let done = Command::new(BINARY).arg("report").args(runs).arg("--out").arg(&pooled).output();
    assert!(done.unwrap().status.success());
    let both: Value = serde_json::from_slice(&fs_err::read(pooled.join("report.json")).unwrap()).unwrap();
    assert_eq!(both["rows"].as_array().unwrap().len(), 3, "{both}");
    for (one, both) in report["rows"].as_array().unwrap().iter().zip(both["rows"].as_array().unwrap()) {
        assert_eq!(
            (&one["collections"][0]["mean"], 2),
            (&both["collections"][0]["mean"], both["runs"].as_array().unwrap().len())
        );
    }

    // What was trained is what is served.
    let (encoder, expander) = (whole.join("encoder"), whole.join("expander"));
    let flags = ["--encoder", encoder.to_str().unwrap(), "--expander", expander.to_str().unwrap()];
    let server = Server::start(&folder.path().join("index"), &flags);
    server.put(&[("heron", "Herons wade at shallow shores."), ("lake", "The lake lies in the north.")]).await;
    let body = json!({
        "query": "where do herons wade", "expansion": {"max_tokens": 16, "timeout_ms": 25000},
    });
    let (status, answer) = server.post("/search", body.clone()).await;
    assert_eq!((status, &answer["expansion"]["status"]), (200, &json!("applied")), "{answer}");
    assert_eq!(answer["hits"][0]["id"], "heron", "{answer}");
    drop(server);

    // Or the adapter beside the model that it was trained on.
    let adapter = whole.join("adapter");
    let config = fs_err::read(adapter.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["base_model_name_or_path"], "smollm2-135m-instruct", "the same on every machine");
    let flags = ["--encoder", encoder.to_str().unwrap(), "--expander-adapter", adapter.to_str().unwrap()];
    let server = Server::start(&folder.path().join("index"), &flags);
    let (_, info) = server.get("/info").await;
    assert!(info["bundle"]["expander"]["id"].as_str().unwrap().contains("+expander-adapter@"), "{info}");
    let (status, answer) = server.post("/search", body).await;
    assert_eq!((status, &answer["expansion"]["status"]), (200, &json!("applied")), "{answer}");
}
