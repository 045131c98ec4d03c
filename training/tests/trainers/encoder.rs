//! Contrastive training of an encoder.

use anyhow::Result;
use candle_core::{Device, Tensor};
use expandr_models::trainable::{
    Gradients, Key, LoraSettings, Method, TextLengths, TrainableEncoder, TrainableOptions,
};
use expandr_training::contrastive::{ContrastiveExample, ContrastiveOptions, ContrastiveTask};
use expandr_training::trainer::Task;
use serde::Deserialize;

use crate::support::{Curve, bits, checkpoint, compare, json, run, tensors};

const ENCODERS: [&str; 4] = ["bert-cls-prefixes", "bert-mean-f16-gelu-new", "roberta", "distilbert"];

#[derive(Deserialize)]
struct Data {
    targets: Targets,
    examples: Vec<Example>,
    settings: Vec<Settings>,
    losses: Vec<f64>,
    curve: Curve,
    lora_loss: f64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    All(String),
    Some(Vec<String>),
}

#[derive(Deserialize)]
struct Example {
    query: Vec<u32>,
    expansions: Vec<Vec<u32>>,
    positive: Vec<u32>,
    negatives: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Settings {
    query_weight: f64,
    normalize: bool,
    temperature: f64,
}

impl Data {
    fn read(name: &str) -> Result<Self> {
        json(&format!("encoders/{name}.json"))
    }

    fn examples(&self) -> Vec<ContrastiveExample> {
        let example = |e: &Example| ContrastiveExample {
            query: e.query.clone(),
            expansions: e.expansions.clone(),
            positive: e.positive.clone(),
            negatives: e.negatives.clone(),
        };
        self.examples.iter().map(example).collect()
    }

    fn settings(&self, index: usize) -> ContrastiveOptions {
        let settings = &self.settings[index];
        ContrastiveOptions {
            query_weight: settings.query_weight,
            normalize: settings.normalize,
            temperature: settings.temperature,
            ..ContrastiveOptions::default()
        }
    }

    fn lora(&self, dropout: f64) -> Method {
        let target_modules = match &self.targets {
            Targets::All(all) => vec![all.clone()],
            Targets::Some(targets) => targets.clone(),
        };
        Method::Lora(LoraSettings { rank: 3, alpha: 6.0, dropout, target_modules, rank_stabilised: false })
    }
}

fn load(name: &str, method: Method, plain: bool, dropout: f32) -> Result<TrainableEncoder> {
    let options = TrainableOptions { method, plain, dropout: Some(dropout), ..TrainableOptions::default() };
    Ok(TrainableEncoder::load(&checkpoint(name), TextLengths::default(), &options, &Device::Cpu)?)
}

fn all<'a>(
    encoder: &'a TrainableEncoder,
    data: &Data,
    settings: ContrastiveOptions,
) -> Result<ContrastiveTask<'a>> {
    Ok(ContrastiveTask::new(encoder, settings, data.examples(), Vec::new())?)
}

fn step(task: &ContrastiveTask<'_>, gradients: &mut Gradients) -> Result<f64> {
    let examples: Vec<usize> = (0..task.lengths().len()).collect();
    Ok(task.step(&examples, Key::new(0), gradients)?.loss)
}

#[test]
fn gradients_of_all_weights_are_those_of_transformers() -> Result<()> {
    let variants =
        [(64, false, false), (64, false, true), (3, false, false), (64, true, false), (2, true, true)];
    for (name, (chunk, plain, checkpoint_activations)) in
        ENCODERS.iter().flat_map(|name| variants.map(|variant| (*name, variant)))
    {
        let (data, encoder) = (Data::read(name)?, load(name, Method::Full, plain, 0.0)?);
        let expected = tensors(&format!("encoders/{name}.safetensors"))?;
        for (index, expected_loss) in data.losses.iter().enumerate() {
            let what = format!(
                "{name}, setting {index}, chunk {chunk}, plain {plain}, checkpoints {checkpoint_activations}"
            );
            let settings = ContrastiveOptions { chunk, checkpoint_activations, ..data.settings(index) };
            let task = all(&encoder, &data, settings)?;
            let mut gradients = Gradients::new(encoder.parameters());
            let loss = step(&task, &mut gradients)?;
            assert!((loss - expected_loss).abs() < 2e-5 * expected_loss, "{what}: {loss} {expected_loss}");
            compare(&what, encoder.parameters(), &gradients, &expected, &format!("full{index}."))?;
            gradients.check(encoder.parameters())?;
        }
    }
    Ok(())
}

#[test]
fn gradients_of_adapters_are_those_of_peft() -> Result<()> {
    for (name, plain) in ENCODERS.iter().flat_map(|name| [(*name, false), (*name, true)]) {
        let data = Data::read(name)?;
        let encoder = load(name, data.lora(0.0), plain, 0.0)?;
        let expected = tensors(&format!("encoders/{name}.safetensors"))?;
        let values = expected
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("value.")?.to_owned(), value.clone())));
        encoder.parameters().set(&values.collect())?;
        let mut gradients = Gradients::new(encoder.parameters());
        let loss = step(&all(&encoder, &data, data.settings(0))?, &mut gradients)?;
        assert!((loss - data.lora_loss).abs() < 2e-5 * data.lora_loss, "{name}: {loss} {}", data.lora_loss);
        compare(&format!("{name}, plain {plain}"), encoder.parameters(), &gradients, &expected, "lora.")?;
        assert!(gradients.check(encoder.parameters())?);
    }
    Ok(())
}

#[test]
fn twenty_steps_are_those_of_pytorch() -> Result<()> {
    for (name, plain) in ENCODERS.iter().map(|name| (*name, false)).chain([("roberta", true)]) {
        let (data, encoder) = (Data::read(name)?, load(name, Method::Full, plain, 0.0)?);
        data.curve.check(&all(&encoder, &data, data.settings(0))?)?;
    }
    Ok(())
}

/// Gradients as one vector.
fn flat(encoder: &TrainableEncoder, gradients: &Gradients) -> Result<Tensor> {
    let mut parts = Vec::new();
    for index in 0..encoder.parameters().len() {
        parts.push(gradients.to_tensor(index)?.unwrap().flatten_all()?);
    }
    Ok(Tensor::cat(&parts, 0)?)
}

fn relative(a: &Tensor, b: &Tensor) -> Result<f32> {
    let norm = |t: &Tensor| -> Result<f32> { Ok(t.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt()) };
    Ok(norm(&(a - b)?)? / norm(b)?)
}

#[test]
fn cached_gradients_are_those_of_the_whole_batch() -> Result<()> {
    for name in ENCODERS {
        let (data, encoder) = (Data::read(name)?, load(name, Method::Full, false, 0.0)?);
        let fingerprint = |options: ContrastiveOptions| -> Result<String> {
            Ok(all(&encoder, &data, options)?.fingerprint())
        };
        // A checkpoint goes on with another chunk, which changes time and memory alone.
        let (first, other) = (data.settings(0), ContrastiveOptions { temperature: 0.7, ..data.settings(0) });
        let chunked = ContrastiveOptions { chunk: 1, checkpoint_activations: true, ..data.settings(0) };
        assert_eq!(fingerprint(chunked)?, fingerprint(first.clone())?);
        assert_ne!(fingerprint(other)?, fingerprint(first)?);
        let gradients = |chunk: usize| -> Result<Tensor> {
            let task = all(&encoder, &data, ContrastiveOptions { chunk, ..data.settings(0) })?;
            let mut gradients = Gradients::new(encoder.parameters());
            step(&task, &mut gradients)?;
            flat(&encoder, &gradients)
        };
        let whole = gradients(64)?;
        for chunk in [1, 3, 5] {
            let difference = relative(&gradients(chunk)?, &whole)?;
            assert!(difference < 1e-5, "{name}, chunk {chunk}: {difference}");
        }
    }
    Ok(())
}

#[test]
fn dropout_is_the_same_in_both_ways_of_computing_and_when_computed_again() -> Result<()> {
    let data = Data::read("roberta")?;
    for (method, dropout) in [(Method::Full, 0.2), (data.lora(0.4), 0.1)] {
        let gradients = |plain: bool, chunk: usize, checkpoint_activations: bool| -> Result<Tensor> {
            let encoder = load("roberta", method.clone(), plain, dropout)?;
            for parameter in encoder.parameters().iter().filter(|p| p.name.contains("lora_B")) {
                parameter.value.set(&(parameter.value.as_tensor() + 0.1)?)?;
            }
            let settings = ContrastiveOptions { chunk, checkpoint_activations, ..data.settings(0) };
            let task = all(&encoder, &data, settings)?;
            let mut gradients = Gradients::new(encoder.parameters());
            step(&task, &mut gradients)?;
            flat(&encoder, &gradients)
        };
        for chunk in [64, 3] {
            let fused = gradients(false, chunk, false)?;
            assert_eq!(relative(&gradients(false, chunk, true)?, &fused)?, 0.0);
            let difference = relative(&gradients(true, chunk, false)?, &fused)?;
            assert!(difference < 1e-4, "chunk {chunk}: {difference}");
        }
        let without = load("roberta", method.clone(), false, 0.0)?;
        let task = all(&without, &data, data.settings(0))?;
        let mut none = Gradients::new(without.parameters());
        step(&task, &mut none)?;
        if matches!(method, Method::Full) {
            assert!(
                relative(&gradients(false, 64, false)?, &flat(&without, &none)?)? > 0.05,
                "dropout does nothing"
            );
        }
    }
    Ok(())
}

#[test]
fn a_query_whose_expansion_is_dropped_stands_alone() -> Result<()> {
    let data = Data::read("roberta")?;
    let encoder = load("roberta", Method::Full, false, 0.0)?;
    let whole = data.examples();
    let bare: Vec<_> =
        whole.iter().map(|e| ContrastiveExample { expansions: Vec::new(), ..e.clone() }).collect();
    let task = |examples: &[ContrastiveExample], expansion_dropout: f64| {
        let settings = ContrastiveOptions { expansion_dropout, chunk: 2, ..data.settings(0) };
        ContrastiveTask::new(&encoder, settings, examples.to_vec(), examples.to_vec())
    };
    let expanded = whole.iter().position(|example| !example.expansions.is_empty()).unwrap();
    let outcome = |task: &ContrastiveTask<'_>, key: u64| -> Result<(f64, usize)> {
        let outcome = task.step(&[expanded], Key::new(key), &mut Gradients::new(encoder.parameters()))?;
        Ok((outcome.loss, outcome.tokens))
    };
    let (with, without, half) = (task(&whole, 0.0)?, task(&bare, 0.0)?, task(&whole, 0.5)?);
    let mut dropped = 0;
    for key in 0..100 {
        let found = outcome(&half, key)?;
        assert_eq!(found, outcome(&half, key)?, "the same key drops the same");
        let is_bare = found == outcome(&without, key)?;
        assert!(is_bare != (found == outcome(&with, key)?), "key {key}: one of both, and not the other");
        dropped += usize::from(is_bare);
    }
    // Three standard deviations of a fair draw are 15.
    assert!((35..=65).contains(&dropped), "{dropped} of 100");
    assert_eq!(half.evaluate()?, with.evaluate()?, "nothing is dropped in an evaluation");
    assert!(task(&whole, 1.0).is_err());
    Ok(())
}

#[test]
fn training_does_not_depend_on_the_number_of_threads() -> Result<()> {
    let data = Data::read("bert-cls-prefixes")?;
    let mut found = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        let encoder = load("bert-cls-prefixes", Method::Full, false, 0.1)?;
        pool.install(|| -> Result<()> {
            let task = all(&encoder, &data, ContrastiveOptions { chunk: 2, ..data.settings(0) })?;
            run(&task, &data.curve.settings(4))?;
            Ok(())
        })?;
        found.push(bits(encoder.parameters())?);
    }
    assert_eq!(found[0], found[1]);
    assert_eq!(found[0], found[2]);
    Ok(())
}

#[test]
fn passages_that_equal_a_positive_are_no_negatives() -> Result<()> {
    let data = Data::read("bert-cls-prefixes")?;
    let encoder = load("bert-cls-prefixes", Method::Full, false, 0.0)?;
    let loss = |examples: Vec<ContrastiveExample>, mask_duplicates: bool| -> Result<f64> {
        let settings = ContrastiveOptions { mask_duplicates, ..data.settings(0) };
        let task = ContrastiveTask::new(&encoder, settings, examples.clone(), examples)?;
        Ok(task.evaluate()?.unwrap().loss)
    };
    let one = vec![data.examples()[0].clone()];
    let mut twice = one.clone();
    twice[0].negatives = vec![twice[0].positive.clone()];
    assert_eq!(loss(one.clone(), true)?, loss(twice.clone(), true)?);
    assert!(loss(twice, false)? > loss(one, false)? + 0.5);
    Ok(())
}
