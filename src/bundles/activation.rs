//! From one bundle to another while searches and writes go on.
//!
//! 1. Prove the bundle's files; load encoder and expander (what the live bundle has already is shared); open the index of its
//!    encoder.
//! 2. Bring that index up to date from the live one, while writes go to the live one and are recorded.
//! 3. Repeat what was recorded, until little is left.
//! 4. Hold writes back, repeat the last ones, write `active.json`, and put the new bundle in the live one's place.
//! 5. When the last request of the old bundle has ended, close its index and drop it.
//!
//! Whatever ends this before `active.json` is in place leaves the old bundle active, and the new index as far as it had
//! come. The file and the bundle in memory change on one thread that nothing interrupts, while no write is under way. With
//! the same encoder the index is shared, and steps 2 and 3 fall away.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use expandr_index::Index;
use expandr_models::bundle::{self, Manifest};

use super::{
    Activation, ActivationProgress, Bundles, Ended, OnProgress, Stage, Underway,
    catch_up::{CatchUp, Counts},
    indexes::Indexes,
    live::Pause,
    models::{assemble, load, refused, unusable},
    now,
    pace::Pace,
    retire::retire,
};
use crate::{
    bundle::Bundle,
    http::problem::{Code, Problem},
    search::milliseconds,
};

/// So few recorded writes are repeated while other writes wait.
const FEW: usize = 64;
/// Where writes come faster than they can be repeated, they are held back after so many rounds.
const MOST_ROUNDS: usize = 32;

/// What an activation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Another bundle.
    Activate,
    /// The same bundle over a fresh index.
    Reindex,
}

/// The index that a bundle is to have.
struct Target {
    index: Arc<Index>,
    name: String,
    encoder: String,
}

/// What `/info` shows of it ends with it, however that is.
struct Shown<'a>(&'a Bundles);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        *self.0.underway.lock() = None;
    }
}

impl Bundles {
    /// One activation, if none is under way.
    pub(super) async fn run(
        &self,
        id: &str,
        kind: Kind,
        progress: OnProgress<'_>,
    ) -> Result<Activation, Problem> {
        let Some(manifest) = self.catalog.get(id) else {
            return Err(Problem::new(
                Code::NotFound,
                format!("there is no bundle `{id}`; GET /admin/bundles lists them"),
            ));
        };
        let Ok(_turn) = self.turn.clone().try_lock_owned() else {
            let other =
                self.underway().map_or_else(String::new, |underway| format!(" (to {})", underway.bundle));
            let detail = format!("another activation is under way{other}; wait for its end");
            return Err(Problem::new(Code::Conflict, detail));
        };
        let started = Instant::now();
        let first = ActivationProgress { stage: Stage::Prove, done: 0, total: 0 };
        *self.underway.lock() = Some(Underway { bundle: id.into(), started_at: now(), progress: first });
        let _shown = Shown(self);
        let report = |stage, done, total| {
            let at = ActivationProgress { stage, done, total };
            if let Some(underway) = self.underway.lock().as_mut() {
                underway.progress = at;
            }
            progress(at);
        };
        tracing::info!(bundle = id, ?kind, "activation begins");
        let mut result = self.change(id, &manifest, kind, &report).await;
        if let Ok(activation) = &mut result {
            activation.took_ms = milliseconds(started.elapsed());
        }
        self.conclude(id, &result);
        result
    }

    fn conclude(&self, id: &str, result: &Result<Activation, Problem>) {
        match result {
            Ok(done) => tracing::info!(
                bundle = id,
                embedded = done.embedded,
                kept = done.kept,
                deleted = done.deleted,
                paused_ms = done.writes_paused_ms as u64,
                took_ms = done.took_ms as u64,
                "activation has ended"
            ),
            Err(problem) => {
                tracing::warn!(bundle = id, detail = %problem.detail, "activation failed; the old bundle goes on")
            }
        }
        self.service.metrics().count_activation(result.is_ok());
        *self.ended.lock() = Some(Ended {
            bundle: id.into(),
            finished_at: now(),
            activation: result.as_ref().ok().cloned(),
            problem: result.as_ref().err().map(|problem| problem.detail.clone()),
        });
    }

    async fn change(
        &self,
        id: &str,
        manifest: &Manifest,
        kind: Kind,
        report: &(dyn Fn(Stage, usize, usize) + Send + Sync),
    ) -> Result<Activation, Problem> {
        if kind == Kind::Activate && self.active() == id {
            return Ok(Activation {
                active: id.into(),
                previous: self.previous(),
                changed: false,
                embedded: 0,
                kept: self.service.bundle().index.len(),
                deleted: 0,
                writes_paused_ms: 0.0,
                took_ms: 0.0,
            });
        }
        report(Stage::Prove, 0, 0);
        self.prove(id, manifest).await?;
        report(Stage::Load, 0, 0);
        let live = self.service.bundle();
        let (bundle, target) = self.open(id, manifest, kind, &live).await?;
        self.service.refuse_unfit(&bundle)?;
        let shared = Arc::ptr_eq(&bundle.index, &live.index);
        let catch_up = CatchUp {
            source: live.index.clone(),
            target: bundle.index.clone(),
            encoder: bundle.encoder.clone(),
        };
        drop(live);
        let (counts, pause, pause_start) = if shared {
            report(Stage::Switch, 0, 0);
            let pause = self.service.live().pause_writes().await;
            (Counts { kept: bundle.index.len(), ..Counts::default() }, pause, Instant::now())
        } else {
            self.follow(&catch_up, report).await?
        };
        drop(catch_up); // it would keep the old index
        let (old, new_index) = (self.switch(bundle, &target, pause).await?, target.index);
        let writes_paused_ms = milliseconds(pause_start.elapsed());
        report(Stage::Retire, 0, 0);
        if *old.id != *id {
            self.service.forget(&old.id);
        }
        retire(old, &new_index, self.settings.retire_timeout).await;
        self.prune();
        Ok(Activation {
            active: id.into(),
            previous: self.previous(),
            changed: true,
            embedded: counts.embedded,
            kept: counts.kept,
            deleted: counts.deleted,
            writes_paused_ms,
            took_ms: 0.0,
        })
    }

    async fn prove(&self, id: &str, manifest: &Manifest) -> Result<(), Problem> {
        let (folder, manifest) = (self.catalog.folder(id), manifest.clone());
        let proved = tokio::task::spawn_blocking(move || {
            let on_disk = bundle::read(&folder)?;
            bundle::prove(&folder, &on_disk)?;
            Ok::<_, expandr_models::Error>(on_disk == manifest)
        });
        let same = proved.await.map_err(|error| broke(&error))?.map_err(refused)?;
        if !same {
            let detail =
                format!("the bundle.json of {id} is not the one that was registered; import it anew");
            return Err(Problem::field("", detail));
        }
        Ok(())
    }

    /// Loads the bundle's models and opens its index.
    async fn open(
        &self,
        id: &str,
        manifest: &Manifest,
        kind: Kind,
        live: &Bundle,
    ) -> Result<(Bundle, Target), Problem> {
        let folder = self.catalog.folder(id);
        let loaded = load(&*self.models, &folder, manifest, Some(live)).await;
        let loaded = loaded.map_err(|error| unusable(id, &error))?;
        let info = loaded.encoder.info().clone();
        let name = self.index_name(&info.id, kind).map_err(|error| disk(&error))?;
        let index = self.indexes.get_for(&name, &info).await.map_err(|error| unusable(id, &error))?;
        let target = Target { index: index.clone(), name, encoder: info.id };
        let bundle = assemble(id, &folder, manifest, loaded, index).map_err(|error| unusable(id, &error))?;
        Ok((bundle, target))
    }

    /// The folder of an encoder's index. It is remembered before anything is in it, so that what a crash leaves is found
    /// again; that of a reindexing is not, because it begins from nothing.
    fn index_name(&self, encoder: &str, kind: Kind) -> std::io::Result<String> {
        let known = self.state.get().indexes.get(encoder).cloned();
        let name = known.unwrap_or_else(|| Indexes::usual_name(encoder));
        if kind == Kind::Reindex {
            let fresh = Indexes::next_name(&name);
            self.indexes.remove(&fresh);
            return Ok(fresh);
        }
        self.state.change(|state| drop(state.indexes.insert(encoder.to_owned(), name.clone())))?;
        Ok(name)
    }

    /// Brings the new index up to date. When this returns, writes are held back.
    async fn follow(
        &self,
        catch_up: &CatchUp,
        report: &(dyn Fn(Stage, usize, usize) + Send + Sync),
    ) -> Result<(Counts, Pause, Instant), Problem> {
        let pace = Pace::beside(&self.service, self.settings.embed_share);
        let recording = self.service.live().record();
        let mut counts = catch_up.all(&pace, &|done, total| report(Stage::Embed, done, total)).await?;
        for _ in 0..MOST_ROUNDS {
            let waiting = recording.waiting();
            report(Stage::Follow, 0, waiting);
            if waiting <= FEW {
                break;
            }
            counts.add_repeated(catch_up.these(recording.take(), &pace).await?);
        }
        report(Stage::Switch, 0, recording.waiting());
        let pause = self.service.live().pause_writes().await;
        let pause_start = Instant::now();
        counts.add_repeated(catch_up.these(recording.take(), &Pace::alone()).await?);
        Ok((counts, pause, pause_start))
    }

    /// The one step: the file, then the bundle in memory. Nothing can come between, and no caller can drop it half done.
    async fn switch(&self, bundle: Bundle, target: &Target, pause: Pause) -> Result<Arc<Bundle>, Problem> {
        if self.stopping.load(Ordering::SeqCst) {
            return Err(Problem::new(
                Code::Unavailable,
                "the server is shutting down; activate the bundle again",
            ));
        }
        let (state, service) = (self.state.clone(), self.service.clone());
        let (encoder, name) = (target.encoder.clone(), target.name.clone());
        let pending = self.pending.lock().clone().filter(|pending| *pending.bundle == *bundle.id);
        let fulfils_pending = pending.is_some();
        let switched = tokio::task::spawn_blocking(move || {
            state.change(|state| {
                state.activate(&bundle.id);
                state.indexes.insert(encoder, name);
                if let Some(configured) = pending {
                    state.configured = configured;
                }
            })?;
            Ok::<_, std::io::Error>(service.replace_bundle(bundle, &pause))
        });
        let old = switched.await.map_err(|error| broke(&error))?.map_err(|error| disk(&error))?;
        if fulfils_pending {
            *self.pending.lock() = None;
        }
        Ok(old)
    }

    /// Forgets the indexes that neither the active nor the previous bundle needs: every document is in the active one.
    fn prune(&self) {
        let state = self.state.get();
        let encoder =
            |id: &String| self.catalog.get(id).and_then(|manifest| manifest.ids).map(|ids| ids.encoder);
        let needed: Vec<String> = [Some(&state.active), state.previous.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(encoder)
            .collect();
        let forgotten: Vec<(String, String)> =
            state.indexes.into_iter().filter(|(encoder, _)| !needed.contains(encoder)).collect();
        let forget = self.state.change(|state| {
            state.indexes.retain(|encoder, _| needed.contains(encoder));
        });
        if let Err(error) = forget {
            tracing::warn!(%error, "indexes that nobody needs stay on the disk");
            return;
        }
        for (_, name) in forgotten {
            self.indexes.remove(&name);
        }
        if let Err(error) = self.indexes.tidy(&self.state.get().indexes) {
            tracing::warn!(%error, "indexes that nobody needs stay on the disk");
        }
    }
}

impl Counts {
    /// Adds documents that were repeated: they were counted before, unless they had to be embedded.
    fn add_repeated(&mut self, repeated: Self) {
        self.embedded += repeated.embedded;
        self.deleted += repeated.deleted;
    }
}

fn disk(error: &std::io::Error) -> Problem {
    tracing::error!(%error, "active.json can't be written");
    Problem::new(Code::Internal, format!("active.json can't be written: {error}"))
}

fn broke(error: &tokio::task::JoinError) -> Problem {
    tracing::error!(%error, "a part of an activation broke");
    Problem::new(Code::Internal, format!("a part of the activation broke: {error}"))
}
