//! From a request to a job in the queue: once for each idempotency key, and not more than may wait.

use std::{path::PathBuf, sync::Arc};

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{
    accept,
    queue::{Jobs, disk},
    record::{JobRecord, JobStatus, Memory, now},
    request::JobRequest,
    store::UsedKey,
};
use crate::http::problem::{Code, Problem};

impl Jobs {
    /// Accepts a job. With a key that was used for the same request, the job of then is given.
    ///
    /// # Errors
    /// `invalid_request` for what can't work, or a key that was used for another request; `overloaded` when too many wait.
    pub async fn submit(
        self: &Arc<Self>,
        request: JobRequest,
        key: Option<&str>,
    ) -> Result<JobRecord, Problem> {
        let sha256 = request_sha256(&request);
        let key = key.map(|key| UsedKey { key: key.to_owned(), number: 0, request_sha256: sha256 });
        if let Some(earlier) = self.earlier(key.as_ref())? {
            return Ok(earlier);
        }
        self.require_room()?;
        let id = format!("job-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let folder = self.settings.folder.join(&id);
        let memory = match accept::accept(self, &request, &id, &folder).await {
            Ok(memory) => memory,
            Err(problem) => {
                remove_folder(folder).await;
                return Err(problem);
            }
        };
        let jobs = self.clone();
        let entered = tokio::task::spawn_blocking(move || jobs.enter(id, request, memory, key));
        let (record, is_new) = entered.await.map_err(|error| disk(&error))??;
        if !is_new {
            remove_folder(folder).await;
        }
        Ok(record)
    }

    /// Puts a job into the queue, durably; or finds that the same was done in the meantime.
    fn enter(
        &self,
        id: String,
        request: JobRequest,
        memory: Memory,
        key: Option<UsedKey>,
    ) -> Result<(JobRecord, bool), Problem> {
        let store = self.store.lock();
        if let Some(earlier) = self.earlier(key.as_ref())? {
            return Ok((earlier, false));
        }
        self.require_room()?;
        let number = self.table.lock().records.keys().next_back().map_or(1, |last| last + 1);
        let record = JobRecord { memory, ..JobRecord::new(id, number, request, now()) };
        let key = key.map(|key| UsedKey { number, ..key });
        store.put(&record, key.as_ref()).map_err(|error| disk(&error))?;
        self.events.status(&record, false);
        let mut table = self.table.lock();
        table.numbers.insert(record.id.clone(), number);
        table.records.insert(number, record.clone());
        if let Some(key) = key {
            table.keys.insert(key.key.clone(), key);
        }
        // Here, because the request may end before this does.
        self.arrived.notify_one();
        Ok((record, true))
    }

    fn earlier(&self, key: Option<&UsedKey>) -> Result<Option<JobRecord>, Problem> {
        let Some(key) = key else { return Ok(None) };
        let table = self.table.lock();
        let Some(used) = table.keys.get(&key.key) else { return Ok(None) };
        if used.request_sha256 != key.request_sha256 {
            let detail = format!(
                "the idempotency key `{}` was used for another request; use a new key, or send the same body",
                key.key
            );
            return Err(Problem::new(Code::InvalidRequest, detail));
        }
        Ok(table.records.get(&used.number).cloned())
    }

    pub(super) fn require_room(&self) -> Result<(), Problem> {
        let table = self.table.lock();
        let waiting = table.records.values().filter(|record| record.status == JobStatus::Queued).count();
        if waiting >= self.settings.queue {
            let detail = format!(
                "{waiting} jobs wait already, as many as --jobs-queue allows; wait for one, or cancel one"
            );
            return Err(Problem::overloaded(detail, 60));
        }
        Ok(())
    }
}

/// Of the request in one form, whatever the order of its members was.
fn request_sha256(request: &JobRequest) -> String {
    let json = serde_json::to_vec(request).unwrap_or_default();
    Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn remove_folder(folder: PathBuf) {
    let removed =
        tokio::task::spawn_blocking(
            move || {
                if folder.exists() { fs_err::remove_dir_all(&folder) } else { Ok(()) }
            },
        );
    if let Ok(Err(error)) = removed.await {
        tracing::error!(%error, "the folder of a job that was not accepted can't be removed");
    }
}
