//! Bulk bodies accepted with 202: written to a file and synced before the answer, then ingested in the background,
//! also after a restart. How far a body is stands in a file beside it, so that it goes on there, and what was written
//! meanwhile to documents of its first lines stays; but for the batch in work when the server is killed.

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

use super::{BulkLines, BulkReport, DocumentLimits, Reached, lines::with_progress, store};
use crate::{
    files::{self, Partial},
    http::{
        body::bulk_too_large,
        problem::{Code, Problem},
    },
    search::SearchService,
};

const SUFFIX: &str = "ndjson";
/// Of the file that says how far a body is.
const REACHED: &str = "reached";
/// How often a batch is tried again after a failure that may pass, such as a full disk; the pauses double.
const RETRIES: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

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
                (Some(REACHED), _) if path.with_extension(SUFFIX).exists() => {}
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
        self: &Arc<Self>,
        mut body: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
    ) -> Result<String, Problem> {
        let id = Uuid::new_v4().to_string();
        let partial = Partial(self.folder.join(format!("{id}.partial")));
        self.write(&partial.0, &mut body).await?;
        let (spool, name) = (self.clone(), id.clone());
        // Goes to its end also when the request ends before: what has its name is in the queue.
        let queued = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            files::install(&partial.0, &spool.path(&name))?;
            spool.waiting.lock().push_back(name);
            spool.progress.lock().queued += 1;
            spool.arrived.notify_one();
            Ok(())
        });
        queued.await.map_err(std::io::Error::other).and_then(|done| done).map_err(|e| disk(&e))?;
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
                return Err(bulk_too_large());
            }
            file.write_all(&chunk).await.map_err(|error| disk(&error))?;
        }
        file.sync_all().await.map_err(|error| disk(&error))
    }

    fn path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.{SUFFIX}"))
    }

    /// How far a body is.
    fn reached_path(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.{REACHED}"))
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
            tokio::select! {
                ingested = self.ingest(&id, &service) => self.finish(id, ingested),
                () = stop.cancelled() => return, // gone on with after the restart
            }
        }
    }

    /// Stores a body's lines from where an earlier attempt stood.
    async fn ingest(&self, id: &str, service: &SearchService) -> Result<BulkReport, Problem> {
        let reached = self.reached(id);
        {
            let mut progress = self.progress.lock();
            progress.current = Some(id.to_owned());
            progress.current_report = Some(reached.report.clone());
        }
        let file = tokio::fs::File::open(self.path(id)).await.map_err(|error| disk(&error))?;
        let mut lines = BulkLines::new(file, &self.limits, reached);
        match self.ingest_lines(id, service, &mut lines).await {
            Ok(()) => Ok(lines.reached().report.clone()),
            Err(problem) => Err(with_progress(problem, &lines.reached().report)),
        }
    }

    async fn ingest_lines(
        &self,
        id: &str,
        service: &SearchService,
        lines: &mut BulkLines<'_, tokio::fs::File>,
    ) -> Result<(), Problem> {
        while let Some(documents) = lines.next().await? {
            lines.stored(
                patiently(|| store(service, documents.clone()), || service.bundle().index.has_failed())
                    .await?,
            );
            self.note(id, lines.reached()).await?;
            self.progress.lock().current_report = Some(lines.reached().report.clone());
        }
        Ok(())
    }

    fn reached(&self, id: &str) -> Reached {
        match fs_err::read(self.reached_path(id)) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(spool = %id, %error, "how far a queued body is can't be read; it is begun again");
                Reached::default()
            }),
            Err(_) => Reached::default(),
        }
    }

    /// Writes down how far a body is.
    async fn note(&self, id: &str, reached: &Reached) -> Result<(), Problem> {
        let text = serde_json::to_vec(reached).unwrap_or_default();
        patiently(
            || {
                let (path, text) = (self.reached_path(id), text.clone());
                let written = tokio::task::spawn_blocking(move || files::write_whole(&path, &text));
                async {
                    written.await.map_err(std::io::Error::other).and_then(|done| done).map_err(|e| disk(&e))
                }
            },
            || false,
        )
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
        let _ = fs_err::remove_file(self.reached_path(&id));
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

/// Tries again what may pass: an encoder without a place as long as it takes, what only a restart mends (`needs_restart`)
/// until then, anything else [`RETRIES`] times.
async fn patiently<T, F: Future<Output = Result<T, Problem>>>(
    attempt: impl Fn() -> F,
    needs_restart: impl Fn() -> bool,
) -> Result<T, Problem> {
    let mut pause = FIRST_PAUSE;
    let mut failures = 0;
    loop {
        let problem = match attempt().await {
            Ok(done) => return Ok(done),
            Err(problem) => problem,
        };
        match problem.code {
            Code::Overloaded => tokio::time::sleep(FIRST_PAUSE).await,
            Code::Internal | Code::Unavailable if needs_restart() => tokio::time::sleep(LONGEST_PAUSE).await,
            Code::Internal | Code::Unavailable if failures < RETRIES => {
                failures += 1;
                tracing::warn!(detail = %problem.detail, ?pause, "a queued bulk body is tried again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            _ => return Err(problem),
        }
    }
}

fn disk(error: &std::io::Error) -> Problem {
    tracing::error!(%error, "the ingest queue can't be written or read");
    Problem::new(Code::Internal, format!("the ingest queue can't be written or read: {error}"))
}
