//! Everything at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use expandr_index::testing::unit_vector;
use expandr_index::{Filter, Index, IndexConfig, LexicalRequest, SearchMode, SearchRequest};
use serde_json::json;

use crate::{DIMENSION, config, document, numbered};

#[test]
fn writers_searchers_deleters_and_maintenance() {
    let directory = tempfile::tempdir().unwrap();
    let config = IndexConfig { search_threads: 2, snapshot_every: 100, ..config() };
    let index = Index::open(directory.path(), config.clone()).unwrap();
    // These stay for the whole time, so every search must find them.
    index.upsert(numbered(0..200)).unwrap();
    let (done, searches) = (AtomicBool::new(false), AtomicUsize::new(0));
    let odd = Filter::from_json(&json!({"eq": {"parity": 1}})).unwrap();
    std::thread::scope(|scope| {
        let (index, done, searches, odd) = (&index, &done, &searches, &odd);
        for thread in 0..4u64 {
            scope.spawn(move || {
                let mut round = thread;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    let own = round % 200;
                    let query = unit_vector(own, DIMENSION);
                    let mode = [SearchMode::Hnsw, SearchMode::Exact, SearchMode::Auto][round as usize % 3];
                    let filter = (own % 2 == 1 && round % 5 < 2).then_some(odd);
                    let outcome = index
                        .search(&SearchRequest { mode, filter, ..SearchRequest::new(&query, 10) })
                        .unwrap();
                    assert_eq!(outcome.hits.len(), 10);
                    let best = index.documents(&[outcome.hits[0].key]).unwrap();
                    assert_eq!(best[0].as_ref().unwrap().id, own.to_string(), "{mode:?}");
                    let text = format!("text {own}");
                    let words = LexicalRequest { filter, ..LexicalRequest::new(&text, 10) };
                    let hits = index.search_lexical(&words).unwrap().hits;
                    assert_eq!(hits.len(), 10);
                    let best = index.documents(&[hits[0].key]).unwrap();
                    assert_eq!(best[0].as_ref().unwrap().id, own.to_string());
                    searches.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                index.rebuild().unwrap();
                index.snapshot().unwrap();
            }
        });
        let writers: Vec<_> = (1..4u64)
            .map(|writer| {
                scope.spawn(move || {
                    for batch in 0..30 {
                        let start = writer * 10_000 + batch * 10;
                        assert_eq!(index.upsert(numbered(start..start + 10)).unwrap().created, 10);
                        let gone: Vec<String> = (start..start + 5).map(|n| n.to_string()).collect();
                        assert_eq!(index.delete(&gone).unwrap(), 5);
                        assert!(index.get(&gone[0]).unwrap().is_none());
                        assert!(
                            index.search_lexical(&LexicalRequest::new(&gone[0], 1)).unwrap().hits.is_empty()
                        );
                        let kept = (start + 9).to_string();
                        let words = index.search_lexical(&LexicalRequest::new(&kept, 2)).unwrap().hits;
                        assert_eq!(crate::ids(index, words.iter().map(|hit| hit.key)), [kept]);
                        assert!(index.get(&(start + 5).to_string()).unwrap().is_some());
                        let query = unit_vector(start + 9, DIMENSION);
                        let hit = index.search(&SearchRequest::new(&query, 1)).unwrap().hits[0];
                        assert_eq!(
                            index.documents(&[hit.key]).unwrap()[0].as_ref().unwrap().id,
                            (start + 9).to_string()
                        );
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(searches.into_inner() > 0);
    let expected = 200 + 3 * 30 * 5;
    assert_eq!((index.len(), index.stats().graph.entries), (expected, expected));
    drop(index);
    let index = Index::open(directory.path(), config).unwrap();
    assert_eq!((index.len(), index.stats().graph.entries), (expected, expected));
    assert_eq!(index.stats().lexical.unwrap().documents, expected as u64);
}

#[test]
fn concurrent_writers_of_one_document_leave_one() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(directory.path(), config()).unwrap();
    let created = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8u64 {
            let (index, created) = (&index, &created);
            scope.spawn(move || {
                for round in 0..20 {
                    let vector = unit_vector(thread * 100 + round, DIMENSION);
                    let outcome =
                        index.upsert(vec![(document("one", json!({"thread": thread})), vector)]).unwrap();
                    assert_eq!(outcome.created + outcome.updated, 1);
                    created.fetch_add(outcome.created, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!((created.into_inner(), index.len()), (1, 1));
    let stored = index.iterate(None, 10).unwrap();
    assert_eq!((stored.len(), stored[0].document.id.as_str()), (1, "one"));
    let hits = index.search(&SearchRequest::new(&stored[0].vector, 10)).unwrap().hits;
    assert_eq!((hits.len(), hits[0].key), (1, stored[0].key));
}
