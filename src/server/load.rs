//! From names and folders to a bundle.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use expandr_index::{Bm25, Index, IndexConfig};
use expandr_models::{
    Encoder, Expander,
    decoder::{DecoderOptions, Precision},
    encoder::EncoderOptions,
    expander::{
        PromptTemplate, batched,
        mistral::{self, MistralOptions},
        openai::{OpenAiExpander, OpenAiOptions},
    },
    gate::{GATE_FILE, Gate, same_weights},
    weights::{self, Role},
};

use super::options::{ExpanderEngine, ExpanderPrecision, Lexical, Models, ServeOptions};
use crate::bundle::Bundle;

/// Loads models and index.
///
/// # Errors
/// When a model or the index can't be opened, or they don't belong together.
pub async fn load_bundle(options: &ServeOptions) -> anyhow::Result<Bundle> {
    let models_dir = &options.places.models_dir;
    let encoder = load_encoder(models_dir, &options.models).await.context("the encoder can't be loaded")?;
    let index = open_index(options, encoder.as_ref()).await.context("the index can't be opened")?;
    let (expander, expander_folder) =
        load_expander(models_dir, &options.models).await.context("the expander can't be loaded")?;
    let bundle = Bundle::new(encoder, expander, Arc::new(index), PromptTemplate::q2d());
    Ok(match gate_path(&options.models, expander_folder.as_deref()) {
        Some(path) => {
            let gate = load_gate(&path, &bundle).context("the gate can't be loaded")?;
            bundle.with_gate(gate)
        }
        None => bundle,
    })
}

/// The file of the gate: the one that was asked for, else that beside the expander's weights.
fn gate_path(models: &Models, expander_folder: Option<&Path>) -> Option<PathBuf> {
    match &models.gate {
        Some(path) if path.as_os_str() == "none" => None,
        Some(path) => Some(path.clone()),
        None => expander_folder.map(|folder| folder.join(GATE_FILE)).filter(|path| path.is_file()),
    }
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

async fn load_encoder(models_dir: &Path, models: &Models) -> anyhow::Result<Arc<dyn Encoder>> {
    let start = Instant::now();
    let (models_dir, spec) = (models_dir.to_owned(), models.encoder.clone());
    let adapter = models.encoder_adapter.clone();
    let options = EncoderOptions {
        device: models.device,
        queue_capacity: models.encoder_queue,
        ..EncoderOptions::default()
    };
    let encoder = tokio::task::spawn_blocking(move || -> anyhow::Result<Arc<dyn Encoder>> {
        let mut path = weights::resolve(&models_dir, &spec, Role::Encoder)?.path;
        if let Some(adapter) = adapter {
            path = weights::adapted(&models_dir, &path, &adapter)?;
        }
        Ok(expandr_models::encoder::load(&path, &options)?)
    })
    .await??;
    let info = encoder.info();
    let took_ms = start.elapsed().as_millis() as u64;
    tracing::info!(id = %info.id, dimension = info.dimension, device = %info.device, took_ms, "encoder loaded");
    Ok(encoder)
}

async fn open_index(options: &ServeOptions, encoder: &dyn Encoder) -> anyhow::Result<Index> {
    let info = encoder.info();
    let config = IndexConfig {
        exact_threshold: options.search.exact_threshold,
        ef_search: options.search.ef,
        lexical: options.search.lexical == Lexical::On,
        bm25: Bm25 { k1: options.search.bm25_k1, b: options.search.bm25_b },
        lexical_memory_bytes: options.search.lexical_memory_mib << 20,
        ..IndexConfig::new(&info.id, info.dimension)
    };
    let folder = options.places.index_dir.clone();
    Ok(tokio::task::spawn_blocking(move || Index::open(&folder, config)).await??)
}

/// The language model, if there is one, and the folder of its checkpoint, if that is here.
async fn load_expander(
    models_dir: &Path,
    models: &Models,
) -> anyhow::Result<(Option<Arc<dyn Expander>>, Option<PathBuf>)> {
    let start = Instant::now();
    let spec = models.expander.clone();
    let mut folder = None;
    let is_remote = spec.starts_with("http://") || spec.starts_with("https://");
    if models.expander_adapter.is_some() && (is_remote || spec == "none") {
        anyhow::bail!(
            "--expander-adapter is for a language model in this process, and --expander is {spec}; leave the adapter out, or \
             let that server load it"
        );
    }
    let expander: Arc<dyn Expander> = if spec == "none" {
        return Ok((None, None));
    } else if is_remote {
        let options = OpenAiOptions {
            api_key: models.expander_api_key.clone(),
            max_concurrency: models.expander_concurrency,
            queue_capacity: models.expander_queue,
            ..OpenAiOptions::new(&spec, &models.expander_model)
        };
        Arc::new(OpenAiExpander::new(options)?)
    } else {
        let store = models_dir.to_owned();
        let resolved =
            tokio::task::spawn_blocking(move || weights::resolve(&store, &spec, Role::Expander)).await??;
        let expander = load_in_process(models_dir, &resolved.path, models).await?;
        folder = Some(resolved.path).filter(|path| path.is_dir());
        expander
    };
    let info = expander.info();
    let took_ms = start.elapsed().as_millis() as u64;
    tracing::info!(id = %info.id, engine = info.engine, device = %info.device, took_ms, "expander loaded");
    Ok((Some(expander), folder))
}

/// A language model in this process, by the engine that was chosen or fits.
async fn load_in_process(
    models_dir: &Path,
    path: &Path,
    models: &Models,
) -> anyhow::Result<Arc<dyn Expander>> {
    if use_batched(path, models)? {
        let options = DecoderOptions {
            places: models.expander_concurrency,
            queue_capacity: models.expander_queue,
            context: models.expander_context,
            adapter: models.expander_adapter.clone(),
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
    let path = with_adapter(models_dir, path, models.expander_adapter.as_deref()).await?;
    Ok(mistral::load(&path, options).await?)
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
    use clap::Parser;
    use expandr_models::{
        gate::{Combination, Features, Row},
        testing::HashEncoder,
    };

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        models: Models,
    }

    fn models(flags: &[&str]) -> Models {
        Flags::try_parse_from(["expandr"].iter().chain(flags)).unwrap().models
    }

    fn gate(encoder: &str) -> Gate {
        let row = |n: u8| Row {
            id: n.to_string(),
            features: Features::new("a", &[f32::from(n) / 50.0]),
            gain: 0.5 - f64::from(n) / 50.0,
        };
        let with = Combination { encoder: encoder.into(), expander: None, query_weight: 0.5 };
        Gate::fit(&(0..50).map(row).collect::<Vec<_>>(), with)
    }

    #[test]
    fn the_gate_beside_the_expander_is_found_unless_another_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let place = |flags: &[&str]| gate_path(&models(flags), Some(folder.path()));
        assert_eq!(place(&[]), None, "there is none");
        fs_err::write(folder.path().join(GATE_FILE), "{}").unwrap();
        assert_eq!(place(&[]), Some(folder.path().join(GATE_FILE)));
        assert_eq!(place(&["--gate", "other.json"]), Some("other.json".into()));
        assert_eq!((place(&["--gate", "none"]), gate_path(&models(&[]), None)), (None, None));
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
