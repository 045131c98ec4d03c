//! The life of a bundle: registered, made active while another serves, rolled back to, packaged from a training run.
//!
//! On disk, in the service's folder:
//!
//! ```text
//! active.json              which bundle is active, which was before, and where each encoder's index is
//! bundles/<id>/            a bundle's folder: bundle.json and the files that it owns
//! indexes/<name>/          one index for each encoder; bundles with the same encoder share it
//! ```
//!
//! In reading order:
//!
//! - `live`: the bundle that answers, and the gate that every write passes.
//! - `state`: `active.json`; `catalog`: the registered bundles; `indexes`: the indexes' folders.
//! - `models`: from a manifest to a loaded bundle.
//! - `catch_up`: what makes one index hold what another holds; `pace`: how fast.
//! - `apart`: threads for loading and dropping.
//! - `activation`: the change from one bundle to another, step by step; `retire`: what becomes of the old one.
//! - `start`: which bundle a server starts with.
//! - `package`: from a run folder of `expandr train` to a bundle's folder.
//!
//! A crash at any moment leaves one whole bundle active: `active.json` is renamed into place once, when the new index
//! holds every document and no write is under way.

mod activation;
mod apart;
mod catalog;
mod catch_up;
mod indexes;
mod live;
mod models;
mod pace;
mod package;
mod retire;
mod start;
mod state;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use expandr_models::bundle::Manifest;
use parking_lot::Mutex;
use serde::Serialize;
use utoipa::ToSchema;

pub use self::{
    activation::Begun,
    live::{Live, Write},
    models::{LoadModels, refused},
    package::{PackageFacts, package},
    start::{Configured, ConfiguredModels, Opened, open},
};
pub(crate) use self::{apart::apart, live::Pause};
use self::{catalog::Catalog, indexes::Indexes, state::StateFile};
use crate::{
    clock,
    http::problem::{Code, Problem},
    metrics::Metrics,
    search::{SearchService, SearchSettings},
};

/// Where an activation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ActivationStage)]
pub enum Stage {
    /// The bundle's files are compared with their hashes.
    Prove,
    /// Encoder, expander and index are opened.
    Load,
    /// Documents of the live index go into the new one; counted in documents.
    Embed,
    /// What was written meanwhile is repeated; counted in documents.
    Follow,
    /// Writes wait, the last ones are repeated, and the new bundle takes over.
    Switch,
    /// Requests in flight finish on the old bundle, and its memory is given back.
    Retire,
}

/// How far an activation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ActivationProgress {
    /// Where it is.
    pub stage: Stage,
    /// How much of this stage is done.
    pub done: usize,
    /// Of how much; 0 where nothing is counted.
    pub total: usize,
}

/// Hears how far an activation is; called often, so it should be quick.
pub type OnProgress<'a> = &'a (dyn Fn(ActivationProgress) + Send + Sync);

/// What an activation did.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Activation {
    /// The bundle that answers now.
    pub active: String,
    /// The one before it, to which a rollback leads.
    pub previous: Option<String>,
    /// False when the bundle was active already and nothing was to be done.
    pub changed: bool,
    /// Documents that were embedded for it.
    pub embedded: usize,
    /// Documents that its index had already.
    pub kept: usize,
    /// Documents that its index had and nobody else.
    pub deleted: usize,
    /// How long writes had to wait, in milliseconds.
    pub writes_paused_ms: f64,
    /// From the start until the old bundle's memory was given back, in milliseconds.
    pub took_ms: f64,
}

/// The activation under way.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = ActivationUnderway)]
pub struct Underway {
    /// The bundle that is to become active.
    pub bundle: String,
    /// When it began, RFC 3339.
    pub started_at: String,
    /// How far it is.
    #[serde(flatten)]
    pub progress: ActivationProgress,
}

/// How the last activation of this server's life ended.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = EndedActivation)]
pub struct Ended {
    /// The bundle that was to become active.
    pub bundle: String,
    /// When it ended, RFC 3339.
    pub finished_at: String,
    /// What it did; none when it failed.
    pub activation: Option<Activation>,
    /// Why it failed.
    pub problem: Option<String>,
}

/// A registered bundle.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct BundleRecord {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// Whether it answers now.
    pub active: bool,
    /// Whether a rollback leads to it.
    pub previous: bool,
    /// Everything that its `bundle.json` says.
    pub manifest: Manifest,
}

/// How bundles are run.
#[derive(Clone, Copy, Debug)]
pub struct BundleSettings {
    /// The share of the time that embedding for another bundle takes while searches are in flight, above 0 and at most 1.
    pub embed_share: f64,
    /// How long the requests of a retired bundle have until its memory is given up on.
    pub retire_timeout: Duration,
}

impl Default for BundleSettings {
    fn default() -> Self {
        Self { embed_share: 0.5, retire_timeout: Duration::from_secs(120) }
    }
}

/// The bundles of a service.
pub struct Bundles {
    state: Arc<StateFile>,
    catalog: Catalog,
    indexes: Arc<Indexes>,
    models: Arc<dyn LoadModels>,
    service: Arc<SearchService>,
    settings: BundleSettings,
    /// Held by the activation under way.
    turn: Arc<tokio::sync::Mutex<()>>,
    underway: Arc<Mutex<Option<Underway>>>,
    ended: Mutex<Option<Ended>>,
    /// A configuration that becomes the remembered one with the activation of its bundle.
    pending: Mutex<Option<state::ConfiguredState>>,
    stopping: AtomicBool,
}

impl Bundles {
    /// A service that answers with the bundle of `opened`, and the bundles around it.
    pub fn serve(
        opened: Opened,
        metrics: Arc<Metrics>,
        searching: SearchSettings,
        settings: BundleSettings,
    ) -> (Arc<SearchService>, Arc<Self>) {
        let Opened { state, catalog, indexes, models, pending, bundle } = opened;
        let service = Arc::new(SearchService::new(bundle, metrics, searching));
        let bundles = Self {
            state,
            catalog,
            indexes,
            models,
            service: service.clone(),
            settings,
            turn: Arc::default(),
            underway: Arc::default(),
            ended: Mutex::new(None),
            pending: Mutex::new(pending),
            stopping: AtomicBool::new(false),
        };
        (service, Arc::new(bundles))
    }

    /// Every registered bundle, oldest first.
    pub fn list(&self) -> Vec<BundleRecord> {
        let (active, state) = (self.active(), self.state.get());
        let record = |(id, manifest): (String, Manifest)| BundleRecord {
            name: manifest.name.clone(),
            created_at: manifest.created_at.clone(),
            active: id == active,
            previous: state.previous.as_ref() == Some(&id),
            id,
            manifest,
        };
        self.catalog.all().into_iter().map(record).collect()
    }

    /// One registered bundle.
    pub fn get(&self, id: &str) -> Option<BundleRecord> {
        self.list().into_iter().find(|record| record.id == id)
    }

    /// The id of the bundle that answers.
    pub fn active(&self) -> String {
        self.service.bundle().id.to_string()
    }

    /// The id of the bundle to which a rollback leads.
    pub fn previous(&self) -> Option<String> {
        self.state.get().previous
    }

    /// The activation under way.
    pub fn underway(&self) -> Option<Underway> {
        self.underway.lock().clone()
    }

    /// How the last activation ended.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.lock().clone()
    }

    /// The folder of a bundle, whether it is registered or not.
    pub fn manifest_folder(&self, id: &str) -> PathBuf {
        self.catalog.folder(id)
    }

    /// Registers the bundle in `folder`: its files are proved and copied, its weights found and identified. Registered bundles
    /// stay as they are: one that is there already, by its content, is not taken again, whatever its name. Gives its id.
    ///
    /// # Errors
    /// `invalid_request` when it is no whole bundle, or names weights that are not here.
    pub async fn import(&self, folder: &Path, name: Option<&str>) -> Result<String, Problem> {
        self.catalog.import(&self.models, folder, name).await
    }

    /// Makes a registered bundle the active one while the old one goes on answering; returns when that is done and the old
    /// one's memory is given back. Dropped before the switch it leaves everything as it was.
    ///
    /// # Errors
    /// `not_found` for an unknown id, `conflict` while another activation is under way, `invalid_request` for a bundle that
    /// can't be used here; the old bundle then goes on.
    pub async fn activate(&self, id: &str, progress: OnProgress<'_>) -> Result<Activation, Problem> {
        let begun = self.begin_activation(id)?;
        self.finish(begun, progress).await
    }

    /// Makes the bundle before the active one active again.
    ///
    /// # Errors
    /// `conflict` when there is none; else as [`Bundles::activate`].
    pub async fn rollback(&self, progress: OnProgress<'_>) -> Result<Activation, Problem> {
        let begun = self.begin_rollback()?;
        self.finish(begun, progress).await
    }

    /// The first half of [`Bundles::activate`]: with its result the turn is taken, and [`Bundles::finish`] does the rest.
    ///
    /// # Errors
    /// `not_found`, `conflict`.
    pub fn begin_activation(&self, id: &str) -> Result<Begun, Problem> {
        self.begin(id, activation::Kind::Activate)
    }

    /// The first half of [`Bundles::rollback`].
    ///
    /// # Errors
    /// `conflict`.
    pub fn begin_rollback(&self) -> Result<Begun, Problem> {
        let Some(previous) = self.previous() else {
            return Err(Problem::new(
                Code::Conflict,
                "there is no bundle to roll back to: none was active before",
            ));
        };
        self.begin_activation(&previous)
    }

    /// Embeds every document anew with the active bundle's encoder, into a fresh index that takes the old one's place.
    ///
    /// # Errors
    /// As [`Bundles::activate`].
    pub async fn reindex(&self, progress: OnProgress<'_>) -> Result<Activation, Problem> {
        let active = self.active();
        let begun = self.begin(&active, activation::Kind::Reindex)?;
        self.finish(begun, progress).await
    }

    /// Activates the bundle of changed flags, if `open` found that its documents have to be embedded first; none if not.
    pub async fn activate_configured(&self) -> Option<Result<Activation, Problem>> {
        let configured = self.pending.lock().clone()?;
        tracing::info!(bundle = %configured.bundle, "the configuration has changed: its bundle is made active");
        let ended = self.activate(&configured.bundle, &|_| ()).await;
        if let Err(problem) = &ended {
            let detail = &problem.detail;
            tracing::error!(bundle = %configured.bundle, detail, "it could not be made active; the old one goes on");
        }
        Some(ended)
    }

    /// Lets no activation end any more and waits for writes under way: call it before the live index is closed.
    pub async fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(self.service.live().pause_writes().await);
    }
}

/// This moment, as manifests and answers write it.
pub(crate) fn now() -> String {
    clock::text(clock::now())
}
