//! The jobs of a service: kept, listed, cancelled, resumed, forgotten.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    child::ChildSettings,
    events::{Events, Follower},
    host::Host,
    record::{JobRecord, JobStatus, now},
    request::JobRequest,
    store::{Store, UsedKey},
};
use crate::http::problem::{Code, Problem};

/// From so many earlier retrainings a new one takes what they have done already.
const REUSED_RUNS: usize = 3;

/// Before a cancel looks again.
const AGAIN: Duration = Duration::from_millis(10);

/// How jobs run.
#[derive(Clone, Debug)]
pub struct JobsSettings {
    /// Records and the jobs' own folders.
    pub folder: PathBuf,
    /// Recipes that a job may name.
    pub recipes_dir: PathBuf,
    /// Collections and data that a job may name.
    pub data_dir: PathBuf,
    /// Checkpoints.
    pub models_dir: PathBuf,
    /// How children are started.
    pub child: ChildSettings,
    /// How often a job may be broken off.
    pub attempts: u32,
    /// Jobs that may wait.
    pub queue: usize,
    /// Ended jobs that are kept.
    pub kept: usize,
    /// The server's own options, for the evaluation's child: [`crate::server::ServeOptions`] as JSON.
    pub serve: Value,
}

/// The jobs of a service.
pub struct Jobs {
    pub(super) settings: JobsSettings,
    pub(super) host: Arc<dyn Host>,
    pub(super) events: Events,
    /// Held while a record is written, so that a later state is never overwritten by an earlier one.
    pub(super) store: Mutex<Store>,
    pub(super) table: Mutex<Table>,
    /// Somebody should look at the queue.
    pub(super) arrived: Notify,
    /// Cancelled when the server stops.
    closing: CancellationToken,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) records: BTreeMap<u64, JobRecord>,
    pub(super) numbers: HashMap<String, u64>,
    pub(super) keys: HashMap<String, UsedKey>,
    /// The job at work and what cancels it.
    running: Option<(u64, CancellationToken)>,
}

impl Jobs {
    /// Opens the jobs with what an earlier run of the server left: what was at work waits for its next attempt, or is interrupted if it was
    /// broken off too often.
    ///
    /// # Errors
    /// When the folder or the file can't be opened.
    pub fn open(settings: JobsSettings, host: Arc<dyn Host>) -> anyhow::Result<Self> {
        fs_err::create_dir_all(&settings.folder)?;
        let (store, records, keys) = Store::open(&settings.folder.join("jobs.redb"))?;
        let mut table = Table::default();
        for record in records {
            table.numbers.insert(record.id.clone(), record.number);
            table.records.insert(record.number, record);
        }
        table.keys = keys.into_iter().map(|key| (key.key.clone(), key)).collect();
        let events = Events::new(&settings.folder);
        let jobs = Self {
            settings,
            host,
            events,
            store: Mutex::new(store),
            table: Mutex::new(table),
            arrived: Notify::new(),
            closing: CancellationToken::new(),
        };
        jobs.recover().context("the jobs of an earlier run of the server")?;
        Ok(jobs)
    }

    fn recover(&self) -> anyhow::Result<()> {
        let records: Vec<JobRecord> = self.table.lock().records.values().cloned().collect();
        for record in &records {
            if record.status == JobStatus::Running {
                self.broken_off(record.number, "the server ended while it was at work");
            } else {
                self.events.status(record, false);
            }
        }
        // A job that was never accepted has left a folder and nothing else.
        for entry in fs_err::read_dir(&self.settings.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = records.iter().any(|record| record.id == name);
            if name.starts_with("job-") && !known && entry.path().is_dir() {
                fs_err::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// The jobs, newest first.
    pub fn list(&self, status: Option<JobStatus>, limit: usize) -> Vec<JobRecord> {
        let table = self.table.lock();
        let wanted =
            table.records.values().rev().filter(|record| status.is_none_or(|status| record.status == status));
        wanted.take(limit).cloned().collect()
    }

    /// One job.
    ///
    /// # Errors
    /// `not_found`.
    pub fn get(&self, id: &str) -> Result<JobRecord, Problem> {
        let table = self.table.lock();
        let record = table.numbers.get(id).and_then(|number| table.records.get(number));
        record.cloned().ok_or_else(|| {
            Problem::new(Code::NotFound, format!("there is no job `{id}`; it may have been removed"))
        })
    }

    /// Follows what happens to a job, behind the event `after`.
    ///
    /// # Errors
    /// `not_found`, or when its log can't be read.
    pub fn follow(&self, id: &str, after: u64) -> Result<Follower, Problem> {
        self.get(id)?;
        Ok(self.events.of(id).map_err(|error| disk(&error))?.follow(after))
    }

    /// Stops a job. One that waits is cancelled at once, one at work as soon as its child is dead.
    ///
    /// # Errors
    /// `not_found`, and `conflict` for one that has ended.
    pub async fn cancel(self: &Arc<Self>, id: &str) -> Result<JobRecord, Problem> {
        let record = self.get(id)?;
        {
            let table = self.table.lock();
            if let Some((number, cancel)) = &table.running
                && *number == record.number
            {
                cancel.cancel();
                return Ok(record.clone());
            }
        }
        let jobs = self.clone();
        // What follows from a change is done on its thread, which goes to its end also when the request ends before.
        let cancelled = tokio::task::spawn_blocking(move || {
            let (record, changed) = jobs.change_if(
                record.number,
                |status| status == JobStatus::Queued,
                |record| {
                    record.status = JobStatus::Cancelled;
                    record.finished_at = Some(now());
                },
            )?;
            if changed {
                jobs.events.status(&record, false);
            }
            Ok((record, changed))
        });
        let cancelled: Result<_, Problem> = cancelled.await.map_err(|error| disk(&error))?;
        let (record, changed) = cancelled?;
        match (changed, record.status) {
            (true, _) => Ok(record),
            // It began in between, or its attempt is just being written down.
            (false, JobStatus::Running) => {
                tokio::time::sleep(AGAIN).await;
                Box::pin(self.cancel(id)).await
            }
            (false, status) => Err(Problem::new(
                Code::Conflict,
                format!("job `{id}` has ended already: it is {}", status.name()),
            )),
        }
    }

    /// Lets a job that did not succeed go on where it was.
    ///
    /// # Errors
    /// `not_found`, `conflict` for one that waits, runs or has succeeded, and `overloaded` when too many wait.
    pub async fn resume(self: &Arc<Self>, id: &str) -> Result<JobRecord, Problem> {
        let record = self.get(id)?;
        self.require_room()?;
        let jobs = self.clone();
        let resumed = tokio::task::spawn_blocking(move || {
            let (record, changed) = jobs.change_if(record.number, JobStatus::is_resumable, |record| {
                record.status = JobStatus::Queued;
                record.broken_off = 0;
                record.finished_at = None;
                record.problem = None;
            })?;
            if changed {
                jobs.events.status(&record, false);
                jobs.arrived.notify_one();
            }
            Ok((record, changed))
        });
        let resumed: Result<_, Problem> = resumed.await.map_err(|error| disk(&error))?;
        let (record, changed) = resumed?;
        if !changed {
            let detail = format!(
                "job `{id}` is {}; only one that failed, was cancelled or was interrupted can go on",
                record.status.name()
            );
            return Err(Problem::new(Code::Conflict, detail));
        }
        Ok(record)
    }

    /// Ends every stream of events: the server stops.
    pub fn close(&self) {
        self.closing.cancel();
    }

    /// Waits until the server stops.
    pub async fn closed(&self) {
        self.closing.cancelled().await;
    }

    /// Run folders of other retrainings, the newest first.
    pub(super) fn earlier_runs(&self, id: &str) -> Vec<PathBuf> {
        let table = self.table.lock();
        let others = table.records.values().rev().filter(|record| {
            record.id != id && record.attempts > 0 && matches!(record.request, JobRequest::Retrain(_))
        });
        let folders = others.map(|record| self.settings.folder.join(&record.id).join("run"));
        folders.filter(|run| run.is_dir()).take(REUSED_RUNS).collect()
    }

    /// The next job that waits.
    pub(super) fn next_queued(&self) -> Option<JobRecord> {
        let table = self.table.lock();
        table.records.values().find(|record| record.status == JobStatus::Queued).cloned()
    }

    /// No attempt is at work any more; says whether it was cancelled before that.
    pub(super) fn stop_running(&self, cancel: &CancellationToken) -> bool {
        let mut table = self.table.lock();
        table.running = None;
        cancel.is_cancelled()
    }

    /// Says which job is at work, and what cancels it.
    pub(super) fn set_running(&self, running: Option<(u64, CancellationToken)>) {
        self.table.lock().running = running;
    }

    /// A job was broken off from outside: it waits for its next attempt, unless that was too often.
    pub(super) fn broken_off(&self, number: u64, why: &str) -> JobRecord {
        let limit = self.settings.attempts;
        let record = self.change(number, |record| {
            record.broken_off += 1;
            if record.broken_off < limit {
                record.status = JobStatus::Queued;
                return;
            }
            record.status = JobStatus::Interrupted;
            record.finished_at = Some(now());
            let detail = format!(
                "broken off {limit} times, the last time because {why}; POST /admin/jobs/{}/resume lets it go on where it was",
                record.id
            );
            record.problem = Some(problem_json(&Problem::new(Code::Unavailable, detail), &record.id));
        });
        self.events.write(&record.id, "note", json!({"text": format!("broken off: {why}")}));
        self.events.status(&record, true);
        record
    }

    /// Changes a record, in memory and durably. A disk that fails is logged: the job goes on, and would repeat its step after a restart.
    pub(super) fn change(&self, number: u64, change: impl FnOnce(&mut JobRecord)) -> JobRecord {
        let store = self.store.lock();
        let record = self.touch(number, change);
        if let Err(error) = store.put(&record, None) {
            tracing::error!(job = %record.id, %error, "the state of a job can't be written");
        }
        record
    }

    /// Changes a record in memory only: progress, which a restart may forget.
    pub(super) fn touch(&self, number: u64, change: impl FnOnce(&mut JobRecord)) -> JobRecord {
        let mut table = self.table.lock();
        let Some(record) = table.records.get_mut(&number) else {
            // Only ended jobs are forgotten, and nobody changes those.
            unreachable!("job number {number} is not there");
        };
        change(record);
        record.clone()
    }

    /// Changes a record durably if its status is as wanted; gives it either way.
    fn change_if(
        &self,
        number: u64,
        wanted: impl FnOnce(JobStatus) -> bool,
        change: impl FnOnce(&mut JobRecord),
    ) -> Result<(JobRecord, bool), Problem> {
        let store = self.store.lock();
        let found = self.table.lock().records.get(&number).cloned();
        let Some(mut record) = found else {
            return Err(Problem::new(Code::NotFound, "the job was removed in the meantime"));
        };
        if !wanted(record.status) {
            return Ok((record, false));
        }
        change(&mut record);
        store.put(&record, None).map_err(|error| disk(&error))?;
        self.table.lock().records.insert(number, record.clone());
        Ok((record, true))
    }

    /// Removes the oldest ended jobs beyond those that are kept.
    pub(super) fn forget_old(&self) -> anyhow::Result<()> {
        let store = self.store.lock();
        let old: Vec<(u64, String)> = {
            let table = self.table.lock();
            let ended = table.records.values().rev().filter(|record| record.status.has_ended());
            ended.skip(self.settings.kept).map(|record| (record.number, record.id.clone())).collect()
        };
        if old.is_empty() {
            return Ok(());
        }
        let numbers: Vec<u64> = old.iter().map(|(number, _)| *number).collect();
        store.remove(&numbers)?;
        {
            let mut table = self.table.lock();
            table.records.retain(|number, _| !numbers.contains(number));
            table.numbers.retain(|_, number| !numbers.contains(number));
            table.keys.retain(|_, key| !numbers.contains(&key.number));
        }
        for (_, id) in old {
            self.events.forget(&id);
            let folder = self.settings.folder.join(&id);
            if folder.exists() {
                fs_err::remove_dir_all(folder)?;
            }
        }
        Ok(())
    }
}

/// A problem as a job keeps it.
pub(super) fn problem_json(problem: &Problem, job: &str) -> Value {
    let mut value = serde_json::to_value(problem.body(job)).unwrap_or_default();
    if let Some(members) = value.as_object_mut() {
        members.remove("request_id");
    }
    value
}

pub(super) fn disk(error: &dyn std::fmt::Display) -> Problem {
    tracing::error!(%error, "the jobs can't be written or read");
    Problem::new(Code::Internal, format!("the jobs can't be written or read: {error:#}"))
}
