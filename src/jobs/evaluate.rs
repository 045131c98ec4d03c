//! Evaluations: as a job of its own, and as a part of a retraining.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::{
    attempt::{Attempt, Broken},
    evaluation::{EvaluationSpec, OUTCOME_FILE, PlannedCollection, RUNS, Side},
    outcome::EvaluationOutcome,
    queue::disk,
    request::{Evaluate, EvaluateOn},
};
use crate::{
    files::write_whole,
    http::problem::{Code, Problem},
    server::ServeOptions,
};

/// What is compared with what.
pub(super) struct Comparison<'a> {
    pub(super) candidate: String,
    pub(super) against: Option<String>,
    pub(super) collections: Vec<PlannedCollection>,
    pub(super) on: &'a EvaluateOn,
    pub(super) metric: &'a str,
    pub(super) decide_on: Option<Vec<String>>,
}

/// A job of kind evaluate.
pub(super) async fn run(attempt: &Attempt, evaluate: &Evaluate) -> Result<Value, Broken> {
    let memory = attempt.memory();
    let candidate = memory.candidate.clone().unwrap_or_else(|| attempt.host().active_bundle());
    let comparison = Comparison {
        candidate,
        against: memory.against,
        collections: memory.collections,
        on: &evaluate.on(),
        metric: &evaluate.metric,
        decide_on: None,
    };
    let sides = if comparison.against.is_some() { 2 } else { 1 };
    attempt.stages(sides * comparison.collections.len() as u64);
    let outcome = compare(attempt, comparison).await?;
    Ok(json!({ "evaluation": outcome }))
}

/// Runs the child, and reads what it found.
pub(super) async fn compare(
    attempt: &Attempt,
    comparison: Comparison<'_>,
) -> Result<EvaluationOutcome, Broken> {
    let folder = attempt.folder.join("evaluation");
    let serve: ServeOptions =
        serde_json::from_value(attempt.jobs.settings.serve.clone()).map_err(|error| {
            Problem::new(Code::Internal, format!("the server's options can't be handed on: {error}"))
        })?;
    let spec = EvaluationSpec {
        serve,
        candidate: side(attempt, &comparison.candidate)?,
        against: comparison.against.as_deref().map(|id| side(attempt, id)).transpose()?,
        collections: comparison.collections,
        max_queries: comparison.on.max_queries,
        expansion: comparison.on.expansion.clone(),
        metric: comparison.metric.to_owned(),
        decide_on: comparison.decide_on,
        folder: folder.clone(),
    };
    let spec_path = attempt.folder.join("evaluation.json");
    let text = serde_json::to_vec_pretty(&spec).map_err(|error| disk(&error))?;
    let (made, path) = (folder.clone(), spec_path.clone());
    let written = tokio::task::spawn_blocking(move || {
        fs_err::create_dir_all(&made)?;
        let before = fs_err::read(&path).unwrap_or_default();
        if asks_otherwise(&before, &text) && made.join(RUNS).exists() {
            tracing::info!(folder = %made.display(), "the server's options have changed; the evaluation is begun again");
            fs_err::remove_dir_all(made.join(RUNS))?;
        }
        write_whole(&path, &text)
    });
    written.await.map_err(|error| disk(&error))??;
    let arguments: Vec<OsString> = vec!["evaluate-bundles".into(), spec_path.into()];
    attempt.child("evaluate", arguments).await?;
    let path = folder.join(OUTCOME_FILE);
    let read = tokio::task::spawn_blocking(move || fs_err::read(&path));
    let bytes = read.await.map_err(|error| disk(&error))??;
    serde_json::from_slice(&bytes).map_err(|error| {
        Problem::new(Code::Internal, format!("the evaluation left no outcome: {error}")).into()
    })
}

/// Whether an attempt before this one asked a server with other options, so that what it found is not to be compared.
fn asks_otherwise(before: &[u8], now: &[u8]) -> bool {
    let serve = |text: &[u8]| serde_json::from_slice::<Value>(text).ok().map(|spec| spec["serve"].clone());
    serve(before).is_some_and(|before| Some(before) != serve(now))
}

fn side(attempt: &Attempt, id: &str) -> Result<Side, Problem> {
    let folder = attempt.host().bundle_folder(id).ok_or_else(|| {
        Problem::new(
            Code::NotFound,
            format!("there is no bundle `{id}` any more; GET /admin/bundles lists them"),
        )
    })?;
    Ok(Side { id: id.to_owned(), folder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_options_of_the_server_begin_an_evaluation_again() {
        let spec =
            |weight: f64, id: &str| json!({"serve": {"query_weight": weight}, "candidate": id}).to_string();
        let asks_otherwise =
            |before: &str, now: &str| super::asks_otherwise(before.as_bytes(), now.as_bytes());
        assert!(asks_otherwise(&spec(0.5, "a"), &spec(0.7, "a")));
        assert!(!asks_otherwise(&spec(0.5, "a"), &spec(0.5, "b")), "what is there is kept by bundle");
        assert!(!asks_otherwise("", &spec(0.5, "a")));
    }
}
