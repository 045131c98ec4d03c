//! Jobs that the service itself does: reindex and snapshot.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use super::attempt::{Attempt, Broken};

/// Embeds the active bundle's documents anew.
pub(super) async fn reindex(attempt: &Attempt) -> Result<Value, Broken> {
    attempt.stages(1);
    attempt.stage("reindex", "asked for");
    let committed = AtomicBool::new(false);
    let tell =
        |stage: &str, done: usize, total: usize| tell_activation(attempt, &committed, stage, done, total);
    let done = attempt.wait_for_change(&committed, attempt.host().reindex(&tell)).await?;
    attempt.stage_done();
    Ok(done)
}

/// Writes the index's snapshot.
pub(super) async fn snapshot(attempt: &Attempt) -> Result<Value, Broken> {
    attempt.stages(1);
    attempt.stage("snapshot", "asked for");
    let done = attempt.wait(attempt.host().snapshot()).await?;
    attempt.stage_done();
    Ok(done)
}

/// What an activation is at, as a job's progress.
pub(super) fn tell_activation(
    attempt: &Attempt,
    committed: &AtomicBool,
    stage: &str,
    done: usize,
    total: usize,
) {
    committed.fetch_or(matches!(stage, "switch" | "retire"), Ordering::SeqCst);
    attempt.progress(|progress| {
        progress.count("documents", done as u64, total as u64);
        progress.figures.insert("activation".into(), stage.into());
    });
}
