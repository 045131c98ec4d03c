//! Agreement with scipy (permutation test, bootstrap) and statsmodels (Holm).

use expandr_evaluation::significance::{Options, Stratum, compare_strata, compare_values, holm};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
    holm: Holm,
}

#[derive(Deserialize)]
struct Case {
    first: Vec<f64>,
    second: Vec<f64>,
    exact: bool,
    p_value: f64,
    difference: f64,
    effect_size: f64,
    interval: (f64, f64),
}

#[derive(Deserialize)]
struct Holm {
    p_values: Vec<f64>,
    adjusted: Vec<f64>,
}

fn load() -> Fixture {
    serde_json::from_value(super::fixture("significance.json")).unwrap()
}

fn assert_close(what: &str, ours: f64, theirs: f64, tolerance: f64) {
    assert!((ours - theirs).abs() <= tolerance, "{what}: {ours}, the reference says {theirs}");
}

#[test]
fn comparisons_equal_scipy() {
    let options = Options { bootstrap_rounds: 50_000, ..Options::default() };
    for (index, case) in load().cases.iter().enumerate() {
        let ours = compare_values(&case.first, &case.second, &options).unwrap();
        let name = |what: &str| format!("case {index} ({} queries): {what}", case.first.len());
        assert_eq!(ours.exact, case.exact, "{}", name("exact"));
        assert_close(&name("difference"), ours.difference, case.difference, 1e-12);
        assert_close(&name("effect size"), ours.effect_size.unwrap(), case.effect_size, 1e-9);
        // Sampled values differ by chance: five standard errors of both samples together. We count both tails of
        // 100,000 draws; scipy doubles the smaller tail of 1,000,000.
        let p = case.p_value;
        let sampling = (p * (1.0 - p) / 1e5 + p * (2.0 - p) / 1e6).sqrt();
        let tolerance = if case.exact { 1e-12 } else { 5.0 * sampling + 2e-5 };
        assert_close(&name("p"), ours.p_value, case.p_value, tolerance);
        let width = case.interval.1 - case.interval.0;
        assert_close(&name("interval, low"), ours.interval.0, case.interval.0, 0.03 * width);
        assert_close(&name("interval, high"), ours.interval.1, case.interval.1, 0.03 * width);
    }
}

#[test]
fn holm_equals_statsmodels() {
    let Holm { p_values, adjusted } = load().holm;
    for (ours, theirs) in holm(&p_values).into_iter().zip(adjusted) {
        assert_close("adjusted p", ours, theirs, 1e-12);
    }
}

#[derive(Deserialize)]
struct AverageFixture {
    cases: Vec<AverageCase>,
}

#[derive(Deserialize)]
struct AverageCase {
    strata: Vec<StratumValues>,
    exact: bool,
    p_value: f64,
    difference: f64,
    effect_size: f64,
    interval: (f64, f64),
}

#[derive(Deserialize)]
struct StratumValues {
    first: Vec<f64>,
    second: Vec<f64>,
    weight: f64,
}

#[test]
fn averages_over_collections_equal_scipy() {
    let fixture: AverageFixture = serde_json::from_value(super::fixture("strata.json")).unwrap();
    let options = Options { bootstrap_rounds: 5_000, ..Options::default() };
    for (index, case) in fixture.cases.into_iter().enumerate() {
        let strata: Vec<Stratum> = case
            .strata
            .into_iter()
            .map(|StratumValues { first, second, weight }| Stratum { first, second, weight })
            .collect();
        let ours = compare_strata(&strata, &options).unwrap();
        let name = |what: &str| format!("average {index}: {what}");
        assert_eq!(ours.exact, case.exact, "{}", name("exact"));
        assert_close(&name("difference"), ours.difference, case.difference, 1e-12);
        assert_close(&name("effect size"), ours.effect_size.unwrap(), case.effect_size, 1e-9);
        // As above: five standard errors of both samples.
        let p = case.p_value;
        let sampling = (p * (1.0 - p) / 1e5 + p * (2.0 - p) / 1e6).sqrt();
        let tolerance = if case.exact { 1e-12 } else { 5.0 * sampling + 2e-5 };
        assert_close(&name("p"), ours.p_value, p, tolerance);
        // The interval's ends are quantiles of samples: five standard errors are a fifth of the mean's own.
        let spread = (case.interval.1 - case.interval.0) / 3.92;
        assert_close(&name("lower end"), ours.interval.0, case.interval.0, 0.2 * spread);
        assert_close(&name("upper end"), ours.interval.1, case.interval.1, 0.2 * spread);
    }
}
