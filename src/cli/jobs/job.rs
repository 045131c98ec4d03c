//! A job as the server tells it.

use serde::Deserialize;
use serde_json::{Map, Value};

/// What a client needs of it. Members that a later server adds are passed over.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Job {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) stage: Option<String>,
    pub(super) progress: Option<Progress>,
    pub(super) attempts: u64,
    pub(super) created_at: Option<String>,
    pub(super) result: Option<Value>,
    pub(super) problem: Option<Value>,
}

/// How far its stage is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Progress {
    pub(super) unit: Option<String>,
    pub(super) done: Option<f64>,
    pub(super) total: Option<f64>,
    pub(super) fraction: Option<f64>,
    pub(super) eta_seconds: Option<f64>,
    pub(super) step: Option<u64>,
    pub(super) steps: Option<u64>,
    pub(super) loss: Option<f64>,
    pub(super) reward_margin: Option<f64>,
    /// Further figures of the moment.
    pub(super) figures: Map<String, Value>,
    pub(super) stages_done: u64,
    pub(super) stages: Option<u64>,
}

impl Progress {
    /// Part of the stage that is done, 0 to 1; none when that is not known.
    pub(super) fn share(&self) -> Option<f64> {
        let counted = match (self.done, self.total) {
            (Some(done), Some(total)) if total > 0.0 => Some(done / total),
            _ => None,
        };
        self.fraction.or(counted).map(|share| share.clamp(0.0, 1.0))
    }
}

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    Succeeded,
    Failed,
    Cancelled,
    Interrupted,
}

impl Job {
    /// How it ended; none while it waits or runs.
    pub(super) fn ending(&self) -> Option<Ending> {
        match self.status.as_str() {
            "succeeded" => Some(Ending::Succeeded),
            "failed" => Some(Ending::Failed),
            "cancelled" => Some(Ending::Cancelled),
            "interrupted" => Some(Ending::Interrupted),
            _ => None,
        }
    }

    /// Why it did not succeed.
    pub(super) fn reason(&self) -> Option<&str> {
        self.problem.as_ref()?["detail"].as_str()
    }
}

/// A job that did not succeed. The command's exit code is [`NotSucceeded::exit_code`].
#[derive(Debug)]
pub(in crate::cli) struct NotSucceeded {
    job: String,
    ending: Ending,
    reason: Option<String>,
}

impl NotSucceeded {
    /// `Ok` for one that succeeded.
    pub(super) fn check(job: &Job, ending: Ending) -> anyhow::Result<()> {
        if ending == Ending::Succeeded {
            return Ok(());
        }
        let reason = job.reason().map(str::to_owned);
        Err(Self { job: job.id.clone(), ending, reason }.into())
    }

    /// 4 failed, 5 cancelled, 6 interrupted.
    pub(in crate::cli) fn exit_code(&self) -> u8 {
        match self.ending {
            Ending::Succeeded => 0,
            Ending::Failed => 4,
            Ending::Cancelled => 5,
            Ending::Interrupted => 6,
        }
    }
}

impl std::fmt::Display for NotSucceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let job = &self.job;
        match self.ending {
            Ending::Succeeded => write!(f, "job {job} succeeded"),
            Ending::Failed => write!(f, "job {job} failed"),
            Ending::Cancelled => write!(f, "job {job} was cancelled"),
            Ending::Interrupted => {
                write!(f, "job {job} was interrupted; `expandr jobs resume {job}` goes on")
            }
        }?;
        match &self.reason {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NotSucceeded {}
