//! `expandr compare`: run folders beside each other.

use std::path::PathBuf;

use clap::Args;
use expandr_evaluation::{
    Metric,
    client::{Endpoint, EndpointOptions},
    compare::{CompareOptions, RunArgument, compare, markdown, summary, write},
};

/// Flags of `expandr compare`.
#[derive(Args, Debug)]
pub(super) struct CompareArgs {
    /// Run folders of `expandr eval`: PATH, or NAME=PATH to name the system. A name may come again on other collections.
    #[arg(required = true, value_name = "[NAME=]RUN")]
    runs: Vec<RunArgument>,

    /// The system that the others are compared with; default: that of the first run.
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,

    /// Folder for compare.md, compare.json and compare.html; without it the whole Markdown is printed.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The folder that holds the collections by name: for titles, gold documents, BLEU, and metrics that a run lacks.
    #[arg(long, value_name = "DIR")]
    collections: Option<PathBuf>,

    /// The tables' metrics; changes by query are of the first.
    #[arg(long = "metric", value_delimiter = ',', default_values = ["ndcg@10", "recall@100"])]
    metrics: Vec<Metric>,

    /// Differences are marked where the corrected p-value is below this.
    #[arg(long, default_value_t = 0.05)]
    alpha: f64,

    /// Random sign assignments of the permutation test, at least 10000.
    #[arg(long, default_value_t = 100_000)]
    rounds: usize,

    /// Seed of the tests, of the bootstrap, and of the maps' samples.
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// Add the paper's own figures.
    #[arg(long)]
    paper: bool,

    /// A server with the runs' encoder, for t-SNE maps from its /embed; they need --collections.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,

    /// Queries a t-SNE map.
    #[arg(long, default_value_t = 30)]
    map_queries: usize,

    /// Bearer key of that server, where it wants one.
    #[arg(long, env = "EXPANDR_KEY", hide_env_values = true)]
    key: Option<Key>,
}

/// Not printed.
#[derive(Clone)]
struct Key(String);

impl From<String> for Key {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

pub(super) async fn run(args: CompareArgs) -> anyhow::Result<()> {
    let mut options = CompareOptions {
        baseline: args.baseline,
        metrics: args.metrics,
        alpha: args.alpha,
        collections: args.collections,
        map_queries: args.map_queries,
        paper: args.paper,
        ..CompareOptions::default()
    };
    options.significance.rounds = args.rounds;
    options.significance.seed = args.seed;
    let key = args.key.map(|key| key.0);
    let endpoint =
        args.endpoint.map(|url| Endpoint::new(&url, key, EndpointOptions::default())).transpose()?;
    let report = compare(&args.runs, &options, endpoint.as_ref()).await?;
    match args.out {
        Some(folder) => {
            write(&report, &folder)?;
            println!("{}", summary(&report));
            println!("compare.html, compare.md and compare.json are in {}", folder.display());
        }
        None => println!("{}", markdown(&report)),
    }
    Ok(())
}
