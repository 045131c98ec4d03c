//! The report has what it must, and its page needs nothing from outside.

use std::time::Duration;

use crate::double::{Double, load_test};

#[test]
fn json_and_page_have_what_they_must() {
    let double =
        Double { delay: Duration::from_millis(2), degrade_every: 5, shed_every: 7, ..Double::default() };
    let flags = "--query what<b>is</b>that --rate 10,20,80 --duration 1s --kind name=one --kind name=two,batch=2 \
                 --objective p99<20s --overload 2 --overload-duration 2s --overload-objective p50<1us";
    let mut flags: Vec<&str> = flags.split_whitespace().collect();
    flags.extend(["--title", "Fish & <chips>"]);
    let run = load_test(double, &flags);
    assert_eq!(run.code(), Some(1), "{}", run.text());

    let report = &run.report;
    assert!(report["command"].as_str().unwrap().contains("--rate 10,20,80"), "{}", report["command"]);
    assert!(report["machine"]["cpus"].as_u64().unwrap() > 0);
    assert_eq!(report["loads"].as_array().unwrap().len(), 4);
    for load in report["loads"].as_array().unwrap() {
        for percentile in ["p50", "p95", "p99", "p99.9", "max"] {
            assert!(load["latency_ms"][percentile].as_f64().unwrap() > 0.0, "{load}");
        }
        assert!(load["degraded_share"].as_f64().unwrap() > 0.0, "{load}");
        assert!(load["goodput_per_second"].as_f64().unwrap() > 0.0, "{load}");
        let stretches = load["timeline"]["stretches"].as_array().unwrap();
        let sum: u64 = stretches.iter().map(|stretch| stretch["searches"].as_u64().unwrap()).sum();
        assert_eq!(load["searches"].as_u64(), Some(sum));
    }

    let page = &run.page;
    assert!(page.contains("<title>Fish &amp; &lt;chips&gt;</title>"));
    // Three plots by rate, two over time for each of the four loads.
    assert_eq!(page.matches("<svg").count(), 3 + 4 * 2, "plots");
    for caption in [
        "Latency of answered requests by rate",
        "Shares by rate",
        "goodput",
        "What became of them",
        "By kind of request",
    ] {
        assert!(page.contains(caption), "{caption}");
    }
    assert!(page.contains("missed") && page.contains("Overload"));
    for foreign in ["<script", "src=", "href=", "@import", "url(", "//cdn"] {
        assert!(!page.contains(foreign), "the page has {foreign}");
    }
}

#[test]
fn a_closed_loop_is_plotted_by_its_connections() {
    let double = Double { delay: Duration::from_millis(20), ..Double::default() };
    let run = load_test(double, &["--query", "q", "--connections", "1,4", "--duration", "500ms"]);
    assert!(run.page.contains("Latency of answered requests by connections"), "{}", run.text());
}
