//! Bundles over doubles: models that manifests name, without weights.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use expandr::bundles::{Configured, ConfiguredModels, LoadModels};
use expandr_models::{
    Encoder, Error, Expander,
    bundle::{EncoderPart, ExpanderPart, Ids, Manifest},
    testing::HashEncoder,
};
use parking_lot::Mutex;

/// The encoder and the expander that a double has from the start.
pub(crate) const ENCODER: &str = "hash";
pub(crate) const EXPANDER: &str = "scripted";

/// Encoders and expanders by the names that manifests give them.
#[derive(Default)]
pub(crate) struct DoubleModels {
    encoders: Mutex<HashMap<String, Arc<HashEncoder>>>,
    expanders: Mutex<HashMap<String, Arc<dyn Expander>>>,
}

impl DoubleModels {
    pub(crate) fn with(encoder: Arc<HashEncoder>, expander: Arc<dyn Expander>) -> Arc<Self> {
        let models = Self::default();
        models.add(ENCODER, encoder);
        models.expanders.lock().insert(EXPANDER.into(), expander);
        Arc::new(models)
    }

    pub(crate) fn add(&self, name: &str, encoder: Arc<HashEncoder>) {
        self.encoders.lock().insert(name.into(), encoder);
    }

    fn find(&self, name: &str) -> expandr_models::Result<Arc<HashEncoder>> {
        let missing = || Error::Weights(format!("`{name}` is nowhere"));
        self.encoders.lock().get(name).cloned().ok_or_else(missing)
    }
}

#[async_trait]
impl LoadModels for DoubleModels {
    fn identify(&self, _folder: &Path, manifest: &Manifest) -> expandr_models::Result<Ids> {
        let encoder = self.find(&manifest.encoder.model)?.info().id.clone();
        let expanders = self.expanders.lock();
        let expander = manifest.expander.as_ref().map(|part| expanders[&part.model].info().id.clone());
        Ok(Ids { encoder, expander })
    }

    async fn encoder(&self, _folder: &Path, manifest: &Manifest) -> anyhow::Result<Arc<dyn Encoder>> {
        Ok(self.find(&manifest.encoder.model)?)
    }

    async fn expander(
        &self,
        _folder: &Path,
        manifest: &Manifest,
    ) -> anyhow::Result<Option<Arc<dyn Expander>>> {
        let expanders = self.expanders.lock();
        Ok(manifest.expander.as_ref().map(|part| expanders[&part.model].clone()))
    }
}

/// The manifest of `encoder` and the usual expander.
pub(crate) fn manifest(name: &str, encoder: &str) -> Manifest {
    let encoder = EncoderPart { model: encoder.into(), adapter: None };
    let expander = ExpanderPart { model: EXPANDER.into(), adapter: None, remote_model: None };
    Manifest::new(name, "2026-11-26T15:00:00Z", encoder, Some(expander))
}

/// Flags that describe `manifest`; their fingerprint is its name.
pub(crate) fn configured(manifest: Manifest, files: Vec<(String, PathBuf)>) -> Configured {
    let fingerprint = manifest.name.clone();
    Configured { fingerprint, models: ConfiguredModels::Models(Box::new(manifest), files) }
}

/// Writes a bundle's folder.
pub(crate) fn write(folder: &Path, mut manifest: Manifest) {
    fs_err::create_dir_all(folder).unwrap();
    expandr_models::bundle::write(folder, &mut manifest).unwrap();
}
