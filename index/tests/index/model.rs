//! Random histories against a list of documents: every answer, also after closing, crashing, saving and rebuilding.

use std::collections::BTreeMap;

use expandr_index::{Filter, Index, IndexConfig, SearchMode, SearchRequest};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{config, document};

const DIMENSION: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Upsert(Vec<(u8, [i8; DIMENSION], u8)>),
    Delete(Vec<u8>),
    Search { query: [i8; DIMENSION], top_k: usize, tag: Option<u8> },
    Snapshot,
    Rebuild,
    Close,
    Crash,
}

/// Small integers: their products are exact in every arithmetic, so ties are true ties.
fn vector() -> impl Strategy<Value = [i8; DIMENSION]> {
    prop::array::uniform3(-3i8..4).prop_filter("a length", |vector| *vector != [0; DIMENSION])
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => prop::collection::vec((0u8..12, vector(), 0u8..4), 1..6).prop_map(Step::Upsert),
        2 => prop::collection::vec(0u8..14, 1..4).prop_map(Step::Delete),
        6 => (vector(), 1usize..20, prop::option::of(0u8..5)).prop_map(|(query, top_k, tag)| Step::Search { query, top_k, tag }),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Rebuild),
        1 => Just(Step::Close),
        1 => Just(Step::Crash),
    ]
}

#[derive(Default)]
struct Model {
    /// By id: when it was last written, its vector and its tag.
    documents: BTreeMap<String, (u64, [i8; DIMENSION], u8)>,
    writes: u64,
}

impl Model {
    /// Ids and scores, best first, earlier writes first among equals.
    fn search(&self, query: &[i8; DIMENSION], top_k: usize, tag: Option<u8>) -> Vec<(String, f32)> {
        let mut found: Vec<_> = self
            .documents
            .iter()
            .filter(|(_, (_, _, own))| tag.is_none_or(|tag| tag == *own))
            .map(|(id, (written, vector, _))| {
                let score: i32 = vector.iter().zip(query).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
                (-score, *written, id.clone())
            })
            .collect();
        found.sort();
        found.truncate(top_k);
        found.into_iter().map(|(score, _, id)| (id, -score as f32)).collect()
    }
}

fn floats(vector: &[i8; DIMENSION]) -> Vec<f32> {
    vector.iter().map(|&value| value.into()).collect()
}

fn tagged(id: &str, tag: u8) -> Value {
    json!({"tag": tag, "list": [id, tag]})
}

fn check_search(index: &Index, model: &Model, query: &[i8; DIMENSION], top_k: usize, tag: Option<u8>) {
    let filter = tag.map(|tag| {
        Filter::from_json(&json!({"and": [{"eq": {"tag": tag}}, {"in": {"list": [tag]}}]})).unwrap()
    });
    for mode in [SearchMode::Exact, SearchMode::Hnsw, SearchMode::Auto] {
        let vector = floats(query);
        let request = SearchRequest { filter: filter.as_ref(), mode, ..SearchRequest::new(&vector, top_k) };
        let hits = index.search(&request).unwrap().hits;
        let documents = index.documents(&hits.iter().map(|hit| hit.key).collect::<Vec<_>>()).unwrap();
        let found: Vec<_> =
            hits.iter().zip(documents).map(|(hit, document)| (document.unwrap().id, hit.score)).collect();
        assert_eq!(found, model.search(query, top_k, tag), "{mode:?}");
    }
}

fn check_all(index: &Index, model: &Model) {
    assert_eq!(index.len(), model.documents.len());
    assert_eq!(index.stats().graph.entries, model.documents.len());
    for number in 0..14 {
        let id = number.to_string();
        let expected = model.documents.get(&id);
        assert_eq!(index.get(&id).unwrap(), expected.map(|(_, _, tag)| document(&id, tagged(&id, *tag))));
        assert_eq!(index.vector(&id).unwrap(), expected.map(|(_, vector, _)| floats(vector)));
    }
    let stored: Vec<String> =
        index.iterate(None, 100).unwrap().into_iter().map(|stored| stored.document.id).collect();
    let mut written: Vec<_> =
        model.documents.iter().map(|(id, (written, ..))| (*written, id.clone())).collect();
    written.sort();
    assert_eq!(stored, written.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_histories(steps in prop::collection::vec(step(), 1..40)) {
        let directory = tempfile::tempdir().unwrap();
        let open = || Index::open(directory.path(), IndexConfig { dimension: DIMENSION, ..config() }).unwrap();
        let (mut index, mut model) = (open(), Model::default());
        for step in steps {
            match step {
                Step::Upsert(batch) => {
                    let documents = batch.iter().map(|(number, vector, tag)| {
                        let id = number.to_string();
                        (document(&id, tagged(&id, *tag)), floats(vector))
                    });
                    let outcome = index.upsert(documents.collect()).unwrap();
                    let before = model.documents.len();
                    // The place in the order of a document that comes twice is its first one, its content the last.
                    let mut places = BTreeMap::new();
                    for (number, vector, tag) in &batch {
                        model.writes += 1;
                        let place = *places.entry(number).or_insert(model.writes);
                        model.documents.insert(number.to_string(), (place, *vector, *tag));
                    }
                    let created = model.documents.len() - before;
                    prop_assert_eq!((outcome.created, outcome.updated), (created, places.len() - created));
                }
                Step::Delete(numbers) => {
                    let ids: Vec<String> = numbers.iter().map(u8::to_string).collect();
                    let expected = ids.iter().filter(|id| model.documents.remove(*id).is_some()).count();
                    prop_assert_eq!(index.delete(&ids).unwrap(), expected);
                }
                Step::Search { query, top_k, tag } => check_search(&index, &model, &query, top_k, tag),
                Step::Snapshot => index.snapshot().unwrap(),
                Step::Rebuild => index.rebuild().unwrap(),
                Step::Close => {
                    index.close().unwrap();
                    drop(index);
                    index = open();
                    check_all(&index, &model);
                }
                Step::Crash => {
                    drop(index);
                    index = open();
                    check_all(&index, &model);
                }
            }
        }
        check_all(&index, &model);
    }
}
