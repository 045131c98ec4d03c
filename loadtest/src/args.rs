//! The command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::{Map, Value, json};

use crate::objective::Objective;

/// Puts a search server under load: POST /search (or /search/batch) at a fixed rate, or over a number of
/// connections, and reports latency, throughput, degradation and whether the objectives hold.
///
/// With --rate arrivals don't wait for answers, and latency counts from the moment a request was due: a server that
/// stalls is charged for everybody who waited (open loop). With --connections each connection asks its next question
/// when it has its answer (closed loop): the figures say what the server can carry, not what users feel.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Base URL of the server.
    #[arg(long, env = "EXPANDR_ENDPOINT", default_value = "http://127.0.0.1:8080")]
    pub(crate) endpoint: String,
    /// Bearer key for reading.
    #[arg(long, env = "EXPANDR_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// Queries, one JSON object a line with `text` or `query`.
    #[arg(long, value_name = "FILE", conflicts_with = "query")]
    pub(crate) queries: Option<PathBuf>,
    /// A query; may be repeated.
    #[arg(long, required_unless_present = "queries")]
    pub(crate) query: Vec<String>,
    /// Open loop: requests a second. Several values, separated by commas, run one after the other.
    #[arg(
        long,
        value_delimiter = ',',
        conflicts_with = "connections",
        required_unless_present = "connections"
    )]
    pub(crate) rate: Vec<f64>,
    /// Open loop: how arrivals are spread.
    #[arg(long, value_enum, default_value = "even")]
    pub(crate) arrivals: Arrivals,
    /// Open loop: requests under way at most; those beyond are not sent, and count as errors.
    #[arg(long, default_value_t = 4096)]
    pub(crate) max_in_flight: usize,
    /// Closed loop: connections. Several values, separated by commas, run one after the other.
    #[arg(long, value_delimiter = ',')]
    pub(crate) connections: Vec<usize>,
    /// How long each load is measured, e.g. 30s, 2m.
    #[arg(long, default_value = "30s")]
    pub(crate) duration: Span,
    /// Load before that, which is not measured.
    #[arg(long, default_value = "2s")]
    pub(crate) warmup: Span,
    /// When to give up on an answer.
    #[arg(long, default_value = "30s")]
    pub(crate) timeout: Span,
    /// Hits a search.
    #[arg(long, default_value_t = 10)]
    pub(crate) top_k: usize,
    /// Searches a request; above 1 they go to /search/batch.
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Whether queries are expanded.
    #[arg(long, value_enum, default_value = "server")]
    pub(crate) expansion: Expansion,
    /// Most tokens of an expansion.
    #[arg(long)]
    pub(crate) max_tokens: Option<usize>,
    /// Budget of an expansion in milliseconds.
    #[arg(long)]
    pub(crate) timeout_ms: Option<u64>,
    /// Expansions a query.
    #[arg(long)]
    pub(crate) count: Option<usize>,
    /// Sampling temperature of the expansion.
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Share of searches (0 to 1) that repeat one of the --hot queries, which are asked once beforehand so that they
    /// are in the cache. All others are made different from each other by a number at their end. Without this flag
    /// queries go round in the order of the file, unchanged.
    #[arg(long, value_name = "SHARE")]
    pub(crate) cached: Option<f64>,
    /// How many queries --cached repeats.
    #[arg(long, default_value_t = 10)]
    pub(crate) hot: usize,
    /// Goodput counts only answers within this time.
    #[arg(long)]
    pub(crate) within: Option<Span>,
    /// What must hold in every load, e.g. 'p99<350ms', 'errors<0.1%', 'degraded<=5%', 'goodput>20/s', 'own.p50<1ms'.
    /// May be repeated. A miss makes the exit code 1.
    #[arg(long = "objective", value_name = "EXPRESSION")]
    pub(crate) objectives: Vec<Objective>,
    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE")]
    pub(crate) report: Option<PathBuf>,
    /// Decides which searches are repeats and how random arrivals fall.
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,
}

const EXAMPLES: &str = "Examples:
  expandr-loadtest --queries queries.jsonl --connections 1,8,32 --expansion off
  expandr-loadtest --queries queries.jsonl --rate 20 --duration 60s --expansion always --max-tokens 64 \\
      --timeout-ms 300 --objective 'p99<350ms' --objective 'errors<0.1%' --report report.json
Exit codes: 0 all objectives hold, 1 one was missed, 2 the load could not be run.";

/// How an open loop's arrivals are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrivals {
    /// One every 1/rate seconds.
    Even,
    /// At random moments, as independent users come (exponential gaps, mean 1/rate).
    Poisson,
}

/// Whether queries are expanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
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

/// One load: what makes requests start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Plan {
    /// Arrivals that don't wait for answers.
    Open { rate: f64, arrivals: Arrivals },
    /// Connections that ask again when they have an answer.
    Closed { connections: usize },
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open { rate, arrivals: Arrivals::Even } => write!(f, "open loop, {rate} requests/s"),
            Self::Open { rate, arrivals: Arrivals::Poisson } => {
                write!(f, "open loop, {rate} requests/s (Poisson)")
            }
            Self::Closed { connections: 1 } => write!(f, "closed loop, 1 connection"),
            Self::Closed { connections } => write!(f, "closed loop, {connections} connections"),
        }
    }
}

impl Args {
    /// The loads, in order.
    pub(crate) fn plans(&self) -> Vec<Plan> {
        let open = self.rate.iter().map(|rate| Plan::Open { rate: *rate, arrivals: self.arrivals });
        open.chain(self.connections.iter().map(|connections| Plan::Closed { connections: *connections }))
            .collect()
    }

    /// What is wrong with the flags together, and the remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.rate.iter().any(|rate| !(*rate > 0.0 && rate.is_finite())) {
            return Err("--rate must be above 0".into());
        }
        if self.connections.contains(&0) || self.batch == 0 || self.max_in_flight == 0 {
            return Err("--connections, --batch and --max-in-flight must be at least 1".into());
        }
        if self.duration.0.is_zero() || self.timeout.0.is_zero() {
            return Err("--duration and --timeout must be above 0".into());
        }
        if self.cached.is_some_and(|share| !(0.0..=1.0).contains(&share)) || self.hot == 0 {
            return Err("--cached must lie between 0 and 1, --hot must be at least 1".into());
        }
        let detailed = self.max_tokens.is_some() || self.timeout_ms.is_some() || self.count.is_some();
        if (detailed || self.temperature.is_some())
            && matches!(self.expansion, Expansion::Server | Expansion::Off)
        {
            return Err(
                "--max-tokens, --timeout-ms, --count and --temperature need --expansion always or auto"
                    .into(),
            );
        }
        Ok(())
    }

    /// The `expansion` member of a request; none leaves it to the server.
    pub(crate) fn expansion_json(&self) -> Option<Value> {
        match self.expansion {
            Expansion::Server => None,
            Expansion::Off => Some(json!(false)),
            Expansion::Always | Expansion::Auto => {
                let mode = if self.expansion == Expansion::Auto { "auto" } else { "always" };
                let mut object = Map::new();
                object.insert("mode".into(), json!(mode));
                let settings = [
                    ("max_tokens", self.max_tokens.map(Value::from)),
                    ("timeout_ms", self.timeout_ms.map(Value::from)),
                    ("count", self.count.map(Value::from)),
                    ("temperature", self.temperature.map(Value::from)),
                ];
                for (name, value) in settings {
                    if let Some(value) = value {
                        object.insert(name.into(), value);
                    }
                }
                Some(Value::Object(object))
            }
        }
    }
}

/// A length of time on the command line: `250ms`, `30s`, `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a length of time; write it like 250ms, 30s or 2m");
        let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        let seconds = match unit {
            "us" => number / 1e6,
            "ms" => number / 1e3,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            _ => return Err(wrong()),
        };
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &str) -> Args {
        let mut words = vec!["expandr-loadtest", "--query", "q"];
        words.extend(flags.split(' '));
        Args::try_parse_from(words).unwrap()
    }

    #[test]
    fn lengths_of_time() {
        assert_eq!("250ms".parse::<Span>().unwrap().0, Duration::from_millis(250));
        assert_eq!("1.5m".parse::<Span>().unwrap().0, Duration::from_secs(90));
        for wrong in ["", "3", "s", "-1s", "3 weeks", "1e400s"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn plans_and_expansion_follow_the_flags() {
        let args = parse("--connections 1,8 --expansion always --max-tokens 64 --timeout-ms 300");
        assert_eq!(args.plans(), [Plan::Closed { connections: 1 }, Plan::Closed { connections: 8 }]);
        assert_eq!(
            args.expansion_json(),
            Some(json!({"mode": "always", "max_tokens": 64, "timeout_ms": 300}))
        );
        assert_eq!(parse("--rate 5 --expansion off").expansion_json(), Some(json!(false)));
        assert_eq!(parse("--rate 5").expansion_json(), None);
    }

    #[test]
    fn flags_that_contradict_are_refused() {
        for flags in [
            "--rate 0",
            "--connections 0",
            "--rate 1 --cached 1.5",
            "--rate 1 --max-tokens 5",
            "--rate 1 --duration 0s",
        ] {
            assert!(parse(flags).check().is_err(), "{flags}");
        }
        assert!(parse("--rate 1 --cached 0.5").check().is_ok());
        assert!(Args::try_parse_from(["expandr-loadtest", "--query", "q"]).is_err());
    }
}
