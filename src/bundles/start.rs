//! Which bundle a server starts with.
//!
//! Flags describe the *configured* bundle. At the first start it is registered and active. Later `active.json` remembers the
//! configuration: with the same flags the active bundle serves, so that what was activated meanwhile survives a restart; with
//! other flags the configured bundle becomes active, at once where nothing has to be embedded, else while the old one serves.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use expandr_index::{Index, IndexConfig};
use expandr_models::{
    bundle::{self, Manifest},
    trainable::NewFolder,
};

use super::{
    catalog::Catalog,
    catch_up::CatchUp,
    indexes::Indexes,
    models::{LoadModels, assemble, load},
    pace::Pace,
    state::{ConfiguredState, State, StateFile},
};
use crate::{bundle::Bundle, http::problem::Problem};

/// What a server's flags describe.
#[derive(Clone, Debug)]
pub struct Configured {
    /// A hash of the flags, to see whether they have changed.
    pub fingerprint: String,
    /// What they name.
    pub models: ConfiguredModels,
}

/// A bundle, or models of which one is made.
#[derive(Clone, Debug)]
pub enum ConfiguredModels {
    /// A registered bundle's id, or a bundle's folder.
    Bundle(String),
    /// Models, and the files that the bundle is to own: path in the bundle → where the file is.
    Models(Box<Manifest>, Vec<(String, PathBuf)>),
}

/// A service's folder, opened, and the bundle to start with.
pub struct Opened {
    pub(super) state: Arc<StateFile>,
    pub(super) catalog: Catalog,
    pub(super) indexes: Arc<Indexes>,
    pub(super) models: Arc<dyn LoadModels>,
    /// The configuration that is to become active while `bundle` serves.
    pub(super) pending: Option<ConfiguredState>,
    /// What answers from now on.
    pub bundle: Bundle,
}

/// The folder before a bundle is loaded.
struct Ground {
    root: PathBuf,
    catalog: Catalog,
    indexes: Arc<Indexes>,
    models: Arc<dyn LoadModels>,
}

/// Opens the service's folder `root` and loads the bundle to start with. `template` says how indexes are opened.
///
/// # Errors
/// When the folder can't be read, the bundle can't be loaded, or the documents belong to another encoder and nothing says which.
pub async fn open(
    root: &Path,
    template: IndexConfig,
    models: Arc<dyn LoadModels>,
    configured: Configured,
) -> anyhow::Result<Opened> {
    fs_err::create_dir_all(root)?;
    let state = StateFile::read(root)?;
    let ground = Ground {
        root: root.to_owned(),
        catalog: Catalog::open(root)?,
        indexes: Arc::new(Indexes::open(root, template).context("the index can't be opened")?),
        models,
    };
    match state {
        None => ground.first(configured).await,
        Some(state) => ground.again(Arc::new(state), configured).await,
    }
}

impl Ground {
    /// The configured bundle is the active one.
    async fn first(self, configured: Configured) -> anyhow::Result<Opened> {
        let (id, manifest) = self.register(&configured).await?;
        let folder = self.catalog.folder(&id);
        let loaded = load(&*self.models, &folder, &manifest, None).await?;
        let encoder = loaded.encoder.info().clone();
        let found = self.indexes.found()?;
        let own = found.iter().find(|(_, info)| info.encoder_id == encoder.id);
        if own.is_none_or(|(_, info)| info.documents == 0)
            && let Some((name, other)) = found.iter().find(|(_, info)| info.documents > 0)
        {
            anyhow::bail!(
                "{}: it has {} documents of encoder {}, and this server is to run {}; start it once with that encoder, then \
                 with the other: the documents are then embedded anew while it serves. Or use another --index-dir",
                self.root.join("indexes").join(name).display(),
                other.documents,
                other.encoder_id,
                encoder.id
            );
        }
        let mut indexes: BTreeMap<String, String> =
            found.iter().map(|(name, info)| (info.encoder_id.clone(), name.clone())).collect();
        let name =
            indexes.entry(encoder.id.clone()).or_insert_with(|| Indexes::usual_name(&encoder.id)).clone();
        let index = self.indexes.get_for(&name, &encoder).await.context("the index can't be opened")?;
        let bundle = assemble(&id, &folder, &manifest, loaded, index)?;
        let configured = ConfiguredState { fingerprint: configured.fingerprint, bundle: id };
        let state = StateFile::create(&self.root, State::first(configured, indexes))?;
        Ok(self.opened(Arc::new(state), bundle, None))
    }

    async fn again(self, state: Arc<StateFile>, configured: Configured) -> anyhow::Result<Opened> {
        let before = state.get();
        self.indexes.tidy(&before.indexes)?;
        let unchanged = before.configured.fingerprint == configured.fingerprint;
        let active = self.load(&before, &before.active).await;
        let active = active.with_context(|| format!("the active bundle {} can't be loaded", before.active));
        let bundle = match active {
            Ok(bundle) if unchanged => return Ok(self.opened(state, bundle, None)),
            Ok(bundle) => Some(bundle),
            Err(error) if unchanged && before.configured.bundle != before.active => {
                return Err(error.context("name another one with --bundle, or mend this one"));
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the active bundle can't be loaded; the configured one is to take over"
                );
                None
            }
        };
        let (id, manifest) = self.register(&configured).await?;
        let configured = ConfiguredState { fingerprint: configured.fingerprint, bundle: id.clone() };
        if id == before.active {
            let bundle = bundle.context("the configured bundle is the active one, and it can't be loaded")?;
            state.change(|state| state.configured = configured)?;
            return Ok(self.opened(state, bundle, None));
        }
        let encoder = manifest.ids.as_ref().map(|ids| ids.encoder.as_str());
        match bundle {
            Some(bundle) if encoder != Some(&bundle.encoder.info().id) && !bundle.index.is_empty() => {
                Ok(self.opened(state, bundle, Some(configured)))
            }
            bundle => {
                let bundle = self.change_now(&state, bundle, &manifest, configured).await?;
                Ok(self.opened(state, bundle, None))
            }
        }
    }

    /// Makes the configured bundle active before anything is served. Documents are taken from the old bundle's index, even
    /// where the old bundle itself can't be loaded any more.
    async fn change_now(
        &self,
        state: &StateFile,
        old: Option<Bundle>,
        manifest: &Manifest,
        configured: ConfiguredState,
    ) -> anyhow::Result<Bundle> {
        let (id, before) = (configured.bundle.clone(), state.get());
        let folder = self.catalog.folder(&id);
        let loaded = load(&*self.models, &folder, manifest, old.as_ref()).await?;
        let encoder = loaded.encoder.info().clone();
        let known = before.indexes.get(&encoder.id).cloned();
        let name = known.unwrap_or_else(|| Indexes::usual_name(&encoder.id));
        state.change(|state| drop(state.indexes.insert(encoder.id.clone(), name.clone())))?;
        let source = match &old {
            Some(old) => Some(old.index.clone()),
            None => self.index_of(&before, &before.active)?,
        };
        let target = self.indexes.get_for(&name, &encoder).await?;
        if let Some(source) = source.filter(|source| !Arc::ptr_eq(source, &target)) {
            tracing::info!(bundle = %id, documents = source.len(), "the documents are brought into the new bundle's index");
            let catch_up =
                CatchUp { source: source.clone(), target: target.clone(), encoder: loaded.encoder.clone() };
            catch_up.all(&Pace::alone(), &|_, _| ()).await.map_err(said)?;
            source.close()?;
        }
        let bundle = assemble(&id, &folder, manifest, loaded, target)?;
        state.change(|state| {
            state.activate(&id);
            state.configured = configured;
        })?;
        tracing::info!(bundle = %id, "the configuration has changed: its bundle is active");
        Ok(bundle)
    }

    /// The index of a bundle's encoder, opened without the encoder.
    fn index_of(&self, state: &State, id: &str) -> anyhow::Result<Option<Arc<Index>>> {
        let ids = self.catalog.get(id).and_then(|manifest| manifest.ids);
        let ids = ids.with_context(|| format!("bundle {id} is not among the bundles any more"))?;
        let Some(name) = state.indexes.get(&ids.encoder) else { return Ok(None) };
        let Some(info) = self.indexes.inspect(name)? else { return Ok(None) };
        self.indexes.get(name, &info.encoder_id, info.dimension).map(Some)
    }

    /// Loads a registered bundle with its index.
    async fn load(&self, state: &State, id: &str) -> anyhow::Result<Bundle> {
        let manifest = self.catalog.get(id).context("it is not among the bundles")?;
        let folder = self.catalog.folder(id);
        let (proved, expected) = (folder.clone(), manifest.clone());
        tokio::task::spawn_blocking(move || bundle::prove(&proved, &expected)).await??;
        let loaded = load(&*self.models, &folder, &manifest, None).await?;
        let info = loaded.encoder.info().clone();
        let known = state.indexes.get(&info.id).cloned();
        let name = known.context("active.json names no index for its encoder")?;
        let index = self.indexes.get_for(&name, &info).await.context("the index can't be opened")?;
        assemble(id, &folder, &manifest, loaded, index)
    }

    /// Registers what the flags name; gives its id and manifest.
    async fn register(&self, configured: &Configured) -> anyhow::Result<(String, Manifest)> {
        let id = match &configured.models {
            ConfiguredModels::Bundle(id) if self.catalog.get(id).is_some() => id.clone(),
            ConfiguredModels::Bundle(folder) => self.import(Path::new(folder)).await?,
            ConfiguredModels::Models(manifest, files) => {
                // It vanishes when it is dropped, after its copy is registered.
                let made = NewFolder::create(&self.root.join("bundles/configured"))?;
                for (name, from) in files {
                    let to = made.path().join(name);
                    fs_err::create_dir_all(to.parent().unwrap_or(made.path()))?;
                    fs_err::copy(from, to)?;
                }
                let mut manifest = Manifest::clone(manifest);
                bundle::write(made.path(), &mut manifest)?;
                self.import(made.path()).await?
            }
        };
        let manifest = self.catalog.get(&id).with_context(|| format!("bundle {id} was not registered"))?;
        Ok((id, manifest))
    }

    async fn import(&self, folder: &Path) -> anyhow::Result<String> {
        self.catalog.import(&self.models, folder, None).await.map_err(said)
    }

    fn opened(self, state: Arc<StateFile>, bundle: Bundle, pending: Option<ConfiguredState>) -> Opened {
        let Self { catalog, indexes, models, .. } = self;
        Opened { state, catalog, indexes, models, pending, bundle }
    }
}

fn said(problem: Problem) -> anyhow::Error {
    anyhow::Error::msg(problem.detail)
}
