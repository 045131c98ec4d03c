//! Loads the models that bundles name, on the engines that the server's flags choose.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use async_trait::async_trait;
use expandr_models::{
    Encoder, Expander,
    bundle::{self, BUNDLE_FILE, ExpanderPart, ExpanderPlace, Ids, Manifest},
    decoder::{DecoderOptions, Precision},
    encoder::EncoderOptions,
    expander::{
        batched,
        mistral::{self, MistralOptions},
        openai::{OpenAiExpander, OpenAiOptions},
    },
    weights,
};

use super::options::{ExpanderEngine, ExpanderPrecision, Models};
use crate::bundles::{LoadModels, apart};

/// The URLs to which the key of a language model's server may go: those that the flags name, by themselves or in the bundle
/// that they name. A bundle that is imported later may name any.
pub(super) fn key_urls(models: &Models, index_dir: &Path) -> Vec<String> {
    if let Some(known) = &models.key_urls {
        return known.clone();
    }
    let of_bundle = |bundle: &String| {
        let folders = [PathBuf::from(bundle), index_dir.join("bundles").join(bundle)];
        let folder = folders.into_iter().find(|folder| folder.join(BUNDLE_FILE).is_file())?;
        bundle::read(&folder).ok()?.expander
    };
    let named = match &models.bundle {
        Some(bundle) => of_bundle(bundle).filter(ExpanderPart::is_remote).map(|part| part.model),
        None => Some(models.expander.clone()),
    };
    named.into_iter().collect()
}

/// Loads models as the flags of a server say.
pub(super) struct ServerModels {
    pub(super) models_dir: PathBuf,
    pub(super) models: Models,
}

#[async_trait]
impl LoadModels for ServerModels {
    fn identify(&self, folder: &Path, manifest: &Manifest) -> expandr_models::Result<Ids> {
        bundle::identify(&self.models_dir, folder, manifest)
    }

    async fn encoder(&self, folder: &Path, manifest: &Manifest) -> anyhow::Result<Arc<dyn Encoder>> {
        let start = Instant::now();
        let (models_dir, folder, manifest) = (self.models_dir.clone(), folder.to_owned(), manifest.clone());
        let options = EncoderOptions {
            device: self.models.device,
            queue_capacity: self.models.encoder_queue,
            ..EncoderOptions::default()
        };
        let encoder = apart("load-encoder", move || -> anyhow::Result<Arc<dyn Encoder>> {
            let path = bundle::encoder_place(&models_dir, &folder, &manifest)?;
            Ok(expandr_models::encoder::load(&path, &options)?)
        })
        .await??;
        let info = encoder.info();
        let took_ms = start.elapsed().as_millis() as u64;
        tracing::info!(id = %info.id, dimension = info.dimension, device = %info.device, took_ms, "encoder loaded");
        Ok(encoder)
    }

    async fn expander(
        &self,
        folder: &Path,
        manifest: &Manifest,
    ) -> anyhow::Result<Option<Arc<dyn Expander>>> {
        let start = Instant::now();
        let (models_dir, folder, manifest) = (self.models_dir.clone(), folder.to_owned(), manifest.clone());
        let place =
            tokio::task::spawn_blocking(move || bundle::expander_place(&models_dir, &folder, &manifest));
        let models = &self.models;
        let expander: Arc<dyn Expander> = match place.await?? {
            None => return Ok(None),
            Some(ExpanderPlace::Remote { url, model }) => {
                let options = OpenAiOptions {
                    api_key: self.key_for(&url),
                    max_concurrency: models.expander_concurrency,
                    queue_capacity: models.expander_queue,
                    ..OpenAiOptions::new(&url, &model)
                };
                Arc::new(OpenAiExpander::new(options)?)
            }
            Some(ExpanderPlace::Local { path, adapter }) => {
                self.in_process(&path, adapter.as_deref()).await?
            }
        };
        let info = expander.info();
        let took_ms = start.elapsed().as_millis() as u64;
        tracing::info!(id = %info.id, engine = info.engine, device = %info.device, took_ms, "expander loaded");
        Ok(Some(expander))
    }
}

impl ServerModels {
    /// The key, if the flags name this server. A bundle that names another one is served without.
    fn key_for(&self, url: &str) -> Option<String> {
        let key = self.models.expander_api_key.clone()?;
        let is_named = self.models.key_urls.iter().flatten().any(|named| named == url);
        if !is_named {
            tracing::warn!(
                url,
                "the key (--expander-api-key) is not sent to this language model's server, which no flag names; start with \
                 --expander or --bundle that names this URL if it is to have it"
            );
        }
        is_named.then_some(key)
    }

    /// A language model in this process, by the engine that was chosen or fits.
    async fn in_process(&self, path: &Path, adapter: Option<&Path>) -> anyhow::Result<Arc<dyn Expander>> {
        let models = &self.models;
        if use_batched(path, models)? {
            let options = DecoderOptions {
                places: models.expander_concurrency,
                queue_capacity: models.expander_queue,
                context: models.expander_context,
                adapter: adapter.map(Path::to_owned),
                precision: match models.expander_precision {
                    ExpanderPrecision::Exact => Precision::Exact,
                    ExpanderPrecision::Bf16 => Precision::Bf16,
                    ExpanderPrecision::Q8 => Precision::Q8,
                },
                ..DecoderOptions::default()
            };
            let expander = batched::load(path, options).await?;
            let (weights_mib, cache_mib) =
                (expander.decoder().weight_bytes() >> 20, expander.decoder().cache_bytes() >> 20);
            tracing::info!(
                weights_mib,
                cache_mib,
                "memory of the expander: weights, and at most for keys and values"
            );
            return Ok(expander);
        }
        if models.expander_precision != ExpanderPrecision::Exact {
            anyhow::bail!(
                "--expander-precision is for the engine batched, which doesn't run this model; for mistralrs there is \
                 --expander-isq"
            );
        }
        let options = MistralOptions {
            device: models.device,
            isq: models.expander_isq.clone(),
            max_concurrency: models.expander_concurrency,
            queue_capacity: models.expander_queue,
            ..MistralOptions::default()
        };
        let path = with_adapter(&self.models_dir, path, adapter).await?;
        Ok(mistral::load(&path, options).await?)
    }
}

/// The checkpoint itself, or with the adapter merged into it.
async fn with_adapter(models_dir: &Path, path: &Path, adapter: Option<&Path>) -> anyhow::Result<PathBuf> {
    let Some(adapter) = adapter else { return Ok(path.to_owned()) };
    let (models_dir, path, adapter) = (models_dir.to_owned(), path.to_owned(), adapter.to_owned());
    Ok(tokio::task::spawn_blocking(move || weights::adapted(&models_dir, &path, &adapter)).await??)
}

/// Whether our own decoder runs this checkpoint.
fn use_batched(path: &Path, models: &Models) -> anyhow::Result<bool> {
    let is_cpu = || anyhow::Ok(models.device.open()?.is_cpu());
    match models.expander_engine {
        ExpanderEngine::Mistralrs => Ok(false),
        ExpanderEngine::Auto => Ok(models.expander_isq.is_none() && batched::supports(path) && is_cpu()?),
        ExpanderEngine::Batched if models.expander_isq.is_some() => {
            anyhow::bail!(
                "the engine batched can't quantise; leave --expander-isq out, or use the engine mistralrs"
            )
        }
        ExpanderEngine::Batched if !is_cpu()? => {
            anyhow::bail!("the engine batched runs on a CPU; use --device cpu, or the engine mistralrs")
        }
        // Loading says what is wrong with a checkpoint that it can't run.
        ExpanderEngine::Batched => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use expandr_models::bundle::EncoderPart;

    use super::*;

    fn bundle_of(url: &str) -> Manifest {
        let encoder = EncoderPart { model: "all-minilm-l6-v2".into(), adapter: None };
        let expander =
            ExpanderPart { model: url.into(), adapter: None, remote_model: Some("default".into()) };
        Manifest::new("remote", "2026-01-01T00:00:00Z", encoder, Some(expander))
    }

    #[test]
    fn the_key_goes_only_where_the_flags_say() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = ("https://ours.example/v1", "https://theirs.example/v1");
        bundle::write(folder.path(), &mut bundle_of(ours)).unwrap();
        let folder_name = folder.path().to_str().unwrap();
        let loader = |flags: &[&str], known: Option<Vec<String>>| {
            let mut models = Models::of_flags(flags).unwrap();
            models.key_urls = known;
            models.key_urls = Some(key_urls(&models, Path::new("nowhere")));
            ServerModels { models_dir: folder.path().to_owned(), models }
        };
        for named in [["--expander", ours], ["--bundle", folder_name]] {
            let with_key = loader(&[named[0], named[1], "--expander-api-key", "secret"], None);
            assert_eq!(with_key.key_for(ours).as_deref(), Some("secret"), "{named:?}");
            assert_eq!(with_key.key_for(theirs), None, "{named:?}");
            assert_eq!(loader(&named, None).key_for(ours), None, "{named:?}");
        }
        // A job's own server serves the bundle in question, and has the list of the server that began it.
        let of_a_job = ["--bundle", folder_name, "--expander-api-key", "secret"];
        assert_eq!(loader(&of_a_job, Some(vec![theirs.into()])).key_for(ours), None);
    }
}
