//! Adapters and checkpoints as files: what is written is what was trained, and other programs' files are read.

use std::path::Path;

use anyhow::Result;
use candle_core::{Device, Tensor};
use expandr_models::trainable::{
    ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFile, AdapterTask, CompletionBatch, Method, Pass, TextBatch,
    TextLengths, TrainableDecoder, TrainableEncoder, TrainableOptions, merge_adapter, truncate_layers,
};
use expandr_models::weights::adapted as adapted_checkpoint;
use expandr_models::{Priority, TextKind, encoder};

use crate::decoder::{Data, MODELS, adapted, full};
use crate::support::{checkpoint, fixture};

const TEXTS: [&str; 3] = ["what is query expansion", "retrieval systems answer a question", "a"];

fn batch(data: &Data) -> Result<CompletionBatch> {
    let mut batch = CompletionBatch::default();
    for example in data.preferences() {
        batch.push(&example.prompt, &[&example.chosen, &example.rejected])?;
    }
    Ok(batch)
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} {expected}");
    }
}

#[test]
fn a_merged_model_is_the_adapted_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in MODELS {
        let data = Data::read(name)?;
        let expected = adapted(name, false)?.log_probabilities(&batch(&data)?, Pass::inference())?.0;
        let adapter = AdapterFile::read(&fixture(&format!("{name}/adapter")))?;
        let target = folder.path().join(name);
        merge_adapter(&fixture(&format!("{name}/model")), &adapter, &target)?;
        let options = TrainableOptions { method: Method::Frozen, ..TrainableOptions::default() };
        let merged = TrainableDecoder::load(&target, &options, &Device::Cpu)?;
        assert!(merged.parameters().is_empty());
        assert_close(&merged.log_probabilities(&batch(&data)?, Pass::inference())?.0, &expected);
    }
    Ok(())
}

#[test]
fn a_model_with_an_adapter_is_made_once_in_the_store() -> Result<()> {
    let store = tempfile::tempdir()?;
    let (base, adapter) = (fixture("llama/model"), fixture("llama/adapter"));
    let made = adapted_checkpoint(store.path(), &base, &adapter)?;
    let name = made.file_name().unwrap().to_string_lossy().into_owned();
    assert!(name.starts_with("model-") && name.contains("-adapted-"), "{name}");
    let written = |folder: &Path| fs_err::metadata(folder.join("model.safetensors"))?.modified();
    let first = written(&made)?;
    assert_eq!(adapted_checkpoint(store.path(), &base, &adapter)?, made);
    assert_eq!(written(&made)?, first, "it is there and is not made again");
    let target = store.path().join("merged");
    merge_adapter(&base, &AdapterFile::read(&adapter)?, &target)?;
    let bytes = |folder: &Path| fs_err::read(folder.join("model.safetensors"));
    assert_eq!(bytes(&made)?, bytes(&target)?);
    // The same settings with other weights are another adapter.
    let mut other = AdapterFile::read(&adapter)?;
    for tensor in other.tensors.values_mut() {
        *tensor = (&*tensor + 0.5)?;
    }
    let retrained = store.path().join("adapter");
    other.write(&retrained)?;
    assert_ne!(adapted_checkpoint(store.path(), &base, &retrained)?, made);
    let error = adapted_checkpoint(store.path(), &base, &fixture("qwen2/model")).unwrap_err().to_string();
    assert!(error.contains("adapter_config.json"), "{error}");
    Ok(())
}

#[test]
fn an_adapter_that_is_written_and_read_is_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in MODELS {
        let source = fixture(&format!("{name}/adapter"));
        let adapter = AdapterFile::read(&source)?;
        assert_eq!(adapter.task, AdapterTask::CausalLm);
        let decoder = adapted(name, false)?;
        let target = folder.path().join(name);
        let written = AdapterFile::of(decoder.parameters(), &adapter.settings, adapter.task, "a base model")?;
        written.write(&target)?;
        written.write(&target)?; // replaces
        let again = AdapterFile::read(&target)?;
        assert_eq!(
            (&again.settings, again.task, again.base.as_str()),
            (&adapter.settings, adapter.task, "a base model")
        );
        assert_eq!(again.tensors.len(), adapter.tensors.len());
        for (name, tensor) in &adapter.tensors {
            assert_eq!(again.tensors[name].to_vec2::<f32>()?, tensor.to_vec2::<f32>()?);
        }
        assert_eq!(again.modules(), adapter.modules());
    }
    Ok(())
}

#[test]
fn adapters_of_other_kinds_or_models_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let source = fixture("llama/adapter");
    let config: serde_json::Value = serde_json::from_slice(&fs_err::read(source.join(ADAPTER_CONFIG))?)?;
    fs_err::copy(source.join(ADAPTER_WEIGHTS), folder.path().join(ADAPTER_WEIGHTS))?;
    for (key, value, word) in [
        ("peft_type", serde_json::json!("IA3"), "LORA"),
        ("use_dora", serde_json::json!(true), "use_dora"),
        ("bias", serde_json::json!("all"), "biases"),
        ("modules_to_save", serde_json::json!(["lm_head"]), "modules_to_save"),
        ("rank_pattern", serde_json::json!({"q_proj": 8}), "rank_pattern"),
        ("r", serde_json::json!(8), "the rank is 8"),
        ("lora_alpha", serde_json::json!(null), "lora_alpha"),
    ] {
        let mut changed = config.clone();
        changed[key] = value;
        fs_err::write(folder.path().join(ADAPTER_CONFIG), changed.to_string())?;
        let error = AdapterFile::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains(word), "{key}: {error}");
    }
    let adapter = AdapterFile::read(&source)?;
    let target = folder.path().join("merged");
    let error = merge_adapter(&checkpoint("roberta"), &adapter, &target).unwrap_err().to_string();
    assert!(error.contains("another model") && !target.exists(), "{error}");
    let error = full("llama", false)?.parameters().set(&adapter.tensors).unwrap_err().to_string();
    assert!(error.contains("another model"), "{error}");
    Ok(())
}

/// The vectors that the serving encoder gives.
fn served(folder: &std::path::Path) -> Result<Vec<Vec<f32>>> {
    let encoder = encoder::load(folder, &encoder::EncoderOptions::default())?;
    let texts = TEXTS.map(str::to_owned).to_vec();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(encoder.encode(TextKind::Query, Priority::Bulk, texts))?)
}

/// The vectors that the trainable encoder gives, normalised if the checkpoint's are.
fn trained(encoder: &TrainableEncoder) -> Result<Vec<Vec<f32>>> {
    let ids = TEXTS.iter().map(|text| encoder.ids(TextKind::Query, text)).collect::<Result<Vec<_>, _>>()?;
    let vectors = encoder.embed(&TextBatch::new(ids)?, Pass::inference())?.0;
    let vectors = match encoder.normalizes() {
        true => vectors.broadcast_div(&vectors.sqr()?.sum_keepdim(1)?.sqrt()?)?,
        false => vectors,
    };
    Ok(vectors.to_vec2()?)
}

#[test]
fn a_saved_encoder_serves_what_was_trained() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in
        ["bert-cls-prefixes", "bert-mean-f16-gelu-new", "bert-plain-bf16-sharded", "roberta", "distilbert"]
    {
        let source = checkpoint(name);
        let encoder = TrainableEncoder::load(
            &source,
            TextLengths::default(),
            &TrainableOptions::default(),
            &Device::Cpu,
        )?;
        for (found, expected) in trained(&encoder)?.iter().zip(served(&source)?) {
            assert_close(found, &expected);
        }
        for parameter in encoder.parameters().iter() {
            let noise = Tensor::rand(-0.05f32, 0.05, parameter.value.shape(), &Device::Cpu)?;
            parameter.value.set(&(parameter.value.as_tensor() + noise)?)?;
        }
        let target = folder.path().join(name);
        encoder.save(&target)?;
        let expected = trained(&encoder)?;
        for (found, expected) in served(&target)?.iter().zip(&expected) {
            assert_close(found, expected);
        }
        assert_ne!(served(&source)?, served(&target)?);
    }
    Ok(())
}

#[test]
fn a_merged_encoder_serves_what_its_adapter_learnt() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["roberta", "distilbert"] {
        let settings = expandr_models::trainable::LoraSettings {
            rank: 2,
            alpha: 3.0,
            dropout: 0.1,
            target_modules: vec!["all-linear".into()],
            rank_stabilised: true,
        };
        let options =
            TrainableOptions { method: Method::Lora(settings.clone()), ..TrainableOptions::default() };
        let encoder =
            TrainableEncoder::load(&checkpoint(name), TextLengths::default(), &options, &Device::Cpu)?;
        for parameter in encoder.parameters().iter() {
            parameter.value.set(&(parameter.value.as_tensor() + 0.02)?)?;
        }
        let adapter = AdapterFile::of(encoder.parameters(), &settings, AdapterTask::FeatureExtraction, name)?;
        let adapter_folder = folder.path().join(format!("{name}-adapter"));
        adapter.write(&adapter_folder)?;
        let target = folder.path().join(name);
        merge_adapter(&checkpoint(name), &AdapterFile::read(&adapter_folder)?, &target)?;
        for (found, expected) in served(&target)?.iter().zip(trained(&encoder)?) {
            assert_close(found, &expected);
        }
        assert_ne!(served(&checkpoint(name))?, served(&target)?);
        let error = encoder.save(&folder.path().join("x")).unwrap_err().to_string();
        assert!(error.contains("merge them"), "{error}");
    }
    Ok(())
}

#[test]
fn a_checkpoint_can_be_cut_to_its_first_layers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in ["bert-plain-bf16-sharded", "distilbert"] {
        let target = folder.path().join(name);
        truncate_layers(&checkpoint(name), &target, 1)?;
        let encoder = TrainableEncoder::load(
            &target,
            TextLengths::default(),
            &TrainableOptions::default(),
            &Device::Cpu,
        )?;
        let layers = encoder.parameters().iter().filter(|p| p.name.contains("layer.1.")).count();
        assert_eq!(layers, 0);
        for (found, expected) in served(&target)?.iter().zip(trained(&encoder)?) {
            assert_close(found, &expected);
        }
        assert_ne!(served(&checkpoint(name))?, served(&target)?);
        let error = truncate_layers(&checkpoint(name), &target, 2).unwrap_err().to_string();
        assert!(error.contains("2 layers"), "{error}");
    }
    Ok(())
}

#[test]
fn a_saved_language_model_is_the_trained_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for name in MODELS {
        let (data, decoder) = (Data::read(name)?, full(name, false)?);
        for parameter in decoder.parameters().iter() {
            parameter.value.set(&(parameter.value.as_tensor() * 1.1)?)?;
        }
        let target = folder.path().join(name);
        decoder.save(&target)?;
        let options = TrainableOptions { method: Method::Frozen, ..TrainableOptions::default() };
        let again = TrainableDecoder::load(&target, &options, &Device::Cpu)?;
        let found = again.log_probabilities(&batch(&data)?, Pass::inference())?.0;
        assert_eq!(found, decoder.log_probabilities(&batch(&data)?, Pass::inference())?.0);
    }
    Ok(())
}
