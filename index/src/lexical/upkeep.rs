//! The lexical index beside the others: writes, commits and recovery.
//!
//! The disk's side changes only under the index's `writer` lock, the view only under `state`; a commit takes `state` for the
//! moment in which the view goes over to the committed segments.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use roaring::RoaringTreemap;
use tantivy::index::SegmentId;

use super::analysis::{Analyzer, Terms};
use super::disk::{Disk, Owner, Rejected};
use super::view::{Segment, View};
use crate::config::IndexConfig;
use crate::error::{Error, Result};
use crate::index::Core;
use crate::permits::Permits;
use crate::recovery::Recovery;
use crate::store::{Change, Store};

const FOLDER_NAME: &str = "lexical";
/// Documents read from the store at a time.
const CATCH_UP_BATCH: usize = 512;

/// The lexical index, but for what searches see.
pub(crate) struct Lexical {
    pub(crate) analyzer: Analyzer,
    /// Searches at once, each with its scratch space.
    pub(crate) permits: Permits,
    pub(crate) scratch: Mutex<Vec<Vec<f32>>>,
    folder: PathBuf,
    /// None while it is closed or being built anew.
    disk: Mutex<Option<Disk>>,
    /// Half of the memory is for the recent documents, half for tantivy's writer.
    half_of_memory: usize,
    /// Of the folder, when it was last committed.
    file_bytes: AtomicU64,
    failed: AtomicBool,
}

/// Opens the folder beside the store, or makes a new one and says why.
pub(crate) fn open(dir: &Path, store: &Store, config: &IndexConfig) -> Result<(Lexical, Option<Rejected>)> {
    let folder = dir.join(FOLDER_NAME);
    let half_of_memory = config.lexical_memory_bytes / 2;
    let owner = Owner { store_id: store.id(), next_key: store.next_key()?, memory_bytes: half_of_memory };
    let (disk, rejected) = match Disk::open(&folder, &owner) {
        Ok(disk) => (disk, None),
        Err(rejected) => {
            if rejected != Rejected::Missing {
                tracing::warn!(folder = %folder.display(), reason = %rejected, "building the lexical index anew from the store");
            }
            (Disk::create(&folder, &owner)?, Some(rejected))
        }
    };
    let lexical = Lexical {
        analyzer: Analyzer::new(),
        permits: Permits::new(config.search_threads),
        scratch: Mutex::default(),
        folder,
        file_bytes: AtomicU64::new(disk.file_bytes()),
        disk: Mutex::new(Some(disk)),
        half_of_memory,
        failed: AtomicBool::new(false),
    };
    Ok((lexical, rejected))
}

/// Removes the folder: left behind it might come to fit by accident later, when a store restored from a backup has given
/// the same keys to other documents.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    super::disk::remove(&dir.join(FOLDER_NAME))
}

impl Lexical {
    /// Whether it has to be built anew before it can be used.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Bytes on disk at the last commit.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.file_bytes.load(Ordering::Relaxed)
    }
}

impl Core {
    /// Hands tantivy what the store and the view have already. The caller holds `writer`. A failure is not the write's: the
    /// documents are stored, and the lexical index is built anew.
    pub(crate) fn write_lexical(&self, changes: &[Change]) {
        let Some(lexical) = &self.lexical else { return };
        if lexical.has_failed() {
            return;
        }
        // A commit that fails says so itself.
        match self.hand_over(lexical, changes) {
            Ok(()) => _ = self.commit_lexical_if_full(lexical),
            Err(error) => self.give_up_lexical(lexical, &error),
        }
    }

    fn give_up_lexical(&self, lexical: &Lexical, error: &Error) {
        tracing::error!(%error, "the lexical index failed; it will be built anew from the store");
        lexical.failed.store(true, Ordering::Release);
        self.state.write().lexical = None;
        self.wake_worker();
    }

    fn hand_over(&self, lexical: &Lexical, changes: &[Change]) -> Result<()> {
        let mut disk = lexical.disk.lock();
        let Some(disk) = disk.as_mut() else { return Err(Error::Closed) };
        for change in changes {
            match change {
                Change::Put { key, terms: Some(terms), .. } => disk.add(*key, terms)?,
                Change::Put { .. } => {}
                Change::Remove { key, .. } => disk.delete(*key),
            }
        }
        Ok(())
    }

    fn commit_lexical_if_full(&self, lexical: &Lexical) -> Result<()> {
        if self.is_lexical_full(lexical) { self.commit_lexical() } else { Ok(()) }
    }

    /// Whether the recent documents take the memory that is for them.
    fn is_lexical_full(&self, lexical: &Lexical) -> bool {
        self.state.read().lexical.as_ref().map_or(0, View::recent_bytes) >= lexical.half_of_memory
    }

    /// Commits what was written since the last time, so that the next opening need not read it from the store again. The
    /// caller holds `writer`. Searches go on.
    pub(crate) fn commit_lexical(&self) -> Result<()> {
        let Some(lexical) = self.lexical.as_ref().filter(|lexical| !lexical.has_failed()) else {
            return Ok(());
        };
        let outcome = self.commit_and_adopt(lexical);
        if let Err(error) = &outcome {
            self.give_up_lexical(lexical, error);
        }
        outcome
    }

    fn commit_and_adopt(&self, lexical: &Lexical) -> Result<()> {
        let mut disk = lexical.disk.lock();
        let Some(disk) = disk.as_mut().filter(|disk| disk.is_uncommitted()) else { return Ok(()) };
        let started = Instant::now();
        disk.commit(self.store.next_key()?)?;
        lexical.file_bytes.store(disk.file_bytes(), Ordering::Relaxed);
        let segments = disk.segments()?;
        let kept: Vec<SegmentId> = segments.iter().map(|segment| segment.segment_id()).collect();
        // Nobody writes meanwhile, so slots stay what they are between these two looks at the state.
        let loaded = {
            let state = self.state.read();
            let view = state.lexical.as_ref();
            let new = segments.iter().filter(|s| view.is_none_or(|view| !view.has_segment(s.segment_id())));
            let load = |segment| Segment::load(segment, disk.text_field(), |key| state.slab.slot(key));
            new.map(load).collect::<tantivy::Result<Vec<_>>>().map_err(Error::lexical)?
        };
        let mut state = self.state.write();
        let Some(view) = state.lexical.as_mut() else { return Ok(()) };
        // All that it held is to be there afterwards. While it is brought in line with the store that is less than the store has.
        let documents = view.living();
        view.adopt(&kept, loaded);
        let (accounted, living) = (view.accounted(), view.living());
        drop(state);
        if accounted != documents || living != documents {
            return Err(Error::Lexical(format!(
                "after a commit it holds {accounted} documents, before it {documents}"
            )));
        }
        tracing::debug!(documents, seconds = started.elapsed().as_secs_f64(), "committed the lexical index");
        Ok(())
    }

    /// Brings the lexical index in line with the store. The caller holds `writer`, or nobody else has the index yet.
    pub(crate) fn reconcile_lexical(&self, rejected: Option<Rejected>) -> Result<Option<Recovery>> {
        let Some(lexical) = &self.lexical else { return Ok(None) };
        let (rejected, strangers) = match (rejected, self.adopt_committed(lexical)?) {
            (None, Ok(strangers)) => (None, strangers),
            (Some(rejected), _) => (Some(rejected), Vec::new()),
            (None, Err(rejected)) => {
                tracing::warn!(reason = %rejected, "building the lexical index anew from the store");
                self.start_lexical_anew(lexical)?;
                (Some(rejected), Vec::new())
            }
        };
        if let Some(disk) = lexical.disk.lock().as_mut() {
            strangers.iter().for_each(|&key| disk.delete(key));
        }
        let added = self.add_missing(lexical)?;
        Ok(Some(match rejected {
            None => Recovery::Snapshot { added, removed: strangers.len() as u64 },
            Some(Rejected::Missing) if added == 0 => Recovery::Nothing,
            Some(rejected) => Recovery::Store { reason: rejected.to_string(), added },
        }))
    }

    /// Shows the committed segments to searches, and returns the keys in them that the store no longer has.
    fn adopt_committed(&self, lexical: &Lexical) -> Result<Result<Vec<u64>, Rejected>> {
        let disk = lexical.disk.lock();
        let Some(disk) = disk.as_ref() else { return Err(Error::Closed) };
        let mut state = self.state.write();
        let state = &mut *state;
        let mut loaded = Vec::new();
        let mut strangers = Vec::new();
        for segment in disk.segments()? {
            let slot_of = |key| {
                let slot = state.slab.slot(key);
                if slot.is_none() {
                    strangers.push(key);
                }
                slot
            };
            match Segment::load(&segment, disk.text_field(), slot_of) {
                Ok(segment) => loaded.push(segment),
                Err(error) => return Ok(Err(Rejected::Damaged(error.to_string()))),
            }
        }
        let view = state.lexical.get_or_insert_with(View::new);
        view.adopt(&[], loaded);
        if view.accounted() != view.living() {
            *view = View::new();
            return Ok(Err(Rejected::Damaged("it holds a document twice".into())));
        }
        Ok(Ok(strangers))
    }

    fn start_lexical_anew(&self, lexical: &Lexical) -> Result<()> {
        let mut disk = lexical.disk.lock();
        drop(disk.take());
        let owner = Owner {
            store_id: self.store.id(),
            next_key: self.store.next_key()?,
            memory_bytes: lexical.half_of_memory,
        };
        self.state.write().lexical = Some(View::new());
        *disk = Some(Disk::create(&lexical.folder, &owner)?);
        Ok(())
    }

    /// Adds the documents that the view lacks, from their texts in the store.
    fn add_missing(&self, lexical: &Lexical) -> Result<u64> {
        let missing: RoaringTreemap = {
            let state = self.state.read();
            let lacks = |slot| state.lexical.as_ref().is_none_or(|view| !view.holds(slot));
            state.slab.keys().filter(|&key| state.slab.slot(key).is_some_and(lacks)).collect()
        };
        let mut keys = missing.iter().peekable();
        while keys.peek().is_some() {
            let batch: Vec<u64> = keys.by_ref().take(CATCH_UP_BATCH).collect();
            let documents = self.store.documents(&batch)?;
            let terms: Vec<Option<Terms>> = documents
                .iter()
                .map(|document| document.as_ref().map(|d| lexical.analyzer.terms(&[&d.title, &d.text])))
                .collect();
            self.add_batch(lexical, &batch, &terms)?;
            if self.is_lexical_full(lexical) {
                self.commit_and_adopt(lexical)?;
            }
        }
        Ok(missing.len())
    }

    fn add_batch(&self, lexical: &Lexical, keys: &[u64], terms: &[Option<Terms>]) -> Result<()> {
        let mut disk = lexical.disk.lock();
        let mut state = self.state.write();
        let state = &mut *state;
        for (&key, terms) in keys.iter().zip(terms) {
            if let (Some(slot), Some(terms), Some(view), Some(disk)) =
                (state.slab.slot(key), terms, state.lexical.as_mut(), disk.as_mut())
            {
                view.insert(slot, terms);
                disk.add(key, terms)?;
            }
        }
        Ok(())
    }

    /// Builds the lexical index anew from the store after it failed. Writes wait meanwhile, searches by vector go on.
    pub(crate) fn rebuild_lexical(&self) -> Result<()> {
        let _alone = self.maintenance.lock();
        let _no_writes = self.writer.lock();
        let Some(lexical) = &self.lexical else { return Ok(()) };
        let started = Instant::now();
        let outcome = self.start_lexical_anew(lexical).and_then(|()| self.add_missing(lexical));
        if outcome.is_err() {
            self.state.write().lexical = None;
        }
        let documents = outcome?;
        lexical.failed.store(false, Ordering::Release);
        self.commit_lexical()?;
        tracing::info!(documents, seconds = started.elapsed().as_secs_f64(), "rebuilt the lexical index");
        Ok(())
    }

    /// Commits and lets go of the folder; searches go on.
    pub(crate) fn close_lexical(&self) -> Result<()> {
        let _no_writes = self.writer.lock();
        let Some(lexical) = &self.lexical else { return Ok(()) };
        let outcome = self.commit_lexical();
        match lexical.disk.lock().take() {
            Some(disk) => outcome.and(disk.close()),
            None => outcome,
        }
    }
}
