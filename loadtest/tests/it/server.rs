//! A server that the load test starts, watches and stops. It is this test binary again, in the test `serve_until_stopped`.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::double::{Double, binary, printed, serve};

const PORT: &str = "LOADTEST_DOUBLE_PORT";
const LIFE: &str = "LOADTEST_DOUBLE_LIFE_MS";

#[test]
#[ignore = "the server of the other tests of this file: without a port it ends at once"]
fn serve_until_stopped() {
    let Ok(port) = std::env::var(PORT) else { return };
    let life = std::env::var(LIFE).ok().and_then(|life| life.parse().ok()).unwrap_or(60_000);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.unwrap();
        let router = Arc::new(Double::default()).router();
        let _ =
            tokio::time::timeout(Duration::from_millis(life), async { axum::serve(listener, router).await })
                .await;
    });
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn command(port: u16, life_ms: u64) -> String {
    let this = std::env::current_exe().unwrap();
    format!(
        "env {PORT}={port} {LIFE}={life_ms} '{}' --exact server::serve_until_stopped --ignored --nocapture",
        this.display()
    )
}

fn run(port: u16, start: &str, flags: &str) -> (std::process::Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let output = binary()
        .args(["--endpoint", &format!("http://127.0.0.1:{port}"), "--query", "q", "--warmup", "0s"])
        .args(["--start", start, "--report", report.to_str().unwrap()])
        .args(flags.split_whitespace())
        .output()
        .unwrap();
    let report = fs_err::read(report).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap());
    (output, report)
}

#[test]
fn a_server_is_started_watched_and_stopped() {
    let port = free_port();
    let (output, report) =
        run(port, &command(port, 60_000), "--rate 50 --duration 3s --objective unexpected<=0%");
    assert!(output.status.success(), "{}", printed(&output));
    let process = &report["server_process"];
    assert!(process["ready_after_seconds"].as_f64().unwrap() >= 0.2, "{process}");
    assert!(process["trouble"].is_null(), "{process}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the server still listens");
    if cfg!(target_os = "linux") {
        let usage = &report["loads"][0]["process"];
        assert!(usage["resident_bytes_max"].as_u64().unwrap() > 1_000_000, "{usage}");
        assert!(usage["series"].as_array().unwrap().len() >= 3, "{usage}");
        assert!(usage["memory_growth"].as_f64().is_some(), "{usage}");
        assert!(usage["generator_cpu_cores_mean"].as_f64().is_some(), "{usage}");
    }
}

#[test]
fn a_server_that_dies_under_the_load_is_missed() {
    let port = free_port();
    let (output, report) = run(port, &command(port, 1_000), "--rate 20 --duration 3s");
    assert_eq!(output.status.code(), Some(1), "{}", printed(&output));
    assert!(printed(&output).contains("MISSED  the server ended by itself"), "{}", printed(&output));
    assert!(report["loads"][0]["failed"].as_u64().unwrap() > 5, "{}", report["loads"][0]);
}

#[test]
fn a_server_that_does_not_come_up_is_explained() {
    let port = free_port();
    let (output, _) = run(port, "sh -c 'echo no such index >&2; exit 3'", "--rate 1 --duration 1s");
    assert_eq!(output.status.code(), Some(2));
    let text = printed(&output);
    assert!(text.contains("exit status: 3 before it was ready") && text.contains("no such index"), "{text}");
    let (output, _) = run(port, "sleep 60", "--rate 1 --duration 1s --start-timeout 500ms");
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).contains("raise --start-timeout"), "{}", printed(&output));
}

#[test]
fn an_endpoint_that_is_taken_is_refused() {
    let (_runtime, endpoint) = serve(&Arc::new(Double::default()));
    let port = endpoint.rsplit(':').next().unwrap().parse().unwrap();
    let (output, _) = run(port, "sleep 60", "--rate 1 --duration 1s");
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).contains("a server answers at"), "{}", printed(&output));
}

#[test]
fn an_interrupt_ends_the_load_with_a_report_and_stops_the_server() {
    let port = free_port();
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.json");
    let mut child = binary()
        .args(["--endpoint", &format!("http://127.0.0.1:{port}"), "--query", "q", "--warmup", "0s"])
        .args(["--start", &command(port, 60_000), "--report", report.to_str().unwrap()])
        .args(["--rate", "20", "--duration", "60s"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("sh").args(["-c", "kill -INT \"$0\"", &pid]).status().unwrap().success()
    );
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    let report: Value = serde_json::from_slice(&fs_err::read(report).unwrap()).unwrap();
    let load = &report["loads"][0];
    assert!(load["not_sent_by_bound"]["interrupted"].as_u64().unwrap() > 500, "{load}");
    assert!(load["answered"].as_u64().unwrap() > 5, "{load}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "the server still listens");
}
