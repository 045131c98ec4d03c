//! Kinds of requests: which queries, how many in one, and what is asked for.

use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::args::Args;

/// Whether queries are expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Expansion {
    /// Whatever the server does when the request doesn't say.
    Server,
    /// Never.
    Off,
    /// Always.
    Always,
    /// Where the server's gate expects a gain.
    Auto,
}

/// Where a request's queries come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    /// As they stand in the file, round and round.
    #[default]
    File,
    /// One of a few, which were asked beforehand: the server has their expansions in its cache.
    Hot,
    /// Different from all others.
    Fresh,
}

/// A kind as it is written: `--kind name=cached,share=0.6,queries=hot`, or a `[[kind]]` table of a scenario.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub(crate) struct KindSpec {
    name: String,
    share: Option<f64>,
    queries: Source,
    batch: Option<usize>,
    top_k: Option<usize>,
    ranking: Option<String>,
    deadline_ms: Option<u64>,
    expansion: Option<Expansion>,
    max_tokens: Option<usize>,
    timeout_ms: Option<u64>,
    count: Option<usize>,
    temperature: Option<f64>,
}

/// A kind with everything decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kind {
    pub(crate) name: String,
    /// Of all requests; those of all kinds add up to 1.
    pub(crate) share: f64,
    pub(crate) source: Source,
    /// Searches a request.
    pub(crate) batch: usize,
    top_k: usize,
    ranking: Option<String>,
    deadline_ms: Option<u64>,
    /// The `expansion` member; none leaves it to the server.
    expansion: Option<Value>,
}

impl Kind {
    /// The body of a search.
    pub(crate) fn search_json(&self, query: &str) -> Value {
        let mut search = json!({"query": query, "top_k": self.top_k});
        if let Some(ranking) = &self.ranking {
            search["ranking"] = json!(ranking);
        }
        if let Some(deadline_ms) = self.deadline_ms {
            search["timeout_ms"] = json!(deadline_ms);
        }
        if let Some(expansion) = &self.expansion {
            search["expansion"] = expansion.clone();
        }
        search
    }

    /// The same without a budget and one search a request: how a query is brought into the server's cache.
    pub(crate) fn unhurried(&self) -> Self {
        let mut kind = Self { batch: 1, deadline_ms: None, ..self.clone() };
        if let Some(Value::Object(expansion)) = &mut kind.expansion {
            expansion.remove("timeout_ms");
        }
        kind
    }

    /// For the report.
    pub(crate) fn json(&self) -> Value {
        let queries = match self.source {
            Source::File => "file",
            Source::Hot => "hot",
            Source::Fresh => "fresh",
        };
        json!({
            "name": self.name, "share": self.share, "queries": queries, "batch": self.batch,
            "top_k": self.top_k, "ranking": self.ranking, "deadline_ms": self.deadline_ms, "expansion": self.expansion,
        })
    }
}

impl KindSpec {
    /// Takes a TOML table; keys may be written with `_` or `-`.
    pub(crate) fn from_table(table: toml::Table) -> Result<Self, String> {
        let table: toml::Table =
            table.into_iter().map(|(key, value)| (key.replace('_', "-"), value)).collect();
        let spec: Self =
            table.try_into().map_err(|error| format!("a kind is wrong: {}", first_line(&error)))?;
        if spec.name.is_empty() || spec.name.contains([':', '.', '<', '>']) {
            return Err(format!(
                "a kind's name must be there, and hold none of : . < >; it is {:?}",
                spec.name
            ));
        }
        Ok(spec)
    }

    fn resolve(&self, args: &Args) -> Result<Kind, String> {
        let own = self.max_tokens.is_some()
            || self.timeout_ms.is_some()
            || self.count.is_some()
            || self.temperature.is_some();
        let mode = self.expansion.unwrap_or(args.expansion);
        let expands = matches!(mode, Expansion::Always | Expansion::Auto);
        if own && !expands {
            return Err(format!(
                "{}: max-tokens, timeout-ms, count and temperature need expansion always or auto",
                self.name
            ));
        }
        let settings = [
            ("max_tokens", self.max_tokens.or(args.max_tokens).map(Value::from)),
            ("timeout_ms", self.timeout_ms.or(args.timeout_ms).map(Value::from)),
            ("count", self.count.or(args.count).map(Value::from)),
            ("temperature", self.temperature.or(args.temperature).map(Value::from)),
        ];
        let kind = Kind {
            name: self.name.clone(),
            share: self.share.unwrap_or(1.0),
            source: self.queries,
            batch: self.batch.unwrap_or(args.batch),
            top_k: self.top_k.unwrap_or(args.top_k),
            ranking: self.ranking.clone().or_else(|| args.ranking.clone()),
            deadline_ms: self.deadline_ms.or(args.deadline_ms),
            expansion: expansion_json(mode, settings),
        };
        if !(kind.share > 0.0 && kind.share.is_finite()) || kind.batch == 0 || kind.top_k == 0 {
            return Err(format!("{}: share must be above 0, batch and top-k at least 1", self.name));
        }
        Ok(kind)
    }
}

fn expansion_json(mode: Expansion, settings: [(&str, Option<Value>); 4]) -> Option<Value> {
    let mode = match mode {
        Expansion::Server => return None,
        Expansion::Off => return Some(json!(false)),
        Expansion::Always => "always",
        Expansion::Auto => "auto",
    };
    let mut object = Map::new();
    object.insert("mode".into(), json!(mode));
    for (name, value) in settings {
        if let Some(value) = value {
            object.insert(name.into(), value);
        }
    }
    Some(Value::Object(object))
}

impl FromStr for KindSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut table = toml::Table::new();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                format!("{pair:?} is not KEY=VALUE; write a kind like name=cached,share=0.6,queries=hot")
            })?;
            // A number where it is one; else a word, which needs no quotes here.
            let (key, value) = (key.trim(), value.trim());
            let word = || toml::Value::String(value.to_owned());
            let value = match (key, value.parse::<i64>(), value.parse::<f64>()) {
                ("name", _, _) => word(),
                (_, Ok(integer), _) => toml::Value::Integer(integer),
                (_, _, Ok(float)) => toml::Value::Float(float),
                _ => word(),
            };
            table.insert(key.to_owned(), value);
        }
        Self::from_table(table)
    }
}

/// What the flags ask for, with shares that add up to 1.
///
/// # Errors
///
/// The kind that is wrong, and why.
pub(crate) fn kinds(args: &Args) -> Result<Vec<Kind>, String> {
    let detailed = args.max_tokens.is_some()
        || args.timeout_ms.is_some()
        || args.count.is_some()
        || args.temperature.is_some();
    let expands = |mode| matches!(mode, Expansion::Always | Expansion::Auto);
    let of_a_kind = args.kinds.iter().filter_map(|kind| kind.expansion).any(expands);
    if detailed && !expands(args.expansion) && !of_a_kind {
        return Err(
            "--max-tokens, --timeout-ms, --count and --temperature need --expansion always or auto".into()
        );
    }
    let named = |name: &str, share: f64, queries: Source| KindSpec {
        name: name.into(),
        share: Some(share),
        queries,
        ..KindSpec::default()
    };
    let specs = match (args.kinds.as_slice(), args.cached) {
        ([], None) => vec![named("all", 1.0, Source::File)],
        ([], Some(share)) => {
            vec![named("cached", share, Source::Hot), named("fresh", 1.0 - share, Source::Fresh)]
        }
        (kinds, _) => kinds.to_vec(),
    };
    let mut kinds = Vec::new();
    for spec in specs.iter().filter(|spec| spec.share != Some(0.0)) {
        kinds.push(spec.resolve(args)?);
    }
    let sum: f64 = kinds.iter().map(|kind| kind.share).sum();
    for index in 0..kinds.len() {
        kinds[index].share /= sum;
        let name = &kinds[index].name;
        if kinds[..index].iter().any(|other| other.name == *name) {
            return Err(format!("there are two kinds with the name {name:?}"));
        }
    }
    if kinds.is_empty() { Err("every kind has the share 0".into()) } else { Ok(kinds) }
}

fn first_line(error: &impl ToString) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn of(flags: &[&str]) -> Result<Vec<Kind>, String> {
        let all = ["expandr-loadtest", "--query", "q", "--rate", "1"].iter().chain(flags);
        kinds(&Args::try_parse_from(all).unwrap())
    }

    #[test]
    fn flags_alone_make_one_kind_or_two() {
        let all = of(&["--expansion", "always", "--max-tokens", "64", "--timeout-ms", "300"]).unwrap();
        assert_eq!(
            all[0].search_json("q"),
            json!({"query": "q", "top_k": 10, "expansion": {"mode": "always", "max_tokens": 64, "timeout_ms": 300}})
        );
        assert_eq!(of(&["--expansion", "off"]).unwrap()[0].search_json("q")["expansion"], json!(false));
        assert_eq!(of(&[]).unwrap()[0].search_json("q"), json!({"query": "q", "top_k": 10}));
        let names = |cached: &str| -> Vec<String> {
            of(&["--cached", cached]).unwrap().into_iter().map(|kind| kind.name).collect()
        };
        assert_eq!(names("0.5"), ["cached", "fresh"]);
        assert_eq!(names("0"), ["fresh"]);
        assert_eq!(names("1"), ["cached"]);
    }

    #[test]
    fn kinds_take_what_they_leave_out_from_the_flags() {
        let kinds = of(&[
            "--expansion",
            "always",
            "--max-tokens",
            "32",
            "--kind",
            "name=cached,share=3,queries=hot",
            "--kind",
            "name=batch,share=1,queries=fresh,batch=8,expansion=off,top_k=5,ranking=hybrid,deadline-ms=900",
        ])
        .unwrap();
        assert_eq!((kinds[0].share, kinds[1].share), (0.75, 0.25));
        assert_eq!((kinds[0].batch, kinds[1].batch), (1, 8));
        assert_eq!(kinds[0].search_json("q")["expansion"], json!({"mode": "always", "max_tokens": 32}));
        assert_eq!(
            kinds[1].search_json("q"),
            json!({"query": "q", "top_k": 5, "ranking": "hybrid", "timeout_ms": 900, "expansion": false})
        );
    }

    #[test]
    fn bringing_a_query_into_the_cache_takes_its_time() {
        let kinds =
            of(&["--kind", "name=c,queries=hot,batch=4,expansion=always,timeout-ms=300,max-tokens=9"])
                .unwrap();
        let unhurried = kinds[0].unhurried();
        assert_eq!(unhurried.batch, 1);
        assert_eq!(unhurried.search_json("q")["expansion"], json!({"mode": "always", "max_tokens": 9}));
    }

    #[test]
    fn wrong_kinds_are_refused() {
        for text in
            ["name", "share=1", "name=a,speed=3", "name=a,share=much", "name=a,queries=cold", "name=a:b"]
        {
            assert!(text.parse::<KindSpec>().is_err(), "{text}");
        }
        for flags in [
            &["--max-tokens", "5"][..],
            &["--kind", "name=a,max-tokens=5"],
            &["--kind", "name=a,share=-1"],
            &["--kind", "name=a,batch=0"],
            &["--kind", "name=a", "--kind", "name=a"],
            &["--kind", "name=a,share=0"],
        ] {
            assert!(of(flags).is_err(), "{flags:?}");
        }
    }
}
