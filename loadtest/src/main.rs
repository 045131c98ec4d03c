//! `expandr-loadtest` puts a search server under a known load and says how it bore it.
//!
//! It knows the wire form of `POST /search` and nothing else of ours: no crate of the workspace, no file format.
//!
//! In reading order: [`args`] the command line; [`queries`] what is asked, and how often again; [`target`] one
//! request and what its answer says; [`load`] when requests start (open and closed loop); [`measure`] counts and
//! histograms; [`objective`] what must hold; [`report`] the table and the JSON.
//!
//! Threads: the tokio runtime sends and receives; an open loop's clock is a thread of its own, because the
//! runtime's timers tick in whole milliseconds; one task owns all histograms and is fed through a channel.

mod args;
mod load;
mod measure;
mod objective;
mod queries;
mod report;
mod target;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;

use crate::args::Args;
use crate::measure::Phase;
use crate::queries::Queries;
use crate::report::Report;
use crate::target::Target;

/// Exit code when the load ran and an objective was missed. Broken input and a dead server give 2.
const OBJECTIVE_MISSED: u8 = 1;
const COULD_NOT_RUN: u8 = 2;

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args).await {
        Ok(report) => {
            print!("{}", report.table());
            if report.objectives_met() { ExitCode::SUCCESS } else { ExitCode::from(OBJECTIVE_MISSED) }
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(COULD_NOT_RUN)
        }
    }
}

async fn run(args: &Args) -> Result<Report> {
    let queries = Arc::new(Queries::load(args)?);
    let target = Target::new(args)?;
    let server = target.info().await;
    target.prime(queries.hot()).await?;
    let mut phases: Vec<Phase> = Vec::new();
    for plan in args.plans() {
        eprintln!("{plan}, {:?} after {:?} of warm-up", args.duration.0, args.warmup.0);
        let phase = load::drive(plan, args, &target, Arc::clone(&queries)).await?;
        phases.push(phase);
    }
    let report = Report::new(args, server, phases);
    if let Some(path) = &args.report {
        let json = serde_json::to_vec_pretty(&report.json())?;
        fs_err::write(path, json).context("the report could not be written")?;
    }
    anyhow::ensure!(
        report.answered() > 0,
        "no request was answered; the first failure was: {}",
        report.first_failure()
    );
    Ok(report)
}
