//! Recall and speed of the graph against exact search, on clustered random vectors or on your own.
//!
//! ```text
//! cargo run --release -p expandr-index --example recall -- documents=100000 dimension=384 queries=500
//! cargo run --release -p expandr-index --example recall -- vectors=documents.npy query_vectors=queries.npy scalar=f32
//! ```
//! `.npy` files hold a C-ordered little-endian f32 matrix; any other file is read as raw little-endian f32 rows of
//! `dimension`. Without `query_vectors` the last `queries` vectors of the file are the queries. Further settings:
//! `scalar`, `connectivity`, `ef_construction`, `threads`.

use std::collections::HashMap;
use std::error::Error;
use std::time::Instant;

use expandr_index::testing::{document, unit_vector};
use expandr_index::{Index, IndexConfig, SearchMode, SearchRequest};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Vectors = Vec<Vec<f32>>;

fn main() -> Outcome<()> {
    let mut settings = HashMap::new();
    for argument in std::env::args().skip(1) {
        let (name, value) =
            argument.split_once('=').ok_or_else(|| format!("{argument}: write name=value"))?;
        settings.insert(name.to_owned(), value.to_owned());
    }
    let (documents, queries) = load(&mut settings)?;
    let dimension = documents.first().ok_or("no vectors")?.len();
    let mut config = IndexConfig { snapshot_every: 0, ..IndexConfig::new("recall", dimension) };
    config.connectivity = number(&mut settings, "connectivity", config.connectivity)?;
    config.ef_construction = number(&mut settings, "ef_construction", config.ef_construction)?;
    config.build_threads = number(&mut settings, "threads", config.build_threads)?;
    if let Some(scalar) = settings.remove("scalar") {
        config.scalar = serde_json::from_value(scalar.into())?;
    }
    if let Some(unknown) = settings.keys().next() {
        return Err(format!("unknown setting {unknown}").into());
    }
    run(config, &documents, &queries)
}

fn run(config: IndexConfig, documents: &Vectors, queries: &Vectors) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    println!("{} documents, {} queries, {config:?}", documents.len(), queries.len());
    let index = Index::open(directory.path(), config)?;
    let started = Instant::now();
    for (batch, vectors) in documents.chunks(1000).enumerate() {
        let named = vectors.iter().zip(batch * 1000..);
        index.upsert(named.map(|(vector, n)| (document(n.to_string(), "text"), vector.clone())).collect())?;
    }
    let stats = index.stats();
    println!(
        "ingest {:.1} s, store {} MB, vectors {} MB, graph {} MB, distances by {}",
        started.elapsed().as_secs_f64(),
        stats.store_bytes >> 20,
        stats.vector_bytes >> 20,
        stats.graph.memory_bytes >> 20,
        stats.graph.hardware
    );

    // Milliseconds are medians, so that what else runs on the machine disturbs little.
    let search = |mode, top_k, ef| -> Outcome<(Vec<Vec<u64>>, f64)> {
        let (mut found, mut milliseconds) = (Vec::new(), Vec::new());
        for vector in queries {
            let started = Instant::now();
            let hits = index.search(&SearchRequest { mode, ef, ..SearchRequest::new(vector, top_k) })?.hits;
            milliseconds.push(started.elapsed().as_secs_f64() * 1000.0);
            found.push(hits.into_iter().map(|hit| hit.key).collect());
        }
        milliseconds.sort_by(f64::total_cmp);
        Ok((found, milliseconds.get(milliseconds.len() / 2).copied().unwrap_or_default()))
    };
    for top_k in [10, 100] {
        let (truth, milliseconds) = search(SearchMode::Exact, top_k, None)?;
        println!("top {top_k}: exact {milliseconds:.3} ms a query");
        for ef in [None, Some(32), Some(64), Some(128), Some(256)] {
            let (found, milliseconds) = search(SearchMode::Hnsw, top_k, ef)?;
            let same = |(truth, found): (&Vec<u64>, &Vec<u64>)| {
                found.iter().filter(|key| truth.contains(key)).count()
            };
            let hits: usize = truth.iter().zip(&found).map(same).sum();
            let all: usize = truth.iter().map(Vec::len).sum();
            let ef = ef.map_or("default".to_owned(), |ef| ef.to_string());
            println!(
                "top {top_k}: ef {ef:>7}  recall {:.4}  {milliseconds:.3} ms a query",
                hits as f64 / all as f64
            );
        }
    }
    let started = Instant::now();
    index.close()?;
    let config = index.config().clone();
    println!(
        "snapshot {:.2} s, {} MB",
        started.elapsed().as_secs_f64(),
        index.stats().snapshot.map_or(0, |s| s.bytes >> 20)
    );
    drop(index);
    let started = Instant::now();
    let index = Index::open(directory.path(), config)?;
    println!("open from the snapshot {:.2} s: {:?}", started.elapsed().as_secs_f64(), index.stats().recovery);
    Ok(())
}

fn load(settings: &mut HashMap<String, String>) -> Outcome<(Vectors, Vectors)> {
    let dimension = number(settings, "dimension", 384)?;
    let query_count = number(settings, "queries", 500)?;
    let document_count = number(settings, "documents", 20_000)?;
    let Some(path) = settings.remove("vectors") else {
        let make = |seed: usize| clustered(seed as u64, dimension, (document_count / 50).max(1) as u64);
        let queries = (document_count..document_count + query_count).map(make).collect();
        return Ok(((0..document_count).map(make).collect(), queries));
    };
    let mut documents = read(&path, dimension)?;
    let queries = match settings.remove("query_vectors") {
        Some(path) => read(&path, dimension)?,
        None => documents.split_off(documents.len().saturating_sub(query_count)),
    };
    Ok((documents, queries))
}

/// A unit vector near one of some centres, like the embeddings of texts about some subjects.
fn clustered(seed: u64, dimension: usize, centres: u64) -> Vec<f32> {
    let (centre, own) = (unit_vector(seed % centres, dimension), unit_vector((1 << 40) + seed, dimension));
    let sum: Vec<f32> = centre.iter().zip(own).map(|(a, b)| a + b).collect();
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.iter().map(|x| x / length).collect()
}

fn read(path: &str, dimension: usize) -> Outcome<Vectors> {
    let bytes = fs_err::read(path)?;
    let (data, dimension) = if path.ends_with(".npy") { npy(&bytes)? } else { (&bytes[..], dimension) };
    let values: Vec<f32> =
        data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(values.chunks_exact(dimension).map(<[f32]>::to_vec).collect())
}

/// The data and row length of NumPy's format, versions 1 and 2.
fn npy(bytes: &[u8]) -> Outcome<(&[u8], usize)> {
    let long = bytes.get(6).ok_or("not an npy file")? > &1;
    let start = if long { 12 } else { 10 };
    let length =
        bytes.get(8..start).ok_or("cut short")?.iter().rev().fold(0, |sum, &b| sum * 256 + usize::from(b));
    let header = std::str::from_utf8(bytes.get(start..start + length).ok_or("cut short")?)?;
    if !bytes.starts_with(b"\x93NUMPY")
        || !header.contains("'<f4'")
        || !header.contains("'fortran_order': False")
    {
        return Err("a C-ordered matrix of little-endian f32 is needed".into());
    }
    let shape =
        header.split("'shape': (").nth(1).and_then(|rest| rest.split(')').next()).ok_or("no shape")?;
    let columns = shape.split(',').nth(1).ok_or("not a matrix")?.trim().parse()?;
    Ok((&bytes[start + length..], columns))
}

fn number(settings: &mut HashMap<String, String>, name: &str, default: usize) -> Outcome<usize> {
    settings
        .remove(name)
        .map_or(Ok(default), |value| value.parse().map_err(|_| format!("{name}={value}").into()))
}
