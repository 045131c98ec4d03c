//! What users found useful: (query, document) pairs for a later training. Off unless the operator switches it on, and
//! while it is off nothing about queries is kept, neither in memory nor on disk.
//!
//! - `recent`: which query a request id stands for, in bounded memory, for a window of time.
//! - `event`, `store`: what is kept, durably, until retention or a deletion takes it off the disk.
//! - `pairs`: what training gets of it.

mod event;
mod pairs;
mod recent;
mod store;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, NaiveDate, TimeDelta, Utc};
use expandr_index::Index;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

pub use event::{Event, Kind, Selection};
pub use pairs::PairCounts;

use self::{
    recent::{Recent, Refusal},
    store::Store,
};
use crate::{
    clock,
    http::problem::{Code, Problem},
    search::answer::SearchAnswer,
};

/// Events that are taken at once: each holds a thread until the disk has it.
const AT_ONCE: usize = 32;
/// How often expired events are deleted.
const RETENTION_ROUND: Duration = Duration::from_secs(3600);
/// How often answers older than the window are forgotten.
const MEMORY_ROUND: Duration = Duration::from_secs(30);

/// Whether feedback is taken, and how much of it is kept for how long.
#[derive(Clone, Debug)]
pub struct FeedbackSettings {
    /// Whether it is taken.
    pub on: bool,
    /// How long events are kept.
    pub retention: Duration,
    /// How long after an answer feedback can be given to it.
    pub window: Duration,
    /// Most memory for answers within the window; the oldest leave first.
    pub memory_bytes: usize,
    /// Most bytes on disk; beyond that feedback is refused.
    pub disk_bytes: u64,
}

/// Takes, keeps, exports and deletes feedback.
pub struct Feedback {
    settings: FeedbackSettings,
    /// None while feedback is off.
    recent: Option<Recent>,
    /// Also there while feedback is off if an earlier run of the server kept some: it can be exported and deleted.
    store: Option<Store>,
    /// Taking feedback holds it shared, deleting alone: what is deleted can't come back from a query looked up before.
    deleting: RwLock<()>,
    permits: Semaphore,
}

/// Feedback as a client sends it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GivenFeedback {
    /// The id of the search's answer; of a batch's, that of the single answer.
    #[schema(min_length = 1, max_length = 512)]
    pub request_id: String,
    /// The document.
    #[schema(min_length = 1, max_length = 512)]
    pub document_id: String,
    /// What the user did.
    pub kind: Kind,
    /// For a judgment: whether the document answers the query.
    #[serde(default)]
    pub relevant: Option<bool>,
}

impl GivenFeedback {
    fn check(&self) -> Result<(), Problem> {
        match (self.kind, self.relevant) {
            (Kind::Clicked, Some(_)) => {
                Err(Problem::field("/relevant", "belongs to kind judged; leave it out for a click"))
            }
            (Kind::Judged, None) => Err(Problem::field("/relevant", "a judgment needs true or false")),
            (Kind::Clicked, None) | (Kind::Judged, Some(_)) => Ok(()),
        }
    }
}

/// What a deletion did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = DeletedFeedback)]
pub struct Deleted {
    /// Events that are gone.
    pub deleted: usize,
    /// Events that are still there.
    pub left: usize,
}

/// What `/info` says about feedback.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FeedbackInfo {
    /// Whether it is taken.
    pub on: bool,
    /// Days that events are kept.
    pub retention_days: u64,
    /// Minutes after an answer within which feedback can be given to it.
    pub window_minutes: u64,
    /// Events on disk.
    pub events: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Answers in memory that feedback can be given to.
    pub recent_answers: usize,
}

impl Feedback {
    /// Opens the feedback in `folder`. While feedback is off the folder is not made.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub fn open(folder: &Path, settings: FeedbackSettings) -> std::io::Result<Self> {
        let store = if settings.on || folder.exists() { Some(Store::open(folder)?) } else { None };
        let recent = settings.on.then(|| Recent::new(settings.window, settings.memory_bytes));
        Ok(Self { settings, recent, store, deleting: RwLock::new(()), permits: Semaphore::new(AT_ONCE) })
    }

    /// Whether feedback is taken.
    pub fn is_on(&self) -> bool {
        self.recent.is_some()
    }

    /// Keeps the query of an answer for the window, so that feedback can be given to it. Does nothing while feedback is off.
    pub fn remember(&self, query: &str, answer: &SearchAnswer) {
        if let Some(recent) = &self.recent {
            let ids = answer.hits.iter().map(|hit| hit.id.as_str());
            recent.remember(&answer.request_id, query, &answer.bundle, ids, Instant::now());
        }
    }

    /// A place for one piece of feedback.
    ///
    /// # Errors
    /// `overloaded` when as many as are taken at once are under way.
    pub fn admit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.permits.try_acquire().map_err(|_| {
            Problem::overloaded("as much feedback as the server takes at once is under way; try again", 1)
        })
    }

    /// Keeps a piece of feedback; when this returns it is durable. Blocking.
    ///
    /// # Errors
    /// `not_found` while feedback is off and for an answer that is not known (any more); `invalid_request` for a document
    /// that can't be meant; `overloaded` when the answer or the disk has had its fill.
    pub fn record(&self, index: &Index, given: &GivenFeedback) -> Result<(), Problem> {
        let (Some(recent), Some(store)) = (&self.recent, &self.store) else { return Err(off()) };
        given.check()?;
        if store.size().bytes >= self.settings.disk_bytes {
            return Err(full(self.settings.disk_bytes));
        }
        let _taking = self.deleting.read();
        let remembered = recent
            .look_up(&given.request_id, &given.document_id, Instant::now())
            .map_err(|refusal| self.refused(refusal))?;
        if remembered.rank.is_none() {
            self.check_other_document(index, given)?;
        }
        let event = Event {
            at: clock::now(),
            request_id: given.request_id.clone(),
            query: remembered.query,
            document_id: given.document_id.clone(),
            kind: given.kind,
            relevant: given.relevant,
            rank: remembered.rank,
            bundle: remembered.bundle,
        };
        store.append(&event).map_err(disk)
    }

    fn refused(&self, refusal: Refusal) -> Problem {
        match refusal {
            Refusal::Unknown => {
                let minutes = self.settings.window.as_secs() / 60;
                let detail = format!(
                    "no answer to this request id is remembered; feedback can be given for {minutes} minutes after a \
                     search, and less under heavy load"
                );
                Problem::new(Code::NotFound, detail)
            }
            Refusal::Exhausted => {
                Problem::overloaded("this answer has had all the feedback that it takes", 60)
            }
        }
    }

    /// A document that the answer did not have may be judged, if there is such a document; it can't have been clicked.
    fn check_other_document(&self, index: &Index, given: &GivenFeedback) -> Result<(), Problem> {
        if given.kind == Kind::Clicked {
            let detail =
                "the answer did not have this document; use kind judged for one that it should have had";
            return Err(Problem::field("/document_id", detail));
        }
        match index.get(&given.document_id)? {
            Some(_) => Ok(()),
            None => Err(Problem::field("/document_id", "there is no such document")),
        }
    }

    /// The days of which there is feedback, oldest first.
    pub fn days(&self) -> Vec<NaiveDate> {
        self.store.as_ref().map(Store::days).unwrap_or_default()
    }

    /// The events of a day as JSON lines: a file, and how many bytes of it count; none when they are gone meanwhile. Blocking.
    ///
    /// # Errors
    /// When the file can't be opened.
    pub fn open_day(&self, day: NaiveDate) -> std::io::Result<Option<(fs_err::File, u64)>> {
        self.store.as_ref().map_or(Ok(None), |store| store.open_day(day))
    }

    /// Deletes what is selected, from memory and disk; when this returns it is gone. Blocking.
    ///
    /// # Errors
    /// When the disk fails; a part may be deleted then.
    pub fn delete(&self, selection: &Selection) -> Result<Deleted, Problem> {
        let _alone = self.deleting.write();
        if let Some(recent) = &self.recent
            && selection.document_id.is_none()
            && selection.before.is_none_or(|before| before >= clock::now())
        {
            recent.forget(|query| selection.selects_query(query));
        }
        let Some(store) = &self.store else { return Ok(Deleted { deleted: 0, left: 0 }) };
        let deleted = store.delete(selection).map_err(disk)?;
        Ok(Deleted { deleted, left: store.size().events })
    }

    /// Deletes the events that are older than the retention at `now`; how many. Blocking.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn expire(&self, now: DateTime<Utc>) -> Result<usize, Problem> {
        let age = TimeDelta::from_std(self.settings.retention).unwrap_or(TimeDelta::MAX);
        let Some(before) = now.checked_sub_signed(age) else { return Ok(0) };
        let Some(store) = &self.store else { return Ok(0) };
        store.delete(&Selection { before: Some(before), ..Selection::default() }).map_err(disk)
    }

    /// Keeps to retention and window until `stop`.
    pub async fn work(self: Arc<Self>, stop: CancellationToken) {
        let mut memory = tokio::time::interval(MEMORY_ROUND);
        let mut disk = tokio::time::interval(RETENTION_ROUND);
        loop {
            tokio::select! {
                _ = memory.tick() => {
                    if let Some(recent) = &self.recent {
                        recent.forget_old(Instant::now());
                    }
                }
                _ = disk.tick() => {
                    let feedback = self.clone();
                    let expired = tokio::task::spawn_blocking(move || feedback.expire(clock::now())).await;
                    match expired {
                        Ok(Ok(0)) => {}
                        Ok(Ok(deleted)) => tracing::info!(deleted, "feedback reached its retention"),
                        Ok(Err(problem)) => tracing::error!(problem.detail, "expired feedback could not be deleted"),
                        Err(error) => tracing::error!(%error, "deleting expired feedback ended early"),
                    }
                }
                () = stop.cancelled() => return,
            }
        }
    }

    /// Writes training pairs to the file `out` (training's source format `pairs`), whole or not at all: a line for each
    /// document that was clicked or judged relevant for a query, with those that were judged not relevant as negatives. A
    /// judgment outweighs clicks, a later judgment an earlier one. The file is empty where there is no pair. Blocking.
    ///
    /// # Errors
    /// When a disk or the index fails.
    pub fn write_pairs(&self, index: &Index, out: &Path) -> Result<PairCounts, Problem> {
        match &self.store {
            Some(store) => pairs::write(store, index, out),
            None => {
                crate::files::write_whole(out, b"").map_err(disk)?;
                Ok(PairCounts::default())
            }
        }
    }

    /// What `/info` says.
    pub fn info(&self) -> FeedbackInfo {
        let size = self.store.as_ref().map(Store::size).unwrap_or_default();
        FeedbackInfo {
            on: self.is_on(),
            retention_days: self.settings.retention.as_secs() / 86_400,
            window_minutes: self.settings.window.as_secs() / 60,
            events: size.events,
            bytes: size.bytes,
            recent_answers: self.recent.as_ref().map_or(0, Recent::len),
        }
    }
}

fn off() -> Problem {
    let detail = "feedback is off, and nothing about queries is kept; the operator can switch it on with `--feedback on`";
    Problem::new(Code::NotFound, detail)
}

fn full(limit: u64) -> Problem {
    let mib = limit >> 20;
    let detail = format!(
        "feedback fills its {mib} MiB; the operator can export and delete some of it, or raise --feedback-mib"
    );
    Problem::overloaded(detail, 3600)
}

fn disk(error: std::io::Error) -> Problem {
    tracing::error!(%error, "feedback can't be written or read");
    Problem::new(Code::Internal, format!("feedback can't be written or read: {error}"))
}
