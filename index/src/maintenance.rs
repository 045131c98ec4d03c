//! The background thread: saves the graph when enough has changed, rebuilds it when it carries too much that is dead, and
//! builds the lexical index anew should it have failed.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use roaring::RoaringTreemap;

use crate::error::Result;
use crate::hnsw::Hnsw;
use crate::index::{Core, Saved};
use crate::lexical::Lexical;
use crate::snapshot::{self, Identity};
use crate::vector_index::VectorIndex;

/// Vectors copied at a time while a graph is built beside the live one.
const REBUILD_BATCH: usize = 1024;
/// Tombstones are tolerated up to this many plus a third of the live entries: they cost searches time.
const TOLERATED_TOMBSTONES: usize = 1000;
/// Pause after a failure, so that a full disk does not make a busy loop.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chore {
    Rebuild,
    Snapshot,
    RebuildLexical,
}

pub(crate) fn spawn(core: Arc<Core>) -> Result<JoinHandle<()>> {
    Ok(std::thread::Builder::new().name("expandr-index".into()).spawn(move || run(&core))?)
}

fn run(core: &Core) {
    loop {
        let chore = {
            let mut must_stop = core.worker_must_stop.lock();
            loop {
                if *must_stop {
                    return;
                }
                if let Some(chore) = core.maintenance_is_due() {
                    break chore;
                }
                core.worker_wakes.wait(&mut must_stop);
            }
        };
        let outcome = match chore {
            Chore::Rebuild => core.rebuild(),
            Chore::Snapshot => core.snapshot(),
            Chore::RebuildLexical => core.rebuild_lexical(),
        };
        if let Err(error) = outcome {
            tracing::error!(%error, ?chore, "maintenance of the index failed; trying again later");
            let mut must_stop = core.worker_must_stop.lock();
            let again = Instant::now() + PAUSE_AFTER_FAILURE;
            while !*must_stop && !core.worker_wakes.wait_until(&mut must_stop, again).timed_out() {}
        }
    }
}

impl Core {
    pub(crate) fn wake_worker(&self) {
        // The lock closes the gap between the worker's look and its sleep.
        let _must_stop = self.worker_must_stop.lock();
        self.worker_wakes.notify_all();
    }

    pub(crate) fn maintenance_is_due(&self) -> Option<Chore> {
        let graph = self.current_graph();
        let entries = graph.len();
        if !self.graph_is_complete.load(Ordering::Acquire)
            || graph.tombstones() > TOLERATED_TOMBSTONES + entries / 3
        {
            return Some(Chore::Rebuild);
        }
        if self.lexical.as_ref().is_some_and(Lexical::has_failed) {
            return Some(Chore::RebuildLexical);
        }
        // A tenth of the corpus at least, so that what is written in all stays proportional to what was ingested.
        let enough = (self.config.snapshot_every).max(entries / 10) as u64;
        let changes = self.unsaved_changes.load(Ordering::Acquire);
        (self.config.snapshot_every > 0 && changes >= enough).then_some(Chore::Snapshot)
    }

    /// Saves the graph and commits the lexical index.
    pub(crate) fn snapshot(&self) -> Result<()> {
        let _alone = self.maintenance.lock();
        {
            let _no_writes = self.writer.lock();
            self.commit_lexical()?;
        }
        let started = Instant::now();
        let changes = self.unsaved_changes.load(Ordering::Acquire);
        let image = self.current_graph().snapshot()?;
        let bytes =
            snapshot::write(&self.snapshot_path, Identity::new(self.store.id(), &self.config), &image)?;
        *self.saved.lock() = Some(Saved { bytes, at: SystemTime::now() });
        self.unsaved_changes.fetch_sub(changes, Ordering::AcqRel);
        tracing::info!(
            bytes,
            keys = image.keys.len(),
            seconds = started.elapsed().as_secs_f64(),
            "saved the graph"
        );
        Ok(())
    }

    /// Builds a graph from the vectors beside the live one, catches up while writes wait, and puts it in place.
    pub(crate) fn rebuild(&self) -> Result<()> {
        let _alone = self.maintenance.lock();
        let started = Instant::now();
        let graph = Hnsw::new(&self.config)?;
        let live: RoaringTreemap = self.state.read().slab.keys().collect();
        self.add_from_slab(&graph, &live)?;

        let _no_writes = self.writer.lock();
        let live: RoaringTreemap = self.state.read().slab.keys().collect();
        let built = graph.keys();
        self.add_from_slab(&graph, &(&live - &built))?;
        graph.remove(&(&built - &live).into_iter().collect::<Vec<_>>());
        *self.graph.write() = Arc::new(graph);
        self.graph_is_complete.store(true, Ordering::Release);
        self.unsaved_changes.fetch_add(1, Ordering::AcqRel);
        tracing::info!(
            documents = live.len(),
            seconds = started.elapsed().as_secs_f64(),
            "rebuilt the graph"
        );
        Ok(())
    }

    /// Adds the vectors of keys that are still there, a batch at a time, so that writers get their turn in between.
    pub(crate) fn add_from_slab(&self, graph: &Hnsw, keys: &RoaringTreemap) -> Result<()> {
        let mut keys = keys.iter().peekable();
        while keys.peek().is_some() {
            let batch: Vec<(u64, Vec<f32>)> = {
                let state = self.state.read();
                let there = keys.by_ref().take(REBUILD_BATCH);
                there.filter_map(|key| Some((key, state.slab.get(key)?.to_vec()))).collect()
            };
            let batch: Vec<(u64, &[f32])> = batch.iter().map(|(key, vector)| (*key, &vector[..])).collect();
            graph.add(&batch)?;
        }
        Ok(())
    }
}
