//! What is known of a job.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{evaluation::PlannedCollection, request::JobRequest};
use crate::clock;

/// Now, as records and events have it: RFC 3339.
pub(super) fn now() -> String {
    clock::text(clock::now())
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// It waits for its turn.
    Queued,
    /// It is at work.
    Running,
    /// It has a result.
    Succeeded,
    /// It has a problem.
    Failed,
    /// Somebody stopped it.
    Cancelled,
    /// It was broken off too often; `resume` goes on where it was.
    Interrupted,
}

impl JobStatus {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Interrupted => "interrupted",
        }
    }

    /// Whether nothing more happens by itself.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Whether `resume` makes sense.
    pub fn is_resumable(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled | Self::Interrupted)
    }
}

/// How far the stage at hand is, and what the trainers have shown so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobProgress)]
pub struct Progress {
    /// What is counted: queries, steps, documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// How many are done, those of earlier attempts included.
    pub done: u64,
    /// How many there are.
    pub total: u64,
    /// done / total; none where there is no total.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// How long the rest of the stage takes at the speed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<f64>,
    /// Optimiser steps taken, in a training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Optimiser steps in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Of the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// By how much the chosen completion's reward is above the rejected one's, in the last step of a preference training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward_margin: Option<f64>,
    /// Further figures of the moment.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub figures: Map<String, Value>,
    /// The last step of every training so far, by stage: `step`, `steps`, `loss`, `reward_margin`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub trainings: Map<String, Value>,
    /// Stages that are done.
    pub stages_done: u64,
    /// Stages in all; none where that is not known beforehand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stages: Option<u64>,
}

impl Progress {
    /// A new stage begins: what belonged to the one before is forgotten, what belongs to the job is not.
    pub fn begin_stage(&mut self) {
        *self = Self {
            trainings: std::mem::take(&mut self.trainings),
            stages_done: self.stages_done,
            stages: self.stages,
            ..Self::default()
        };
    }

    /// So many of so many units of the stage are done.
    pub fn count(&mut self, unit: &str, done: u64, total: u64) {
        self.unit = Some(unit.to_owned());
        self.done = done;
        self.total = total;
        self.fraction = (total > 0).then(|| done as f64 / total as f64);
    }
}

/// A job, as it is kept. [`JobRecord::view`] is what clients see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its name.
    pub id: String,
    /// Jobs run in this order.
    pub number: u64,
    /// How it stands.
    pub status: JobStatus,
    /// What it is at.
    pub stage: Option<String>,
    /// How far that is.
    pub progress: Progress,
    /// How often it was begun.
    pub attempts: u32,
    /// How often it was broken off from outside since it was accepted or resumed.
    pub broken_off: u32,
    /// RFC 3339.
    pub created_at: String,
    /// Of the first attempt.
    pub started_at: Option<String>,
    /// Of the last end.
    pub finished_at: Option<String>,
    /// What was asked for.
    pub request: JobRequest,
    /// What came of it.
    pub result: Option<Value>,
    /// Why nothing did: problem+json.
    pub problem: Option<Value>,
    /// What the job must know when it goes on: the bundle that it made, the one that it is compared with.
    #[serde(default)]
    pub memory: Memory,
}

/// What must not be found out a second time, because the answer may have changed by then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The bundle that was imported.
    pub candidate: Option<String>,
    /// The bundle that was live when the evaluation began.
    pub against: Option<String>,
    /// The collections that were found when the job was accepted.
    pub collections: Vec<PlannedCollection>,
    /// Stages of its training.
    pub training_stages: u64,
}

impl JobRecord {
    /// A job that waits.
    pub fn new(id: String, number: u64, request: JobRequest, created_at: String) -> Self {
        Self {
            id,
            number,
            status: JobStatus::Queued,
            stage: None,
            progress: Progress::default(),
            attempts: 0,
            broken_off: 0,
            created_at,
            started_at: None,
            finished_at: None,
            request,
            result: None,
            problem: None,
            memory: Memory::default(),
        }
    }

    /// What clients see.
    pub fn view(&self) -> JobView<'_> {
        JobView {
            id: &self.id,
            kind: self.request.kind(),
            status: self.status,
            stage: self.stage.as_deref(),
            progress: &self.progress,
            attempts: self.attempts,
            created_at: &self.created_at,
            started_at: self.started_at.as_deref(),
            finished_at: self.finished_at.as_deref(),
            request: &self.request,
            result: self.result.as_ref(),
            problem: self.problem.as_ref(),
        }
    }
}

/// A job on the wire.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobView<'a> {
    /// Its name.
    id: &'a str,
    /// Of the request.
    kind: &'static str,
    /// How it stands.
    status: JobStatus,
    /// What it is at.
    stage: Option<&'a str>,
    /// How far that is.
    progress: &'a Progress,
    /// How often it was begun.
    attempts: u32,
    /// RFC 3339.
    created_at: &'a str,
    /// Of the first attempt.
    started_at: Option<&'a str>,
    /// Of the last end.
    finished_at: Option<&'a str>,
    /// What was asked for.
    request: &'a JobRequest,
    /// What came of it; its form depends on the kind.
    #[schema(value_type = Option<Value>)]
    result: Option<&'a Value>,
    /// Why nothing did: a problem.
    #[schema(value_type = Option<Value>)]
    problem: Option<&'a Value>,
}
