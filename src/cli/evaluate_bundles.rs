//! `expandr evaluate-bundles`: the child of a server's evaluation.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use expandr_training::progress::JsonEvents;

use crate::jobs::{
    API_KEY, end_with_parent,
    evaluation::{self, EvaluationSpec},
};

/// Flags of `expandr evaluate-bundles`.
#[derive(Args, Debug)]
pub(super) struct EvaluateBundlesArgs {
    /// What to evaluate.
    spec: PathBuf,
}

pub(super) async fn run(args: EvaluateBundlesArgs) -> anyhow::Result<()> {
    end_with_parent();
    let bytes = fs_err::read(&args.spec)?;
    let mut spec: EvaluationSpec = serde_json::from_slice(&bytes)
        .with_context(|| format!("{}: not an evaluation", args.spec.display()))?;
    // The one secret is not in the file.
    spec.serve.models.expander_api_key = std::env::var(API_KEY).ok();
    let events = JsonEvents::new(std::io::stdout());
    Box::pin(evaluation::run(&spec, &events)).await
}
