//! What happened to a job: a file of JSON lines beside its run folder, read by any number of followers.
//!
//! Each line has `id` (1, 2, …), `at` and `event`: `status` (with the whole job under `job`), `stage`, `progress`, `note`. A follower that
//! was cut off goes on behind the last id that it saw. A stream ends with a `status` that is an end.

use std::{
    collections::HashMap,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::record::{JobRecord, now};

const FILE: &str = "events.ndjson";

/// The logs of all jobs.
pub(super) struct Events {
    folder: PathBuf,
    open: Mutex<HashMap<String, Arc<Log>>>,
}

/// The log of one job.
pub(super) struct Log {
    path: PathBuf,
    writer: Mutex<Writer>,
    last: watch::Sender<u64>,
}

struct Writer {
    file: fs_err::File,
    last_status: Option<String>,
}

/// One line of a log.
#[derive(Clone, Debug, PartialEq)]
pub struct LoggedEvent {
    /// Its place in the log.
    pub id: u64,
    /// status, stage, progress or note.
    pub event: String,
    /// The whole line.
    pub data: String,
    /// Whether it is a status that is an end.
    ends: bool,
}

impl Events {
    /// Logs in the jobs' folders under `folder`.
    pub(super) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::default() }
    }

    /// The log of a job; made if there is none.
    pub(super) fn of(&self, job: &str) -> std::io::Result<Arc<Log>> {
        let mut open = self.open.lock();
        if let Some(log) = open.get(job) {
            return Ok(log.clone());
        }
        let log = Arc::new(Log::open(&self.folder.join(job).join(FILE))?);
        open.insert(job.to_owned(), log.clone());
        Ok(log)
    }

    /// Forgets a job that is removed.
    pub(super) fn forget(&self, job: &str) {
        self.open.lock().remove(job);
    }

    /// Writes how a job stands, unless the log says that already.
    pub(super) fn status(&self, record: &JobRecord, repeat: bool) {
        let written = self.of(&record.id).and_then(|log| {
            if !repeat && log.writer.lock().last_status.as_deref() == Some(record.status.name()) {
                return Ok(());
            }
            log.append("status", json!({"job": record.view()}))
        });
        if let Err(error) = written {
            tracing::error!(job = %record.id, %error, "an event of a job can't be written");
        }
    }

    /// Writes something else that happened.
    pub(super) fn write(&self, job: &str, event: &str, members: Value) {
        if let Err(error) = self.of(job).and_then(|log| log.append(event, members)) {
            tracing::error!(job, %error, "an event of a job can't be written");
        }
    }
}

impl Log {
    fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let mut file = fs_err::OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // A line that a kill has torn was seen by nobody as a whole.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        let events: Vec<LoggedEvent> = parse(&bytes[..whole]);
        let last_status = events.iter().rev().find(|event| event.event == "status").and_then(status_of);
        let (last, _) = watch::channel(events.last().map_or(0, |event| event.id));
        Ok(Self { path: path.to_owned(), writer: Mutex::new(Writer { file, last_status }), last })
    }

    fn append(&self, event: &str, members: Value) -> std::io::Result<()> {
        let mut writer = self.writer.lock();
        let id = *self.last.borrow() + 1;
        let mut line = Map::new();
        line.insert("id".into(), json!(id));
        line.insert("at".into(), json!(now()));
        line.insert("event".into(), json!(event));
        if let Value::Object(members) = members {
            line.extend(members);
        }
        let status = line.get("job").and_then(|job| job["status"].as_str()).map(str::to_owned);
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        let before = writer.file.metadata()?.len();
        if let Err(error) = writer.file.write_all(&bytes) {
            writer.file.set_len(before)?; // half a line would spoil the next one
            return Err(error);
        }
        if status.is_some() {
            writer.last_status = status;
        }
        self.last.send_replace(id);
        Ok(())
    }

    /// Follows the log behind the event `after` (0: from the beginning).
    pub(super) fn follow(self: &Arc<Self>, after: u64) -> Follower {
        Follower { log: self.clone(), news: self.last.subscribe(), offset: 0, seen: after, ended: false }
    }
}

/// Reads a log as it grows.
pub struct Follower {
    log: Arc<Log>,
    news: watch::Receiver<u64>,
    offset: u64,
    seen: u64,
    ended: bool,
}

impl Follower {
    /// The next events, waiting for them if need be; none when the job has ended and all was told.
    pub async fn next(&mut self) -> Option<Vec<LoggedEvent>> {
        loop {
            let newest = *self.news.borrow_and_update();
            if self.offset == 0 || newest > self.seen {
                let events = self.read().await?;
                if let Some(last) = events.last() {
                    self.ended = last.ends;
                }
                let seen = self.seen;
                let fresh: Vec<LoggedEvent> = events.into_iter().filter(|event| event.id > seen).collect();
                if let Some(last) = fresh.last() {
                    self.seen = last.id;
                    return Some(fresh);
                }
            }
            if self.ended || self.news.changed().await.is_err() {
                return None;
            }
        }
    }

    /// What was written since the last time.
    async fn read(&mut self) -> Option<Vec<LoggedEvent>> {
        let (path, offset) = (self.log.path.clone(), self.offset);
        let read = tokio::task::spawn_blocking(move || -> std::io::Result<Vec<u8>> {
            let mut file = fs_err::File::open(&path)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        });
        let bytes = read.await.ok()?.ok()?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        Some(parse(&bytes[..whole]))
    }
}

fn parse(bytes: &[u8]) -> Vec<LoggedEvent> {
    let mut events = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
        let (Some(id), Some(event)) = (value["id"].as_u64(), value["event"].as_str()) else { continue };
        let status = value["job"]["status"].as_str();
        let ends = event == "status" && !matches!(status, Some("queued" | "running"));
        let data = String::from_utf8_lossy(line).into_owned();
        events.push(LoggedEvent { id, event: event.to_owned(), data, ends });
    }
    events
}

fn status_of(event: &LoggedEvent) -> Option<String> {
    let value: Value = serde_json::from_str(&event.data).ok()?;
    value["job"]["status"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::{
        record::JobStatus,
        request::{JobRequest, Snapshot},
    };

    fn record(status: JobStatus) -> JobRecord {
        let request = JobRequest::Snapshot(Snapshot {});
        JobRecord { status, ..JobRecord::new("job-1".into(), 1, request, String::new()) }
    }

    #[tokio::test]
    async fn followers_see_everything_once_and_end_with_the_job() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::new(folder.path());
        events.status(&record(JobStatus::Queued), true);
        events.status(&record(JobStatus::Queued), false);
        let log = events.of("job-1").unwrap();
        let mut early = log.follow(0);
        let first = early.next().await.unwrap();
        assert_eq!(first.iter().map(|e| e.id).collect::<Vec<_>>(), [1], "the same status is not repeated");
        let waiting = tokio::spawn(async move {
            let mut seen = Vec::new();
            while let Some(more) = early.next().await {
                seen.extend(more.into_iter().map(|event| (event.id, event.event)));
            }
            seen
        });
        tokio::task::yield_now().await;
        events.write("job-1", "note", json!({"text": "so it goes"}));
        events.status(&record(JobStatus::Succeeded), false);
        assert_eq!(waiting.await.unwrap(), [(2, "note".to_owned()), (3, "status".to_owned())]);
        let mut late = log.follow(2);
        assert_eq!(late.next().await.unwrap().len(), 1);
        assert!(late.next().await.is_none());
        assert!(log.follow(3).next().await.is_none(), "everything was told, and nothing comes");
        // A resumed job's stream goes on.
        events.status(&record(JobStatus::Queued), false);
        let mut resumed = log.follow(3);
        assert_eq!(resumed.next().await.unwrap()[0].id, 4);
    }

    #[tokio::test]
    async fn a_torn_line_is_taken_away_and_numbers_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let events = Events::new(folder.path());
        events.status(&record(JobStatus::Running), false);
        let path = folder.path().join("job-1").join(FILE);
        let mut text = fs_err::read(&path).unwrap();
        text.extend(b"{\"id\":2,\"ev");
        fs_err::write(&path, text).unwrap();
        let again = Events::new(folder.path());
        again.write("job-1", "note", json!({"text": "after the kill"}));
        let mut follower = again.of("job-1").unwrap().follow(0);
        let seen = follower.next().await.unwrap();
        assert_eq!(seen.iter().map(|event| event.id).collect::<Vec<_>>(), [1, 2]);
        assert!(seen[1].data.contains("after the kill"));
    }
}
