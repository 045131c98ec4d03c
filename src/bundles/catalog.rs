//! The registered bundles: a folder each, whole or not there.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use expandr_models::{
    bundle::{self, Manifest, bundle_id},
    trainable::NewFolder,
};
use parking_lot::Mutex;

use super::models::{LoadModels, refused};
use crate::http::problem::{Code, Problem};

/// The folder `bundles/`, and what is in it.
#[derive(Clone)]
pub(super) struct Catalog {
    folder: PathBuf,
    known: Arc<Mutex<BTreeMap<String, Manifest>>>,
    /// Held while a folder is made.
    making: Arc<Mutex<()>>,
}

impl Catalog {
    /// Reads the manifests below `root/bundles`. One that can't be read is left out, with a warning: it may be no obstacle to
    /// those that can.
    ///
    /// # Errors
    /// When the folder can't be made or read.
    pub(super) fn open(root: &Path) -> anyhow::Result<Self> {
        let folder = root.join("bundles");
        fs_err::create_dir_all(&folder)?;
        let mut known = BTreeMap::new();
        for entry in fs_err::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".tmp-") {
                fs_err::remove_dir_all(entry.path())?; // what a killed import left
                continue;
            }
            match bundle::read(&entry.path()) {
                Ok(manifest) => drop(known.insert(name, manifest)),
                Err(error) => tracing::warn!(%error, "a folder among the bundles is none"),
            }
        }
        Ok(Self { folder, known: Arc::new(Mutex::new(known)), making: Arc::default() })
    }

    /// The folder of a bundle.
    pub(super) fn folder(&self, id: &str) -> PathBuf {
        // An id that is no plain name leads nowhere, not out of the folder.
        let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        self.folder.join(if plain { id } else { "no-bundle" })
    }

    /// What a bundle's `bundle.json` says.
    pub(super) fn get(&self, id: &str) -> Option<Manifest> {
        self.known.lock().get(id).cloned()
    }

    /// Every bundle, oldest first.
    pub(super) fn all(&self) -> Vec<(String, Manifest)> {
        let known = self.known.lock();
        let mut all: Vec<_> = known.iter().map(|(id, manifest)| (id.clone(), manifest.clone())).collect();
        all.sort_by(|(_, one), (_, other)| one.created_at.cmp(&other.created_at));
        all
    }

    /// Registers the bundle in `folder`; gives its id.
    ///
    /// # Errors
    /// `invalid_request` when it is no whole bundle or its weights are not here; `internal` when the disk fails.
    pub(super) async fn import(
        &self,
        models: &Arc<dyn LoadModels>,
        folder: &Path,
        name: Option<&str>,
    ) -> Result<String, Problem> {
        let (catalog, models) = (self.clone(), models.clone());
        let (folder, name) = (folder.to_owned(), name.map(str::to_owned));
        let imported = tokio::task::spawn_blocking(move || catalog.take(&*models, &folder, name)).await;
        imported.map_err(|error| Problem::new(Code::Internal, format!("an import broke: {error}")))?
    }

    fn take(&self, models: &dyn LoadModels, from: &Path, name: Option<String>) -> Result<String, Problem> {
        let _making = self.making.lock();
        let mut manifest = bundle::read(from).map_err(refused)?;
        if let Some(name) = name {
            manifest.name = name;
            manifest.check().map_err(|detail| Problem::field("/name", detail))?;
        }
        bundle::prove(from, &manifest).map_err(refused)?;
        let ids = models.identify(from, &manifest).map_err(refused)?;
        if let Some(stated) = &manifest.ids
            && *stated != ids
        {
            let detail = format!(
                "{}: it was made for encoder {} and language model {:?}, and here these names mean {} and {:?}; give it \
                 the weights that it was made for, or take `ids` out of its bundle.json if these are right",
                from.display(),
                stated.encoder,
                stated.expander,
                ids.encoder,
                ids.expander
            );
            return Err(Problem::field("", detail));
        }
        manifest.ids = Some(ids);
        let id = bundle_id(&manifest).map_err(refused)?;
        if self.get(&id).is_some() {
            return Ok(id);
        }
        self.copy(from, &id, &mut manifest).map_err(|error| {
            tracing::error!(error = format!("{error:#}"), "a bundle could not be copied");
            Problem::new(Code::Internal, format!("the bundle could not be copied: {error:#}"))
        })?;
        tracing::info!(%id, name = %manifest.name, from = %from.display(), "bundle registered");
        self.known.lock().insert(id.clone(), manifest);
        Ok(id)
    }

    fn copy(&self, from: &Path, id: &str, manifest: &mut Manifest) -> anyhow::Result<()> {
        let new = NewFolder::create(&self.folder(id))?;
        bundle::copy_owned(from, manifest, new.path())?;
        bundle::prove(new.path(), manifest).context("it changed while it was copied")?;
        bundle::write(new.path(), manifest)?;
        Ok(new.finish()?)
    }
}
