//! What happens to the graph's file, and what the index says about it.

use std::path::PathBuf;

use expandr_index::testing::unit_vector;
use expandr_index::{Index, IndexConfig, Recovery, SearchMode, SearchRequest};
use tempfile::TempDir;

use crate::{DIMENSION, config, numbered};

const DOCUMENTS: u64 = 300;

/// A closed index of 300 documents; the path is that of its snapshot.
fn closed_index() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(directory.path(), config()).unwrap();
    index.upsert(numbered(0..DOCUMENTS)).unwrap();
    index.close().unwrap();
    let snapshot = directory.path().join("graph.hnsw");
    assert!(snapshot.exists());
    (directory, snapshot)
}

/// Opens it and checks that every document is found through the graph.
fn reopen(directory: &TempDir, config: IndexConfig) -> Recovery {
    let index = Index::open(directory.path(), config).unwrap();
    for n in 0..DOCUMENTS {
        let query = unit_vector(n, DIMENSION);
        let request = SearchRequest { mode: SearchMode::Hnsw, ..SearchRequest::new(&query, 3) };
        let hit = index.search(&request).unwrap().hits[0];
        assert_eq!(index.documents(&[hit.key]).unwrap()[0].as_ref().unwrap().id, n.to_string());
    }
    index.stats().recovery
}

fn reason(recovery: Recovery) -> String {
    match recovery {
        Recovery::Store { reason, added: DOCUMENTS } => reason,
        other => panic!("not rebuilt from the store: {other:?}"),
    }
}

#[test]
fn a_good_snapshot_is_used() {
    let (directory, _) = closed_index();
    assert_eq!(reopen(&directory, config()), Recovery::Snapshot { added: 0, removed: 0 });
}

#[test]
fn a_snapshot_is_brought_up_to_date() {
    let (directory, snapshot) = closed_index();
    let index = Index::open(directory.path(), config()).unwrap();
    index.upsert(numbered(290..DOCUMENTS)).unwrap();
    index.upsert(numbered(DOCUMENTS..DOCUMENTS + 7)).unwrap();
    index.delete(&(DOCUMENTS..DOCUMENTS + 5).map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
    drop(index);
    assert!(snapshot.exists());
    assert_eq!(reopen(&directory, config()), Recovery::Snapshot { added: 12, removed: 10 });
}

#[test]
fn a_missing_snapshot_is_rebuilt() {
    let (directory, snapshot) = closed_index();
    fs_err::remove_file(&snapshot).unwrap();
    assert!(reason(reopen(&directory, config())).contains("no snapshot"));
}

#[test]
fn damage_anywhere_is_noticed() {
    // The prefix and the header, then shares of the rest: keys, vectors in the payload, the graph behind them.
    for place in [Ok(0), Ok(9), Ok(13), Ok(17), Ok(100), Err(0.2), Err(0.5), Err(0.9), Err(0.99999)] {
        let (directory, snapshot) = closed_index();
        let mut bytes = fs_err::read(&snapshot).unwrap();
        let position = place.unwrap_or_else(|share: f64| (share * bytes.len() as f64) as usize);
        bytes[position] ^= 0x10;
        fs_err::write(&snapshot, bytes).unwrap();
        let told = reason(reopen(&directory, config()));
        assert!(told.contains("damaged") || told.contains("belongs to something else"), "{position}: {told}");
        assert!(!snapshot.exists(), "an unusable file is removed");
    }
}

#[test]
fn truncated_and_extended_files_are_noticed() {
    let (_kept, snapshot) = closed_index();
    let length = fs_err::metadata(&snapshot).unwrap().len() as usize;
    for keep in [0, 7, 19, 40, length / 2, length - 1, length + 1] {
        let (directory, snapshot) = closed_index();
        let mut bytes = fs_err::read(&snapshot).unwrap();
        bytes.resize(keep, 0);
        fs_err::write(&snapshot, bytes).unwrap();
        assert!(reason(reopen(&directory, config())).contains("damaged"), "{keep}");
    }
}

#[test]
fn a_snapshot_of_another_store_is_foreign() {
    let (directory, snapshot) = closed_index();
    let (_other_directory, other_snapshot) = closed_index();
    fs_err::copy(other_snapshot, &snapshot).unwrap();
    assert!(reason(reopen(&directory, config())).contains("store"));
}

#[test]
fn a_snapshot_of_other_settings_is_foreign() {
    let (directory, _) = closed_index();
    let told = reason(reopen(&directory, IndexConfig { connectivity: 24, ..config() }));
    assert!(told.contains("connectivity 16 instead of 24"), "{told}");
}

#[test]
fn a_snapshot_newer_than_a_restored_store_is_foreign() {
    let (directory, snapshot) = closed_index();
    let store = directory.path().join("documents.redb");
    let backup = fs_err::read(&store).unwrap();
    let index = Index::open(directory.path(), config()).unwrap();
    index.upsert(numbered(1000..1010)).unwrap();
    index.close().unwrap();
    drop(index);
    fs_err::write(&store, backup).unwrap();
    let told = reason(reopen(&directory, config()));
    assert!(told.contains("backup"), "{told}");
    assert!(!snapshot.exists());
}

#[test]
fn a_half_written_temporary_file_does_not_matter() {
    let (directory, snapshot) = closed_index();
    fs_err::write(snapshot.with_extension("tmp"), b"half").unwrap();
    assert_eq!(reopen(&directory, config()), Recovery::Snapshot { added: 0, removed: 0 });
}

#[test]
fn a_foreign_store_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    fs_err::write(
        directory.path().join("documents.redb"),
        b"not a store, but as long as one might be".repeat(200),
    )
    .unwrap();
    let error = Index::open(directory.path(), config()).err().unwrap();
    assert!(error.to_string().contains("store"), "{error}");
}

#[test]
fn snapshots_and_rebuilds_happen_in_the_background() {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(directory.path(), IndexConfig { snapshot_every: 50, ..config() }).unwrap();
    let wait_until = |what: &str, done: &dyn Fn() -> bool| {
        let started = std::time::Instant::now();
        while !done() {
            assert!(started.elapsed().as_secs() < 60, "{what} did not happen");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    };
    index.upsert(numbered(0..49)).unwrap();
    assert_eq!(index.stats().unsaved_changes, 49);
    index.upsert(numbered(49..50)).unwrap();
    wait_until("a snapshot", &|| index.stats().snapshot.is_some() && index.stats().unsaved_changes == 0);
    for _ in 0..25 {
        index.upsert(numbered(0..50)).unwrap();
    }
    wait_until("a rebuild", &|| index.stats().graph.tombstones < 1000);
    assert_eq!(index.stats().graph.entries, 50);
}

#[test]
fn a_store_whose_making_was_cut_off_is_made_anew() {
    for cut in [0, 4, 4096] {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("documents.redb");
        fs_err::write(&store, vec![0; cut]).unwrap();
        assert_eq!(expandr_index::inspect(directory.path()).unwrap(), None);
        let index = Index::open(directory.path(), config()).unwrap();
        index.upsert(numbered(0..3)).unwrap();
        drop(index);
        assert_eq!(Index::open(directory.path(), config()).unwrap().len(), 3);
    }
    // Anything else in its place is somebody's.
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("documents.redb");
    fs_err::write(&store, "not a database").unwrap();
    assert!(Index::open(directory.path(), config()).is_err());
    assert_eq!(fs_err::read(&store).unwrap(), b"not a database");
}
