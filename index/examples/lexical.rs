//! BM25 on a BEIR collection, through the index: quality, latency, sizes, and what it costs while documents are added.
//!
//! ```text
//! cargo run --release -p expandr-index --example lexical -- collection=path/to/scifact
//! cargo run --release -p expandr-index --example lexical -- collection=path/to/scifact lexical=off dimension=384
//! ```
//! Further settings: `split` (test), `k1`, `b`, `repeat` (adds the corpus that many times under other ids), `titles` (both,
//! none, only). The vectors are random: nothing here looks at what they find.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

use expandr_index::testing::unit_vector;
use expandr_index::{Document, Index, IndexConfig, LexicalRequest};
use serde_json::{Map, Value};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Documents a write.
const BATCH: usize = 256;

fn main() -> Outcome<()> {
    let mut settings = HashMap::new();
    for argument in std::env::args().skip(1) {
        let (name, value) =
            argument.split_once('=').ok_or_else(|| format!("{argument}: write name=value"))?;
        settings.insert(name.to_owned(), value.to_owned());
    }
    let mut take = |name: &str, default: &str| settings.remove(name).unwrap_or_else(|| default.to_owned());
    let (collection, split) = (take("collection", ""), take("split", "test"));
    let mut config = IndexConfig::new("lexical example", take("dimension", "16").parse()?);
    config.bm25.k1 = take("k1", &config.bm25.k1.to_string()).parse()?;
    config.bm25.b = take("b", &config.bm25.b.to_string()).parse()?;
    config.lexical = take("lexical", "on") == "on";
    config.snapshot_every = 0;
    let (repeat, titles) = (take("repeat", "1").parse()?, take("titles", "both"));
    if let Some(unknown) = settings.keys().next() {
        return Err(format!("unknown setting {unknown}").into());
    }
    let folder = Path::new(&collection);
    let corpus = corpus(&folder.join("corpus.jsonl"), &titles)?;
    let directory = tempfile::tempdir()?;
    let index = Index::open(directory.path(), config.clone())?;
    fill(&index, &corpus, repeat)?;
    if config.lexical {
        let judgments = judgments(&folder.join("qrels").join(format!("{split}.tsv")))?;
        let queries = lines(&folder.join("queries.jsonl"))?;
        score(&index, &queries, &judgments)?;
    }
    let started = Instant::now();
    index.close()?;
    println!("close {:.2} s", started.elapsed().as_secs_f64());
    drop(index);
    let started = Instant::now();
    let index = Index::open(directory.path(), config.clone())?;
    let stats = index.stats();
    println!("open {:.2} s, store {:.1} MB", started.elapsed().as_secs_f64(), mb(stats.store_bytes));
    if let Some(stats) = stats.lexical {
        println!(
            "lexical: {} segments, {:.1} MB on disk, {:.1} MB in memory, {:?}",
            stats.segments,
            mb(stats.file_bytes),
            mb(stats.memory_bytes),
            stats.recovery
        );
        let judgments = judgments(&folder.join("qrels").join(format!("{split}.tsv")))?;
        score(&index, &lines(&folder.join("queries.jsonl"))?, &judgments)?;
    }
    Ok(())
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn fill(index: &Index, corpus: &[Document], repeat: usize) -> Outcome<()> {
    let dimension = index.config().dimension;
    // Made before the clock starts.
    let vectors: Vec<Vec<f32>> = (0..corpus.len()).map(|n| unit_vector(n as u64, dimension)).collect();
    let (started, cpu) = (Instant::now(), cpu_seconds());
    for round in 0..repeat {
        for (documents, vectors) in corpus.chunks(BATCH).zip(vectors.chunks(BATCH)) {
            let mut batch: Vec<(Document, Vec<f32>)> =
                documents.iter().cloned().zip(vectors.iter().cloned()).collect();
            if round > 0 {
                batch.iter_mut().for_each(|(document, _)| document.id = format!("{}-{round}", document.id));
            }
            index.upsert(batch)?;
        }
    }
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let documents = index.len();
    println!("{documents} documents in {seconds:.2} s ({:.0}/s), {cpu:.2} CPU s", documents as f64 / seconds);
    Ok(())
}

/// Processor time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn score(index: &Index, queries: &[Value], judgments: &HashMap<String, HashMap<String, f64>>) -> Outcome<()> {
    let (mut ndcg, mut recall, mut milliseconds) = (Vec::new(), Vec::new(), Vec::new());
    for query in queries {
        let id = query["_id"].as_str().unwrap_or("");
        let Some(relevant) = judgments.get(id) else { continue };
        let started = Instant::now();
        let found = index.search_lexical(&LexicalRequest::new(query["text"].as_str().unwrap_or(""), 101))?;
        milliseconds.push(started.elapsed().as_secs_f64() * 1e3);
        let keys: Vec<u64> = found.hits.iter().map(|hit| hit.key).collect();
        let hits: Vec<String> =
            index.documents(&keys)?.into_iter().flatten().map(|document| document.id).collect();
        let ranked: Vec<&String> = hits.iter().filter(|hit| *hit != id).take(100).collect();
        ndcg.push(ndcg_at_10(&ranked, relevant));
        let found: HashSet<&String> = ranked.into_iter().collect();
        let hit = relevant.keys().filter(|id| found.contains(id)).count();
        recall.push(hit as f64 / relevant.len() as f64);
    }
    milliseconds.sort_by(f64::total_cmp);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let at = |share: f64| milliseconds[((milliseconds.len() - 1) as f64 * share) as usize];
    println!(
        "{} queries: nDCG@10 {:.4}, Recall@100 {:.4}; search p50 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
        ndcg.len(),
        mean(&ndcg),
        mean(&recall),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}

/// As trec_eval computes it.
fn ndcg_at_10(ranked: &[&String], relevant: &HashMap<String, f64>) -> f64 {
    let discounted = |gains: &[f64]| -> f64 {
        gains.iter().take(10).enumerate().map(|(rank, gain)| gain / (rank as f64 + 2.0).log2()).sum()
    };
    let gains: Vec<f64> = ranked.iter().map(|id| relevant.get(*id).copied().unwrap_or(0.0)).collect();
    let mut ideal: Vec<f64> = relevant.values().copied().collect();
    ideal.sort_by(|a, b| b.total_cmp(a));
    discounted(&gains) / discounted(&ideal)
}

fn lines(path: &Path) -> Outcome<Vec<Value>> {
    let content = fs_err::read_to_string(path)?;
    content.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn corpus(path: &Path, titles: &str) -> Outcome<Vec<Document>> {
    let field = |line: &Value, name: &str| line[name].as_str().unwrap_or("").to_owned();
    let document = |line: Value| Document {
        id: field(&line, "_id"),
        title: if titles == "none" { String::new() } else { field(&line, "title") },
        text: if titles == "only" { String::new() } else { field(&line, "text") },
        metadata: Map::new(),
    };
    Ok(lines(path)?.into_iter().map(document).collect())
}

/// Positive judgments by query and document.
fn judgments(path: &Path) -> Outcome<HashMap<String, HashMap<String, f64>>> {
    let mut judgments: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for line in fs_err::read_to_string(path)?.lines().skip(1) {
        let fields: Vec<&str> = line.split('\t').collect();
        let [query, document, gain] = fields[..] else {
            return Err(format!("{line}: not a judgment").into());
        };
        let gain: f64 = gain.trim().parse()?;
        if gain > 0.0 {
            judgments.entry(query.to_owned()).or_default().insert(document.to_owned(), gain);
        }
    }
    Ok(judgments)
}
