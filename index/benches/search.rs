//! Exact search, the graph, filters and writes, on 20,000 random vectors of 384 dimensions.

use criterion::{Criterion, criterion_group, criterion_main};
use expandr_index::testing::{TemporaryIndex, document, unit_vector};
use expandr_index::{Filter, SearchMode, SearchRequest};
use serde_json::json;

const DIMENSION: usize = 384;
const DOCUMENTS: u64 = 20_000;

fn filled() -> TemporaryIndex {
    let index = TemporaryIndex::new(DIMENSION).expect("a temporary directory");
    for start in (0..DOCUMENTS).step_by(1000) {
        let documents = (start..start + 1000).map(|n| {
            let mut document = document(n.to_string(), "text");
            document.metadata.insert("percent".into(), json!(n % 100));
            (document, unit_vector(n, DIMENSION))
        });
        index.upsert(documents.collect()).expect("valid documents");
    }
    index
}

fn searches(criterion: &mut Criterion) {
    let index = filled();
    let filter =
        |percent: u64| Filter::from_json(&json!({"range": {"percent": {"lt": percent}}})).expect("valid");
    let (one, half) = (filter(1), filter(50));
    let mut seed = 1 << 50;
    for (name, mode, filter) in [
        ("exact", SearchMode::Exact, None),
        ("hnsw, default ef", SearchMode::Hnsw, None),
        ("exact, filter keeps 1 %", SearchMode::Exact, Some(&one)),
        ("hnsw, filter keeps 1 %", SearchMode::Hnsw, Some(&one)),
        ("exact, filter keeps 50 %", SearchMode::Exact, Some(&half)),
        ("hnsw, filter keeps 50 %", SearchMode::Hnsw, Some(&half)),
    ] {
        criterion.bench_function(&format!("search 20,000 × 384, top 10, {name}"), |bencher| {
            bencher.iter(|| {
                seed += 1;
                let vector = unit_vector(seed, DIMENSION);
                index
                    .search(&SearchRequest { mode, filter, ..SearchRequest::new(&vector, 10) })
                    .expect("a valid search")
            });
        });
    }
    criterion.bench_function("fetch 10 documents", |bencher| {
        let keys: Vec<u64> = (1..11).map(|n| n * 1000).collect();
        bencher.iter(|| index.documents(&keys).expect("the store reads"));
    });
}

fn writes(criterion: &mut Criterion) {
    let index = TemporaryIndex::new(DIMENSION).expect("a temporary directory");
    let mut next = 0;
    for batch in [1, 100] {
        criterion.bench_function(&format!("durable upsert of {batch}"), |bencher| {
            bencher.iter(|| {
                next += batch;
                let named = |n: u64| (document(n.to_string(), "text"), unit_vector(n, DIMENSION));
                index.upsert((next..next + batch).map(named).collect()).expect("valid documents")
            });
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = searches, writes
}
criterion_main!(benches);
