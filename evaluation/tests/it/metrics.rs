//! Parity with trec_eval (by way of pytrec_eval).

use std::collections::BTreeMap;

use expandr_evaluation::{Metric, Qrels, Run, evaluate, metrics::Options};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    name: String,
    relevance_level: i32,
    qrels: BTreeMap<String, BTreeMap<String, i32>>,
    run: BTreeMap<String, BTreeMap<String, f64>>,
    expected: BTreeMap<String, BTreeMap<String, f64>>,
}

impl Case {
    fn qrels(&self) -> Qrels {
        let mut qrels = Qrels::default();
        for (query, judgments) in &self.qrels {
            for (document, grade) in judgments {
                qrels.insert(query, document, *grade).unwrap();
            }
        }
        qrels
    }

    /// By way of a file, as other people's runs come: so the scores' precision is tested too.
    fn run(&self) -> Run {
        let mut text = String::new();
        for (query, hits) in &self.run {
            for (document, score) in hits {
                text.push_str(&format!("{query} Q0 {document} 1 {score} tag\n"));
            }
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), text).unwrap();
        Run::read(file.path()).unwrap()
    }
}

#[test]
fn every_metric_equals_trec_eval() {
    let cases: Vec<Case> = serde_json::from_value(super::fixture("metrics.json")).unwrap();
    let mut compared = 0;
    for case in &cases {
        let names: Vec<&String> = case.expected.values().next().unwrap().keys().collect();
        let metrics: Vec<Metric> = names.iter().map(|name| name.parse().unwrap()).collect();
        let options = Options { relevance_level: case.relevance_level, missing_count_as_zero: false };
        let scores = evaluate(&case.qrels(), &case.run(), &metrics, &options);
        let ours: Vec<&String> = scores.per_query.keys().collect();
        assert_eq!(ours, case.expected.keys().collect::<Vec<_>>(), "{}: queries that count", case.name);
        for (query, values) in &scores.per_query {
            for (name, value) in names.iter().zip(values) {
                let expected = case.expected[query][*name];
                assert!(
                    (value - expected).abs() < 1e-6,
                    "{}: {name} of {query} is {value}, trec_eval says {expected}",
                    case.name
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 2_000, "only {compared} values compared");
}

/// The fixture must hold what makes the comparison worth something.
#[test]
fn the_fixture_has_the_hard_cases() {
    let cases: Vec<Case> = serde_json::from_value(super::fixture("metrics.json")).unwrap();
    let grades =
        || cases.iter().flat_map(|case| case.qrels.values().flat_map(|judgments| judgments.values()));
    assert!(grades().any(|grade| *grade < 0) && grades().any(|grade| *grade > 1));
    assert!(cases.iter().any(|case| case.qrels.keys().any(|query| !case.run.contains_key(query))));
    assert!(cases.iter().any(|case| case.run.keys().any(|query| !case.qrels.contains_key(query))));
    let single_precision_ties = cases.iter().flat_map(|case| case.run.values()).any(|hits| {
        let scores: Vec<f64> = hits.values().copied().collect();
        scores.iter().any(|a| scores.iter().any(|b| a != b && *a as f32 == *b as f32))
    });
    assert!(single_precision_ties);
}
