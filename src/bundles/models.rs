//! From a manifest to a loaded bundle.

use std::{path::Path, sync::Arc};

use anyhow::Context;
use async_trait::async_trait;
use expandr_index::Index;
use expandr_models::{
    Encoder, Expander,
    bundle::{Ids, Manifest, same_parts},
    expander::PromptTemplate,
    gate::{Gate, same_weights},
};

use crate::{
    bundle::Bundle,
    http::problem::{Code, Problem},
};

/// Loads the models that manifests name.
#[async_trait]
pub trait LoadModels: Send + Sync {
    /// The ids of what a manifest's models are here. Blocks.
    ///
    /// # Errors
    /// When they are not here, damaged, or don't fit together.
    fn identify(&self, folder: &Path, manifest: &Manifest) -> expandr_models::Result<Ids>;

    /// Loads the encoder.
    ///
    /// # Errors
    /// When it can't be loaded.
    async fn encoder(&self, folder: &Path, manifest: &Manifest) -> anyhow::Result<Arc<dyn Encoder>>;

    /// Loads the language model, if the manifest has one.
    ///
    /// # Errors
    /// When it can't be loaded.
    async fn expander(&self, folder: &Path, manifest: &Manifest)
    -> anyhow::Result<Option<Arc<dyn Expander>>>;
}

/// The models of a bundle, before it has an index.
pub(super) struct Loaded {
    pub(super) encoder: Arc<dyn Encoder>,
    pub(super) expander: Option<Arc<dyn Expander>>,
}

/// Loads the models of a registered bundle; those that `live` has already, by their ids, are taken from there.
///
/// # Errors
/// When one can't be loaded or is not what it was when the bundle was registered.
pub(super) async fn load(
    models: &dyn LoadModels,
    folder: &Path,
    manifest: &Manifest,
    live: Option<&Bundle>,
) -> anyhow::Result<Loaded> {
    let ids = manifest.ids.clone().context("the bundle was never identified; import it anew")?;
    let encoder = match live.filter(|live| live.encoder.info().id == ids.encoder) {
        Some(live) => live.encoder.clone(),
        None => models.encoder(folder, manifest).await.context("the encoder can't be loaded")?,
    };
    let found = &encoder.info().id;
    anyhow::ensure!(
        *found == ids.encoder,
        "the encoder is {found} now, and was {} when the bundle was registered; put the old weights back, or register a \
         bundle with the new ones",
        ids.encoder
    );
    let expander = match live.and_then(|live| live_expander(live, manifest, &ids)) {
        Some(expander) => Some(expander),
        None => models.expander(folder, manifest).await.context("the expander can't be loaded")?,
    };
    if let (Some(stated), Some(expander)) = (&ids.expander, &expander) {
        let found = &expander.info().id;
        anyhow::ensure!(
            same_parts(stated, found),
            "the expander is {found} now, and was {stated} when the bundle was registered; put the old weights back, or \
             register a bundle with the new ones"
        );
    }
    Ok(Loaded { encoder, expander })
}

/// The live bundle's expander, if it is the one that the manifest means.
fn live_expander(live: &Bundle, manifest: &Manifest, ids: &Ids) -> Option<Arc<dyn Expander>> {
    let (stated, expander) = (ids.expander.as_ref()?, live.expander.as_ref()?);
    let part = manifest.expander.as_ref()?;
    // A server's model is known by its name alone, and another server may have another model of that name.
    let same_place = !part.is_remote() || live.remote.as_deref() == Some(part.model.as_str());
    (same_place && same_parts(stated, &expander.info().id)).then(|| expander.clone())
}

/// Puts a bundle together.
///
/// # Errors
/// When its gate can't be read or belongs to another encoder.
pub(super) fn assemble(
    id: &str,
    folder: &Path,
    manifest: &Manifest,
    loaded: Loaded,
    index: Arc<Index>,
) -> anyhow::Result<Bundle> {
    let prompt = PromptTemplate::for_query(manifest.prompt_text())?;
    let mut bundle = Bundle::new(loaded.encoder, loaded.expander, index, prompt);
    if let Some(gate) = &manifest.gate {
        let gate = load_gate(&folder.join(gate), &bundle).context("the gate can't be loaded")?;
        bundle = bundle.with_gate(gate);
    }
    bundle.id = id.into();
    bundle.name = manifest.name.as_str().into();
    bundle.defaults = manifest.defaults;
    let remote = manifest.expander.as_ref().filter(|part| part.is_remote());
    bundle.remote = remote.map(|part| part.model.clone());
    Ok(bundle)
}

/// Reads a gate; one of another encoder is refused, because cosines of another encoder mean something else.
fn load_gate(path: &Path, bundle: &Bundle) -> anyhow::Result<Gate> {
    let gate = Gate::read(path)?;
    let encoder = &bundle.encoder.info().id;
    anyhow::ensure!(
        same_weights(gate.encoder(), encoder),
        "{}: fitted on encoder {}, and this server runs {encoder}; run that encoder, give another gate with --gate, or \
         leave it out with --gate none",
        path.display(),
        gate.encoder()
    );
    let expander = bundle.expander.as_ref().map(|expander| expander.info().id.as_str());
    if let Some(runs) = expander
        && gate.is_of_expander(runs) == Some(false)
    {
        let fitted = gate.expander();
        tracing::warn!(fitted, runs, "the gate was fitted on another expander: its predictions may be off");
    }
    let figures = gate.trained_on();
    tracing::info!(
        id = %gate.id(), threshold = ?gate.threshold(), queries = figures.queries, gain = figures.gain_gated,
        skipped = figures.share_skipped, "gate loaded"
    );
    Ok(gate)
}

/// The problem of a bundle that can't be used: the operator's to solve.
pub fn refused(error: expandr_models::Error) -> Problem {
    Problem::field("", error.to_string())
}

/// The problem of a bundle that can't be loaded.
pub(super) fn unusable(id: &str, error: &anyhow::Error) -> Problem {
    tracing::warn!(%id, error = format!("{error:#}"), "a bundle can't be used");
    Problem::new(Code::InvalidRequest, format!("bundle {id} can't be used: {error:#}"))
}

#[cfg(test)]
mod tests {
    use expandr_index::IndexConfig;
    use expandr_models::{
        gate::{Combination, Features, GATE_FILE, Row},
        testing::HashEncoder,
    };

    use super::*;

    fn gate(encoder: &str) -> Gate {
        let row = |n: u8| Row {
            id: n.to_string(),
            features: Features::new("a", &[f32::from(n) / 50.0]),
            gain: 0.5 - f64::from(n) / 50.0,
        };
        let with =
            Combination { encoder: encoder.into(), expander: None, query_weight: 0.5, joint_encoding: false };
        Gate::fit(&(0..50).map(row).collect::<Vec<_>>(), with)
    }

    #[test]
    fn a_gate_of_another_encoder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let encoder = Arc::new(HashEncoder::new(8));
        let config = IndexConfig::new(&encoder.info().id, 8);
        let index = Arc::new(Index::open(folder.path().join("index"), config).unwrap());
        let bundle = Bundle::new(encoder, None, index, PromptTemplate::q2d());
        let path = folder.path().join(GATE_FILE);
        // The same weights under another name, as after a move of their folder.
        fs_err::write(&path, gate("encoder@000000000000").to_json().unwrap()).unwrap();
        assert_eq!(load_gate(&path, &bundle).unwrap().encoder(), "encoder@000000000000");
        fs_err::write(&path, gate("hash-8@000000000001").to_json().unwrap()).unwrap();
        let error = load_gate(&path, &bundle).unwrap_err().to_string();
        for part in ["gate.json", "hash-8@000000000001", "hash-8@000000000000", "--gate none"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        fs_err::write(&path, "{}").unwrap();
        assert!(load_gate(&path, &bundle).unwrap_err().to_string().contains("gate.json"));
    }
}
