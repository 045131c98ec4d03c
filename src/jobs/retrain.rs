//! A retraining: train, package, import, evaluate against the live bundle, decide, activate or not. Each step may be done twice; what
//! the next ones depend on is remembered first.

use std::{ffi::OsString, sync::atomic::AtomicBool, time::Duration};

use serde_json::{Value, json};

use super::{
    attempt::{Attempt, Broken},
    evaluate::{Comparison, compare},
    outcome::EvaluationOutcome,
    promotion::{Decision, decide},
    request::{Retrain, When},
    simple::tell_activation,
};
use crate::http::problem::Code;

/// Steps after the training: package, import, activate.
const STEPS: u64 = 3;
/// Between attempts at an activation while another is under way, and how often.
const TURN: Duration = Duration::from_secs(5);
const TURNS: usize = 720;

/// A job of kind retrain.
pub(super) async fn run(attempt: &Attempt, retrain: &Retrain) -> Result<Value, Broken> {
    let memory = attempt.memory();
    let sides = 2 * memory.collections.len() as u64;
    attempt.stages(memory.training_stages + STEPS + sides);
    let run = attempt.folder.join("run");
    let candidate = match memory.candidate {
        Some(candidate) => candidate,
        None => {
            train(attempt, retrain).await?;
            if !leaves_a_model(attempt) {
                attempt
                    .note("package", "the stages that were asked for leave no model, so there is no bundle");
                return Ok(
                    json!({"run": run, "bundle": null, "evaluation": null, "decision": null, "activation": null}),
                );
            }
            package(attempt, retrain).await?
        }
    };
    let (against, outcome) = evaluate(attempt, retrain, &candidate).await?;
    let mut decision = decide(&retrain.promotion, outcome.as_ref());
    let live = attempt.host().active_bundle();
    if decision.promote && retrain.promotion.when != When::Always && live != against && live != candidate {
        decision.promote = false;
        decision.why = format!(
            "{live} became active while this job compared with {against}; evaluate again, or activate it by hand"
        );
    }
    attempt.note("decide", &decision.why);
    let activation = if decision.promote { Some(activate(attempt, &candidate).await?) } else { None };
    Ok(result(attempt, &candidate, &against, outcome, &decision, activation))
}

fn result(
    attempt: &Attempt,
    candidate: &str,
    against: &str,
    outcome: Option<EvaluationOutcome>,
    decision: &Decision,
    activation: Option<Value>,
) -> Value {
    json!({
        "run": attempt.folder.join("run"),
        "bundle": candidate,
        "against": against,
        "evaluation": outcome,
        "decision": decision,
        "activation": activation,
    })
}

/// Runs the recipe. What an earlier job has done with the same settings and inputs is taken from there.
async fn train(attempt: &Attempt, retrain: &Retrain) -> Result<(), Broken> {
    let settings = &attempt.jobs.settings;
    let mut arguments: Vec<OsString> = vec!["train".into(), attempt.folder.join("recipe.toml").into()];
    arguments.extend(["--supervised".into(), "--progress".into(), "json".into()]);
    arguments.extend(["--out".into(), attempt.folder.join("run").into()]);
    arguments.extend(["--models-dir".into(), settings.models_dir.clone().into()]);
    if let Some(stages) = &retrain.stages {
        arguments.extend(["--stages".into(), stages.join(",").into()]);
    }
    if retrain.ablations {
        arguments.push("--ablations".into());
    }
    for run in attempt.jobs.earlier_runs(&attempt.id) {
        arguments.extend(["--reuse".into(), run.into()]);
    }
    attempt.child("train", arguments).await
}

/// Whether the run has something to serve.
fn leaves_a_model(attempt: &Attempt) -> bool {
    ["encoder", "adapter", "expander"].iter().any(|name| attempt.folder.join("run").join(name).is_dir())
}

/// From the run folder to a registered bundle; gives its id.
async fn package(attempt: &Attempt, retrain: &Retrain) -> Result<String, Broken> {
    attempt.stage("package", "the training is done");
    let (run, out) = (attempt.folder.join("run"), attempt.folder.join("bundle"));
    let name = retrain.name.clone().unwrap_or_else(|| match &retrain.recipe {
        Some(recipe) => format!("{recipe}-{}", attempt.id),
        None => attempt.id.clone(),
    });
    let old = out.clone();
    let cleared =
        tokio::task::spawn_blocking(move || if old.exists() { fs_err::remove_dir_all(old) } else { Ok(()) });
    cleared.await.map_err(|error| super::queue::disk(&error))??;
    let parents = vec![attempt.host().active_bundle()];
    attempt.wait(attempt.host().package(&run, &out, &name, parents)).await?;
    attempt.stage_done();
    attempt.stage("import", "the bundle is packaged");
    let id = attempt.wait(attempt.host().import(&out, Some(&name))).await?;
    let candidate = id.clone();
    attempt.remember(move |memory| memory.candidate = Some(candidate)).await?;
    // What was imported has been copied.
    let cleared = tokio::task::spawn_blocking(move || fs_err::remove_dir_all(out));
    cleared.await.map_err(|error| super::queue::disk(&error))??;
    attempt.stage_done();
    Ok(id)
}

/// The candidate beside the bundle that was live when the evaluation began. Gives that one's id, too.
async fn evaluate(
    attempt: &Attempt,
    retrain: &Retrain,
    candidate: &str,
) -> Result<(String, Option<EvaluationOutcome>), Broken> {
    let memory = attempt.memory();
    let against = match memory.against {
        Some(against) => against,
        None => {
            let live = attempt.host().active_bundle();
            let against = live.clone();
            attempt.remember(move |memory| memory.against = Some(against)).await?;
            live
        }
    };
    if memory.collections.is_empty() {
        return Ok((against, None));
    }
    let on = retrain.evaluate.clone().unwrap_or_default();
    let comparison = Comparison {
        candidate: candidate.to_owned(),
        against: Some(against.clone()),
        collections: memory.collections,
        on: &on,
        metric: &retrain.promotion.metric,
        decide_on: retrain.promotion.collections.clone(),
    };
    let outcome = compare(attempt, comparison).await?;
    Ok((against, Some(outcome)))
}

/// Makes a bundle active, waiting for its turn while another activation is under way.
pub(super) async fn activate(attempt: &Attempt, bundle: &str) -> Result<Value, Broken> {
    attempt.stage("activate", bundle);
    let committed = AtomicBool::new(false);
    let tell =
        |stage: &str, done: usize, total: usize| tell_activation(attempt, &committed, stage, done, total);
    for _ in 0..TURNS {
        attempt.go_on()?;
        match attempt.wait_for_change(&committed, attempt.host().activate(bundle, &tell)).await {
            Err(Broken::Failed(problem)) if problem.code == Code::Conflict => {
                attempt.note("activate", "another activation is under way: this one waits");
                attempt.sleep(TURN).await?;
            }
            Ok(done) => {
                attempt.stage_done();
                write_down(attempt, bundle).await;
                return Ok(done);
            }
            Err(other) => return Err(other),
        }
    }
    let detail =
        "another activation was under way all the time; activate the bundle by hand, or resume the job";
    Err(crate::http::problem::Problem::new(Code::Conflict, detail).into())
}

/// An activation that no client asked for, for the audit.
async fn write_down(attempt: &Attempt, bundle: &str) {
    let (host, arguments) = (attempt.host().clone(), json!({"bundle": bundle, "job": attempt.id}));
    let written = tokio::task::spawn_blocking(move || host.audit("bundle.activated", arguments, Ok(())));
    if let Err(error) = written.await {
        tracing::error!(%error, "the audit of an activation ended early");
    }
}
