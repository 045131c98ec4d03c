//! `expandr-loadtest` puts a search server under a known load and says how it bore it.
//!
//! It knows the wire form of `POST /search` and nothing else of ours: no crate of the workspace, no file format.
//!
//! In reading order: [`args`] the command line, [`scenario`] the same from a file; [`kinds`] and [`queries`] what is
//! asked, and how often again; [`target`] one request, [`answer`] what comes back; [`plan`] what a load is, [`bounds`]
//! what a run may not exceed, [`load`] when requests start (open and closed loop); [`figures`], [`times`], [`timeline`]
//! and [`measure`] what is counted; [`objective`] what must hold; [`limit`] the search for the highest rate that holds;
//! [`server`] a server that is started here, [`resources`] what its process uses; [`session`] which loads a run has;
//! [`progress`] what is seen meanwhile; [`report`] table, JSON and page.
//!
//! Threads: the tokio runtime sends and receives; an open loop's clock is a thread of its own, because the
//! runtime's timers tick in whole milliseconds; one task owns all histograms and is fed through a channel.

mod answer;
mod args;
mod bounds;
mod figures;
mod kinds;
mod limit;
mod load;
mod measure;
mod objective;
mod plan;
mod progress;
mod queries;
mod report;
mod resources;
mod scenario;
mod server;
mod session;
mod span;
mod target;
mod timeline;
mod times;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::Args;
use crate::bounds::Bounds;
use crate::load::Generator;
use crate::queries::Queries;
use crate::report::Report;
use crate::resources::Sampler;
use crate::server::{Ending, Server};
use crate::session::{Findings, Session};
use crate::target::Target;

/// Exit code when the load ran and an objective was missed. Broken input and a dead server give 2.
const OBJECTIVE_MISSED: u8 = 1;
const COULD_NOT_RUN: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(report) => {
            print!("{}", report.table());
            if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(OBJECTIVE_MISSED) }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn run() -> Result<Report> {
    let args = scenario::arguments(std::env::args_os().collect())?;
    args.check().map_err(anyhow::Error::msg)?;
    let kinds = kinds::kinds(&args).map_err(anyhow::Error::msg)?;
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name.as_str()).collect();
    session::check_kinds(&args, &names).map_err(anyhow::Error::msg)?;
    let queries = Arc::new(Queries::load(&args, kinds)?);
    let target = Target::new(&args)?;
    let mut notes: Vec<String> = open_files(&args).into_iter().collect();
    let server = match &args.start {
        Some(command) => Some(Server::start(command, &args, &target).await?),
        None => None,
    };
    if let Some(server) = &server {
        eprintln!("the server was ready after {:.1} s", server.ready_after().as_secs_f64());
    }
    let info = target.info().await;
    let pid = server.as_ref().map(Server::pid).or(args.pid);
    // A run that failed must stop its server, too.
    let findings = run_loads(&args, target, Arc::clone(&queries), pid, &mut notes).await;
    let ending = match server {
        Some(server) => Some(server.stop(args.stop_timeout.0).await?),
        None => None,
    };
    let findings = findings.map_err(|error| explain(error, ending.as_ref()))?;
    let report = Report::new(&args, queries.kinds(), info, findings, ending, notes);
    write(&report, &args)?;
    anyhow::ensure!(
        report.answered() > 0,
        "no request was answered; the first failure was: {}",
        report.first_failure()
    );
    Ok(report)
}

/// Runs the loads; an interrupt ends them early, with a report of what there is.
async fn run_loads(
    args: &Args,
    target: Target,
    queries: Arc<Queries>,
    pid: Option<u32>,
    notes: &mut Vec<String>,
) -> Result<Findings> {
    let bounds = Bounds::new(args);
    let generator = Generator { target, queries, bounds: Arc::clone(&bounds), seed: args.seed };
    let sampler = pid.and_then(Sampler::start);
    if let (Some(pid), None) = (pid, &sampler) {
        notes.push(format!("process {pid} has no readings in /proc: its memory and CPU are not recorded"));
    }
    notes.extend(session::prime(&generator).await?);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let session = Session { args, generator, sampler };
    let loads = session.run();
    tokio::pin!(loads);
    loop {
        tokio::select! {
            findings = &mut loads => return findings,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("interrupted: requests under way get their answers, no other is sent");
        bounds.interrupt();
    }
}

/// What a started server that died has to do with a failed run.
fn explain(error: anyhow::Error, ending: Option<&Ending>) -> anyhow::Error {
    match ending.and_then(|ending| ending.trouble.clone()) {
        Some(trouble) => error.context(trouble),
        None => error,
    }
}

fn write(report: &Report, args: &Args) -> Result<()> {
    if let Some(path) = &args.report {
        create_parent(path)?;
        let json = serde_json::to_vec_pretty(&report.json())?;
        fs_err::write(path, json).context("the report could not be written")?;
    }
    if let Some(path) = &args.html {
        create_parent(path)?;
        fs_err::write(path, report.html()?).context("the report's page could not be written")?;
    }
    Ok(())
}

fn create_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => Ok(fs_err::create_dir_all(parent)?),
        _ => Ok(()),
    }
}

/// A note when this process may not open as many connections as the flags allow.
fn open_files(args: &Args) -> Option<String> {
    const BESIDE: usize = 64;
    let limits = fs_err::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let soft: usize = line.split_whitespace().next()?.parse().ok()?;
    (args.max_in_flight + BESIDE > soft).then(|| {
        format!(
            "this process may open {soft} files, fewer than --max-in-flight {} needs: `ulimit -n` raises it, a smaller bound is counted honestly",
            args.max_in_flight
        )
    })
}
