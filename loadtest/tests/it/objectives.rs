//! What must hold, and the exit code.

use std::time::Duration;

use serde_json::json;

use crate::double::{Double, Run, binary, load_test, printed};

#[test]
fn objectives_decide_the_exit_code() {
    let degrading = || Double { degrade_every: 4, shed_every: 10, ..Double::default() };
    let flags =
        ["--query", "q", "--rate", "100", "--duration", "1s", "--expansion", "always", "--max-tokens", "64"];
    let with = |objectives: &[&'static str]| -> Run {
        let mut all: Vec<&str> = flags.to_vec();
        for objective in objectives {
            all.extend(["--objective", *objective]);
        }
        load_test(degrading(), &all)
    };
    let run = with(&["errors<0.1%", "p99<10s"]);
    assert_eq!(run.code(), Some(1), "{}", run.text());
    assert!(run.text().contains("MISSED  errors<0.1%"), "{}", run.text());
    assert!(run.text().contains("holds   p99<10s"), "{}", run.text());
    assert_eq!(run.load(0)["statuses"]["429"], 10);
    // Numbers divisible by 4 and not by 10: 25 less 5.
    assert_eq!(run.load(0)["degraded_by_reason"]["timeout"], 20);
    assert_eq!(
        run.double.queries.lock().unwrap()[0]["expansion"],
        json!({"mode": "always", "max_tokens": 64})
    );
    // Only 429s kept searches from being answered; 70 of 100 were answered and not degraded.
    let run =
        with(&["errors<=10%", "degraded<50%", "own.p50<1ms", "unexpected<=0%", "refused<=10%", "good>=70%"]);
    assert_eq!(run.code(), Some(0), "{}", run.text());
    assert_eq!(with(&["good>70%"]).code(), Some(1));
}

#[test]
fn other_failures_than_refusals_are_unexpected() {
    let broken = Double { breaks_above: Some(0), ..Double::default() };
    let flags = ["--query", "q", "--rate", "20", "--duration", "1s", "--objective", "unexpected<=0%"];
    let run = load_test(broken, &flags);
    // Nothing at all was answered: that is no load test, but its report is written.
    assert_eq!(run.code(), Some(2), "{}", run.text());
    assert_eq!(run.load(0)["unexpected_share"], 1.0);
    let timing_out = Double { delay: Duration::from_millis(500), stall: None, ..Double::default() };
    let run = load_test(timing_out, &[&flags[..], &["--timeout", "100ms"]].concat());
    assert_eq!(run.load(0)["statuses"], json!({"timeout": 20}), "{}", run.text());
}

#[test]
fn good_answers_come_in_time() {
    let slow = || Double { delay: Duration::from_millis(150), degrade_every: 2, ..Double::default() };
    let flags = ["--query", "q", "--rate", "20", "--duration", "1s"];
    let good = |more: &[&str]| load_test(slow(), &[&flags[..], more].concat()).load(0)["good"].clone();
    assert_eq!(good(&["--within", "50ms"]), 0);
    assert_eq!(good(&["--within", "20s"]), 10);
    assert_eq!(good(&["--within", "20s", "--degraded-is-good"]), 20);
}

#[test]
fn keys_reach_the_server_and_not_the_report() {
    let double = Double { key: Some("secret"), ..Double::default() };
    let run = load_test(double, &["--query", "q", "--rate", "20", "--duration", "1s", "--key", "secret"]);
    assert!(run.output.status.success(), "{}", run.text());
    assert!(!run.report.to_string().contains("secret") && !run.page.contains("secret"));
    let double = Double { key: Some("secret"), ..Double::default() };
    let run = load_test(double, &["--query", "q", "--rate", "20", "--duration", "1s", "--key", "wrong"]);
    assert_eq!(run.load(0)["statuses"], json!({"401": 20}));
}

#[test]
fn a_server_that_is_not_there_and_broken_flags_give_exit_code_2() {
    let run = |flags: &[&str]| binary().args(flags).output().unwrap();
    let dead = "--endpoint http://127.0.0.1:1 --query q --rate 5 --duration 300ms --warmup 0s";
    let output = run(&dead.split(' ').collect::<Vec<_>>());
    assert_eq!(output.status.code(), Some(2));
    let text = printed(&output);
    assert!(text.contains("no request was answered; the first failure was: connect"), "{text}");
    for (flags, wrong) in [
        ("--query q --rate 5 --endpoint localhost", "not an http:// URL"),
        ("--query q --rate 0", "--rate must be above 0"),
        ("--query q --rate 1 --objective p99", "write an objective like"),
        ("--query q --rate 1 --objective hot:p99<1s", "there is no kind \"hot\", only all"),
        ("--query q --rate 1 --max-tokens 5", "need --expansion always or auto"),
        ("--query q --rate 1 --scenario /nowhere.toml", "/nowhere.toml"),
        ("--query q --find-limit 1", "needs an --objective"),
        ("--queries /nowhere.jsonl --rate 1", "/nowhere.jsonl"),
    ] {
        let output = run(&flags.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        assert!(printed(&output).contains(wrong), "{flags:?}: {}", printed(&output));
    }
}
