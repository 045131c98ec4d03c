//! kill -9 while a child process writes: nothing acknowledged is lost, nothing deleted comes back.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use expandr_index::testing::unit_vector;
use expandr_index::{Index, IndexConfig, LexicalRequest, SearchMode, SearchRequest};

use crate::{DIMENSION, config, numbered};

const DIRECTORY: &str = "EXPANDR_INDEX_TEST_KILL_DIRECTORY";
const FIRST: &str = "EXPANDR_INDEX_TEST_KILL_FIRST";
const BATCH: u64 = 5;

fn kill_config() -> IndexConfig {
    IndexConfig { snapshot_every: 60, ..config() }
}

/// The child's part; does nothing when the tests run. Tells on stdout: `+first` five documents are acknowledged, `?n` a
/// deletion begins, `-n` it is acknowledged.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let first: u64 = std::env::var(FIRST).unwrap().parse().unwrap();
    let index = Index::open(directory, kill_config()).unwrap();
    let tell = |mark: char, number: u64| {
        let mut out = std::io::stdout().lock();
        out.write_all(format!("{mark}{number}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    std::thread::scope(|scope| {
        for writer in 0..3u64 {
            let (index, tell) = (&index, &tell);
            scope.spawn(move || {
                for batch in 0.. {
                    if Instant::now() > deadline {
                        return;
                    }
                    let start = first + writer * 1_000_000 + batch * BATCH;
                    index.upsert(numbered(start..start + BATCH)).unwrap();
                    tell('+', start);
                    if batch % 4 == 3 {
                        tell('?', start);
                        assert_eq!(index.delete(&[start.to_string()]).unwrap(), 1);
                        tell('-', start);
                    }
                }
            });
        }
    });
}

#[derive(Default)]
struct Told {
    present: BTreeSet<u64>,
    deleting: BTreeSet<u64>,
    deleted: BTreeSet<u64>,
}

impl Told {
    fn hear(&mut self, line: &str) {
        // The test harness prints lines of its own.
        let Some((mark, Ok(number))) =
            line.split_at_checked(1).map(|(mark, rest)| (mark, rest.parse::<u64>()))
        else {
            return;
        };
        match mark {
            "+" => self.present.extend(number..number + BATCH),
            "?" => {
                self.deleting.insert(number);
            }
            "-" => {
                self.deleted.insert(number);
            }
            _ => {}
        }
    }
}

/// Runs the child until it has told `lines` lines and a moment more, and kills it.
fn run_and_kill(directory: &std::path::Path, round: u64, told: &mut Told) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "kill::child", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .env(FIRST, (round * 10_000_000).to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let before = told.present.len();
    let mut line = String::new();
    while told.present.len() < before + 20 * BATCH as usize {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "the child ended by itself");
        told.hear(line.trim_end());
    }
    std::thread::sleep(Duration::from_micros(round * 3_700 % 20_000));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    // What comes after the last line end may be half a number.
    let whole = rest.rfind('\n').map_or("", |end| &rest[..end]);
    whole.lines().for_each(|line| told.hear(line));
}

#[test]
fn nothing_acknowledged_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = Told::default();
    for round in 1..=10 {
        run_and_kill(directory.path(), round, &mut told);
        let index = Index::open(directory.path(), kill_config()).unwrap();
        assert_eq!(index.stats().graph.entries, index.len());
        for &number in &told.present {
            let id = number.to_string();
            let document = index.get(&id).unwrap();
            // Each number is a word of one document.
            let words = index.search_lexical(&LexicalRequest::new(&id, 2)).unwrap().hits;
            assert_eq!(words.len(), usize::from(document.is_some()), "{id} by its words in round {round}");
            if told.deleted.contains(&number) {
                assert_eq!(document, None, "{id} was deleted");
            } else if !told.deleting.contains(&number) {
                assert!(document.is_some(), "{id} was acknowledged in round {round}");
                let query = unit_vector(number, DIMENSION);
                for mode in [SearchMode::Exact, SearchMode::Hnsw] {
                    let hits =
                        index.search(&SearchRequest { mode, ..SearchRequest::new(&query, 1) }).unwrap().hits;
                    assert_eq!(
                        index.documents(&[hits[0].key]).unwrap()[0].as_ref().unwrap().id,
                        id,
                        "{mode:?}"
                    );
                }
            }
        }
    }
    assert!(!told.deleted.is_empty() && told.present.len() >= 1000);
}
