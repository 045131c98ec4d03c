//! When requests start, what latency counts from, and what a bound holds back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;

use crate::double::{Double, load_test};

fn slow(milliseconds: u64) -> Double {
    Double { delay: Duration::from_millis(milliseconds), ..Double::default() }
}

#[test]
fn an_open_loop_keeps_its_rate_and_charges_for_waiting() {
    let run =
        load_test(slow(200), &["--query", "q", "--rate", "40", "--duration", "2s", "--expansion", "off"]);
    assert!(run.output.status.success(), "{}", run.text());
    let load = run.load(0);
    // Arrivals didn't wait for the 200 ms of each answer: a closed loop would have managed 10 requests.
    assert_eq!(load["requests"], 80);
    assert_eq!(load["statuses"]["200"], 80);
    assert_eq!(load["expansion"]["disabled"], 80);
    assert!(load["latency_ms"]["p50"].as_f64().unwrap() >= 199.0, "{load}");
    assert!(load["measured_seconds"].as_f64().unwrap() < 6.0, "{load}");
    assert_eq!(load["bundles"], json!(["b1"]));
    assert_eq!(run.report["server"]["version"], "double");
    assert_eq!(run.double.queries.lock().unwrap()[0], json!({"query": "q", "top_k": 10, "expansion": false}));
}

#[test]
fn a_stall_is_charged_for_everybody_who_was_due_in_it() {
    let stall = || Double {
        delay: Duration::from_millis(5),
        stall: Some((Duration::from_secs(1), Duration::from_secs(2))),
        ..Double::default()
    };
    let run = load_test(stall(), &["--query", "q", "--rate", "50", "--duration", "4s"]);
    let load = run.load(0);
    // A quarter of the requests was due in the stall and waited for 0 to 1 s: a twentieth of all waited 0.8 s or longer.
    assert_eq!(load["requests"], 200);
    let (p50, p95, p99) = percentiles(load);
    assert!(p50 < 400.0 && p95 > 700.0 && p99 > 850.0, "{p50} {p95} {p99}");
    // The time line shows when.
    let stretches = load["timeline"]["stretches"].as_array().unwrap();
    let p50_of = |second: usize| stretches[second]["p50_ms"].as_f64().unwrap();
    assert!(p50_of(1) > 300.0 && p50_of(3) < 250.0, "{stretches:?}");

    // A closed loop asks nobody in the meantime: the same stall is one slow request among hundreds.
    let run = load_test(stall(), &["--query", "q", "--connections", "1", "--duration", "4s"]);
    let closed = run.load(0);
    assert!(closed["latency_ms"]["max"].as_f64().unwrap() > 700.0, "{closed}");
    assert!(percentiles(closed).1 < 300.0, "{closed}");
}

fn percentiles(load: &serde_json::Value) -> (f64, f64, f64) {
    let of = |name: &str| load["latency_ms"][name].as_f64().unwrap();
    (of("p50"), of("p95"), of("p99"))
}

#[test]
fn a_closed_loop_runs_each_number_of_connections() {
    let flags = ["--query", "q", "--connections", "1,8", "--duration", "1s", "--top-k", "3"];
    let run = load_test(slow(50), &flags);
    assert!(run.output.status.success(), "{}", run.text());
    let requests: Vec<u64> = (0..2).map(|load| run.load(load)["requests"].as_u64().unwrap()).collect();
    assert!(requests[0] <= 20 && requests[1] > 2 * requests[0], "{requests:?}");
    let own = &run.load(1)["server_ms"]["own"];
    assert!((own["p50"].as_f64().unwrap() - 0.5).abs() < 0.01, "{own}");
    assert!(run.text().contains("closed loop, 8 connections"));
}

#[test]
fn steps_run_one_after_the_other_and_warm_ups_are_not_measured() {
    let flags = ["--query", "q", "--rate", "20,40", "--duration", "1s", "--warmup", "500ms"];
    let run = load_test(slow(1), &flags);
    let requests = |load: usize| run.load(load)["requests"].as_u64();
    assert_eq!((requests(0), requests(1)), (Some(20), Some(40)), "{}", run.text());
    assert_eq!(run.double.searches.load(Ordering::Relaxed), 10 + 20 + 20 + 40);
}

#[test]
fn what_a_bound_holds_back_is_counted_and_missed() {
    let sent = |flags: &[&str]| {
        let base = ["--query", "q", "--rate", "40", "--duration", "1s"];
        let run = load_test(slow(400), &[&base[..], flags].concat());
        assert_eq!(run.code(), Some(1), "{}", run.text());
        assert!(run.text().contains("MISSED  every request is sent"), "{}", run.text());
        assert_eq!(run.report["holds"], false);
        let load = run.load(0).clone();
        let (due, answered) = (load["requests"].as_u64().unwrap(), load["answered"].as_u64().unwrap());
        let not_sent = load["not_sent"].as_u64().unwrap();
        assert_eq!((due, answered + not_sent), (40, 40), "{load}");
        assert_eq!(run.double.searches.load(Ordering::Relaxed) as u64, answered);
        assert_eq!(load["error_share"].as_f64().unwrap(), not_sent as f64 / 40.0);
        (load["not_sent_by_bound"].clone(), answered)
    };
    let (bound, answered) = sent(&["--max-in-flight", "3"]);
    assert!(bound["max_in_flight"].as_u64().is_some() && answered <= 12, "{bound} {answered}");
    assert_eq!(sent(&["--max-requests", "10"]), (json!({"max_requests": 30}), 10));
    let (bound, answered) = sent(&["--max-time", "500ms"]);
    assert!(bound["max_time"].as_u64().is_some() && (10..30).contains(&answered), "{bound} {answered}");
}

#[test]
fn loads_after_the_end_of_the_run_are_named() {
    let flags = ["--query", "q", "--rate", "20,30", "--duration", "1s", "--max-requests", "20"];
    let run = load_test(slow(1), &flags);
    assert_eq!(run.code(), Some(1), "{}", run.text());
    assert_eq!(
        (run.load(0)["not_sent"].as_u64(), run.report["loads"].as_array().unwrap().len()),
        (Some(0), 1)
    );
    let missed = "not open loop, 30 requests/s: --max-requests were sent";
    assert!(run.text().contains(missed), "{}", run.text());
}
