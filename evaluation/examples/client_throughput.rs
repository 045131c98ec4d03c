//! What the evaluation client costs, against a server that costs nothing: it answers with canned bodies of 100 hits,
//! with texts as long as SciFact's abstracts or, where it understands `include_text: false`, without.
//!
//! ```text
//! cargo run --release -p expandr-evaluation --example client_throughput
//! ```
//!
//! Queries/s are by wall time, the server's own work included, so other work on the machine lowers them. The CPU times are the
//! client's threads' alone (Linux only); their inverse is what one core could ask for.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use expandr_evaluation::client::{Endpoint, EndpointOptions, EvaluationOptions, evaluate};
use expandr_evaluation::{Collection, Result};
use serde_json::{Value, json};

/// A multiple of every batch size below, so that all batches are whole.
const QUERIES: usize = 6_400;
const BATCHES: [(usize, usize); 5] = [(1, 4), (1, 16), (16, 1), (16, 4), (64, 4)];

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let collection = collection(&folder.path().join("collection"))?;
    println!(
        "{QUERIES} queries; body: bytes of one query's answer; asking and scoring: the client's CPU time in µs a query;\n\
         wait: seconds from the last answer to the end, for scoring and files\n\n\
         texts |   body | batch | concurrency | queries/s | asking | queries/s a core | scoring | wait"
    );
    for texts in [true, false] {
        for (number, (batch, concurrency)) in BATCHES.into_iter().enumerate() {
            let mut options = EvaluationOptions::new(folder.path().join(format!("run-{texts}-{number}")));
            options.batch = batch;
            options.concurrency = concurrency;
            options.expansion = Some(json!(false));
            measure(&collection, &options, texts)?;
        }
    }
    Ok(())
}

/// One run, with a server and a client runtime of its own.
fn measure(collection: &Collection, options: &EvaluationOptions, texts: bool) -> Result<()> {
    let server = runtime("server", 1)?;
    let client = runtime("client", 2)?;
    let answer = answer(texts);
    let url = server.block_on(serve(&answer, options.batch, texts))?;
    let endpoint = Endpoint::new(&url, None, EndpointOptions::default())?;
    let cpu_before = client_cpu_seconds();
    let (mut asked, mut asked_cpu) = (Duration::ZERO, None);
    let start = Instant::now();
    client.block_on(evaluate(&endpoint, collection, options, |progress| {
        if progress.answered == progress.queries {
            asked = start.elapsed();
            asked_cpu = client_cpu_seconds();
        }
    }))?;
    let scored_cpu = client_cpu_seconds();
    let cpu = |from: Option<f64>, to: Option<f64>| Some((to? - from?) / QUERIES as f64);
    let (asking, scoring) = (cpu(cpu_before, asked_cpu), cpu(asked_cpu, scored_cpu));
    let microseconds = |cpu: Option<f64>| cpu.map_or("?".into(), |cpu| format!("{:.0}", cpu * 1e6));
    println!(
        "{:5} | {:6} | {:5} | {:11} | {:9.0} | {:>6} | {:>16} | {:>7} | {:.1}",
        if texts { "yes" } else { "no" },
        answer.len(),
        options.batch,
        options.concurrency,
        QUERIES as f64 / asked.as_secs_f64(),
        microseconds(asking),
        asking.map_or("?".into(), |cpu| format!("{:.0}", 1.0 / cpu)),
        microseconds(scoring),
        (start.elapsed() - asked).as_secs_f64(),
    );
    Ok(())
}

fn runtime(name: &str, threads: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(threads).thread_name(name).enable_all().build()?)
}

/// CPU time so far of all threads but the server's; none where the system doesn't say.
fn client_cpu_seconds() -> Option<f64> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir("/proc/self/task").ok()? {
        let thread = thread.ok()?.path();
        if std::fs::read_to_string(thread.join("comm")).ok()?.trim_end() != "server" {
            let times = std::fs::read_to_string(thread.join("schedstat")).ok()?;
            nanoseconds += times.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    Some(nanoseconds as f64 / 1e9)
}

fn collection(folder: &std::path::Path) -> Result<Collection> {
    let queries: String = (0..QUERIES)
        .map(|i| {
            format!("{{\"_id\":\"q{i}\",\"text\":\"a claim of some ten words about subject number {i}\"}}\n")
        })
        .collect();
    let qrels: String = (0..QUERIES).map(|i| format!("q{i}\t{}\t1\n", 4_983_000 + i % 200)).collect();
    fs_err::create_dir_all(folder.join("qrels"))?;
    fs_err::write(folder.join("corpus.jsonl"), "{\"_id\":\"4983000\",\"text\":\"x\"}\n")?;
    fs_err::write(folder.join("queries.jsonl"), queries)?;
    fs_err::write(folder.join("qrels/test.tsv"), qrels)?;
    Collection::open(folder, None)
}

/// One query's answer, in the service's form.
fn answer(texts: bool) -> String {
    // SciFact's abstracts have 1,500 bytes in the mean; some quotes and letters beyond ASCII, as abstracts have them.
    let text =
        "the β-amyloid of \"treated\" mice, n = 12, fell by half within four weeks (P < 0.05). ".repeat(17);
    let hit = |rank: usize| {
        let mut hit = BTreeMap::from([
            ("rank", json!(rank)),
            ("id", json!((4_983_000 + rank).to_string())),
            ("score", json!((0.7 - rank as f64 / 317.0) as f32)),
        ]);
        if texts {
            hit.insert("title", json!("A title as long as those of articles in medical journals tend to be"));
            hit.insert("text", json!(format!("{rank}: {text}")));
            hit.insert("metadata", json!({}));
        }
        hit
    };
    let hits: Vec<_> = (1..=101).map(hit).collect();
    let timings = json!({"encode_query_ms": 9.1, "search_raw_ms": 0.4, "fetch_ms": 0.2, "own_ms": 0.3, "total_ms": 10.0});
    json!({
        "request_id": "3f1b0a52-7c1e-4f0e-9d52-3e4b6a1f2c90/7", "hits": hits, "bundle": "bundle-3f9a2c81d07e",
        "expansion": {"status": "disabled", "texts": [], "output_tokens": 0, "cut": false, "query_weight": 1.0},
        "searched": "exact", "took_ms": 10.0, "timings": timings,
    })
    .to_string()
}

/// Answers every batch with the same bytes. With texts it is a server that does not know `include_text`.
async fn serve(answer: &str, batch: usize, texts: bool) -> Result<String> {
    let body = Bytes::from(format!("{{\"results\":[{}]}}", vec![answer; batch].join(",")));
    let search = post(move |request: Bytes| async move { respond(&request, body, texts) });
    let info: Value = json!({"limits": {"top_k": 1000}});
    let router =
        Router::new().route("/search/batch", search).route("/info", get(|| async move { info.to_string() }));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(url)
}

fn respond(request: &[u8], body: Bytes, texts: bool) -> Response {
    let lean = request.windows(14).any(|window| window == b"\"include_text\"");
    if lean && texts {
        return (StatusCode::UNPROCESSABLE_ENTITY, "unknown field `include_text`").into_response();
    }
    body.into_response()
}
