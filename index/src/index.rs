//! The whole: an index directory, opened.
//!
//! Locks, always taken in this order: `maintenance` (snapshots and rebuilds, one at a time) → `writer` (one transaction
//! and its repetition in memory at a time) → `state` (the vectors and postings that searches see; searches share it) →
//! the graph's own. A search holds `state` for its whole length, so it sees all of a write or nothing of it. Texts are
//! read from the store afterwards, without a lock of ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::SystemTime;

use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::IndexConfig;
use crate::document::Document;
use crate::error::Result;
use crate::fields::Fields;
use crate::hnsw::Hnsw;
use crate::lexical::{Bm25, Lexical, View};
use crate::recovery::{self, Recovery};
use crate::search::{LexicalOutcome, LexicalRequest, SearchOutcome, SearchRequest};
use crate::slab::Slab;
use crate::store::{Store, StoredDocument};
use crate::vector_index::VectorIndex;
use crate::writer::{Job, UpsertOutcome};

/// Documents with their vectors, durable and searchable.
///
/// Dropping it stops its thread; what was acknowledged is on disk at any moment, [`Index::close`] only makes the next
/// opening faster.
pub struct Index {
    core: Arc<Core>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

pub(crate) struct Core {
    pub(crate) config: IndexConfig,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) store: Store,
    pub(crate) state: RwLock<State>,
    /// Replaced by a rebuild.
    pub(crate) graph: RwLock<Arc<Hnsw>>,
    /// False when the graph lacks a live document; searches are exact until it is rebuilt.
    pub(crate) graph_is_complete: AtomicBool,
    /// None when it is switched off.
    pub(crate) lexical: Option<Lexical>,
    pub(crate) queue: Mutex<Vec<Job>>,
    pub(crate) writer: Mutex<()>,
    pub(crate) maintenance: Mutex<()>,
    pub(crate) saved: Mutex<Option<Saved>>,
    /// Documents added or removed in the graph since it was saved.
    pub(crate) unsaved_changes: AtomicU64,
    /// How often what searches see has changed.
    pub(crate) version: AtomicU64,
    pub(crate) closed: AtomicBool,
    pub(crate) worker_must_stop: Mutex<bool>,
    pub(crate) worker_wakes: Condvar,
    pub(crate) recovery: Recovery,
    pub(crate) lexical_recovery: Option<Recovery>,
}

/// What searches see.
pub(crate) struct State {
    pub(crate) slab: Slab,
    pub(crate) fields: Fields,
    /// None when lexical search is switched off.
    pub(crate) lexical: Option<View>,
}

/// The snapshot on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saved {
    pub(crate) bytes: u64,
    pub(crate) at: SystemTime,
}

impl Index {
    /// Opens the index in a directory, or creates it.
    ///
    /// Reads every vector and metadata into memory; the graph comes from its snapshot, brought up to date, or is built
    /// anew, which takes a minute of CPU time per 100,000 documents or so.
    ///
    /// # Errors
    /// The directory belongs to another encoder, is open elsewhere, can't be read, or contradicts itself.
    pub fn open(dir: impl AsRef<Path>, config: IndexConfig) -> Result<Self> {
        let core = Arc::new(recovery::open(dir.as_ref(), config)?);
        let worker = crate::maintenance::spawn(Arc::clone(&core))?;
        Ok(Self { core, worker: Mutex::new(Some(worker)) })
    }

    /// Adds documents, replacing those with the same id. When it returns, they are durable and searchable. Of several
    /// with one id in a call the last one counts.
    ///
    /// # Errors
    /// A document or vector that can't be stored: then none is. A failure of the disk: then none is, either.
    pub fn upsert(&self, documents: Vec<(Document, Vec<f32>)>) -> Result<UpsertOutcome> {
        self.core.upsert(documents)
    }

    /// Removes documents by id and returns how many were there. When it returns, they are gone for good.
    ///
    /// # Errors
    /// A failure of the disk: then none is removed.
    pub fn delete(&self, ids: &[String]) -> Result<usize> {
        self.core.delete(ids)
    }

    /// The nearest documents by inner product; fewer than asked for only when fewer match.
    ///
    /// # Errors
    /// A query vector or a parameter that can't be used.
    pub fn search(&self, request: &SearchRequest<'_>) -> Result<SearchOutcome> {
        self.core.search(request)
    }

    /// The documents whose words fit a text best, by BM25. Any text will do; one without words finds nothing.
    ///
    /// # Errors
    /// A parameter that can't be used; lexical search is switched off; the lexical index failed and is being built anew.
    pub fn search_lexical(&self, request: &LexicalRequest<'_>) -> Result<LexicalOutcome> {
        self.core.search_lexical(request)
    }

    /// A document by id.
    ///
    /// # Errors
    /// A failure of the store.
    pub fn get(&self, id: &str) -> Result<Option<Document>> {
        self.core.store.document(id)
    }

    /// A document's vector, as it was given.
    ///
    /// # Errors
    /// A failure of the store.
    pub fn vector(&self, id: &str) -> Result<Option<Vec<f32>>> {
        let Some(key) = self.core.store.key_of(id)? else { return Ok(None) };
        Ok(self.core.state.read().slab.get(key).map(<[f32]>::to_vec))
    }

    /// The documents of hits, in the order of the keys; `None` for one that was changed or deleted meanwhile.
    ///
    /// # Errors
    /// A failure of the store.
    pub fn documents(&self, keys: &[u64]) -> Result<Vec<Option<Document>>> {
        self.core.store.documents(keys)
    }

    /// The ids of hits, in the order of the keys; `None` for one that was changed or deleted meanwhile. Cheaper than
    /// [`Index::documents`], because neither texts nor metadata are read.
    ///
    /// # Errors
    /// A failure of the store.
    pub fn ids(&self, keys: &[u64]) -> Result<Vec<Option<String>>> {
        self.core.store.ids(keys)
    }

    /// The vectors of hits, in the order of the keys; `None` for one that was changed or deleted meanwhile.
    pub fn vectors(&self, keys: &[u64]) -> Vec<Option<Vec<f32>>> {
        let state = self.core.state.read();
        keys.iter().map(|&key| state.slab.get(key).map(<[f32]>::to_vec)).collect()
    }

    /// A page of up to `limit` documents with keys above `after` (`None` = from the start), in the order in which they
    /// were last written. Pass the last key of a page for the next one; an empty page is the end. A document that is
    /// changed while one pages comes again, under its new key.
    ///
    /// # Errors
    /// A failure of the store.
    pub fn iterate(&self, after: Option<u64>, limit: usize) -> Result<Vec<StoredDocument>> {
        self.core.store.page(after, limit)
    }

    /// How many documents can be found.
    pub fn len(&self) -> usize {
        self.core.state.read().slab.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How often documents have been changed since it was opened: a search that gave some hits before may give others when
    /// this has grown.
    pub fn version(&self) -> u64 {
        self.core.version.load(Ordering::Acquire)
    }

    /// Whether the disk failed under the store, after which it neither writes nor reads until it is opened anew.
    pub fn has_failed(&self) -> bool {
        self.core.store.has_failed()
    }

    /// The settings that it was opened with.
    pub fn config(&self) -> &IndexConfig {
        &self.core.config
    }

    /// Sizes and health, for `/info` and metrics.
    pub fn stats(&self) -> IndexStats {
        let core = &self.core;
        let graph = core.current_graph();
        let (documents, vector_bytes, lexical) = {
            let state = core.state.read();
            (state.slab.len(), state.slab.bytes(), core.lexical_stats(state.lexical.as_ref()))
        };
        let saved = *core.saved.lock();
        IndexStats {
            encoder_id: core.config.encoder_id.clone(),
            dimension: core.config.dimension,
            documents,
            store_bytes: core.store.file_bytes(),
            vector_bytes,
            graph: GraphStats {
                entries: graph.len(),
                tombstones: graph.tombstones(),
                memory_bytes: graph.memory_bytes(),
                complete: core.graph_is_complete.load(Ordering::Acquire),
                hardware: graph.hardware(),
            },
            snapshot: saved.map(|saved| SnapshotStats {
                bytes: saved.bytes,
                age_seconds: saved.at.elapsed().unwrap_or_default().as_secs_f64(),
            }),
            unsaved_changes: core.unsaved_changes.load(Ordering::Relaxed),
            recovery: core.recovery.clone(),
            lexical,
        }
    }

    /// Saves the graph and the lexical index, so that the next opening need not build them. Writes wait while it is copied in memory, searches
    /// don't wait.
    ///
    /// # Errors
    /// A failure of the disk; the previous snapshot is still there then.
    pub fn snapshot(&self) -> Result<()> {
        self.core.snapshot()
    }

    /// Builds the graph anew from the vectors and replaces it, while searches and writes go on.
    ///
    /// # Errors
    /// The graph could not be built; the old one stays.
    pub fn rebuild(&self) -> Result<()> {
        self.core.rebuild()
    }

    /// Ends writing: waits for writes in progress, refuses further ones, stops the background thread and saves the
    /// graph and the lexical index if they changed. Reads go on. Calling it again does nothing.
    ///
    /// # Errors
    /// The graph could not be saved; no document is lost by that.
    pub fn close(&self) -> Result<()> {
        {
            let _writes_in_progress = self.core.writer.lock();
            self.core.closed.store(true, Ordering::Release);
        }
        self.stop_worker();
        let lexical = self.core.close_lexical();
        if self.core.unsaved_changes.load(Ordering::Acquire) > 0 {
            self.core.snapshot()?;
        }
        lexical
    }

    fn stop_worker(&self) {
        *self.core.worker_must_stop.lock() = true;
        self.core.worker_wakes.notify_all();
        if let Some(worker) = self.worker.lock().take()
            && worker.join().is_err()
        {
            tracing::error!("the index's background thread panicked");
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.stop_worker();
    }
}

impl Core {
    pub(crate) fn current_graph(&self) -> Arc<Hnsw> {
        Arc::clone(&self.graph.read())
    }

    fn lexical_stats(&self, view: Option<&View>) -> Option<LexicalStats> {
        let lexical = self.lexical.as_ref()?;
        Some(LexicalStats {
            bm25: self.config.bm25,
            documents: view.map_or(0, View::living),
            recent: view.map_or(0, View::recent_documents),
            segments: view.map_or(0, View::segments),
            memory_bytes: view.map_or(0, View::memory_bytes),
            file_bytes: lexical.file_bytes(),
            failed: lexical.has_failed(),
            recovery: self.lexical_recovery.clone().unwrap_or(Recovery::Nothing),
        })
    }
}

/// Sizes and health of an [`Index`].
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct IndexStats {
    /// The encoder that the vectors come from.
    pub encoder_id: String,
    /// Components of a vector.
    pub dimension: usize,
    /// Documents that can be found.
    pub documents: usize,
    /// Size of the store's file.
    pub store_bytes: u64,
    /// Memory held for vectors in f32.
    pub vector_bytes: u64,
    /// The HNSW graph.
    pub graph: GraphStats,
    /// The graph's file, if there is one.
    pub snapshot: Option<SnapshotStats>,
    /// Documents added to or removed from the graph since it was saved.
    pub unsaved_changes: u64,
    /// How the graph came to be when the index was opened.
    pub recovery: Recovery,
    /// The lexical index; none when it is switched off.
    pub lexical: Option<LexicalStats>,
}

/// The lexical index of an [`Index`].
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct LexicalStats {
    /// BM25's parameters.
    pub bm25: Bm25,
    /// Documents that can be found.
    pub documents: u64,
    /// Those among them that are in memory and not yet in its files.
    pub recent: usize,
    /// Segments of its files.
    pub segments: usize,
    /// Memory that it holds, tantivy's writer and mapped files not counted.
    pub memory_bytes: u64,
    /// Size of its files at the last commit.
    pub file_bytes: u64,
    /// Whether it failed and has to be built anew before it can be searched.
    pub failed: bool,
    /// How it came to be when the index was opened.
    pub recovery: Recovery,
}

/// The graph of an [`Index`].
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GraphStats {
    /// Live entries.
    pub entries: usize,
    /// Removed entries that it still carries.
    pub tombstones: usize,
    /// Memory that it holds.
    pub memory_bytes: u64,
    /// Whether it has every document; searches are exact while it has not.
    pub complete: bool,
    /// Instruction set that computes its distances.
    pub hardware: String,
}

/// The graph's file.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct SnapshotStats {
    /// Its size.
    pub bytes: u64,
    /// Time since it was written.
    pub age_seconds: f64,
}
