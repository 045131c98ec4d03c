//! The search for the limit, and what comes above it.

use std::time::Duration;

use crate::double::{Double, load_test};

#[test]
fn the_limit_of_a_server_is_found_and_overload_is_shed() {
    let double = Double { capacity: Some(100.0), ..Double::default() };
    let flags = "--query q --find-limit 20 --duration 1s --precision 20% --objective p99<1s --overload 5 \
                 --overload-duration 2s --overload-objective goodput-of-peak>=70% --overload-objective unexpected<=0% \
                 --overload-objective p99<1s";
    let run = load_test(double, &flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(run.code(), Some(0), "{}", run.text());
    let limit = &run.report["limit"];
    let rate = limit["requests_per_second"].as_f64().unwrap();
    assert!((60.0..=125.0).contains(&rate), "100 searches a second were taken for {limit}");
    assert_eq!(limit["confirmed"], true);
    // No objective was about errors, so the search brought its own.
    assert_eq!(limit["objectives"][1], "errors<=1%");
    let overload = &run.report["overload"];
    assert_eq!(overload["requests_per_second"].as_f64(), Some(rate * 5.0));
    assert!(overload["refusals_by_status"]["429"].as_u64().unwrap() > 100, "{overload}");
    assert!(overload["goodput_of_peak"].as_f64().unwrap() > 0.7, "{overload}");
    assert_eq!(overload["unexpected_share"], 0.0);
    let roles: Vec<&str> =
        run.report["loads"].as_array().unwrap().iter().map(|load| load["role"].as_str().unwrap()).collect();
    assert_eq!((roles[0], roles[roles.len() - 1]), ("probe", "overload"));
    assert!(roles.contains(&"confirmation"), "{roles:?}");
}

#[test]
fn where_no_rate_holds_there_is_no_limit() {
    let double = Double { delay: Duration::from_millis(300), ..Double::default() };
    let flags =
        "--query q --find-limit 40 --duration 300ms --objective p99<100ms --max-probes 3 --overload 10";
    let run = load_test(double, &flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(run.code(), Some(1), "{}", run.text());
    assert!(run.text().contains("MISSED  a limit is found and proved  (no rate held)"), "{}", run.text());
    assert!(run.text().contains("no limit was found that could be multiplied"), "{}", run.text());
    assert_eq!(run.report["loads"].as_array().unwrap().len(), 3);
}

#[test]
fn a_search_that_is_cut_off_says_so() {
    let flags = "--query q --find-limit 10 --duration 1s --objective p99<10s --max-requests 25";
    let run = load_test(Double::default(), &flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(run.code(), Some(1), "{}", run.text());
    let missed = "MISSED  a limit is found and proved  (the search was cut off)";
    assert!(run.text().contains(missed), "{}", run.text());
}

#[test]
fn a_limit_below_what_is_wanted_is_missed() {
    let flags = "--query q --find-limit 5 --duration 300ms --objective p99<10s --limit-max 10 --at-least";
    let code = |least: &str| {
        let flags = format!("{flags} {least}");
        load_test(Double::default(), &flags.split_whitespace().collect::<Vec<_>>()).code()
    };
    assert_eq!((code("10"), code("11")), (Some(0), Some(1)));
}

#[test]
fn a_server_that_breaks_under_overload_is_found_out() {
    let double = || Double { delay: Duration::from_millis(300), breaks_above: Some(40), ..Double::default() };
    let flags = "--query q --rate 20 --duration 1s --overload 20 --overload-duration 1s";
    let run = load_test(double(), &flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(run.code(), Some(1), "{}", run.text());
    assert!(run.text().contains("MISSED  unexpected<=0%"), "{}", run.text());
    assert_eq!(run.report["overload"]["requests_per_second"], 400.0);
    assert!(run.load(1)["statuses"]["500"].as_u64().unwrap() > 100, "{}", run.text());
}
