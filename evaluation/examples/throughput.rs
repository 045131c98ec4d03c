//! How many queries a second the evaluation client manages against a server that costs nothing: canned answers of 100
//! hits with texts as long as a SciFact abstract.
//!
//! ```text
//! cargo run --release -p expandr-evaluation --example throughput -- [searches a request] [requests at a time]
//! ```

use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use expandr_evaluation::client::{Endpoint, EndpointOptions, EvaluationOptions, evaluate};
use expandr_evaluation::{Collection, Result};
use serde_json::{Value, json};

const QUERIES: usize = 20_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let folder = tempfile::tempdir()?;
    let collection = collection(&folder.path().join("collection"))?;
    let mut options = EvaluationOptions::new(folder.path().join("run"));
    options.batch = arguments.next().unwrap_or(options.batch);
    options.concurrency = arguments.next().unwrap_or(options.concurrency);

    let answer = answer();
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let endpoint =
        Endpoint::new(&server.block_on(serve(&answer, options.batch))?, None, EndpointOptions::default())?;
    let client = tokio::runtime::Runtime::new()?;
    let start = Instant::now();
    let report = client.block_on(evaluate(&endpoint, &collection, &options, |_| {}))?;
    println!(
        "{} bytes an answer: {:.0} queries/s asked, {:.0} with scoring and files",
        answer.len(),
        report.queries_per_second.unwrap_or_default(),
        QUERIES as f64 / start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn collection(folder: &std::path::Path) -> Result<Collection> {
    let queries: String =
        (0..QUERIES).map(|i| format!("{{\"_id\":\"q{i}\",\"text\":\"query {i}\"}}\n")).collect();
    let qrels: String = (0..QUERIES).map(|i| format!("q{i}\td0\t1\n")).collect();
    fs_err::create_dir_all(folder.join("qrels"))?;
    fs_err::write(folder.join("corpus.jsonl"), "{\"_id\":\"d0\",\"text\":\"x\"}\n")?;
    fs_err::write(folder.join("queries.jsonl"), queries)?;
    fs_err::write(folder.join("qrels/test.tsv"), qrels)?;
    Collection::open(folder, None)
}

fn answer() -> String {
    let text = "word and ".repeat(160);
    let hit = |rank: usize| json!({"rank": rank, "id": format!("d{rank}"), "score": 1.0 / rank as f64, "title": "a title", "text": text, "metadata": {}});
    let hits: Vec<Value> = (1..=100).map(hit).collect();
    let expansion = json!({"status": "disabled", "texts": [], "output_tokens": 0, "cut": false});
    json!({"hits": hits, "expansion": expansion, "bundle": "b", "took_ms": 1.0}).to_string()
}

/// Answers every batch with the same bytes. QUERIES is a multiple of the usual batch sizes.
async fn serve(answer: &str, batch: usize) -> Result<String> {
    let body = Bytes::from(format!("{{\"results\":[{}]}}", vec![answer; batch].join(",")));
    let search = post(move |_: Bytes| async move { body });
    let router = Router::new().route("/search/batch", search).route("/info", get(|| async { "{}" }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}
