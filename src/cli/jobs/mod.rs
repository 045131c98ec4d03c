//! `expandr jobs`: starts, follows and ends the work that a server does in the background.

mod body;
mod display;
mod event_stream;
mod job;
mod watch;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;
use uuid::Uuid;

pub(super) use job::NotSucceeded;

use self::job::Job;
use super::admin::{Admin, AdminServer, segment, table, text, with_parameters};

/// Flags of `expandr jobs`.
#[derive(Args, Debug)]
pub(super) struct JobsArgs {
    #[command(flatten)]
    server: AdminServer,

    #[command(subcommand)]
    command: JobsCommand,
}

#[derive(Debug, Subcommand)]
enum JobsCommand {
    /// Start a job, and print its id.
    Start(StartArgs),
    /// List jobs, the newest first.
    List {
        /// Only those with this status: queued, running, succeeded, failed, cancelled or interrupted.
        #[arg(long)]
        status: Option<String>,
        /// At most so many.
        #[arg(long)]
        limit: Option<u64>,
    },
    /// Print a job.
    Show {
        /// Its id.
        id: String,
    },
    /// Follow a job until it has ended. Exit code: 0 succeeded, 4 failed, 5 cancelled, 6 interrupted.
    Watch(WatchArgs),
    /// End a job.
    Cancel {
        /// Its id.
        id: String,
    },
    /// Go on with a job that failed, was cancelled or was interrupted.
    Resume {
        /// Its id.
        id: String,
    },
}

#[derive(Args, Debug)]
struct StartArgs {
    /// Send the JSON object in this file as it is, instead of building one from flags.
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,

    /// A start that repeats this key gives the job that the first one made; default: a new one each time.
    #[arg(long, global = true, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// Follow the job until it has ended, as `watch` does.
    #[arg(long, global = true)]
    watch: bool,

    #[command(subcommand)]
    kind: Option<body::Kind>,
}

#[derive(Args, Debug)]
struct WatchArgs {
    /// The job's id.
    id: String,

    /// Seconds that the server may be away, for a restart say.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    patience: u64,
}

pub(super) async fn run(args: JobsArgs) -> anyhow::Result<()> {
    let admin = args.server.connect()?;
    match args.command {
        JobsCommand::Start(start) => start_job(&admin, start).await,
        JobsCommand::List { status, limit } => {
            let limit = limit.map(|limit| limit.to_string());
            let path = with_parameters("/admin/jobs", &[("status", status), ("limit", limit)]);
            admin.print(&admin.get(&path).await?, listed);
            Ok(())
        }
        JobsCommand::Show { id } => {
            let job = admin.get(&format!("/admin/jobs/{}", segment(&id))).await?;
            println!("{job:#}");
            Ok(())
        }
        JobsCommand::Watch(args) => watch_job(&admin, &args.id, Duration::from_secs(args.patience)).await,
        JobsCommand::Cancel { id } => act(&admin, &id, "cancel").await,
        JobsCommand::Resume { id } => act(&admin, &id, "resume").await,
    }
}

async fn start_job(admin: &Admin, args: StartArgs) -> anyhow::Result<()> {
    let body = match (&args.body, &args.kind) {
        (Some(path), None) => body::from_file(path)?,
        (None, Some(kind)) => kind.body()?,
        (Some(_), Some(_)) => bail!("--body is the whole request; leave the kind and its flags out"),
        (None, None) => {
            bail!("say what to start (retrain, reindex, snapshot, evaluate, import), or give --body FILE")
        }
    };
    let key = args.idempotency_key.unwrap_or_else(|| Uuid::new_v4().to_string());
    let request = admin.request(Method::POST, "/admin/jobs").header("idempotency-key", key).json(&body);
    let answer = admin.ask(request).await?;
    let id = answer["id"].as_str().context("the server's answer names no job")?.to_owned();
    admin.print(&answer, |_| id.clone());
    if args.watch { watch_job(admin, &id, Duration::from_secs(600)).await } else { Ok(()) }
}

async fn watch_job(admin: &Admin, id: &str, patience: Duration) -> anyhow::Result<()> {
    let (job, ending) = watch::watch(admin, id, patience).await?;
    if let Some(result) = job.result.as_ref().filter(|result| !result.is_null()) {
        println!("{result:#}");
    }
    NotSucceeded::check(&job, ending)
}

async fn act(admin: &Admin, id: &str, action: &str) -> anyhow::Result<()> {
    let answer =
        admin.ask(admin.request(Method::POST, &format!("/admin/jobs/{}/{action}", segment(id)))).await?;
    admin.print(&answer, |answer| format!("{}: {}", text(&answer["id"]), text(&answer["status"])));
    Ok(())
}

fn listed(answer: &Value) -> String {
    let jobs = answer["jobs"].as_array().or(answer.as_array());
    let row = |job: &Value| {
        let told: Job = serde_json::from_value(job.clone()).unwrap_or_default();
        let share = told.progress.as_ref().and_then(job::Progress::share).filter(|_| told.ending().is_none());
        let share = share.map_or(String::new(), |share| format!("{:.0} %", share * 100.0));
        vec![
            told.id,
            told.kind,
            told.status,
            told.stage.unwrap_or_default(),
            share,
            told.created_at.unwrap_or_default(),
        ]
    };
    let rows: Vec<Vec<String>> = jobs.into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "no jobs; `expandr jobs start` makes one".to_owned();
    }
    table(&["id", "kind", "status", "stage", "done", "created"], &rows)
}
