//! The command line.

use std::path::PathBuf;

use clap::{ArgGroup, Parser};

use crate::kinds::{Expansion, KindSpec};
use crate::objective::Objective;
use crate::plan::{Arrivals, Pace, Plan, Role};
use crate::span::{Share, Span};

/// Puts a search server under load: POST /search (or /search/batch) at fixed rates, at rates that lead to the limit,
/// or over a number of connections, and reports latency, throughput, degradation and whether the objectives hold.
///
/// With --rate and --find-limit arrivals don't wait for answers, and latency counts from the moment a request was due:
/// a server that stalls is charged for everybody who waited (open loop). With --connections each connection asks its
/// next question when it has its answer (closed loop): the figures say what the server can carry, not what users feel.
#[derive(Parser, Clone, Debug)]
#[command(version, after_help = EXAMPLES)]
#[command(group(ArgGroup::new("load").required(true).args(["rate", "find_limit", "connections"])))]
#[command(group(ArgGroup::new("asked").required(true).args(["queries", "query"])))]
pub(crate) struct Args {
    /// A TOML file with any of these flags as keys (without the dashes), and [[kind]] tables. A flag on the command
    /// line goes before the file's.
    #[arg(long, value_name = "FILE")]
    pub(crate) scenario: Option<PathBuf>,
    /// What the report is called.
    #[arg(long, default_value = "Load test")]
    pub(crate) title: String,
    /// Base URL of the server.
    #[arg(long, env = "EXPANDR_ENDPOINT", default_value = "http://127.0.0.1:8080")]
    pub(crate) endpoint: String,
    /// Bearer key for reading.
    #[arg(long, env = "EXPANDR_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,

    /// Open loop: requests a second. Several values, separated by commas, are steps: they run one after the other.
    #[arg(long, value_delimiter = ',', help_heading = "Load")]
    pub(crate) rate: Vec<f64>,
    /// Open loop: looks for the highest rate that holds every --objective, beginning with this one: doubles it while
    /// the objectives hold, halves the gap until it is within --precision, and proves the result.
    #[arg(long, value_name = "RATE", help_heading = "Load")]
    pub(crate) find_limit: Option<f64>,
    /// Closed loop: connections. Several values, separated by commas, run one after the other.
    #[arg(long, value_delimiter = ',', help_heading = "Load")]
    pub(crate) connections: Vec<usize>,
    /// Open loop: how arrivals are spread.
    #[arg(long, value_enum, default_value = "even", help_heading = "Load")]
    pub(crate) arrivals: Arrivals,
    /// How long each load is measured, e.g. 30s, 2m.
    #[arg(long, default_value = "30s", help_heading = "Load")]
    pub(crate) duration: Span,
    /// Load before that, which is not measured.
    #[arg(long, default_value = "2s", help_heading = "Load")]
    pub(crate) warmup: Span,
    /// Rest between two loads.
    #[arg(long, default_value = "1s", help_heading = "Load")]
    pub(crate) cooldown: Span,

    /// The highest rate that --find-limit tries.
    #[arg(long, default_value_t = 10_000.0, help_heading = "Finding the limit")]
    pub(crate) limit_max: f64,
    /// The search ends when the lowest rate that failed is within this share of the highest that held.
    #[arg(long, default_value = "10%", help_heading = "Finding the limit")]
    pub(crate) precision: Share,
    /// How often the limit must hold again, each time for twice --duration.
    #[arg(long, default_value_t = 1, help_heading = "Finding the limit")]
    pub(crate) confirm: usize,
    /// Loads that the search may run.
    #[arg(long, default_value_t = 30, help_heading = "Finding the limit")]
    pub(crate) max_probes: usize,
    /// The limit must be at least this, or the exit code is 1.
    #[arg(long, value_name = "RATE", help_heading = "Finding the limit")]
    pub(crate) at_least: Option<f64>,

    /// Afterwards runs this many times the found limit (or the highest --rate) for --overload-duration.
    #[arg(long, value_name = "FACTOR", help_heading = "Overload")]
    pub(crate) overload: Option<f64>,
    /// How long the overload is measured.
    #[arg(long, default_value = "60s", help_heading = "Overload")]
    pub(crate) overload_duration: Span,
    /// What must hold under it; may be repeated. Beside the figures of --objective there are `goodput-of-peak` (goodput
    /// by the highest of all loads before) and `memory-growth` (of the server). Default: 'goodput-of-peak>=90%' and
    /// 'unexpected<=0%' (nothing but answers and refusals by 429 or 503).
    #[arg(long = "overload-objective", value_name = "EXPRESSION", help_heading = "Overload")]
    pub(crate) overload_objectives: Vec<Objective>,

    /// When to give up on an answer.
    #[arg(long, default_value = "30s", help_heading = "Bounds")]
    pub(crate) timeout: Span,
    /// Requests under way at most, and so connections. What is not sent because of a bound is counted, is an error,
    /// and makes the exit code 1.
    #[arg(long, default_value_t = 4096, help_heading = "Bounds")]
    pub(crate) max_in_flight: usize,
    /// Requests that the whole run sends at most, warm-up included.
    #[arg(long, default_value_t = 2_000_000, help_heading = "Bounds")]
    pub(crate) max_requests: u64,
    /// How long the whole run may send requests.
    #[arg(long, default_value = "60m", help_heading = "Bounds")]
    pub(crate) max_time: Span,

    /// Queries, one JSON object a line with `text` or `query`.
    #[arg(long, value_name = "FILE", help_heading = "What is asked")]
    pub(crate) queries: Option<PathBuf>,
    /// A query; may be repeated.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) query: Vec<String>,
    /// A kind of request, e.g. 'name=cached,share=0.6,queries=hot,expansion=always,timeout-ms=300'; may be repeated.
    /// Keys: name, share (of requests; the sum may be anything), queries (`hot`: one of --hot, asked once beforehand;
    /// `fresh`: different from every other; `file`: as they come), batch, top-k, ranking, expansion, max-tokens,
    /// timeout-ms, count, temperature, deadline-ms. What a kind leaves out is as the flags say.
    #[arg(long = "kind", value_name = "KEY=VALUE,…", help_heading = "What is asked")]
    pub(crate) kinds: Vec<KindSpec>,
    /// Short for two kinds: `cached` with this share (0 to 1), and `fresh`. Without this flag and without --kind queries
    /// go round in the order of the file, unchanged.
    #[arg(long, value_name = "SHARE", conflicts_with = "kinds", help_heading = "What is asked")]
    pub(crate) cached: Option<f64>,
    /// How many queries the hot ones are.
    #[arg(long, default_value_t = 10, help_heading = "What is asked")]
    pub(crate) hot: usize,
    /// Hits a search.
    #[arg(long, default_value_t = 10, help_heading = "What is asked")]
    pub(crate) top_k: usize,
    /// Ranking: dense, lexical or hybrid. Default: the server's.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) ranking: Option<String>,
    /// Searches a request; above 1 they go to /search/batch.
    #[arg(long, default_value_t = 1, help_heading = "What is asked")]
    pub(crate) batch: usize,
    /// Whether queries are expanded.
    #[arg(long, value_enum, default_value = "server", help_heading = "What is asked")]
    pub(crate) expansion: Expansion,
    /// Most tokens of an expansion.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) max_tokens: Option<usize>,
    /// Budget of an expansion in milliseconds.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) timeout_ms: Option<u64>,
    /// Deadline of the whole request in milliseconds. Default: the server's.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) deadline_ms: Option<u64>,
    /// Expansions a query.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) count: Option<usize>,
    /// Sampling temperature of the expansion.
    #[arg(long, help_heading = "What is asked")]
    pub(crate) temperature: Option<f64>,
    /// Decides which kind comes when, which hot query, and how random arrivals fall.
    #[arg(long, default_value_t = 42, help_heading = "What is asked")]
    pub(crate) seed: u64,

    /// What must hold in every load, e.g. 'p99<350ms', 'errors<0.1%', 'degraded<=5%', 'good>=90%', 'goodput>20/s',
    /// 'unexpected<=0%', 'own.p50<1ms'; of one kind 'cached:p95<20ms'. May be repeated. A miss makes the exit code 1.
    #[arg(long = "objective", value_name = "EXPRESSION", help_heading = "What must hold")]
    pub(crate) objectives: Vec<Objective>,
    /// Good answers are only those within this time.
    #[arg(long, help_heading = "What must hold")]
    pub(crate) within: Option<Span>,
    /// Degraded answers are good answers, too.
    #[arg(long, help_heading = "What must hold")]
    pub(crate) degraded_is_good: bool,

    /// Starts this command, waits until it is ready, and stops it at the end (SIGTERM). A shell reads it, so quotes
    /// work; begin with `env NAME=value` to set variables.
    #[arg(long, value_name = "COMMAND", help_heading = "The server's process")]
    pub(crate) start: Option<String>,
    /// Path that answers 200 when the server is ready.
    #[arg(long, default_value = "/readyz", help_heading = "The server's process")]
    pub(crate) ready_path: String,
    /// How long a started server may take to be ready.
    #[arg(long, default_value = "180s", help_heading = "The server's process")]
    pub(crate) start_timeout: Span,
    /// How long it may take to stop before it is killed.
    #[arg(long, default_value = "30s", help_heading = "The server's process")]
    pub(crate) stop_timeout: Span,
    /// Where the output of a started server goes. Default: a temporary file, whose end is shown when it fails.
    #[arg(long, value_name = "FILE", help_heading = "The server's process")]
    pub(crate) server_log: Option<PathBuf>,
    /// Process whose memory and CPU are recorded, for a server that runs already on this machine.
    #[arg(long, conflicts_with = "start", help_heading = "The server's process")]
    pub(crate) pid: Option<u32>,

    /// Where to write the JSON report.
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub(crate) report: Option<PathBuf>,
    /// Where to write the report as one HTML page with plots, which loads nothing.
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    pub(crate) html: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  expandr-loadtest --queries queries.jsonl --connections 1,8,32 --expansion off
  expandr-loadtest --queries queries.jsonl --rate 2,5,10,20 --expansion always --max-tokens 64 --timeout-ms 300 \\
      --objective 'p99<350ms' --objective 'errors<0.1%' --report report.json --html report.html
  expandr-loadtest --queries queries.jsonl --find-limit 4 --expansion off --objective 'p99<50ms' --overload 10 \\
      --start 'expandr serve --index-dir index/store/mine'
Exit codes: 0 all objectives hold, 1 one was missed or something was not sent, 2 the load could not be run.";

impl Args {
    /// The loads of `--rate` or `--connections`, in order.
    pub(crate) fn plans(&self) -> Vec<Plan> {
        let open = self.rate.iter().map(|rate| self.open(*rate, Role::Load));
        let closed = self.connections.iter().map(|connections| Plan {
            pace: Pace::Closed { connections: *connections },
            role: Role::Load,
            warmup: self.warmup.0,
            duration: self.duration.0,
        });
        open.chain(closed).collect()
    }

    /// A load of this rate.
    pub(crate) fn open(&self, rate: f64, role: Role) -> Plan {
        let duration = match role {
            Role::Load | Role::Probe => self.duration.0,
            Role::Confirmation => self.duration.0 * 2,
            Role::Overload => self.overload_duration.0,
        };
        Plan { pace: Pace::Open { rate, arrivals: self.arrivals }, role, warmup: self.warmup.0, duration }
    }

    /// What is wrong with the flags together, and the remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        let positive = |rate: f64| rate > 0.0 && rate.is_finite();
        if !self.rate.iter().copied().all(positive) {
            return Err("--rate must be above 0".into());
        }
        if !self.find_limit.is_none_or(positive) || !positive(self.limit_max) {
            return Err("--find-limit and --limit-max must be above 0".into());
        }
        if self.find_limit.is_some_and(|start| start > self.limit_max) {
            return Err("--find-limit begins above --limit-max".into());
        }
        if self.find_limit.is_some() && self.objectives.is_empty() {
            return Err(
                "--find-limit needs an --objective, such as 'p99<350ms': it is what makes a rate too high"
                    .into(),
            );
        }
        if !(0.02..=1.0).contains(&self.precision.0) {
            return Err("--precision must lie between 2% and 100%".into());
        }
        if self.at_least.is_some() && self.find_limit.is_none() {
            return Err("--at-least is about the limit: it needs --find-limit".into());
        }
        if !self.overload.is_none_or(positive) {
            return Err("--overload must be above 0".into());
        }
        if self.overload.is_some() && !self.connections.is_empty() {
            return Err(
                "--overload needs --find-limit or --rate: connections have no rate to multiply".into()
            );
        }
        if self.overload.is_none() && !self.overload_objectives.is_empty() {
            return Err("--overload-objective needs --overload".into());
        }
        if self.connections.contains(&0) || self.batch == 0 || self.max_in_flight == 0 || self.max_probes == 0
        {
            return Err("--connections, --batch, --max-in-flight and --max-probes must be at least 1".into());
        }
        if [self.duration, self.timeout, self.overload_duration, self.max_time]
            .iter()
            .any(|span| span.0.is_zero())
        {
            return Err("--duration, --overload-duration, --timeout and --max-time must be above 0".into());
        }
        if self.cached.is_some_and(|share| !(0.0..=1.0).contains(&share)) || self.hot == 0 {
            return Err("--cached must lie between 0 and 1, --hot must be at least 1".into());
        }
        Ok(())
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
    fn plans_follow_the_flags() {
        let paces =
            |flags: &str| -> Vec<Pace> { parse(flags).plans().iter().map(|plan| plan.pace).collect() };
        assert_eq!(
            paces("--connections 1,8"),
            [Pace::Closed { connections: 1 }, Pace::Closed { connections: 8 }]
        );
        let open = |rate| Pace::Open { rate, arrivals: Arrivals::Poisson };
        assert_eq!(paces("--rate 1,2.5 --arrivals poisson"), [open(1.0), open(2.5)]);
        let args = parse("--find-limit 2 --objective p99<1s --overload 10 --duration 3s");
        assert!(args.plans().is_empty());
        assert_eq!(args.open(2.0, Role::Confirmation).duration.as_secs(), 6);
        assert_eq!(args.open(20.0, Role::Overload).duration.as_secs(), 60);
    }

    #[test]
    fn flags_that_contradict_are_refused() {
        for flags in [
            "--rate 0",
            "--connections 0",
            "--rate 1 --cached 1.5",
            "--rate 1 --duration 0s",
            "--find-limit 2",
            "--find-limit 2 --objective p99<1s --limit-max 1",
            "--find-limit 2 --objective p99<1s --precision 1%",
            "--rate 1 --at-least 3",
            "--connections 1 --overload 10",
            "--rate 1 --overload-objective unexpected<=0%",
        ] {
            assert!(parse(flags).check().is_err(), "{flags}");
        }
        assert!(parse("--rate 1 --cached 0.5 --overload 10").check().is_ok());
        for flags in [
            &["--query", "q"][..],
            &["--rate", "1"],
            &["--query", "q", "--rate", "1", "--connections", "1"],
            &["--query", "q", "--rate", "1", "--pid", "1", "--start", "server"],
        ] {
            let all = ["expandr-loadtest"].iter().chain(flags);
            assert!(Args::try_parse_from(all).is_err(), "{flags:?}");
        }
    }
}
