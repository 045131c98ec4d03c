//! Bulk bodies accepted with 202: written to a file and synced before the answer, then ingested in the background,
//! also after a restart. Ingesting a file twice gives the same index, so a file is simply begun again.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::body::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::{io::AsyncWriteExt, sync::Notify};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{BulkReport, DocumentLimits, ingest_lines};
use crate::{
    http::{
        body::too_large,
        problem::{Code, Problem},
    },
    search::SearchService,
};

const SUFFIX: &str = "ndjson";

/// What `/info` says about queued bodies.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
pub struct SpoolProgress {
    /// Bodies that wait, the one in work included.
    pub queued: usize,
    /// The one in work.
    pub current: Option<String>,
    /// How far it is.
    pub current_report: Option<BulkReport>,
    /// The last ones that ended, newest last: their ids and what became of them.
    pub finished: Vec<FinishedSpool>,
}

/// A body that was ingested.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FinishedSpool {
    /// The id that the 202 gave.
    pub id: String,
    /// What became of its lines.
    pub report: Option<BulkReport>,
    /// Why it was given up, if it was.
    pub error: Option<String>,
}

/// The queue of accepted bodies, a folder of files.
pub struct Spool {
    folder: PathBuf,
    body_bytes: u64,
    limits: DocumentLimits,
    waiting: Mutex<VecDeque<String>>,
    progress: Mutex<SpoolProgress>,
    arrived: Notify,
}

impl Spool {
    /// Opens the queue in `folder`, with what an earlier run of the server left there.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub fn open(folder: &Path, body_bytes: u64, limits: DocumentLimits) -> std::io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        let mut left = Vec::new();
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            let modified = fs_err::metadata(&path)?.modified()?;
            match (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|s| s.to_str())) {
                (Some(SUFFIX), Some(id)) => left.push((modified, id.to_owned())),
                _ => fs_err::remove_file(&path)?, // a body whose acceptance was never answered
            }
        }
        left.sort();
        let waiting: VecDeque<String> = left.into_iter().map(|(_, id)| id).collect();
        let progress = SpoolProgress { queued: waiting.len(), ..SpoolProgress::default() };
        Ok(Self {
            folder: folder.to_owned(),
            body_bytes,
            limits,
            waiting: Mutex::new(waiting),
            progress: Mutex::new(progress),
            arrived: Notify::new(),
        })
    }

    /// How far the queue is.
    pub fn progress(&self) -> SpoolProgress {
        self.progress.lock().clone()
    }

    /// Writes a body to the queue; when this returns it is durable.
    ///
    /// # Errors
    /// `body_too_large`, or when the disk fails.
    pub async fn accept(
        &self,
        mut body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    ) -> Result<String, Problem> {
        let id = Uuid::new_v4().to_string();
        let partial = self.folder.join(format!("{id}.partial"));
        let written = self.write(&partial, &mut body).await;
        if let Err(problem) = written {
            let _ = tokio::fs::remove_file(&partial).await;
            return Err(problem);
        }
        let path = self.path(&id);
        let folder = self.folder.clone();
        let renamed = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            fs_err::rename(&partial, &path)?;
            fs_err::File::open(&folder)?.sync_all()
        });
        renamed.await.map_err(std::io::Error::other).and_then(|done| done).map_err(|e| disk(&e))?;
        self.waiting.lock().push_back(id.clone());
        self.progress.lock().queued += 1;
        self.arrived.notify_one();
        Ok(id)
    }

    async fn write(
        &self,
        path: &Path,
        body: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin),
    ) -> Result<(), Problem> {
        let mut file = tokio::fs::File::create(path).await.map_err(|error| disk(&error))?;
        let mut bytes = 0;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| {
                Problem::new(
                    Code::MalformedJson,
                    format!("the body could not be read: {error}; nothing was queued"),
                )
            })?;
            bytes += chunk.len() as u64;
            if bytes > self.body_bytes {
                return Err(too_large());
            }
            file.write_all(&chunk).await.map_err(|error| disk(&error))?;
        }
        file.sync_all().await.map_err(|error| disk(&error))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.{SUFFIX}"))
    }

    /// Ingests what is queued, one body after another, until `stop`.
    pub async fn work(self: Arc<Self>, service: Arc<SearchService>, stop: CancellationToken) {
        loop {
            let next = self.waiting.lock().front().cloned();
            let Some(id) = next else {
                tokio::select! {
                    () = self.arrived.notified() => continue,
                    () = stop.cancelled() => return,
                }
            };
            let ingested = tokio::select! {
                ingested = self.ingest(&id, &service) => ingested,
                () = stop.cancelled() => return, // begun again after the restart
            };
            match ingested {
                Err(problem) if problem.code == Code::Overloaded => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
                result => self.finish(id, result),
            }
        }
    }

    async fn ingest(&self, id: &str, service: &SearchService) -> Result<BulkReport, Problem> {
        {
            let mut progress = self.progress.lock();
            progress.current = Some(id.to_owned());
            progress.current_report = Some(BulkReport::default());
        }
        let file = tokio::fs::File::open(self.path(id)).await.map_err(|error| disk(&error))?;
        ingest_lines(service, &self.limits, file, |report| {
            self.progress.lock().current_report = Some(report.clone());
        })
        .await
    }

    fn finish(&self, id: String, result: Result<BulkReport, Problem>) {
        let finished = match result {
            Ok(report) => FinishedSpool { id: id.clone(), report: Some(report), error: None },
            Err(problem) => {
                tracing::error!(spool = %id, detail = %problem.detail, "a queued bulk body could not be ingested");
                FinishedSpool { id: id.clone(), report: None, error: Some(problem.detail) }
            }
        };
        // What failed for good is kept under another name, so that an accepted body is never lost.
        let path = self.path(&id);
        let cleared = if finished.error.is_none() {
            fs_err::remove_file(&path)
        } else {
            let kept = self.folder.parent().unwrap_or(&self.folder).join("rejected");
            fs_err::create_dir_all(&kept)
                .and_then(|()| fs_err::rename(&path, kept.join(format!("{id}.{SUFFIX}"))))
        };
        if let Err(error) = cleared {
            tracing::error!(%error, "a queued bulk body could not be cleared away");
        }
        self.waiting.lock().pop_front();
        let mut progress = self.progress.lock();
        progress.queued = progress.queued.saturating_sub(1);
        progress.current = None;
        progress.current_report = None;
        progress.finished.push(finished);
        let surplus = progress.finished.len().saturating_sub(20);
        progress.finished.drain(..surplus);
    }
}

fn disk(error: &std::io::Error) -> Problem {
    tracing::error!(%error, "the ingest queue can't be written or read");
    Problem::new(Code::Internal, format!("the ingest queue can't be written or read: {error}"))
}
