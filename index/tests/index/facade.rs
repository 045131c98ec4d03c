//! The index as its users see it.

use expandr_index::testing::{TemporaryIndex, unit_vector};
use expandr_index::{Error, Filter, How, Index, IndexConfig, SearchMode, SearchRequest, UpsertOutcome};
use serde_json::json;

use crate::{DIMENSION, config, document, ids, numbered};

fn search<'a>(vector: &'a [f32], top_k: usize, mode: SearchMode) -> SearchRequest<'a> {
    SearchRequest { mode, ..SearchRequest::new(vector, top_k) }
}

#[test]
fn documents_come_back_as_given() {
    let directory = tempfile::tempdir().unwrap();
    let names = ["a", " ", "\u{0}\u{1f600}/../%2e?#\"", "é", "e\u{301}", &"x".repeat(512)];
    let metadata = json!({"n": 0.1, "big": 18446744073709551615u64, "deep": {"list": [1, [2, {"x": null}]]}, "": "empty"});
    let given: Vec<_> = names
        .iter()
        .zip(1..)
        .map(|(id, n)| (document(id, metadata.clone()), unit_vector(n, DIMENSION)))
        .collect();
    let index = Index::open(directory.path(), config()).unwrap();
    assert_eq!(index.upsert(given.clone()).unwrap(), UpsertOutcome { created: 6, updated: 0 });
    drop(index);
    let index = Index::open(directory.path(), config()).unwrap();
    for (document, vector) in &given {
        assert_eq!(index.get(&document.id).unwrap().as_ref(), Some(document));
        assert_eq!(index.vector(&document.id).unwrap().as_ref(), Some(vector));
        let hits = index.search(&SearchRequest::new(vector, 1)).unwrap().hits;
        assert_eq!(ids(&index, hits.iter().map(|hit| hit.key)), [document.id.as_str()]);
        assert_eq!(index.vectors(&[hits[0].key, 999]), [Some(vector.clone()), None]);
        assert_eq!(index.ids(&[999, hits[0].key]).unwrap(), [None, Some(document.id.clone())]);
    }
    assert_eq!(index.get("b").unwrap(), None);
    assert_eq!(index.vector("b").unwrap(), None);
}

#[test]
fn upsert_replaces_and_delete_removes() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    index.upsert(numbered(0..10)).unwrap();
    let moved = unit_vector(77, DIMENSION);
    let old_key = index.search(&SearchRequest::new(&unit_vector(3, DIMENSION), 1)).unwrap().hits[0].key;
    let twice = vec![
        (document("3", json!({"n": "lost"})), unit_vector(76, DIMENSION)),
        (document("new", json!({})), unit_vector(78, DIMENSION)),
        (document("3", json!({"n": "kept"})), moved.clone()),
    ];
    assert_eq!(index.upsert(twice).unwrap(), UpsertOutcome { created: 1, updated: 1 });
    assert_eq!(index.len(), 11);
    assert_eq!(index.get("3").unwrap().unwrap().metadata["n"], "kept");
    assert_eq!(index.vector("3").unwrap(), Some(moved.clone()));
    let hit = index.search(&SearchRequest::new(&moved, 1)).unwrap().hits[0];
    assert_ne!(hit.key, old_key);
    assert_eq!(index.documents(&[old_key, hit.key]).unwrap()[0], None);
    assert_eq!(index.ids(&[old_key, hit.key]).unwrap(), [None, Some("3".to_owned())]);
    let old_value = Filter::from_json(&json!({"eq": {"n": 3}})).unwrap();
    let request = SearchRequest { filter: Some(&old_value), ..SearchRequest::new(&moved, 5) };
    assert_eq!(index.search(&request).unwrap().matching, 0);

    let gone = ["3", "3", "missing", "", "4"].map(String::from);
    assert_eq!(index.delete(&gone).unwrap(), 2);
    assert_eq!((index.len(), index.get("3").unwrap()), (9, None));
    let all = index.search(&SearchRequest::new(&moved, 100)).unwrap();
    assert_eq!((all.hits.len(), all.matching), (9, 9));
    assert_eq!(index.upsert(vec![]).unwrap(), UpsertOutcome::default());
}

#[test]
fn bad_input_is_refused_whole_and_named() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    let good = || (document("good", json!({})), unit_vector(1, DIMENSION));
    let with = |id: &str, vector: Vec<f32>| vec![good(), (document(id, json!({})), vector)];
    let mut nan = unit_vector(2, DIMENSION);
    nan[5] = f32::NAN;
    for (documents, told) in [
        (with("", unit_vector(2, DIMENSION)), "the id is empty"),
        (with(&"x".repeat(513), unit_vector(2, DIMENSION)), "513 bytes"),
        (with("bad one", nan), "document \"bad one\": component 5 of the vector is NaN"),
        (with("bad one", vec![0.0; DIMENSION]), "document \"bad one\": the vector's length is 0"),
        (with("bad one", vec![1.0; 3]), "document \"bad one\": the vector has 3 components"),
    ] {
        let error = index.upsert(documents).unwrap_err();
        assert!(error.is_invalid_input() && error.to_string().contains(told), "{error}");
        assert!(index.is_empty() && index.get("good").unwrap().is_none());
    }
    let query = unit_vector(1, DIMENSION);
    for (request, told) in [
        (SearchRequest::new(&query, 0), "top_k is 0"),
        (SearchRequest::new(&query, 1001), "top_k is 1001"),
        (SearchRequest { ef: Some(0), ..SearchRequest::new(&query, 1) }, "ef is 0"),
        (SearchRequest::new(&query[1..], 1), "15 components"),
        (SearchRequest::new(&[f32::INFINITY; DIMENSION], 1), "component 0"),
        (SearchRequest::new(&[0.0; DIMENSION], 1), "length is 0"),
    ] {
        let error = index.search(&request).unwrap_err();
        assert!(error.is_invalid_input() && error.to_string().contains(told), "{error}");
    }
}

#[test]
fn another_encoder_is_refused_unless_the_store_is_empty() {
    let directory = tempfile::tempdir().unwrap();
    let open = |encoder: &str, dimension: usize| {
        Index::open(directory.path(), IndexConfig { dimension, encoder_id: encoder.into(), ..config() })
    };
    let index = open("a", 16).unwrap();
    index.upsert(numbered(0..3)).unwrap();
    index.close().unwrap();
    drop(index);
    for (encoder, dimension) in [("b", 16), ("a", 8)] {
        let error = open(encoder, dimension).err().unwrap();
        assert!(matches!(error, Error::OtherEncoder { documents: 3, stored_dimension: 16, .. }), "{error}");
        assert!(error.to_string().contains("choose another index directory"));
    }
    let index = open("a", 16).unwrap();
    index.delete(&["0", "1", "2"].map(String::from)).unwrap();
    drop(index);
    let index = open("b", 8).unwrap();
    index.upsert(vec![(document("x", json!({})), unit_vector(1, 8))]).unwrap();
    assert_eq!(index.search(&SearchRequest::new(&unit_vector(1, 8), 9)).unwrap().hits.len(), 1);
    assert_eq!((index.stats().encoder_id.as_str(), index.stats().dimension), ("b", 8));
}

#[test]
fn a_directory_is_open_once_and_a_closed_index_refuses_writes() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(directory.path(), config()).unwrap();
    assert!(matches!(Index::open(directory.path(), config()), Err(Error::InUse(_))));
    index.upsert(numbered(0..20)).unwrap();
    assert_eq!(index.stats().snapshot, None);
    index.close().unwrap();
    index.close().unwrap();
    assert!(index.stats().snapshot.is_some_and(|snapshot| snapshot.bytes > 0 && snapshot.age_seconds < 60.0));
    assert!(matches!(index.upsert(numbered(20..21)), Err(Error::Closed)));
    assert!(matches!(index.delete(&["1".into()]), Err(Error::Closed)));
    assert_eq!(index.search(&SearchRequest::new(&unit_vector(7, DIMENSION), 3)).unwrap().hits.len(), 3);
    drop(index);
    Index::open(directory.path(), config()).unwrap();
}

#[test]
fn the_way_of_a_search_depends_on_sizes_and_mode() {
    let directory = tempfile::tempdir().unwrap();
    let config = IndexConfig { exact_threshold: 100, ef_search: 10, ..config() };
    let index = Index::open(directory.path(), config).unwrap();
    let query = unit_vector(5000, DIMENSION);
    let how = |mode, filter: Option<&Filter>| {
        let outcome = index.search(&SearchRequest { filter, ..search(&query, 5, mode) }).unwrap();
        assert_eq!(outcome.hits.len(), 5.min(outcome.matching));
        outcome.how
    };
    assert_eq!(how(SearchMode::Hnsw, None), How::Exact, "nothing to walk in");
    index.upsert(numbered(0..99)).unwrap();
    assert_eq!(how(SearchMode::Auto, None), How::Exact);
    assert_eq!(how(SearchMode::Hnsw, None), How::Hnsw);
    index.upsert(numbered(99..4000)).unwrap();
    assert_eq!(how(SearchMode::Auto, None), How::Hnsw);
    assert_eq!(how(SearchMode::Exact, None), How::Exact);
    let half = Filter::from_json(&json!({"eq": {"parity": 1}})).unwrap();
    let few = Filter::from_json(&json!({"range": {"n": {"lt": 200}}})).unwrap();
    let none = Filter::from_json(&json!({"eq": {"parity": 2}})).unwrap();
    assert_eq!(how(SearchMode::Auto, Some(&half)), How::FilteredHnsw);
    assert_eq!(how(SearchMode::Auto, Some(&few)), How::FilteredExact);
    assert_eq!(how(SearchMode::Hnsw, Some(&few)), How::FilteredHnsw);
    assert_eq!(how(SearchMode::Hnsw, Some(&none)), How::FilteredExact);
    for filter in [&half, &few] {
        let exact = SearchRequest { filter: Some(filter), ..search(&query, 10, SearchMode::Exact) };
        let walked = SearchRequest { mode: SearchMode::Hnsw, ef: Some(400), ..exact };
        assert_eq!(index.search(&walked).unwrap().hits, index.search(&exact).unwrap().hits);
    }
}

#[test]
fn recall_is_at_least_099_and_scores_are_exact() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(directory.path(), IndexConfig { dimension: 64, ..config() }).unwrap();
    // Clustered, as embeddings are: each document is near one of 100 centres.
    let clustered = |seed: u64| -> Vec<f32> {
        let (centre, own) = (unit_vector(seed % 100, 64), unit_vector(1_000_000 + seed, 64));
        let sum: Vec<f32> = centre.iter().zip(own).map(|(a, b)| a + b).collect();
        let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        sum.iter().map(|x| x / length).collect()
    };
    for start in (0..6000).step_by(1000) {
        let documents = (start..start + 1000).map(|n| (document(&n.to_string(), json!({})), clustered(n)));
        index.upsert(documents.collect()).unwrap();
    }
    let recall = |first: u64| {
        let mut found = 0;
        for seed in first..first + 200 {
            let query = clustered(seed);
            let exact = index.search(&search(&query, 10, SearchMode::Exact)).unwrap().hits;
            let walked = index.search(&search(&query, 10, SearchMode::Hnsw)).unwrap();
            assert_eq!(walked.how, How::Hnsw);
            found += walked.hits.iter().filter(|hit| exact.contains(hit)).count();
        }
        found as f64 / 2000.0
    };
    assert!(recall(500_000) >= 0.99, "{}", recall(500_000));

    // Every document replaced, twice: the old entries are skipped, then dropped by a rebuild, and recall stays.
    for round in 1..3u64 {
        for start in (0..6000).step_by(1000) {
            let documents = (start..start + 1000)
                .map(|n| (document(&n.to_string(), json!({})), clustered(n + round * 6000)));
            index.upsert(documents.collect()).unwrap();
        }
    }
    assert_eq!(index.len(), 6000);
    assert!(recall(600_000) >= 0.99, "{}", recall(600_000));
    index.rebuild().unwrap();
    let graph = index.stats().graph;
    assert_eq!((graph.entries, graph.tombstones, graph.complete), (6000, 0, true));
    assert!(recall(700_000) >= 0.99, "{}", recall(700_000));
}

#[test]
fn equal_scores_are_ordered_by_key_and_top_k_is_complete() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    let same = unit_vector(1, DIMENSION);
    index.upsert((0..1500).map(|n| (document(&n.to_string(), json!({})), same.clone())).collect()).unwrap();
    for mode in [SearchMode::Exact, SearchMode::Hnsw] {
        let hits = index.search(&search(&same, 1000, mode)).unwrap().hits;
        assert_eq!(hits.len(), 1000);
        assert!(hits.windows(2).all(|pair| pair[0].key < pair[1].key && pair[0].score == pair[1].score));
    }
}

#[test]
fn pages_visit_every_document_once() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    index.upsert(numbered(0..57)).unwrap();
    index.upsert(numbered(3..5)).unwrap();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let page = index.iterate(after, 10).unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.len() <= 10);
        after = Some(last.key);
        for stored in page {
            assert_eq!(index.vector(&stored.document.id).unwrap().unwrap(), stored.vector);
            assert_eq!(index.get(&stored.document.id).unwrap().unwrap(), stored.document);
            seen.push(stored.document.id.parse::<u64>().unwrap());
        }
    }
    assert_eq!(seen[55..], [3, 4], "in the order of writing");
    seen.sort_unstable();
    assert_eq!(seen, (0..57).collect::<Vec<_>>());
}

#[test]
fn stats_tell_sizes() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    index.upsert(numbered(0..100)).unwrap();
    index.delete(&["5".into()]).unwrap();
    let stats = index.stats();
    assert_eq!((stats.documents, stats.graph.entries, stats.graph.tombstones), (99, 99, 1));
    assert!(
        stats.store_bytes > 100 * 4 * DIMENSION as u64
            && stats.graph.memory_bytes > 100 * 2 * DIMENSION as u64
    );
    assert_eq!(stats.unsaved_changes, 101);
    index.snapshot().unwrap();
    assert_eq!(index.stats().unsaved_changes, 0);
    assert_eq!(serde_json::to_value(&stats).unwrap()["recovery"]["from"], "nothing");
}
