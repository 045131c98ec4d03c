//! `scenarios.sh` says what the binary understands.

use std::process::Command;
use std::sync::Arc;

use serde_json::Value;

use crate::double::{Double, printed, serve};

fn script(parts: &str, cases: &str) -> tempfile::TempDir {
    // A limit that is soon found: 60 searches a second.
    let (_runtime, endpoint) = serve(&Arc::new(Double { capacity: Some(60.0), ..Double::default() }));
    let folder = tempfile::tempdir().unwrap();
    let queries = folder.path().join("queries.jsonl");
    fs_err::write(&queries, "{\"text\": \"one\"}\n{\"text\": \"two\"}\n").unwrap();
    let output = Command::new("bash")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios.sh"))
        .args([queries.as_path(), folder.path()])
        .arg(&endpoint)
        .envs([("PARTS", parts), ("CASES", cases), ("CONNECTIONS", "1,2"), ("OVERLOAD", "2")])
        .envs([("DURATION", "300ms"), ("WARMUP", "0s"), ("OVERLOAD_DURATION", "1s")])
        .env("PID", std::process::id().to_string())
        .env_remove("START")
        .env("EXPANDR_LOADTEST", env!("CARGO_BIN_EXE_expandr-loadtest"))
        .output()
        .unwrap();
    // 1: an objective was missed, which is not the script's fault.
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", printed(&output));
    folder
}

fn report(folder: &tempfile::TempDir, name: &str) -> Value {
    assert!(folder.path().join(format!("{name}.html")).exists());
    serde_json::from_slice(&fs_err::read(folder.path().join(format!("{name}.json"))).unwrap()).unwrap()
}

#[test]
fn every_case_has_its_table() {
    let folder = script("table", "raw cached always budget");
    for (case, expansion) in
        [("raw", "disabled"), ("cached", "applied"), ("always", "applied"), ("budget", "applied")]
    {
        let report = report(&folder, &format!("{case}-table"));
        assert_eq!(report["title"], format!("{case}-table"));
        assert!(report["loads"][1]["expansion"][expansion].as_u64().unwrap() > 0, "{report}");
    }
}

#[test]
fn a_case_finds_its_limit_and_goes_beyond() {
    let report = report(&script("limits", "raw"), "raw-limit");
    assert!(report["limit"]["loads_run"].as_u64().unwrap() >= 3, "{}", report["limit"]);
    assert!(report["overload"]["goodput_of_peak"].as_f64().is_some(), "{}", report["overload"]);
    let objectives: Vec<&str> = report["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["objective"].as_str().unwrap())
        .collect();
    assert_eq!(
        objectives,
        [
            "goodput-of-peak>=90%",
            "unexpected<=0%",
            "p99<=300ms",
            "memory-growth<=5%",
            "a limit is found and proved"
        ]
    );
}
