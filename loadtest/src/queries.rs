//! What is asked: which kind comes next, with which queries.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::args::Args;
use crate::kinds::{Kind, Source};

/// An endless supply of requests.
pub(crate) struct Queries {
    kinds: Vec<Kind>,
    texts: Vec<String>,
    hot: usize,
    state: Mutex<State>,
}

struct State {
    rng: ChaCha8Rng,
    next: usize,
    /// Ends the next fresh query.
    serial: u64,
}

/// One request to send.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Request {
    /// Its place among the kinds.
    pub(crate) kind: usize,
    /// A search each.
    pub(crate) queries: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    query: Option<String>,
}

impl Queries {
    /// Reads what `args` name.
    pub(crate) fn load(args: &Args, kinds: Vec<Kind>) -> Result<Self> {
        let texts = match &args.queries {
            Some(path) => read(path)?,
            None => args.query.clone(),
        };
        ensure!(!texts.iter().any(|text| text.trim().is_empty()), "a query is empty");
        Ok(Self::new(texts, kinds, args.hot, args.seed, clock()))
    }

    fn new(texts: Vec<String>, kinds: Vec<Kind>, hot: usize, seed: u64, serial: u64) -> Self {
        let state = State { rng: ChaCha8Rng::seed_from_u64(seed), next: 0, serial };
        Self { kinds, hot: hot.min(texts.len()), texts, state: Mutex::new(state) }
    }

    /// Every kind, in order.
    pub(crate) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The queries that are asked again and again.
    pub(crate) fn hot(&self) -> &[String] {
        &self.texts[..self.hot]
    }

    /// The next request.
    pub(crate) fn draw(&self) -> Request {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = self.draw_kind(&mut state);
        let Kind { source, batch, .. } = self.kinds[kind];
        let queries = (0..batch).map(|_| self.draw_query(source, &mut state)).collect();
        Request { kind, queries }
    }

    fn draw_kind(&self, state: &mut State) -> usize {
        if self.kinds.len() == 1 {
            return 0;
        }
        let mut left: f64 = state.rng.random();
        for (index, kind) in self.kinds.iter().enumerate() {
            left -= kind.share;
            if left < 0.0 {
                return index;
            }
        }
        self.kinds.len() - 1
    }

    fn draw_query(&self, source: Source, state: &mut State) -> String {
        if source == Source::Hot {
            return self.texts[state.rng.random_range(0..self.hot)].clone();
        }
        let text = &self.texts[state.next % self.texts.len()];
        state.next += 1;
        if source == Source::File {
            return text.clone();
        }
        state.serial += 1;
        format!("{text} {}", state.serial)
    }
}

/// Where the numbers of fresh queries begin: elsewhere in each run, so that a second one isn't answered from what the
/// first left in the server's cache. They grow by one a query, the clock by a thousand a second.
fn clock() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    (since_1970.as_millis() % 10_000_000_000) as u64
}

fn read(path: &Path) -> Result<Vec<String>> {
    let file = BufReader::new(fs_err::File::open(path)?);
    let mut texts = Vec::new();
    for (index, line) in file.lines().enumerate() {
        let place = || format!("{}:{}", path.display(), index + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_str(&line)
            .with_context(|| format!("{}: want a JSON object with `text` or `query`", place()))?;
        match parsed.text.or(parsed.query) {
            Some(text) if !text.trim().is_empty() => texts.push(text),
            _ => bail!("{}: the query has no `text` or `query`", place()),
        }
    }
    ensure!(!texts.is_empty(), "{}: holds no query", path.display());
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::Parser;

    use super::*;

    fn queries(count: usize, flags: &str) -> Queries {
        let words = ["expandr-loadtest", "--query", "q", "--rate", "1"].into_iter();
        let args = Args::try_parse_from(words.chain(flags.split_whitespace())).unwrap();
        let texts = (0..count).map(|index| format!("query {index}")).collect();
        Queries::new(texts, crate::kinds::kinds(&args).unwrap(), args.hot, args.seed, 1000)
    }

    #[test]
    fn without_kinds_queries_go_round() {
        let queries = queries(2, "");
        let drawn: Vec<String> = (0..3).flat_map(|_| queries.draw().queries).collect();
        assert_eq!(drawn, ["query 0", "query 1", "query 0"]);
    }

    #[test]
    fn kinds_come_by_their_shares() {
        let flags = "--hot 5 --kind name=cached,share=7,queries=hot --kind name=fresh,share=2,queries=fresh \
                     --kind name=batch,share=1,queries=fresh,batch=4";
        let queries = queries(50, flags);
        let hot: HashSet<&String> = queries.hot().iter().collect();
        assert_eq!(hot.len(), 5);
        let drawn: Vec<Request> = (0..2_000).map(|_| queries.draw()).collect();
        let of = |kind: usize| drawn.iter().filter(move |request| request.kind == kind);
        for (kind, expected) in [(0, 1_400), (1, 400), (2, 200)] {
            let count = of(kind).count();
            assert!(count.abs_diff(expected) < 60, "kind {kind} came {count} times");
        }
        assert!(of(0).all(|request| request.queries.iter().all(|query| hot.contains(query))));
        assert!(of(2).all(|request| request.queries.len() == 4));
        let fresh: Vec<&String> = of(1).chain(of(2)).flat_map(|request| &request.queries).collect();
        assert_eq!(fresh.iter().collect::<HashSet<_>>().len(), fresh.len());
        assert!(fresh.iter().all(|query| !hot.contains(*query)));
    }

    #[test]
    fn the_same_seed_draws_the_same() {
        let draw = |seed: &str| -> Vec<Request> {
            let queries = queries(50, &format!("--cached 0.5 --seed {seed}"));
            (0..100).map(|_| queries.draw()).collect()
        };
        assert_eq!(draw("1"), draw("1"));
        assert_ne!(draw("1"), draw("2"));
    }

    #[test]
    fn broken_files_are_named_by_line() {
        for (content, wrong) in [
            ("", "holds no query"),
            ("{\"text\":\"a\"}\n{", ":2: want a JSON object"),
            ("{\"text\":\"a\"}\n\n{\"_id\":\"1\"}\n", ":3: the query has no `text`"),
        ] {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs_err::write(file.path(), content).unwrap();
            let error = format!("{:#}", read(file.path()).unwrap_err());
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
    }
}
