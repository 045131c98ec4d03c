//! Preferences and supervised training of a language model.

use anyhow::Result;
use candle_core::Device;
use expandr_models::trainable::{
    AdapterFile, CompletionBatch, Gradients, Keep, Key, LoraSettings, Method, Pass, TrainableDecoder,
    TrainableOptions,
};
use expandr_training::dpo::{
    CompletionExample, DpoOptions, DpoTask, PreferenceExample, SupervisedOptions, SupervisedTask,
};
use expandr_training::trainer::Task;
use serde::Deserialize;

use crate::support::{Curve, bits, compare, fixture, json, tensors};

pub(crate) const MODELS: [&str; 2] = ["llama", "qwen2"];

#[derive(Deserialize)]
pub(crate) struct Data {
    pub(crate) beta: f64,
    examples: Vec<Example>,
    dpo_loss: f64,
    policy: Vec<[Vec<f32>; 2]>,
    reference: Vec<[Vec<f32>; 2]>,
    supervised_loss: f64,
    dpo_curve: Curve,
    supervised_curve: Curve,
}

#[derive(Deserialize)]
struct Example {
    prompt_ids: Vec<u32>,
    chosen_ids: Vec<u32>,
    rejected_ids: Vec<u32>,
}

impl Data {
    pub(crate) fn read(name: &str) -> Result<Self> {
        json(&format!("{name}/data.json"))
    }

    pub(crate) fn preferences(&self) -> Vec<PreferenceExample> {
        let example = |e: &Example| PreferenceExample {
            prompt: e.prompt_ids.clone(),
            chosen: e.chosen_ids.clone(),
            rejected: e.rejected_ids.clone(),
        };
        self.examples.iter().map(example).collect()
    }

    pub(crate) fn completions(&self) -> Vec<CompletionExample> {
        let example = |e: &Example| CompletionExample {
            prompt: e.prompt_ids.clone(),
            completion: e.chosen_ids.clone(),
        };
        self.examples.iter().map(example).collect()
    }
}

/// The model with the adapter that PEFT saved.
pub(crate) fn adapted(name: &str, plain: bool) -> Result<TrainableDecoder> {
    let adapter = AdapterFile::read(&fixture(&format!("{name}/adapter")))?;
    let method = Method::Lora(adapter.settings.clone());
    let options = TrainableOptions { method, plain, ..TrainableOptions::default() };
    let decoder = TrainableDecoder::load(&fixture(&format!("{name}/model")), &options, &Device::Cpu)?;
    decoder.parameters().set(&adapter.tensors)?;
    Ok(decoder)
}

pub(crate) fn full(name: &str, plain: bool) -> Result<TrainableDecoder> {
    let options = TrainableOptions { plain, ..TrainableOptions::default() };
    Ok(TrainableDecoder::load(&fixture(&format!("{name}/model")), &options, &Device::Cpu)?)
}

pub(crate) fn dpo<'a>(
    decoder: &'a TrainableDecoder,
    data: &Data,
    settings: DpoOptions,
) -> Result<DpoTask<'a>> {
    let settings = DpoOptions { beta: data.beta, ..settings };
    Ok(DpoTask::new(decoder, settings, data.preferences(), Vec::new(), None, &mut |_, _| ())?)
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 2e-5 * expected.abs().max(1.0), "{what}: {found} {expected}");
    }
}

#[test]
fn log_probabilities_with_and_without_an_adapter_are_those_of_transformers() -> Result<()> {
    for (name, plain) in MODELS.iter().flat_map(|name| [(*name, false), (*name, true)]) {
        let (data, decoder) = (Data::read(name)?, adapted(name, plain)?);
        let mut batch = CompletionBatch::default();
        for example in &data.examples[..4] {
            batch.push(&example.prompt_ids, &[&example.chosen_ids, &example.rejected_ids])?;
        }
        for (pass, expected) in [(Pass::inference(), &data.policy), (Pass::reference(), &data.reference)] {
            let found = decoder.log_probabilities(&batch, pass)?.0;
            close(name, &found, &expected.iter().flatten().flatten().copied().collect::<Vec<f32>>());
        }
        assert!(data.policy != data.reference, "{name}: the adapter does nothing");
    }
    Ok(())
}

#[test]
fn dpo_gradients_are_those_of_trl() -> Result<()> {
    let variants =
        [(4, false, false), (4, false, true), (1, false, false), (4, true, false), (3, true, true)];
    for (name, (pairs_at_once, plain, checkpoint_activations)) in
        MODELS.iter().flat_map(|name| variants.map(|variant| (*name, variant)))
    {
        let what =
            format!("{name}, {pairs_at_once} at once, plain {plain}, checkpoints {checkpoint_activations}");
        let (data, decoder) = (Data::read(name)?, adapted(name, plain)?);
        let task = dpo(
            &decoder,
            &data,
            DpoOptions { pairs_at_once, checkpoint_activations, ..DpoOptions::default() },
        )?;
        let mut gradients = Gradients::new(decoder.parameters());
        let outcome = task.step(&[0, 1, 2, 3], Key::new(0), &mut gradients)?;
        assert!(
            (outcome.loss - data.dpo_loss).abs() < 1e-5 * data.dpo_loss,
            "{what}: {} {}",
            outcome.loss,
            data.dpo_loss
        );
        let expected = tensors(&format!("{name}/gradients.safetensors"))?;
        compare(&what, decoder.parameters(), &gradients, &expected, "dpo.")?;
        assert!(gradients.check(decoder.parameters())?);
    }
    Ok(())
}

#[test]
fn supervised_gradients_of_all_weights_are_those_of_transformers() -> Result<()> {
    let variants = [(8, false, false), (3, false, true), (8, true, false), (2, true, true)];
    for (name, (examples_at_once, plain, checkpoint_activations)) in
        MODELS.iter().flat_map(|name| variants.map(|variant| (*name, variant)))
    {
        let what = format!(
            "{name}, {examples_at_once} at once, plain {plain}, checkpoints {checkpoint_activations}"
        );
        let (data, decoder) = (Data::read(name)?, full(name, plain)?);
        let settings = SupervisedOptions { examples_at_once, checkpoint_activations };
        let task = SupervisedTask::new(&decoder, settings, data.completions(), Vec::new())?;
        let mut gradients = Gradients::new(decoder.parameters());
        let outcome = task.step(&[0, 1, 2, 3], Key::new(0), &mut gradients)?;
        let (found, expected) = (outcome.loss, data.supervised_loss);
        assert!((found - expected).abs() < 1e-5 * expected, "{what}: {found} {expected}");
        let expected = tensors(&format!("{name}/gradients.safetensors"))?;
        compare(&what, decoder.parameters(), &gradients, &expected, "supervised.")?;
        assert!(gradients.check(decoder.parameters())?);
    }
    Ok(())
}

#[test]
fn twenty_steps_of_preferences_are_those_of_pytorch() -> Result<()> {
    for name in MODELS {
        let (data, decoder) = (Data::read(name)?, adapted(name, false)?);
        data.dpo_curve.check(&dpo(&decoder, &data, DpoOptions::default())?)?;
    }
    Ok(())
}

#[test]
fn twenty_steps_of_supervised_training_are_those_of_pytorch() -> Result<()> {
    for (name, plain) in [("llama", false), ("qwen2", false), ("qwen2", true)] {
        let (data, decoder) = (Data::read(name)?, full(name, plain)?);
        let settings = SupervisedOptions::default();
        data.supervised_curve.check(&SupervisedTask::new(
            &decoder,
            settings,
            data.completions(),
            Vec::new(),
        )?)?;
    }
    Ok(())
}

#[test]
fn dropout_of_adapters_is_the_same_in_both_ways_of_computing_and_when_computed_again() -> Result<()> {
    let data = Data::read("llama")?;
    let settings = LoraSettings {
        rank: 4,
        alpha: 8.0,
        dropout: 0.3,
        target_modules: vec!["all-linear".into()],
        rank_stabilised: false,
    };
    let gradients = |plain: bool, checkpoint_activations: bool, key: u64| -> Result<(f64, Vec<f32>)> {
        let options =
            TrainableOptions { method: Method::Lora(settings.clone()), plain, ..TrainableOptions::default() };
        let decoder = TrainableDecoder::load(&fixture("llama/model"), &options, &Device::Cpu)?;
        for parameter in decoder.parameters().iter() {
            parameter.value.set(&(parameter.value.as_tensor() + 0.1)?)?; // B is zero otherwise
        }
        let task = dpo(&decoder, &data, DpoOptions { checkpoint_activations, ..DpoOptions::default() })?;
        let mut gradients = Gradients::new(decoder.parameters());
        let loss = task.step(&[0, 1, 2], Key::new(key), &mut gradients)?.loss;
        let mut all = Vec::new();
        for index in 0..decoder.parameters().len() {
            all.extend(gradients.to_tensor(index)?.unwrap().flatten_all()?.to_vec1::<f32>()?);
        }
        Ok((loss, all))
    };
    let (loss, all) = gradients(false, false, 1)?;
    assert_eq!((loss, all.clone()), gradients(false, true, 1)?);
    assert_ne!(loss, gradients(false, false, 2)?.0);
    let (plain_loss, plain) = gradients(true, true, 1)?;
    assert!((loss - plain_loss).abs() < 1e-5 * loss);
    let size = all.iter().map(|v| v * v).sum::<f32>().sqrt();
    let difference = all.iter().zip(&plain).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    assert!(difference < 1e-4 * size, "{difference} of {size}");
    Ok(())
}

#[test]
fn gradients_do_not_depend_on_the_number_of_threads() -> Result<()> {
    let data = Data::read("qwen2")?;
    let mut found = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let decoder = adapted("qwen2", false)?;
        pool.install(|| -> Result<()> {
            let task = dpo(&decoder, &data, DpoOptions::default())?;
            crate::support::run(&task, &data.dpo_curve.settings(3))?;
            Ok(())
        })?;
        found.push(bits(decoder.parameters())?);
    }
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
    Ok(())
}

#[test]
fn what_cannot_be_computed_is_refused_with_the_remedy() -> Result<()> {
    let decoder = adapted("llama", false)?;
    let mut batch = CompletionBatch::default();
    batch.push(&[1, 2], &[&[3, 999]])?;
    let refused = |batch: &CompletionBatch| {
        decoder.log_probabilities(batch, Pass::inference()).err().unwrap().to_string()
    };
    assert!(refused(&batch).contains("no token 999"));
    let mut batch = CompletionBatch::default();
    batch.push(&[1; 100], &[&[1; 100]])?;
    assert!(refused(&batch).contains("longer than the model's 128"));
    assert!(refused(&CompletionBatch::default()).contains("no completions"));

    let mut batch = CompletionBatch::default();
    batch.push(&[1, 2], &[&[3]])?;
    let (_, tape) = decoder.log_probabilities(&batch, Pass::inference())?;
    let mut gradients = Gradients::new(decoder.parameters());
    let error = decoder.backward(tape, &[1.0], &mut gradients).unwrap_err().to_string();
    assert!(error.contains("kept nothing"), "{error}");
    let error = gradients.check(decoder.parameters()).unwrap_err().to_string();
    assert!(error.contains("lora_A") && error.contains("no gradient"), "{error}");

    let full = full("llama", false)?;
    let data = Data::read("llama")?;
    let error = dpo(&full, &data, DpoOptions::default()).err().unwrap().to_string();
    assert!(error.contains("load it for LoRA"), "{error}");
    Ok(())
}

#[test]
fn a_model_without_adapters_at_first_trains_their_second_matrices_first() -> Result<()> {
    let data = Data::read("llama")?;
    let settings = LoraSettings {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        target_modules: vec!["q_proj".into()],
        rank_stabilised: false,
    };
    let options = TrainableOptions { method: Method::Lora(settings), ..TrainableOptions::default() };
    let decoder = TrainableDecoder::load(&fixture("llama/model"), &options, &Device::Cpu)?;
    let task = dpo(&decoder, &data, DpoOptions::default())?;
    let mut gradients = Gradients::new(decoder.parameters());
    let outcome = task.step(&[0, 1], Key::new(0), &mut gradients)?;
    assert!((outcome.loss - 2f64.ln()).abs() < 1e-6, "policy and reference differ: {}", outcome.loss);
    assert!(
        !gradients.check(decoder.parameters())?,
        "A's zero gradient must be excused, and looked at again"
    );
    for parameter in decoder.parameters().iter() {
        parameter.value.set(&(parameter.value.as_tensor() + 0.1)?)?;
    }
    gradients.reset();
    let (_, tape) = {
        let mut batch = CompletionBatch::default();
        batch.push(&data.preferences()[0].prompt, &[&data.preferences()[0].chosen])?;
        decoder.log_probabilities(&batch, Pass::training(Key::new(0), Keep::Activations))?
    };
    decoder.backward(tape, &vec![1.0; data.preferences()[0].chosen.len()], &mut gradients)?;
    assert!(gradients.check(decoder.parameters())?);
    Ok(())
}
