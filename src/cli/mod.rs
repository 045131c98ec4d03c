//! The command line.

mod admin;
mod bundles;
mod client;
mod compare;
mod datasets;
mod demo;
mod eval;
mod evaluate_bundles;
mod feedback;
mod ingest;
mod jobs;
mod models;
mod openapi;
mod reference;
mod report;
mod search;
mod serve;
mod train;

use std::{io::IsTerminal, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::traces::{self, Recorder, export::Courier};

/// How long the end waits for the last spans to be sent.
const LAST_TRACES: std::time::Duration = std::time::Duration::from_secs(3);

/// Online query-expansion retrieval: a language model writes the passage that would answer a query, the embeddings of query and
/// passage are averaged, and an index is searched with the result (ExpandR).
#[derive(Debug, Parser)]
#[command(name = "expandr", version, max_term_width = 110)]
struct Cli {
    /// How to log: for people or as JSON lines.
    #[arg(long, global = true, env = "EXPANDR_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    log_format: LogFormat,

    /// What to log: error, warn, info, debug, trace, or a tracing filter such as `info,expandr=debug` [default: info; for
    /// commands with a progress bar warn]
    #[arg(long, global = true, env = "EXPANDR_LOG")]
    log: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve POST /search and the other routes.
    Serve(Box<serve::ServeArgs>),
    /// Send documents to a running server: a BEIR folder, an NDJSON file, or a folder of text and markdown.
    Ingest(ingest::IngestArgs),
    /// Search a running server and print the hits.
    Search(search::SearchArgs),
    /// Run a BEIR collection against a running server, and score it.
    Eval(Box<eval::EvalArgs>),
    /// Compare run folders of `eval`: tables, tests, queries that change most, plots.
    Compare(Box<compare::CompareArgs>),
    /// Train an expander and an encoder by a recipe.
    Train(Box<train::TrainArgs>),
    /// One report of several training runs that differ in their seeds: means, their spread, and tests.
    Report(report::ReportArgs),
    /// What a server runs for an evaluation.
    #[command(hide = true)]
    EvaluateBundles(evaluate_bundles::EvaluateBundlesArgs),
    /// Print the description of the HTTP interface, docs/openapi.json (OpenAPI 3.1), as it is made of the types.
    Openapi,
    /// Print the configuration reference, docs/configuration.md, as it is made of the flags.
    #[command(hide = true)]
    Reference,
    /// Start and follow retrainings and other work of a running server.
    Jobs(Box<jobs::JobsArgs>),
    /// List the bundles of a running server, and change which one is served.
    Bundles(bundles::BundlesArgs),
    /// Export and delete what users of a running server found useful.
    Feedback(feedback::FeedbackArgs),
    /// Upload, list and delete training pairs on a running server.
    Datasets(datasets::DatasetsArgs),
    /// Fetch and list checkpoints.
    Models(models::ModelsArgs),
    /// Pull the default weights, index the documentation of the crates that this build downloaded, and serve it.
    Demo(Box<demo::DemoArgs>),
}

/// Runs the command line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let courier = match start_logging(&cli) {
        Ok(courier) => courier,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the async runtime can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let traced = CancellationToken::new();
    let courier = courier.map(|courier| runtime.spawn(courier.run(traced.clone())));
    let result = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(*args).await,
            Command::Ingest(args) => ingest::run(args).await,
            Command::Search(args) => search::run(args).await,
            Command::Eval(args) => eval::run(*args).await,
            Command::Compare(args) => compare::run(*args).await,
            Command::Train(args) => train::run(*args).await,
            Command::Report(args) => report::run(&args),
            Command::EvaluateBundles(args) => evaluate_bundles::run(args).await,
            Command::Openapi => openapi::run(),
            Command::Reference => {
                print!("{}", reference::markdown(&Cli::command()));
                Ok(())
            }
            Command::Jobs(args) => jobs::run(*args).await,
            Command::Bundles(args) => bundles::run(args).await,
            Command::Feedback(args) => feedback::run(args).await,
            Command::Datasets(args) => datasets::run(args).await,
            Command::Models(args) => models::run(args).await,
            Command::Demo(args) => demo::run(*args).await,
        }
    });
    traced.cancel();
    if let Some(courier) = courier {
        // What the last requests left; a collector that is away is not waited for long.
        let _ = runtime.block_on(async { tokio::time::timeout(LAST_TRACES, courier).await });
    }
    // A language model's engine thread may be in the middle of a step; the process need not wait for it.
    runtime.shutdown_timeout(std::time::Duration::from_millis(500));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<eval::DegradedRun>() {
                return ExitCode::from(eval::DegradedRun::EXIT_CODE);
            }
            if let Some(job) = error.downcast_ref::<jobs::NotSucceeded>() {
                return ExitCode::from(job.exit_code());
            }
            ExitCode::FAILURE
        }
    }
}

/// Starts logging, and recording the traces of a server's requests; gives who sends these to a collector, if one is named.
fn start_logging(cli: &Cli) -> anyhow::Result<Option<Courier>> {
    let quiet = !matches!(cli.command, Command::Serve(_));
    let default = if quiet { "warn" } else { "info,mistralrs_core=warn,mistralrs_quant=warn,tantivy=warn" };
    let log = cli.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(log)
        .map_err(|error| anyhow::anyhow!("--log `{log}` is not a filter: {error}; use e.g. info"))?;
    let endpoint = match &cli.command {
        Command::Serve(args) => args.otlp_endpoint(),
        _ => None,
    };
    let (outbox, courier) = endpoint.map(traces::export::to).transpose()?.unzip();
    let serves = matches!(cli.command, Command::Serve(_) | Command::Demo(_));
    let recorder = serves.then(|| Recorder::new(outbox).layer());
    let registry = tracing_subscriber::registry().with(recorder);
    match cli.log_format {
        LogFormat::Human => {
            let layer = fmt::layer().with_ansi(std::io::stderr().is_terminal());
            let layer = layer.with_writer(std::io::stderr).with_target(false);
            registry.with(layer.with_filter(filter)).try_init()?;
        }
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            registry.with(layer.with_filter(filter)).try_init()?;
        }
    }
    Ok(courier)
}

/// A time for people: `1 min 5 s`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        let shown: Vec<String> = [0.4, 59.6, 61.0, 3_600.0, 90_061.0].map(duration).into();
        assert_eq!(shown, ["0 s", "1 min 0 s", "1 min 1 s", "1 h 0 min", "25 h 1 min"]);
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        for line in [
            "expandr jobs start retrain --recipe smoke --watch --key 0123456789abcdef",
            "expandr jobs start --body x.json",
            "expandr bundles rollback --no-wait --endpoint http://x",
            "expandr feedback delete --all --json",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        assert!(Cli::try_parse_from(["expandr", "feedback", "delete", "--all", "--query", "x"]).is_err());
    }
}
