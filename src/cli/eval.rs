//! `expandr eval`: runs a collection against a running server.

use std::{path::PathBuf, str::FromStr};

use anyhow::bail;
use clap::Args;
use expandr_evaluation::{
    Collection,
    client::{EvaluationOptions, evaluate},
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::{client::Server, ingest};
use crate::search::request::Ranking;

/// Flags of `expandr eval`.
#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    /// A BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.
    #[arg(long)]
    collection: PathBuf,

    /// Which judgments; default: test, or dev where a collection is scored on that.
    #[arg(long)]
    split: Option<String>,

    /// Folder of the run: run.trec, metrics.json, expansions.jsonl, answers.jsonl. An interrupted run goes on there.
    #[arg(long)]
    run: PathBuf,

    /// Load the corpus into the server first.
    #[arg(long)]
    ingest: bool,

    /// How to expand: off, always, auto, or the `expansion` object of a search as JSON; default: as the server is configured.
    #[arg(long)]
    expansion: Option<Expansion>,

    /// What ranks the documents; default: as the server is configured.
    #[arg(long, value_enum)]
    ranking: Option<Ranking>,

    /// The `hybrid` object of a search as JSON, for ranking hybrid.
    #[arg(long, value_name = "JSON")]
    hybrid: Option<Hybrid>,

    /// Which way the index searches by vector: auto, exact or hnsw.
    #[arg(long, default_value = "auto")]
    search_mode: String,

    /// Searches a request; all of a request share its deadline.
    #[arg(long, default_value_t = 16)]
    batch: usize,

    /// Requests under way at a time.
    #[arg(long, default_value_t = 4)]
    concurrency: usize,

    #[command(flatten)]
    server: Server,
}

/// The `hybrid` member of every search.
#[derive(Clone, Debug)]
struct Hybrid(Value);

impl FromStr for Hybrid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(value @ Value::Object(_)) => Ok(Self(value)),
            _ => Err("write an object such as {\"k\": 60, \"lexical_weight\": 0.5}".to_owned()),
        }
    }
}

/// The `expansion` member of every search.
#[derive(Clone, Debug)]
struct Expansion(Value);

impl FromStr for Expansion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self(json!(false))),
            "always" => Ok(Self(json!({"mode": "always"}))),
            "auto" => Ok(Self(json!({"mode": "auto"}))),
            object => match serde_json::from_str(object) {
                Ok(value @ Value::Object(_)) => Ok(Self(value)),
                _ => Err(
                    "use off, always, auto, or an object such as {\"max_tokens\": 64, \"timeout_ms\": 20000}"
                        .to_owned(),
                ),
            },
        }
    }
}

pub(super) async fn run(args: EvalArgs) -> anyhow::Result<()> {
    let collection = Collection::open(&args.collection, args.split.as_deref())?;
    if args.ingest {
        let count = collection.check_corpus()?.documents as u64;
        ingest::send(&args.server, Box::new(collection.documents()?), count).await?;
    }
    let mut options = EvaluationOptions::new(&args.run);
    options.expansion = args.expansion.map(|expansion| expansion.0);
    options.search.insert("search_mode".to_owned(), json!(args.search_mode));
    if let Some(ranking) = args.ranking {
        options.search.insert("ranking".to_owned(), json!(ranking));
    }
    if let Some(Hybrid(hybrid)) = args.hybrid {
        options.search.insert("hybrid".to_owned(), hybrid);
    }
    options.batch = args.batch;
    options.concurrency = args.concurrency;
    let bar = ProgressBar::new(collection.queries.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} queries, {eta} left {msg}",
    )?);
    let endpoint = args.server.endpoint()?;
    let report = evaluate(&endpoint, &collection, &options, |progress| {
        bar.set_position(progress.answered as u64);
        if progress.degraded > 0 {
            bar.set_message(format!("({} degraded)", progress.degraded));
        }
    })
    .await?;
    bar.finish_and_clear();
    println!("{}", report.summary());
    if report.is_degraded() {
        bail!(DegradedRun { degraded: report.degraded, queries: report.queries });
    }
    Ok(())
}

/// A run that is finished, but is not what was asked for. The command's exit code is [`DegradedRun::EXIT_CODE`].
#[derive(Debug, thiserror::Error)]
#[error(
    "{degraded} of {queries} answers are without the expansion that was asked for; the run is written, and flagged"
)]
pub(super) struct DegradedRun {
    degraded: usize,
    queries: usize,
}

impl DegradedRun {
    /// Tells a degraded run from one that failed (1) and from wrong usage (2).
    pub(super) const EXIT_CODE: u8 = 3;
}
