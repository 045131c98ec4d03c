//! The bundle that answers, and the gate that every write passes.
//!
//! A write holds the gate from the moment at which it takes the bundle until its effect is in the index and noted. So who
//! holds the gate alone knows that no write is half done, and that the next one sees what was put in place meanwhile.

use std::{collections::HashSet, sync::Arc};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock as AsyncRwLock};

use crate::bundle::Bundle;

/// The bundle that answers.
pub struct Live {
    bundle: RwLock<Arc<Bundle>>,
    gate: Arc<AsyncRwLock<()>>,
    /// The ids of documents that were written since somebody began to record them; none while nobody does.
    touched: Mutex<Option<HashSet<String>>>,
}

/// The right to write to the index of the live bundle. It may be moved to where the write happens, so that it outlives a
/// request that is dropped.
pub struct Write {
    live: Arc<Live>,
    _gate: OwnedRwLockReadGuard<()>,
}

/// Writes wait while this lives.
pub(crate) struct Pause {
    _gate: OwnedRwLockWriteGuard<()>,
}

/// Writes are recorded while this lives.
pub(super) struct Recording {
    live: Arc<Live>,
}

impl Live {
    /// `bundle` answers.
    pub fn new(bundle: Bundle) -> Self {
        Self { bundle: RwLock::new(Arc::new(bundle)), gate: Arc::default(), touched: Mutex::new(None) }
    }

    /// The bundle that answers now.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.bundle.read().clone()
    }

    /// Waits until writes are allowed; other writes don't stand in the way.
    pub async fn begin_write(self: &Arc<Self>) -> Write {
        let gate = self.gate.clone().read_owned().await;
        Write { live: self.clone(), _gate: gate }
    }

    /// Waits until no write is under way; further ones wait until the result is dropped.
    pub(super) async fn pause_writes(&self) -> Pause {
        Pause { _gate: self.gate.clone().write_owned().await }
    }

    /// Records the documents that are written from now on.
    pub(super) fn record(self: &Arc<Self>) -> Recording {
        *self.touched.lock() = Some(HashSet::new());
        Recording { live: self.clone() }
    }

    /// Puts another bundle in the place of the live one, which comes back. The proof that no write is under way is `_pause`.
    pub(crate) fn replace(&self, bundle: Arc<Bundle>, _pause: &Pause) -> Arc<Bundle> {
        std::mem::replace(&mut *self.bundle.write(), bundle)
    }
}

impl Write {
    /// The bundle to write to.
    pub fn bundle(&self) -> Arc<Bundle> {
        self.live.bundle()
    }

    /// Notes documents whose change is in the index now.
    pub fn note<'a>(&self, ids: impl IntoIterator<Item = &'a str>) {
        if let Some(touched) = self.live.touched.lock().as_mut() {
            touched.extend(ids.into_iter().map(str::to_owned));
        }
    }
}

impl Recording {
    /// How many documents were written since they were taken last.
    pub(super) fn waiting(&self) -> usize {
        self.live.touched.lock().as_ref().map_or(0, HashSet::len)
    }

    /// The documents that were written since they were taken last.
    pub(super) fn take(&self) -> Vec<String> {
        self.live.touched.lock().as_mut().map(std::mem::take).unwrap_or_default().into_iter().collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        *self.live.touched.lock() = None;
    }
}
