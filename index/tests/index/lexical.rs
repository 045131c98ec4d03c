//! Search by words against BM25 computed by the book, through random histories of writes, commits and reopening.

use std::collections::BTreeMap;

use expandr_index::testing::{TemporaryIndex, unit_vector};
use expandr_index::{
    Bm25, Document, Error, Filter, Index, IndexConfig, LexicalRequest, MIN_LEXICAL_MEMORY_BYTES,
};
use proptest::prelude::*;
use serde_json::json;

use crate::{DIMENSION, config, ids};

/// Words that the analysis leaves as they are.
const WORDS: [&str; 8] = ["red", "green", "blue", "fox", "owl", "elk", "x1", "äöü"];

fn document(id: &str, title: &str, text: &str, tag: u8) -> Document {
    let metadata = json!({"tag": tag}).as_object().cloned().unwrap_or_default();
    Document { id: id.into(), title: title.into(), text: text.into(), metadata }
}

fn sentence(words: &[usize]) -> String {
    words.iter().map(|&word| WORDS[word]).collect::<Vec<_>>().join(", ")
}

/// What the index should hold: by id, when it was written, its words, and its tag.
type Model = BTreeMap<String, (u64, Vec<usize>, u8)>;

/// Scores of the documents that have a word of the query, by id. Straight from the formula, in double precision.
fn scores(model: &Model, query: &[usize], bm25: Bm25, tag: Option<u8>) -> BTreeMap<String, f64> {
    let (k1, b) = (f64::from(bm25.k1), f64::from(bm25.b));
    let documents = model.len() as f64;
    let average = model.values().map(|(_, words, _)| words.len()).sum::<usize>() as f64 / documents;
    let mut scores = BTreeMap::new();
    for (id, (_, words, own)) in model {
        let occurrences = |word: usize| words.iter().filter(|&&other| other == word).count() as f64;
        if tag.is_some_and(|tag| tag != *own) || query.iter().all(|&word| occurrences(word) == 0.0) {
            continue;
        }
        let score = query.iter().map(|&word| {
            let holding = model.values().filter(|(_, words, _)| words.contains(&word)).count() as f64;
            let idf = (1.0 + (documents - holding + 0.5) / (holding + 0.5)).ln();
            let tf = occurrences(word);
            idf * tf / (tf + k1 * (1.0 - b + b * words.len() as f64 / average))
        });
        scores.insert(id.clone(), score.sum());
    }
    scores
}

fn check(index: &Index, model: &Model, query: &[usize], top_k: usize, tag: Option<u8>) {
    let filter = tag.map(|tag| Filter::from_json(&json!({"eq": {"tag": tag}})).unwrap());
    let text = sentence(query);
    let request = LexicalRequest { filter: filter.as_ref(), ..LexicalRequest::new(&text, top_k) };
    let outcome = index.search_lexical(&request).unwrap();
    let expected = scores(model, query, index.config().bm25, tag);
    assert_eq!(outcome.hits.len(), top_k.min(expected.len()), "{query:?}");
    let mut best: Vec<f64> = expected.values().copied().collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let found = ids(index, outcome.hits.iter().map(|hit| hit.key));
    for ((hit, id), best) in outcome.hits.iter().zip(&found).zip(best) {
        let score = expected[id];
        assert!((f64::from(hit.score) - score).abs() < 1e-5, "{id}: {} instead of {score}", hit.score);
        assert!((score - best).abs() < 1e-5, "{id} with {score} stands where {best} should");
    }
    let in_order = outcome.hits.windows(2).all(|pair| pair[0].rank(&pair[1]).is_lt());
    assert!(in_order, "equal scores go by key: {:?}", outcome.hits);
    let written: Vec<u64> = found.iter().map(|id| model[id].0).collect();
    let ties =
        outcome.hits.windows(2).zip(written.windows(2)).filter(|(pair, _)| pair[0].score == pair[1].score);
    assert!(ties.into_iter().all(|(_, written)| written[0] < written[1]), "the older document comes first");
}

#[derive(Debug, Clone)]
enum Step {
    Upsert(Vec<(u8, Vec<usize>, Vec<usize>, u8)>),
    Delete(Vec<u8>),
    Search { query: Vec<usize>, top_k: usize, tag: Option<u8> },
    Commit,
    Close,
    Crash,
}

fn words(longest: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..WORDS.len(), 0..longest)
}

fn step() -> impl Strategy<Value = Step> {
    let upsert = (0u8..15, words(3), words(12), 0u8..3);
    let search = (words(6), 1usize..20, prop::option::of(0u8..4));
    prop_oneof![
        5 => prop::collection::vec(upsert, 1..8).prop_map(Step::Upsert),
        2 => prop::collection::vec(0u8..18, 1..4).prop_map(Step::Delete),
        6 => search.prop_map(|(query, top_k, tag)| Step::Search { query, top_k, tag }),
        2 => Just(Step::Commit),
        1 => Just(Step::Close),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn random_histories(steps in prop::collection::vec(step(), 1..30), k1 in 0.0f32..3.0, b in 0.0f32..=1.0) {
        let directory = tempfile::tempdir().unwrap();
        let config = IndexConfig { bm25: Bm25 { k1, b }, ..config() };
        let open = || Index::open(directory.path(), config.clone()).unwrap();
        let (mut index, mut model, mut writes) = (open(), Model::new(), 0u64);
        for step in steps {
            match step {
                Step::Upsert(batch) => {
                    // The place in the order of a document that comes twice is its first one, its content the last.
                    let mut places = BTreeMap::new();
                    let mut documents = Vec::new();
                    for (number, title, text, tag) in &batch {
                        writes += 1;
                        let id = number.to_string();
                        let place = *places.entry(number).or_insert(writes);
                        documents.push((document(&id, &sentence(title), &sentence(text), *tag), unit_vector(1, DIMENSION)));
                        model.insert(id, (place, [&title[..], text].concat(), *tag));
                    }
                    index.upsert(documents).unwrap();
                }
                Step::Delete(numbers) => {
                    let ids: Vec<String> = numbers.iter().map(u8::to_string).collect();
                    ids.iter().for_each(|id| _ = model.remove(id));
                    index.delete(&ids).unwrap();
                }
                Step::Search { query, top_k, tag } => check(&index, &model, &query, top_k, tag),
                Step::Commit => index.snapshot().unwrap(),
                Step::Close => {
                    index.close().unwrap();
                    check(&index, &model, &[0, 3], 9, None);
                    drop(index);
                    index = open();
                }
                Step::Crash => {
                    drop(index);
                    index = open();
                }
            }
        }
        for query in [vec![0, 1, 2, 3, 4, 5, 6, 7], vec![2, 2, 7], vec![5]] {
            check(&index, &model, &query, 20, None);
        }
        prop_assert_eq!(index.stats().lexical.unwrap().documents, model.len() as u64);
    }

    #[test]
    fn any_text_can_be_searched_with(text in any::<String>(), top_k in 1usize..1001) {
        thread_local! {
            static INDEX: TemporaryIndex = {
                let index = TemporaryIndex::new(DIMENSION).unwrap();
                let text = "a \u{0} \"quoted\" +must -not field:value AND (NOT) ~2 ^3 [1 TO 2] * ? éüß 漢字";
                index.upsert(vec![(document("d", "", text, 0), unit_vector(1, DIMENSION))]).unwrap();
                index
            };
        }
        let found = INDEX.with(|index| index.search_lexical(&LexicalRequest::new(&text, top_k)).unwrap());
        prop_assert!(found.hits.len() <= 1 && found.matching == 1);
    }
}

#[test]
fn queries_have_no_syntax_and_may_be_long() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    let texts = ["the cat sat", "NOT a dog", "cats and dogs", "of the and", ""];
    let documents = texts
        .iter()
        .zip(0u64..)
        .map(|(text, n)| (document(&n.to_string(), "", text, 0), unit_vector(n, DIMENSION)));
    index.upsert(documents.collect()).unwrap();
    let found = |text: &str| {
        let outcome = index.search_lexical(&LexicalRequest::new(text, 10)).unwrap();
        (outcome.terms, ids(&index, outcome.hits.iter().map(|hit| hit.key)))
    };
    assert_eq!(found("cats NOT dogs").0, 2, "stop words do not count");
    assert_eq!(found("+dog -cat").1, found("dog cat").1);
    assert_eq!(found("Dogs!").1, ["1", "2"]);
    assert_eq!(found("the of and"), (0, vec![]));
    assert_eq!(found("").1, Vec::<String>::new());
    let long = (0..50_000).map(|n| format!("word{n} cat ")).collect::<String>();
    assert_eq!(found(&long).1, ["0", "2"]);
}

#[test]
fn parameters_are_checked() {
    let index = TemporaryIndex::new(DIMENSION).unwrap();
    for top_k in [0, 1001] {
        let error = index.search_lexical(&LexicalRequest::new("x", top_k)).unwrap_err();
        assert!(matches!(&error, Error::InvalidSearch(detail) if detail.contains("1 to 1000")), "{error}");
    }
    let none = Filter::from_json(&json!({"eq": {"tag": 9}})).unwrap();
    let request = LexicalRequest { filter: Some(&none), ..LexicalRequest::new("x", 5) };
    assert_eq!(index.search_lexical(&request).unwrap().matching, 0);
}

/// More than the memory holds: the index commits by itself, several times, and merges.
#[test]
fn a_bulk_load_goes_to_disk_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let config = IndexConfig {
        lexical_memory_bytes: MIN_LEXICAL_MEMORY_BYTES,
        exact_threshold: 1_000_000,
        ..config()
    };
    let index = Index::open(directory.path(), config.clone()).unwrap();
    let text = |n: u64| {
        (0..150).map(|word| format!("w{n}x{word} ")).collect::<String>() + ["even", "odd"][n as usize % 2]
    };
    for start in (0..4000).step_by(250) {
        let documents = (start..start + 250)
            .map(|n| (document(&n.to_string(), "", &text(n), (n % 2) as u8), unit_vector(n, DIMENSION)));
        index.upsert(documents.collect()).unwrap();
        index.delete(&[(start + 7).to_string()]).unwrap();
    }
    let check = |index: &Index| {
        let stats = index.stats().lexical.unwrap();
        assert_eq!(stats.documents, 4000 - 16);
        let one = index.search_lexical(&LexicalRequest::new("w1234x7 w99x3", 10)).unwrap();
        assert_eq!(ids(index, one.hits.iter().map(|hit| hit.key)), ["99", "1234"]);
        assert!(index.search_lexical(&LexicalRequest::new("w257x0", 10)).unwrap().hits.is_empty());
        assert_eq!(index.search_lexical(&LexicalRequest::new("odd", 1000)).unwrap().hits.len(), 1000);
        stats
    };
    let stats = check(&index);
    assert!(stats.segments > 0 && stats.recent < 3000, "{stats:?}");
    assert!(stats.memory_bytes < MIN_LEXICAL_MEMORY_BYTES as u64, "{stats:?}");
    index.close().unwrap();
    check(&index);
    drop(index);
    let stats = check(&Index::open(directory.path(), config.clone()).unwrap());
    assert_eq!(stats.recent, 0);
    // Built anew from the store it goes to disk by itself as well, before it holds all.
    std::fs::remove_dir_all(directory.path().join("lexical")).unwrap();
    let index = Index::open(directory.path(), config.clone()).unwrap();
    let stats = check(&index);
    assert!(stats.segments > 0 && stats.recent < 3000, "{stats:?}");
    assert!(stats.memory_bytes < MIN_LEXICAL_MEMORY_BYTES as u64, "{stats:?}");
    drop(index);
    check(&Index::open(directory.path(), config).unwrap());
}
