//! One job after the other.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    attempt::{Attempt, Broken},
    evaluate, import,
    queue::{Jobs, problem_json},
    record::{JobRecord, JobStatus, now},
    request::JobRequest,
    retrain, simple,
};
use crate::http::problem::{Code, Problem};

/// Before a job that was broken off is begun again: what killed it may still be at it.
const PAUSE: Duration = Duration::from_millis(500);

impl Jobs {
    /// Runs what waits until `stop`. A job that is at work then waits for the next start of the server.
    pub async fn work(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let Some(record) = self.next_queued() else {
                tokio::select! {
                    () = self.arrived.notified() => continue,
                    () = stop.cancelled() => return,
                }
            };
            if record.broken_off > 0 {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => return,
                }
            }
            self.clone().attempt(record.number, &stop).await;
            let jobs = self.clone();
            let forgotten = tokio::task::spawn_blocking(move || jobs.forget_old()).await;
            if let Ok(Err(error)) = forgotten {
                tracing::error!(%error, "old jobs can't be removed");
            }
        }
    }

    async fn attempt(self: Arc<Self>, number: u64, stop: &CancellationToken) {
        let cancel = CancellationToken::new();
        self.set_running(Some((number, cancel.clone())));
        // From here on a cancel goes to the token; one that came before has left another status.
        let mut began = false;
        let jobs = self.clone();
        let begun = tokio::task::spawn_blocking(move || {
            let record = jobs.change(number, |record| {
                if record.status == JobStatus::Queued {
                    began = true;
                    record.status = JobStatus::Running;
                    record.attempts += 1;
                    record.started_at.get_or_insert_with(now);
                    record.finished_at = None;
                    record.problem = None;
                }
            });
            (record, began)
        });
        if let Ok((record, true)) = begun.await {
            tracing::info!(job = %record.id, kind = record.request.kind(), attempt = record.attempts, "a job begins");
            self.events.status(&record, true);
            let attempt = Attempt::new(self.clone(), &record, stop, &cancel);
            // In a task of its own, so that a bug ends the job and not the runner.
            let done = tokio::spawn(do_job(attempt, record.request.clone())).await;
            let end = done.unwrap_or_else(|panic| {
                let detail = format!("a bug in the server ended the job: {panic}");
                Err(Broken::Failed(Box::new(Problem::new(Code::Internal, detail))))
            });
            let jobs = self.clone();
            // Together: a cancel that comes later finds no running attempt, and waits for what is written down now.
            let was_cancelled = self.stop_running(&cancel);
            let ended = tokio::task::spawn_blocking(move || jobs.end(number, end, was_cancelled)).await;
            if let Ok(record) = ended {
                let status = record.status.name();
                tracing::info!(job = %record.id, status, attempt = record.attempts, "a job's attempt has ended");
            }
        }
        self.set_running(None);
    }

    /// Writes down how an attempt ended.
    fn end(&self, number: u64, end: Result<serde_json::Value, Broken>, was_cancelled: bool) -> JobRecord {
        let why = match end {
            Err(Broken::CutShort(why)) if !was_cancelled => {
                let record = self.broken_off(number, &why);
                self.write_down(&record);
                return record;
            }
            other => other,
        };
        let record = self.change(number, |record| {
            record.finished_at = Some(now());
            match why {
                Ok(result) => {
                    record.status = JobStatus::Succeeded;
                    record.stage = None;
                    record.result = Some(result);
                }
                Err(Broken::Failed(problem)) => {
                    tracing::warn!(job = %record.id, detail = %problem.detail, "a job failed");
                    record.status = JobStatus::Failed;
                    record.problem = Some(problem_json(&problem, &record.id));
                }
                Err(Broken::Stopped | Broken::CutShort(_)) if was_cancelled => {
                    record.status = JobStatus::Cancelled;
                }
                // The server stops: that is nobody's fault, and the next one goes on.
                Err(Broken::Stopped | Broken::CutShort(_)) => {
                    record.status = JobStatus::Queued;
                    record.finished_at = None;
                }
            }
        });
        self.events.status(&record, true);
        self.write_down(&record);
        record
    }

    /// An end, for the audit.
    fn write_down(&self, record: &JobRecord) {
        if !record.status.has_ended() {
            return;
        }
        let (kind, status) = (record.request.kind(), record.status.name());
        let bundle = record.memory.candidate.as_deref();
        let arguments = json!({"job": record.id, "kind": kind, "status": status, "attempts": record.attempts, "bundle": bundle});
        let problem =
            record.problem.as_ref().map(|problem| problem["detail"].as_str().unwrap_or("no detail"));
        self.host.audit("job.ended", arguments, problem.map_or(Ok(()), Err));
    }
}

async fn do_job(attempt: Attempt, request: JobRequest) -> Result<serde_json::Value, Broken> {
    match request {
        JobRequest::Retrain(retrain) => Box::pin(retrain::run(&attempt, &retrain)).await,
        JobRequest::Evaluate(evaluate) => Box::pin(evaluate::run(&attempt, &evaluate)).await,
        JobRequest::Import(import) => Box::pin(import::run(&attempt, &import)).await,
        JobRequest::Reindex(_) => Box::pin(simple::reindex(&attempt)).await,
        JobRequest::Snapshot(_) => Box::pin(simple::snapshot(&attempt)).await,
    }
}
