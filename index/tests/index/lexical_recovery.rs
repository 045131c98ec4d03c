//! What happens to the lexical index's folder, and what the index says about it.

use std::path::{Path, PathBuf};

use expandr_index::{Error, Index, IndexConfig, LexicalRequest, Recovery};
use tempfile::TempDir;

use crate::{config, ids, numbered};

const DOCUMENTS: u64 = 120;

/// A closed index whose documents each have a word of their own; the path is that of the folder.
fn closed_index() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let index = Index::open(directory.path(), config()).unwrap();
    index.upsert(numbered(0..DOCUMENTS / 2)).unwrap();
    index.snapshot().unwrap();
    index.upsert(numbered(DOCUMENTS / 2..DOCUMENTS + 1)).unwrap();
    index.delete(&[DOCUMENTS.to_string()]).unwrap();
    index.close().unwrap();
    let folder = directory.path().join("lexical");
    assert!(folder.join("meta.json").exists());
    (directory, folder)
}

fn check(index: &Index, documents: u64) {
    for n in 0..documents {
        let hits = index.search_lexical(&LexicalRequest::new(&n.to_string(), 5)).unwrap().hits;
        assert_eq!(ids(index, hits.iter().map(|hit| hit.key)), [n.to_string()]);
    }
    let all = index.search_lexical(&LexicalRequest::new("text", 1000)).unwrap().hits;
    assert_eq!(all.len() as u64, documents);
}

/// Opens it, and checks that every document is found by its words.
fn reopen(directory: &Path, config: IndexConfig) -> Recovery {
    let index = Index::open(directory, config).unwrap();
    check(&index, DOCUMENTS);
    index.stats().lexical.unwrap().recovery
}

fn reason(recovery: Recovery) -> String {
    match recovery {
        Recovery::Store { reason, added: DOCUMENTS } => reason,
        other => panic!("not built from the store: {other:?}"),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_good_folder_is_used_and_brought_up_to_date() {
    let (directory, _) = closed_index();
    assert_eq!(reopen(directory.path(), config()), Recovery::Snapshot { added: 0, removed: 0 });
    let index = Index::open(directory.path(), config()).unwrap();
    index.upsert(numbered(110..DOCUMENTS)).unwrap();
    index.upsert(numbered(DOCUMENTS..DOCUMENTS + 3)).unwrap();
    index.delete(&(DOCUMENTS..DOCUMENTS + 2).map(|n| n.to_string()).collect::<Vec<_>>()).unwrap();
    drop(index);
    let index = Index::open(directory.path(), config()).unwrap();
    assert_eq!(index.stats().lexical.unwrap().recovery, Recovery::Snapshot { added: 11, removed: 10 });
    index.delete(&[(DOCUMENTS + 2).to_string()]).unwrap();
    check(&index, DOCUMENTS);
    index.close().unwrap();
    drop(index);
    assert_eq!(reopen(directory.path(), config()), Recovery::Snapshot { added: 0, removed: 0 });
}

#[test]
fn a_missing_folder_is_built_anew() {
    let (directory, folder) = closed_index();
    fs_err::remove_dir_all(&folder).unwrap();
    assert!(reason(reopen(directory.path(), config())).contains("no lexical index"));
}

#[test]
fn damage_to_any_file_is_noticed_or_does_no_harm() {
    let (directory, folder) = closed_index();
    let good: Vec<(PathBuf, Vec<u8>)> =
        files(&folder).into_iter().map(|path| (path.clone(), fs_err::read(path).unwrap())).collect();
    let restore = || {
        fs_err::remove_dir_all(&folder).unwrap();
        fs_err::create_dir(&folder).unwrap();
        good.iter().for_each(|(path, content)| fs_err::write(path, content).unwrap());
    };
    let mut noticed = 0;
    for (path, content) in &good {
        let length = content.len();
        let mut damages: Vec<Option<Vec<u8>>> = vec![None, Some(Vec::new()), Some(b"1234567".to_vec())];
        for keep in [length / 2, length.saturating_sub(1)] {
            damages.push(Some(content[..keep].to_vec()));
        }
        for position in [0, length / 3, length / 2, length * 9 / 10, length.saturating_sub(1)] {
            let mut flipped = content.clone();
            if let Some(byte) = flipped.get_mut(position) {
                *byte ^= 0x04;
                damages.push(Some(flipped));
            }
        }
        for (number, damage) in damages.into_iter().enumerate() {
            restore();
            match damage {
                Some(content) => fs_err::write(path, content).unwrap(),
                None => fs_err::remove_file(path).unwrap(),
            }
            let recovery = reopen(directory.path(), config());
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_lock = name.ends_with(".lock");
            noticed += usize::from(matches!(recovery, Recovery::Store { .. }));
            if name == "meta.json" && number > 0 {
                assert!(reason(recovery).contains("damaged"), "{name} {number}");
            } else if is_lock {
                assert_eq!(recovery, Recovery::Snapshot { added: 0, removed: 0 }, "{name} {number}");
            }
        }
    }
    assert!(noticed > 40, "{noticed}");
}

#[test]
fn folders_of_others_are_not_used() {
    let (directory, folder) = closed_index();
    let (_kept, other) = closed_index();
    fs_err::remove_dir_all(&folder).unwrap();
    fs_err::rename(&other, &folder).unwrap();
    let told = reason(reopen(directory.path(), config()));
    assert!(told.contains("belongs to something else") && told.contains("store"), "{told}");
}

#[test]
fn a_folder_newer_than_a_restored_store_is_not_used() {
    let (directory, _) = closed_index();
    let store = directory.path().join("documents.redb");
    let backup = fs_err::read(&store).unwrap();
    let index = Index::open(directory.path(), config()).unwrap();
    index.upsert(numbered(1000..1010)).unwrap();
    index.close().unwrap();
    drop(index);
    fs_err::write(&store, backup).unwrap();
    let told = reason(reopen(directory.path(), config()));
    assert!(told.contains("backup"), "{told}");
}

#[test]
fn switched_off_it_is_gone_and_switched_on_it_comes_back() {
    let (directory, folder) = closed_index();
    let off = IndexConfig { lexical: false, ..config() };
    let index = Index::open(directory.path(), off).unwrap();
    let error = index.search_lexical(&LexicalRequest::new("text", 5)).unwrap_err();
    assert!(matches!(error, Error::LexicalOff) && error.is_invalid_input());
    assert!(error.to_string().contains("switch it on"), "{error}");
    assert!(!folder.exists() && index.stats().lexical.is_none());
    index.upsert(numbered(0..5)).unwrap();
    drop(index);
    assert!(reason(reopen(directory.path(), config())).contains("no lexical index"));
}

#[test]
fn a_failure_while_it_runs_is_told_and_repaired() {
    let (directory, folder) = closed_index();
    let index = Index::open(directory.path(), config()).unwrap();
    // Its disk goes away under it.
    fs_err::remove_dir_all(&folder).unwrap();
    index.upsert(numbered(0..3)).unwrap();
    // The repair runs beside this: a snapshot either comes too early, and says so, or finds it done.
    match index.snapshot() {
        Err(error) => {
            let told = error.to_string();
            assert!(told.contains("lexical index") && told.contains("built anew"), "{told}");
        }
        Ok(_) => assert!(folder.is_dir(), "a snapshot without its lexical index"),
    }
    let started = std::time::Instant::now();
    while let Err(error) = index.search_lexical(&LexicalRequest::new("text", 5)) {
        assert!(error.to_string().contains("try again later"), "{error}");
        assert!(started.elapsed().as_secs() < 60, "it was not repaired: {error}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    check(&index, DOCUMENTS);
    assert!(!index.stats().lexical.unwrap().failed);
    index.close().unwrap();
    drop(index);
    assert_eq!(reopen(directory.path(), config()), Recovery::Snapshot { added: 0, removed: 0 });
}
