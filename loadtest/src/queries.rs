//! What is asked, and how often the same again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use crate::args::Args;

/// An endless supply of query texts.
pub(crate) struct Queries {
    texts: Vec<String>,
    hot: usize,
    cached: Option<f64>,
    state: Mutex<State>,
}

struct State {
    rng: ChaCha8Rng,
    next: usize,
}

#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    query: Option<String>,
}

impl Queries {
    pub(crate) fn load(args: &Args) -> Result<Self> {
        args.check().map_err(anyhow::Error::msg)?;
        let texts = match &args.queries {
            Some(path) => read(path)?,
            None => args.query.clone(),
        };
        ensure!(!texts.iter().any(|text| text.trim().is_empty()), "a query is empty");
        Ok(Self::new(texts, args.cached, args.hot, args.seed))
    }

    fn new(texts: Vec<String>, cached: Option<f64>, hot: usize, seed: u64) -> Self {
        let state = State { rng: ChaCha8Rng::seed_from_u64(seed), next: 0 };
        Self { hot: hot.min(texts.len()), texts, cached, state: Mutex::new(state) }
    }

    /// The queries that are asked again and again; none without `--cached`.
    pub(crate) fn hot(&self) -> &[String] {
        match self.cached {
            Some(share) if share > 0.0 => &self.texts[..self.hot],
            _ => &[],
        }
    }

    /// The next query.
    pub(crate) fn next(&self) -> String {
        let mut state = match self.state.lock() {
            Ok(state) => state,
            Err(poisoned) => poisoned.into_inner(),
        };
        let Some(share) = self.cached else {
            let index = state.next % self.texts.len();
            state.next += 1;
            return self.texts[index].clone();
        };
        if state.rng.random::<f64>() < share {
            let index = state.rng.random_range(0..self.hot);
            return self.texts[index].clone();
        }
        let serial = state.next;
        state.next += 1;
        format!("{} {serial}", self.texts[serial % self.texts.len()])
    }
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

    use super::*;

    fn texts(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("query {index}")).collect()
    }

    #[test]
    fn without_a_share_queries_go_round() {
        let queries = Queries::new(texts(2), None, 10, 1);
        assert!(queries.hot().is_empty());
        assert_eq!([queries.next(), queries.next(), queries.next()], ["query 0", "query 1", "query 0"]);
    }

    #[test]
    fn a_share_repeats_hot_queries_and_makes_the_others_different() {
        let queries = Queries::new(texts(50), Some(0.8), 5, 1);
        let hot: HashSet<&String> = queries.hot().iter().collect();
        assert_eq!(hot.len(), 5);
        let drawn: Vec<String> = (0..2_000).map(|_| queries.next()).collect();
        let (repeats, fresh): (Vec<&String>, Vec<&String>) =
            drawn.iter().partition(|text| hot.contains(text));
        assert!((1_500..1_700).contains(&repeats.len()), "{}", repeats.len());
        assert_eq!(fresh.iter().collect::<HashSet<_>>().len(), fresh.len());
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
