//! The client against a server that behaves, and one that doesn't.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use expandr_evaluation::client::{
    Endpoint, EndpointOptions, EvaluationOptions, EvaluationReport, IngestOptions, Progress, evaluate,
    ingest, read_scores,
};
use expandr_evaluation::{Collection, Result, Run, metrics};
use serde_json::{Value, json};

use super::double::{Double, serve};

/// Thirty documents of made-up words, a query for each, and one more query that is itself a document.
fn collection(folder: &Path) -> Collection {
    fs_err::create_dir_all(folder.join("qrels")).unwrap();
    let (mut corpus, mut queries, mut qrels) =
        (String::new(), String::new(), String::from("query-id\tcorpus-id\tscore\n"));
    for number in 0..30 {
        let next = number + 1;
        corpus.push_str(&format!(
            "{{\"_id\":\"d{number}\",\"title\":\"t{number}\",\"text\":\"word{number} word{next}\"}}\n"
        ));
        queries.push_str(&format!("{{\"_id\":\"q{number}\",\"text\":\"word{number} word{next}\"}}\n"));
        qrels.push_str(&format!("q{number}\td{number}\t2\nq{number}\td{next}\t1\n"));
    }
    queries.push_str("{\"_id\":\"d5\",\"text\":\"word5 word6\"}\n");
    qrels.push_str("d5\td6\t1\n");
    fs_err::write(folder.join("corpus.jsonl"), corpus).unwrap();
    fs_err::write(folder.join("queries.jsonl"), queries).unwrap();
    fs_err::write(folder.join("qrels/test.tsv"), qrels).unwrap();
    Collection::open(folder, None).unwrap()
}

struct Setup {
    folder: tempfile::TempDir,
    collection: Collection,
    double: Arc<Double>,
    endpoint: Endpoint,
    options: EvaluationOptions,
}

impl Setup {
    /// A server that holds the collection's corpus and then behaves like `double`.
    async fn new(double: Double) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let collection = collection(&folder.path().join("collection"));
        for document in collection.documents().unwrap() {
            let document = document.unwrap();
            double.documents.lock().unwrap().insert(document.id, document.text);
        }
        let key = double.key.map(str::to_owned);
        let double = Arc::new(double);
        let endpoint = endpoint(&serve(Arc::clone(&double)).await, key);
        let mut options = EvaluationOptions::new(folder.path().join("run"));
        options.batch = 4;
        options.concurrency = 3;
        options.expansion = Some(json!(true));
        Self { folder, collection, double, endpoint, options }
    }

    async fn evaluate(&self) -> Result<EvaluationReport> {
        evaluate(&self.endpoint, &self.collection, &self.options, |_| {}).await
    }

    fn file(&self, name: &str) -> String {
        fs_err::read_to_string(self.options.folder.join(name)).unwrap()
    }
}

fn endpoint(url: &str, key: Option<String>) -> Endpoint {
    let options =
        EndpointOptions { request_timeout: Duration::from_secs(10), patience: Duration::from_millis(1_500) };
    Endpoint::new(url, key, options).unwrap()
}

#[tokio::test]
async fn a_run_is_scored_and_written_whole() {
    let setup = Setup::new(Double::default()).await;
    let mut last = Progress { answered: 0, queries: 0, degraded: 0 };
    let report = evaluate(&setup.endpoint, &setup.collection, &setup.options, |progress| last = progress)
        .await
        .unwrap();
    assert_eq!(last, Progress { answered: 31, queries: 31, degraded: 0 });
    assert!(!report.is_degraded());
    assert_eq!((report.bundle.as_str(), report.documents, report.cut), ("old", Some(30), 1));
    assert_eq!(report.own_documents_dropped, 1);
    // Each query's own words stand in one document; where that is dropped, the tie of the two next goes to the greater id.
    assert_eq!(report.scores.mean_of("success@1".parse().unwrap()), Some(1.0));

    // What was written says the same as what was returned.
    let run = Run::read(&setup.options.folder.join("run.trec")).unwrap();
    let again =
        metrics::evaluate(&setup.collection.qrels, &run, &report.scores.metrics, &setup.options.scoring);
    assert_eq!(again, report.scores);
    assert_eq!(run.hits("q3").unwrap().len(), 30);
    assert!(run.hits("d5").unwrap().iter().all(|hit| hit.id != "d5"));
    let stored = read_scores(&setup.options.folder).unwrap();
    assert_eq!(stored.metrics.len(), report.scores.metrics.len());
    for metric in &report.scores.metrics {
        let (ours, theirs) = (report.scores.values_of(*metric).unwrap(), stored.values_of(*metric).unwrap());
        assert!(ours.iter().zip(&theirs).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12), "{metric}");
        assert!((report.scores.mean_of(*metric).unwrap() - stored.mean_of(*metric).unwrap()).abs() < 1e-12);
    }
    let expansions: Vec<Value> =
        setup.file("expansions.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(expansions.len(), 31);
    assert_eq!(expansions[2]["texts"], json!(["about word2 word3"]));
    let metrics: Value = serde_json::from_str(&setup.file("metrics.json")).unwrap();
    assert_eq!((&metrics["degraded"], &metrics["server"]["version"]), (&json!(false), &json!("double")));
    // 16 of the 31 answers have 0.75, the others 0.5.
    let expected = (16.0 * 0.75 + 15.0 * 0.5) / 31.0;
    assert!((metrics["query_cosine"].as_f64().unwrap() - expected).abs() < 1e-12);
    assert!((metrics["raw_overlap_at_10"].as_f64().unwrap() - 0.7).abs() < 1e-12);
    assert!(
        expansions.iter().all(|line| line["raw_overlap_at_10"] == 0.7 && line["query_cosine"].is_number())
    );
    assert!(report.summary().contains("overlap@10   0.7000"), "{}", report.summary());
    assert!(
        metrics["took_ms"]["p50"].as_f64().unwrap() == 1.5
            && metrics["queries_per_second"].as_f64().unwrap() > 0.0
    );
    // One more than asked for, for the own document that may be among them.
    assert_eq!(setup.double.seen.lock().unwrap()[0]["top_k"], 101);
}

#[tokio::test]
async fn texts_are_left_out_where_the_server_can() {
    let setup = Setup::new(Double::default()).await;
    setup.evaluate().await.unwrap();
    assert!(setup.double.seen.lock().unwrap().iter().all(|search| search["include_text"] == false));

    let other = Setup::new(Double { unknown_field: Some("include_text"), ..Double::default() }).await;
    let report = other.evaluate().await.unwrap();
    assert_eq!(report.queries, 31);
    assert!(other.double.seen.lock().unwrap().iter().all(|search| search["include_text"].is_null()));
    // The first requests learnt it, the others did not ask again.
    let batches = 31usize.div_ceil(other.options.batch);
    let refused = other.double.requests.load(Ordering::SeqCst) - batches - 1; // one asked for /info
    assert!((1..=other.options.concurrency).contains(&refused), "{refused} requests were refused");
    // It is no setting of the run: both can be gone on with by the other way.
    assert_eq!(setup.file("settings.json"), other.file("settings.json"));

    // Another refusal is not mistaken for that one, and a given value is left alone.
    let mut given = Setup::new(Double { unknown_field: Some("include_text"), ..Double::default() }).await;
    given.options.search.insert("include_text".into(), json!(true));
    let error = given.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("include_text: unknown field"), "{error}");
    let other_field = Setup::new(Double { unknown_field: Some("top_k"), ..Double::default() }).await;
    assert!(other_field.evaluate().await.unwrap_err().to_string().contains("top_k: unknown field"));
    assert_eq!(other_field.double.answered.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn overload_is_waited_out() {
    let double =
        Double { overloaded_requests: 5, overloaded_query: Some("word7 word8"), ..Double::default() };
    let setup = Setup::new(double).await;
    assert_eq!(setup.evaluate().await.unwrap().queries, 31);
    let again =
        setup.double.seen.lock().unwrap().iter().filter(|search| search["query"] == "word7 word8").count();
    assert_eq!(again, 2, "only what was refused is asked again");
}

#[tokio::test]
async fn an_interrupted_run_goes_on_where_it_stopped() {
    let mut setup = Setup::new(Double { dies_after: Some(12), ..Double::default() }).await;
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("shutting down") && error.contains("the same command goes on"), "{error}");
    assert!(!setup.options.folder.join("metrics.json").exists(), "half a run has no figures");
    let kept = setup.file("answers.jsonl").lines().count();
    assert!((12..31).contains(&kept), "{kept}");

    let healthy = Arc::new(Double::default());
    *healthy.documents.lock().unwrap() = setup.double.documents.lock().unwrap().clone();
    setup.endpoint = endpoint(&serve(Arc::clone(&healthy)).await, None);
    let report = setup.evaluate().await.unwrap();
    assert_eq!((report.queries, healthy.seen.lock().unwrap().len()), (31, 31 - kept));

    // Asking for nothing new scores the same; asking for something else is refused.
    assert_eq!(setup.evaluate().await.unwrap().scores, report.scores);
    setup.options.expansion = Some(json!(false));
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("a run of other settings (search: "), "{error}");
}

#[tokio::test]
async fn a_run_is_not_gone_on_with_by_another_ranking() {
    let mut setup = Setup::new(Double { k1: 0.9, ..Double::default() }).await;
    setup.options.search.insert("ranking".into(), json!("hybrid"));
    setup.evaluate().await.unwrap();
    setup.evaluate().await.unwrap();
    let other = Arc::new(Double { k1: 1.2, ..Double::default() });
    setup.endpoint = endpoint(&serve(other).await, None);
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("other settings (server: ") && error.contains("1.2"), "{error}");
    setup.options.search.insert("ranking".into(), json!("dense"));
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("other settings (search: "), "{error}");
}

#[tokio::test]
async fn a_change_of_bundle_refuses_the_run() {
    let setup = Setup::new(Double { changes_after: Some(12), ..Double::default() }).await;
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("from \"old\" to \"new\" in the middle of the run"), "{error}");
    assert!(!setup.options.folder.join("metrics.json").exists());
    // Going on later doesn't help: the rest would still come from the new one.
    assert!(setup.evaluate().await.unwrap_err().to_string().contains("in the middle of the run"));
}

#[tokio::test]
async fn degraded_answers_are_flagged_first() {
    let setup = Setup::new(Double { degrades_every: Some(10), ..Double::default() }).await;
    let report = setup.evaluate().await.unwrap();
    assert!(report.is_degraded());
    assert_eq!((report.degraded, report.reasons["timeout"]), (3, 3));
    assert!(report.summary().starts_with("DEGRADED: 3 of 31 queries"), "{}", report.summary());
    let metrics: Value = serde_json::from_str(&setup.file("metrics.json")).unwrap();
    assert_eq!((&metrics["degraded"], &metrics["degraded_queries"]), (&json!(true), &json!(3)));
}

/// A server without a language model may answer "disabled" to who asks for an expansion: that is no expansion either.
#[tokio::test]
async fn disabled_counts_as_degraded_for_who_asked_for_an_expansion() {
    let mut setup = Setup::new(Double { status: Some("disabled"), ..Double::default() }).await;
    assert_eq!(setup.evaluate().await.unwrap().degraded, 31);
    setup.options.folder = setup.folder.path().join("raw");
    setup.options.expansion = Some(json!(false));
    assert_eq!(setup.evaluate().await.unwrap().degraded, 0);
}

/// What the gate of mode `auto` keeps back is as asked for; it is counted. Who asked for an expansion whatever the gate
/// says did not get it.
#[tokio::test]
async fn what_a_gate_skips_is_counted_and_no_degradation() {
    for (expansion, degraded) in
        [(json!({"mode": "auto"}), 0), (json!("auto"), 0), (json!(true), 0), (json!({"mode": "always"}), 3)]
    {
        let mut setup = Setup::new(Double { skips_every: Some(10), ..Double::default() }).await;
        setup.options.expansion = Some(expansion.clone());
        let report = setup.evaluate().await.unwrap();
        assert_eq!((report.degraded, report.skipped), (degraded, 3), "{expansion}");
        assert!(
            report.summary().contains("gate         3 of 31 not expanded (10 %)"),
            "{}",
            report.summary()
        );
        let metrics: Value = serde_json::from_str(&setup.file("metrics.json")).unwrap();
        assert_eq!((&metrics["skipped_by_gate"], &metrics["expansion"]["skipped"]), (&json!(3), &json!(3)));
    }
    // Skipped for another reason is no expansion.
    let mut setup = Setup::new(Double { status: Some("skipped"), ..Double::default() }).await;
    setup.options.expansion = Some(json!({"mode": "auto"}));
    let report = setup.evaluate().await.unwrap();
    assert_eq!((report.degraded, report.skipped), (31, 0));
}

#[tokio::test]
async fn what_the_server_refuses_for_good_ends_the_run_at_once() {
    let mut setup = Setup::new(Double { key: Some("secret"), ..Double::default() }).await;
    assert!(setup.evaluate().await.is_ok());
    setup.endpoint = endpoint(setup.endpoint.url(), Some("wrong".into()));
    assert!(!format!("{:?}", setup.endpoint).contains("wrong"));
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("a key is needed"), "{error}");

    let mut setup = Setup::new(Double::default()).await;
    setup.collection.queries[3].text = String::new();
    let error = setup.evaluate().await.unwrap_err().to_string();
    assert!(error.contains("could not answer query \"q3\": the query is empty"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let setup = Setup::new(Double::default()).await;
    let dead = endpoint("http://127.0.0.1:1", None);
    let error = evaluate(&dead, &setup.collection, &setup.options, |_| {}).await.unwrap_err().to_string();
    assert!(error.starts_with("http://127.0.0.1:1: no answer") && error.contains("refused"), "{error}");
    assert!(Endpoint::new("localhost:8080", None, EndpointOptions::default()).is_err());
}

#[tokio::test]
async fn a_corpus_is_loaded_and_refusals_are_named() {
    let setup = Setup::new(Double { overloaded_requests: 2, ..Double::default() }).await;
    let corpus = setup.collection.corpus_path();
    let mut content = fs_err::read_to_string(corpus).unwrap();
    content.push_str(concat!(
        "{\"_id\":\"new\",\"text\":\"fresh\"}\n{\"_id\":\"void\",\"text\":\"!\"}\n",
        "{\"_id\":\"blank\",\"title\":null,\"text\":\" \"}\n"
    ));
    fs_err::write(corpus, content).unwrap();
    let options = IngestOptions { documents_per_request: 10, concurrency: 2 };
    let mut steps = 0;
    let documents = setup.collection.documents().unwrap();
    let report = ingest(&setup.endpoint, documents, options, |_| steps += 1).await.unwrap();
    assert_eq!((report.sent, report.created, report.updated, report.refused, steps), (32, 1, 30, 1, 4));
    assert_eq!(report.blank, 1);
    assert_eq!(
        (report.first_refused[0].id.as_str(), report.first_refused[0].detail.as_str()),
        ("void", "/text holds no word")
    );

    fs_err::write(corpus, "{\"_id\":\"a\",\"text\":\"x\"}\n{\"_id\":\"a\",\"text\":\"y\"}\n").unwrap();
    let error =
        ingest(&setup.endpoint, setup.collection.documents().unwrap(), options, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("corpus.jsonl:2: document id \"a\" is already on line 1"), "{error}");
}
