//! What every implementation of the seam keeps, and the holes of usearch that the wrapper closes.

use std::sync::atomic::{AtomicBool, Ordering};

use expandr_index::testing::unit_vector;
use expandr_index::{Error, Exact, Hit, Hnsw, IndexConfig, MAX_CANDIDATES, Scalar, VectorIndex};

use crate::{DIMENSION, config};

fn implementations() -> Vec<(&'static str, Box<dyn VectorIndex>)> {
    let hnsw = |scalar| Box::new(Hnsw::new(&IndexConfig { scalar, ..config() }).unwrap());
    vec![
        ("exact", Box::new(Exact::new(DIMENSION))),
        ("bf16", hnsw(Scalar::Bf16)),
        ("f32", hnsw(Scalar::F32)),
        ("f16", hnsw(Scalar::F16)),
        ("i8", hnsw(Scalar::I8)),
    ]
}

fn add_numbered(index: &dyn VectorIndex, range: std::ops::Range<u64>) {
    let vectors: Vec<(u64, Vec<f32>)> = range.map(|key| (key, unit_vector(key, DIMENSION))).collect();
    index.add(&vectors.iter().map(|(key, vector)| (*key, &vector[..])).collect::<Vec<_>>()).unwrap();
}

fn keys(hits: &[Hit]) -> Vec<u64> {
    hits.iter().map(|hit| hit.key).collect()
}

#[test]
fn finds_what_was_added_and_not_what_was_removed() {
    for (name, index) in implementations() {
        assert!(index.is_empty());
        assert_eq!(index.search(&unit_vector(1, DIMENSION), 5, 64, None).unwrap(), []);
        add_numbered(&*index, 0..500);
        for key in [0, 7, 499] {
            let hits = index.search(&unit_vector(key, DIMENSION), 3, 64, None).unwrap();
            assert_eq!((hits.len(), hits[0].key), (3, key), "{name}");
            assert!((hits[0].score - 1.0).abs() < 0.05, "{name}: {hits:?}");
        }
        let gone: Vec<u64> = (0..500).filter(|key| key % 3 == 0).collect();
        assert_eq!(index.remove(&gone), gone.len());
        assert_eq!(index.remove(&gone), 0);
        assert_eq!(index.remove(&[1 << 40, u64::MAX]), 0);
        assert_eq!(index.len(), 500 - gone.len());
        let mut missed = 0;
        for key in 0..500 {
            let hits = index.search(&unit_vector(key, DIMENSION), 10, 64, None).unwrap();
            assert_eq!(hits.len(), 10, "{name}");
            assert!(keys(&hits).iter().all(|key| key % 3 != 0), "{name}: {hits:?}");
            missed += usize::from(key % 3 != 0 && hits[0].key != key);
        }
        // A graph search is approximate; an exact one is not.
        let allowed = if name == "exact" { 0 } else { 5 };
        assert!(missed <= allowed, "{name}: {missed} of 333 vectors do not find themselves");
    }
}

#[test]
fn only_allowed_keys_are_found() {
    for (name, index) in implementations() {
        add_numbered(&*index, 0..400);
        for modulus in [2, 50, 1000] {
            let allow = |key: u64| key % modulus == 1;
            let hits = index.search(&unit_vector(3, DIMENSION), 400, 400, Some(&allow)).unwrap();
            let mut found = keys(&hits);
            found.sort_unstable();
            let mut expected: Vec<u64> = (0..400).filter(|&key| allow(key)).collect();
            if name != "exact" {
                // A graph search is approximate: it may miss a few, and must not find others.
                let all = expected.len();
                expected.retain(|key| found.contains(key));
                assert!(all - expected.len() <= 2, "{name}: {} of {all} are missed", all - expected.len());
            }
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn unusable_vectors_keys_and_queries_are_refused_and_do_no_harm() {
    for (name, index) in implementations() {
        add_numbered(&*index, 0..100);
        let good = unit_vector(1000, DIMENSION);
        let mut nan = good.clone();
        nan[3] = f32::NAN;
        let mut infinite = good.clone();
        infinite[0] = f32::NEG_INFINITY;
        let zero = vec![0.0; DIMENSION];
        for bad in [&nan, &infinite, &zero, &good[1..].to_vec(), &Vec::new()] {
            assert!(
                matches!(index.add(&[(1000, &good), (1001, bad)]), Err(Error::InvalidVector { .. })),
                "{name}"
            );
            assert!(matches!(index.search(bad, 5, 64, None), Err(Error::InvalidVector { .. })), "{name}");
        }
        for key in [u64::MAX, 5] {
            assert!(
                matches!(index.add(&[(1000, &good), (key, &good)]), Err(Error::Graph(_))),
                "{name}: {key}"
            );
        }
        assert!(index.add(&[(1000, &good), (1000, &good)]).is_err(), "{name}: twice in a batch");
        assert_eq!(index.len(), 100, "{name}: nothing of a refused batch stays");
        assert_eq!(index.search(&good, 100, 100, None).unwrap().len(), 100, "{name}");
        index.add(&[(1000, &good)]).unwrap();
        assert_eq!(index.search(&good, 1, 64, None).unwrap()[0].key, 1000, "{name}");
    }
}

#[test]
fn additions_on_many_threads_lose_nothing() {
    const BATCH: u64 = 500;
    let mut cut_off = 0;
    for round in 0..3u64 {
        let index = Hnsw::new(&IndexConfig { build_threads: 8, ..config() }).unwrap();
        let batches = (0..6).map(|batch| round * 1_000_000 + batch * BATCH);
        let mut missed = 0;
        for start in batches.clone() {
            add_numbered(&index, start..start + BATCH);
            for key in start..start + BATCH {
                assert!(finds_itself(&index, key, 3000), "{key} can't be reached after its own batch");
            }
        }
        for key in batches.flat_map(|start| start..start + BATCH) {
            if !finds_itself(&index, key, 32) {
                missed += 1;
                cut_off += usize::from(!finds_itself(&index, key, 3000));
            }
        }
        // Without the repair of lost vectors about one in a hundred is missed; with it, in 240 builds, never more than 4.
        assert!(missed <= 6, "{missed} of 3000 vectors do not find themselves at ef 32");
    }
    // The one thing that is not mended, in one build of 200, more on busy cores: see the wrapper's table.
    assert!(cut_off <= 1, "later batches cut off {cut_off} of 9000 vectors");
}

fn finds_itself(index: &Hnsw, key: u64, ef: usize) -> bool {
    index.search(&unit_vector(key, DIMENSION), 1, ef, None).unwrap()[0].key == key
}

#[test]
fn huge_requests_are_clamped() {
    for (name, index) in implementations() {
        add_numbered(&*index, 0..50);
        for (top_k, ef) in
            [(usize::MAX, 1), (1, usize::MAX), (usize::MAX, usize::MAX), (0, 0), (0, 10), (10, 0)]
        {
            let hits = index.search(&unit_vector(3, DIMENSION), top_k, ef, None).unwrap();
            assert_eq!(hits.len(), top_k.min(50), "{name}");
        }
    }
    assert!(Hnsw::new(&IndexConfig { dimension: 0, ..config() }).is_err());
    assert!(Hnsw::new(&IndexConfig { ef_search: MAX_CANDIDATES + 1, ..config() }).is_err());
}

#[test]
fn a_panicking_filter_is_an_error_and_the_graph_goes_on() {
    let index = Hnsw::new(&config()).unwrap();
    add_numbered(&index, 0..100);
    let panics = |key: u64| if key < 200 { panic!("on purpose") } else { true };
    for _ in 0..50 {
        let told = index.search(&unit_vector(3, DIMENSION), 5, 64, Some(&panics)).unwrap_err();
        assert!(told.to_string().contains("panicked"));
    }
    assert_eq!(index.search(&unit_vector(3, DIMENSION), 5, 64, None).unwrap()[0].key, 3);
}

#[test]
fn scores_and_order_hold_for_vectors_of_any_length() {
    for scale in [1e-8f32, 1e-3, 0.7, 1.0, 30.0, 1e8] {
        let index = Hnsw::new(&config()).unwrap();
        let exact = Exact::new(DIMENSION);
        let vectors: Vec<(u64, Vec<f32>)> = (0..300)
            .map(|key| (key, unit_vector(key, DIMENSION).iter().map(|x| x * scale).collect()))
            .collect();
        let borrowed: Vec<(u64, &[f32])> = vectors.iter().map(|(key, vector)| (*key, &vector[..])).collect();
        index.add(&borrowed).unwrap();
        exact.add(&borrowed).unwrap();
        let mut missed = 0;
        for seed in 1000..1020 {
            let query: Vec<f32> = unit_vector(seed, DIMENSION).iter().map(|x| x * 0.3).collect();
            let truth = exact.search(&query, 5, 64, None).unwrap();
            let found = index.search(&query, 20, 64, None).unwrap();
            for hit in &truth {
                match found.iter().find(|other| other.key == hit.key) {
                    Some(same) => {
                        let difference = (same.score - hit.score).abs();
                        assert!(difference < 0.01 * scale, "scale {scale}: {same:?} {hit:?}");
                    }
                    None => missed += 1,
                }
            }
        }
        assert!(missed <= 2, "scale {scale}: {missed} of the 100 nearest are not among the candidates");
    }
}

#[test]
fn f16_refuses_what_it_can_not_hold() {
    let index = Hnsw::new(&IndexConfig { scalar: Scalar::F16, ..config() }).unwrap();
    for length in [1e5f32, 1e-4] {
        let vector: Vec<f32> = unit_vector(1, DIMENSION).iter().map(|x| x * length).collect();
        assert!(matches!(index.add(&[(1, &vector)]), Err(Error::InvalidVector { .. })));
    }
}

#[test]
fn an_image_restores_the_same_answers_for_many_threads_at_once() {
    let config = IndexConfig { search_threads: 3, ..config() };
    let original = Hnsw::new(&config).unwrap();
    add_numbered(&original, 0..2000);
    let image = original.snapshot().unwrap();
    let restored = Hnsw::restore(&config, &image).unwrap();
    assert_eq!(restored.snapshot().unwrap(), image);
    assert_eq!(restored.len(), 2000);
    // Threads were reserved anew after the load: twelve callers share three permits, and none fails.
    std::thread::scope(|scope| {
        for thread in 0..12u64 {
            let (original, restored) = (&original, &restored);
            scope.spawn(move || {
                for seed in 0..100 {
                    let query = unit_vector(10_000 + thread * 100 + seed, DIMENSION);
                    let answers =
                        [original, restored].map(|index| index.search(&query, 10, 64, None).unwrap());
                    assert_eq!(answers[0], answers[1]);
                }
            });
        }
    });
    add_numbered(&restored, 2000..4000);
    assert_eq!(restored.search(&unit_vector(3999, DIMENSION), 1, 64, None).unwrap()[0].key, 3999);
}

#[test]
fn an_image_of_another_kind_is_refused() {
    let original = Hnsw::new(&config()).unwrap();
    add_numbered(&original, 0..100);
    let image = original.snapshot().unwrap();
    for other in [
        IndexConfig { dimension: DIMENSION * 2, ..config() },
        IndexConfig { scalar: Scalar::F32, ..config() },
        IndexConfig { scalar: Scalar::F16, ..config() },
        IndexConfig { connectivity: 8, ..config() },
    ] {
        assert!(matches!(Hnsw::restore(&other, &image), Err(Error::Graph(_))), "{other:?}");
    }
    let mut fewer = image.clone();
    fewer.keys.remove(7);
    assert!(Hnsw::restore(&config(), &fewer).is_err(), "one key too few");
    fewer.keys.insert(12_345);
    assert!(Hnsw::restore(&config(), &fewer).is_err(), "another key");
    let mut empty = image.clone();
    empty.payload.clear();
    assert!(Hnsw::restore(&config(), &empty).is_err(), "an empty file");
    let nothing = Hnsw::new(&config()).unwrap().snapshot().unwrap();
    assert_eq!(Hnsw::restore(&config(), &nothing).unwrap().len(), 0);
}

#[test]
fn growing_removing_and_saving_beside_searches() {
    let config = IndexConfig { search_threads: 2, build_threads: 2, ..config() };
    let index = Hnsw::new(&config).unwrap();
    add_numbered(&index, 0..100);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (index, done) = (&index, &done);
            scope.spawn(move || {
                let mut round = 0;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    let query = unit_vector(thread * 1_000_000 + round, DIMENSION);
                    let allow = |key: u64| key % 4 < 2;
                    let hits = index.search(&query, 10, 32, (round % 2 == 0).then_some(&allow as _)).unwrap();
                    assert!(hits.len() <= 10 && (round % 2 == 1 || hits.iter().all(|hit| allow(hit.key))));
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let image = index.snapshot().unwrap();
                assert_eq!(Hnsw::restore(&config, &image).unwrap().len() as u64, image.keys.len());
            }
        });
        // Passes the first capacity (1024) and several later ones: reserve happens beside searches.
        for batch in 1..80 {
            add_numbered(&index, batch * 100..(batch + 1) * 100);
            let gone: Vec<u64> = (batch * 100..batch * 100 + 50).collect();
            assert_eq!(index.remove(&gone), 50);
            for key in gone {
                let hits = index.search(&unit_vector(key, DIMENSION), 3, 32, None).unwrap();
                assert!(hits.iter().all(|hit| hit.key != key), "found after its removal");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(index.len(), 100 + 79 * 50);
}
