//! Opening: the store is read, the graph's snapshot is proved and brought up to date, or the graph is built anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Instant, SystemTime};

use parking_lot::{Condvar, Mutex, RwLock};
use roaring::RoaringTreemap;
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::IndexConfig;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::hnsw::Hnsw;
use crate::index::{Core, Saved, State};
use crate::lexical;
use crate::slab::Slab;
use crate::snapshot::{self, Identity, Rejected};
use crate::store::Store;
use crate::vector_index::VectorIndex;

const SNAPSHOT_NAME: &str = "graph.hnsw";

/// How the graph, or the lexical index, came to be when the index was opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Recovery {
    /// There was no document and nothing on disk for it.
    Nothing,
    /// From its file.
    Snapshot {
        /// Documents that the file lacked.
        added: u64,
        /// Entries of the file whose documents were changed or deleted since.
        removed: u64,
    },
    /// From the vectors, or the texts, in the store.
    Store {
        /// Why its file was not used.
        reason: String,
        /// Documents that went into it.
        added: u64,
    },
}

/// Opens everything but the background thread.
pub(crate) fn open(dir: &Path, config: IndexConfig) -> Result<Core> {
    config.validate()?;
    let started = Instant::now();
    let store = Store::open(dir, &config)?;
    let mut state = State { slab: Slab::new(config.dimension), fields: Fields::default(), lexical: None };
    let graph = Hnsw::new(&config)?;
    store.scan(|key, metadata, vector| {
        graph.check_vector(&vector, String::new).map_err(|error| unusable(key, &error))?;
        let slot = state.slab.insert(key, &vector)?;
        state.fields.insert(slot, &metadata);
        Ok(())
    })?;

    let snapshot_path = dir.join(SNAPSHOT_NAME);
    let restored = restore(&snapshot_path, &store, &config)?;
    let (graph, rejected) = match restored {
        Ok(restored) => (restored, None),
        Err(rejected) => (graph, Some(rejected)),
    };
    let (lexical, lexical_rejected) = if config.lexical {
        let (lexical, rejected) = lexical::open(dir, &store, &config)?;
        (Some(lexical), rejected)
    } else {
        lexical::remove(dir)?;
        (None, None)
    };
    let saved = rejected.is_none().then(|| saved(&snapshot_path)).flatten();
    let mut core = Core {
        config,
        snapshot_path,
        store,
        state: RwLock::new(state),
        graph: RwLock::new(Arc::new(graph)),
        graph_is_complete: AtomicBool::new(true),
        lexical,
        queue: Mutex::default(),
        writer: Mutex::default(),
        maintenance: Mutex::default(),
        saved: Mutex::new(saved),
        unsaved_changes: AtomicU64::new(0),
        closed: AtomicBool::new(false),
        worker_must_stop: Mutex::new(false),
        version: AtomicU64::new(0),
        worker_wakes: Condvar::new(),
        recovery: Recovery::Nothing,
        lexical_recovery: None,
    };
    core.recovery = reconcile(&core, rejected)?;
    core.lexical_recovery = core.reconcile_lexical(lexical_rejected)?;
    tracing::info!(
        dir = %dir.display(),
        documents = core.state.get_mut().slab.len(),
        recovery = ?core.recovery,
        lexical_recovery = ?core.lexical_recovery,
        seconds = started.elapsed().as_secs_f64(),
        "opened the index"
    );
    Ok(core)
}

/// The graph from its snapshot, or why not. A file that does not belong here is removed, so that it can't come to fit by
/// accident later, when a store restored from a backup has given the same keys to other documents.
fn restore(path: &Path, store: &Store, config: &IndexConfig) -> Result<Result<Hnsw, Rejected>> {
    let outcome =
        snapshot::read(path, &Identity::new(store.id(), config), store.next_key()?).and_then(|image| {
            Hnsw::restore(config, &image).map_err(|error| Rejected::Damaged(error.to_string()))
        });
    if let Err(rejected @ (Rejected::Damaged(_) | Rejected::Foreign(_))) = &outcome {
        tracing::warn!(file = %path.display(), reason = %rejected, "building the graph anew from the store");
        if let Err(error) = fs_err::remove_file(path) {
            tracing::warn!(%error, "an unusable snapshot could not be removed");
        }
    }
    Ok(outcome)
}

/// Makes the graph's keys those of the store.
fn reconcile(core: &Core, rejected: Option<Rejected>) -> Result<Recovery> {
    let graph = core.current_graph();
    let live: RoaringTreemap = core.state.read().slab.keys().collect();
    let known = graph.keys();
    let missing = &live - &known;
    let dead = &known - &live;
    core.add_from_slab(&graph, &missing)?;
    graph.remove(&dead.iter().collect::<Vec<_>>());
    core.unsaved_changes.fetch_add(missing.len() + dead.len(), std::sync::atomic::Ordering::AcqRel);
    Ok(match rejected {
        None => Recovery::Snapshot { added: missing.len(), removed: dead.len() },
        Some(Rejected::Missing) if live.is_empty() => Recovery::Nothing,
        Some(rejected) => Recovery::Store { reason: rejected.to_string(), added: missing.len() },
    })
}

fn saved(path: &Path) -> Option<Saved> {
    let metadata = fs_err::metadata(path).ok()?;
    Some(Saved { bytes: metadata.len(), at: metadata.modified().unwrap_or_else(|_| SystemTime::now()) })
}

fn unusable(key: u64, error: &Error) -> Error {
    Error::Corrupt(format!("the vector under key {key} is unusable{error}"))
}
