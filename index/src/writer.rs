//! Writes: validated, made durable in one transaction for all who wait, then repeated in memory.
//!
//! Group commit: whoever writes puts a job into the queue and waits for the `writer` lock. Who gets it takes every job in
//! the queue, commits them with one sync, and leaves each its outcome; the others find theirs when they get the lock.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use serde::Serialize;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::index::Core;
use crate::store::{Change, Prepared};
use crate::vector_index::VectorIndex;

/// What an upsert did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct UpsertOutcome {
    /// Documents whose id was new.
    pub created: usize,
    /// Documents that replaced one.
    pub updated: usize,
}

pub(crate) struct Job {
    work: Work,
    outcome: Arc<Mutex<Option<Result<Done>>>>,
}

enum Work {
    Upsert(Vec<Prepared>),
    Delete(Vec<String>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Done {
    created: usize,
    replaced_or_removed: usize,
}

impl Core {
    pub(crate) fn upsert(&self, documents: Vec<(Document, Vec<f32>)>) -> Result<UpsertOutcome> {
        let prepared = self.prepare(documents)?;
        if prepared.is_empty() {
            return Ok(UpsertOutcome::default());
        }
        let done = self.submit(Work::Upsert(prepared))?;
        Ok(UpsertOutcome { created: done.created, updated: done.replaced_or_removed })
    }

    pub(crate) fn delete(&self, ids: &[String]) -> Result<usize> {
        if ids.is_empty() {
            return Ok(0);
        }
        Ok(self.submit(Work::Delete(ids.to_vec()))?.replaced_or_removed)
    }

    /// Validates everything and drops all but the last document of each id.
    fn prepare(&self, documents: Vec<(Document, Vec<f32>)>) -> Result<Vec<Prepared>> {
        let graph = self.current_graph();
        let mut prepared: Vec<Prepared> = Vec::with_capacity(documents.len());
        let mut positions: HashMap<String, usize> = HashMap::with_capacity(documents.len());
        for (document, vector) in documents {
            let metadata = document.prepare()?;
            graph.check_vector(&vector, || format!("document {:?}", crate::error::shorten(&document.id)))?;
            let Document { id, title, text, .. } = document;
            let position = *positions.entry(id.clone()).or_insert(prepared.len());
            let terms = self.lexical.as_ref().map(|lexical| lexical.analyzer.terms(&[&title, &text]));
            let new = Prepared { id, title, text, metadata, vector, terms };
            match prepared.get_mut(position) {
                Some(earlier) => *earlier = new,
                None => prepared.push(new),
            }
        }
        Ok(prepared)
    }

    fn submit(&self, work: Work) -> Result<Done> {
        let outcome = Arc::new(Mutex::new(None));
        self.queue.lock().push(Job { work, outcome: Arc::clone(&outcome) });
        let _turn = self.writer.lock();
        if let Some(outcome) = outcome.lock().take() {
            return outcome;
        }
        let jobs = std::mem::take(&mut *self.queue.lock());
        self.process(jobs);
        let done = outcome.lock().take();
        done.unwrap_or_else(|| Err(Error::Graph("the write that led this commit panicked".into())))
    }

    /// Commits jobs together. The caller holds `writer`.
    fn process(&self, jobs: Vec<Job>) {
        let (works, outcomes): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| (job.work, job.outcome)).unzip();
        match self.commit(works) {
            Ok(done) => {
                outcomes.iter().zip(done).for_each(|(outcome, done)| *outcome.lock() = Some(Ok(done)))
            }
            Err(error) => outcomes.iter().for_each(|outcome| *outcome.lock() = Some(Err(error.clone()))),
        }
        if self.maintenance_is_due().is_some() {
            self.wake_worker();
        }
    }

    fn commit(&self, works: Vec<Work>) -> Result<Vec<Done>> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let (done, changes) = self.store.transact(|tables| {
            let mut all = Vec::with_capacity(works.len());
            for work in works {
                let mut done = Done::default();
                match work {
                    Work::Upsert(documents) => {
                        for document in documents {
                            let created = tables.upsert(document)?;
                            done.created += usize::from(created);
                            done.replaced_or_removed += usize::from(!created);
                        }
                    }
                    Work::Delete(ids) => {
                        for id in ids {
                            done.replaced_or_removed += usize::from(tables.remove(&id)?);
                        }
                    }
                }
                all.push(done);
            }
            Ok(all)
        })?;
        self.apply(&changes)?;
        Ok(done)
    }

    /// Repeats in memory what the store has done: first the graph, which searches of it can't see through yet, then all
    /// at once what they see.
    fn apply(&self, changes: &[Change]) -> Result<()> {
        let removed: HashSet<u64> = changes
            .iter()
            .filter_map(|change| if let Change::Remove { key, .. } = change { Some(*key) } else { None })
            .collect();
        let added: Vec<(u64, &[f32])> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Put { key, vector, .. } if !removed.contains(key) => Some((*key, &vector[..])),
                _ => None,
            })
            .collect();
        let graph = self.current_graph();
        if let Err(error) = graph.add(&added) {
            // The documents are stored. They must be found, so exact search takes over until a rebuild.
            tracing::error!(%error, "the graph refused vectors; searching exactly until it is rebuilt");
            self.graph_is_complete.store(false, Ordering::Release);
        }
        {
            let mut state = self.state.write();
            let state = &mut *state;
            for change in changes {
                match change {
                    Change::Put { key, metadata, vector, terms } => {
                        let slot = state.slab.insert(*key, vector)?;
                        state.fields.insert(slot, metadata);
                        if let (Some(view), Some(terms)) = (&mut state.lexical, terms) {
                            view.insert(slot, terms);
                        }
                    }
                    Change::Remove { key, metadata } => {
                        if let Some(slot) = state.slab.remove(*key) {
                            state.fields.remove(slot, metadata);
                            if let Some(view) = &mut state.lexical {
                                view.remove(slot);
                            }
                        }
                    }
                }
            }
        }
        self.version.fetch_add(1, Ordering::AcqRel);
        self.write_lexical(changes);
        graph.remove(&removed.into_iter().collect::<Vec<_>>());
        self.unsaved_changes.fetch_add(changes.len() as u64, Ordering::AcqRel);
        Ok(())
    }
}
