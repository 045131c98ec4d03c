//! Small random checkpoints against transformers (`tests/fixtures/make_decoder_fixture.py`), and what the engine promises.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
};

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::{
    Decoder, DecoderOptions,
    cache::Cache,
    config::DecoderConfig,
    engine::{Counted, Job, Sample},
    model::{Model, Part, Workspace},
};
use crate::{
    Error,
    cpu::{Precision, Team},
    expander::{FinishReason, Generation, GenerationStream, Sampling, StreamEvent},
    trainable::{AdapterFile, AdapterTask, LoraSettings, merge_adapter},
};

const CHECKPOINTS: [&str; 3] = ["llama-tied", "llama-scaled-bf16-sharded", "qwen2-f16"];

#[derive(Deserialize)]
struct Case {
    message: String,
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    text: String,
    /// After the first, the middle and the last token of the prompt.
    logits: Vec<Vec<f32>>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/decoder").join(name)
}

fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&std::fs::read(fixture(name).join("expected.json")).unwrap()).unwrap()
}

fn model(name: &str, threads: usize) -> Model {
    let folder = fixture(name);
    let config = DecoderConfig::read(&folder).unwrap();
    Model::read(&folder, config, Precision::Exact, None, Team::new(threads, "test").unwrap()).unwrap()
}

fn decoder(name: &str, options: DecoderOptions) -> Decoder {
    Decoder::load(&fixture(name), &DecoderOptions { threads: 2, ..options }).unwrap()
}

fn few_places() -> DecoderOptions {
    DecoderOptions { places: 3, queue_capacity: 64, ..DecoderOptions::default() }
}

/// The logits after every token, read in steps of these sizes.
fn all_logits(model: &Model, tokens: &[u32], steps: impl IntoIterator<Item = usize>) -> Vec<Vec<f32>> {
    let (mut cache, mut workspace) = (Cache::new(model.shape()), Workspace::default());
    let mut logits = Vec::new();
    let mut rest = tokens;
    for step in steps {
        let (now, later) = rest.split_at(step.min(rest.len()));
        if now.is_empty() {
            break;
        }
        let parts = &mut [Part { cache: &mut cache, tokens: now, wants_logits: true }];
        logits.push(model.step(parts, &mut workspace).to_vec());
        rest = later;
    }
    assert!(rest.is_empty());
    logits
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn logits_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let model = model(name, 2);
        for case in cases(name) {
            let logits = all_logits(&model, &case.prompt, std::iter::repeat(1));
            for (place, expected) in
                [0, case.prompt.len() / 2, case.prompt.len() - 1].iter().zip(&case.logits)
            {
                let found = &logits[*place];
                assert_eq!(found.len(), expected.len());
                for (found, expected) in found.iter().zip(expected) {
                    assert!(
                        (found - expected).abs() < 1e-4,
                        "{name} after token {place}: {found}, not {expected}"
                    );
                }
            }
        }
    }
}

/// The promise that everything else stands on: how many rows a step has, whose they are, how a prompt is cut into steps
/// and how many threads there are changes no bit.
#[test]
fn logits_do_not_depend_on_the_company() {
    for name in CHECKPOINTS {
        let cases = cases(name);
        let one = model(name, 1);
        let alone: Vec<_> =
            cases.iter().map(|case| all_logits(&one, &case.prompt, std::iter::repeat(1))).collect();
        for threads in [1, 2, 3] {
            let model = model(name, threads);
            for (case, alone) in cases.iter().zip(&alone) {
                for size in [case.prompt.len(), 7, 16, 50] {
                    let ends = (1..).map(|step| (step * size).min(case.prompt.len()));
                    let logits = all_logits(&model, &case.prompt, std::iter::repeat(size));
                    for (logits, end) in logits.iter().zip(ends) {
                        assert_eq!(bits(logits), bits(&alone[end - 1]), "{name}, {size} tokens a step");
                    }
                }
            }
            // All prompts several times, each at its own pace, in common steps.
            let mut caches: Vec<_> = (0..13).map(|_| Cache::new(model.shape())).collect();
            let mut workspace = Workspace::default();
            for _ in 0..100 {
                let mut ends = Vec::new();
                let mut parts = Vec::new();
                for (index, cache) in caches.iter_mut().enumerate() {
                    let prompt = &cases[index % cases.len()].prompt;
                    let start = cache.length();
                    let end = (start + 1 + index % 5).min(prompt.len());
                    if start < end {
                        ends.push((index % cases.len(), end));
                        parts.push(Part { cache, tokens: &prompt[start..end], wants_logits: true });
                    }
                }
                let vocabulary = model.config.vocabulary;
                let logits = model.step(&mut parts, &mut workspace);
                for (logits, (case, end)) in logits.chunks_exact(vocabulary).zip(ends) {
                    assert_eq!(bits(logits), bits(&alone[case][end - 1]), "{name} in company");
                }
            }
        }
    }
}

async fn finish(stream: GenerationStream) -> Generation {
    stream.collect_until(None).await.unwrap()
}

#[tokio::test]
async fn greedy_passages_are_those_of_transformers() {
    for name in CHECKPOINTS {
        let decoder = decoder(name, few_places());
        let cases = cases(name);
        let mut streams = Vec::new();
        for case in cases.iter().chain(&cases) {
            assert_eq!(decoder.prompt_tokens(&case.message).unwrap(), case.prompt, "{name}");
            streams.extend(decoder.sample(&case.message, &[Sampling::greedy(40)]).unwrap());
        }
        for (case, stream) in cases.iter().chain(&cases).zip(streams) {
            let generation = finish(stream).await;
            assert_eq!(generation.text, case.text, "{name}");
            assert_eq!(generation.output_tokens, case.greedy.len(), "{name}");
            let reason = if case.greedy.len() < 40 { FinishReason::Stop } else { FinishReason::Length };
            assert_eq!(generation.finish_reason, Some(reason), "{name}");
        }
    }
}

/// Pieces put together are the text, however the passage is cut; a character is never split.
#[tokio::test]
async fn every_cut_is_a_beginning() {
    let decoder = decoder("llama-tied", few_places());
    let message = &cases("llama-tied")[1].message;
    let sampling = |max_tokens| Sampling { max_tokens, temperature: 1.5, top_p: 1.0, seed: Some(3) };
    let whole = finish(decoder.generate(message, sampling(60)).await.unwrap()).await.text;
    for cut in 1..60 {
        let part = finish(decoder.generate(message, sampling(cut)).await.unwrap()).await;
        assert!(whole.starts_with(&part.text), "{:?} is no beginning of {whole:?}", part.text);
        assert!(part.output_tokens <= cut);
    }
}

#[tokio::test]
async fn samples_of_one_prompt_equal_samples_alone() {
    for name in CHECKPOINTS {
        let decoder = decoder(name, few_places());
        let sampling = |seed| Sampling { max_tokens: 30, temperature: 1.0, top_p: 0.9, seed: Some(seed) };
        for case in cases(name) {
            let samplings: Vec<_> = (0..10).map(sampling).collect();
            let streams = decoder.sample(&case.message, &samplings).unwrap();
            for (stream, sampling) in streams.into_iter().zip(samplings) {
                let alone = finish(decoder.generate(&case.message, sampling).await.unwrap()).await;
                assert_eq!(finish(stream).await.text, alone.text, "{name}");
            }
        }
    }
}

#[tokio::test]
async fn many_prompts_come_back_in_order() {
    let decoder = decoder("llama-tied", few_places());
    let sampling = |seed| Sampling { max_tokens: 9, temperature: 1.0, top_p: 0.9, seed: Some(seed) };
    let wanted: Vec<_> = (0..40)
        .map(|index| {
            (format!("prompt {index}"), (0..index % 4).map(|sample| sampling(index * 10 + sample)).collect())
        })
        .collect();
    let passages = decoder.generate_many(&wanted).await.unwrap();
    assert_eq!(passages.len(), wanted.len());
    for ((prompt, samplings), passages) in wanted.iter().zip(passages) {
        assert_eq!(passages.len(), samplings.len());
        for (sampling, passage) in samplings.iter().zip(passages) {
            let alone = finish(decoder.generate(prompt, *sampling).await.unwrap()).await;
            assert_eq!(passage.text, alone.text, "{prompt}");
        }
    }
    assert!(decoder.generate_many(&[(String::from("a"), vec![Sampling::greedy(0)])]).await.is_err());
}

#[tokio::test]
async fn the_queue_is_bounded_and_what_nobody_reads_leaves() {
    let options = DecoderOptions { places: 2, queue_capacity: 3, ..DecoderOptions::default() };
    let decoder = Arc::new(decoder("llama-tied", options));
    // No token ends it, so that it fills the context.
    let endless = Sampling { max_tokens: 10_000, temperature: 0.0, top_p: 1.0, seed: None };
    let present: Vec<_> = (0..5).map(|_| Counted::new(&decoder.present)).collect();
    let error = decoder.generate("hello", endless).await.unwrap_err();
    assert!(matches!(&error, Error::Overloaded { .. }) && error.to_string().contains("5 may"), "{error}");
    drop(present);
    drop(decoder.sample("hello", &[endless; 5]).unwrap());
    let sampling = Sampling::greedy(5);
    let mut attempts = 0;
    let generation = loop {
        match decoder.generate("hello", sampling).await {
            Ok(stream) => break finish(stream).await,
            Err(Error::Overloaded { .. }) if attempts < 1000 => attempts += 1,
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    };
    assert_eq!(generation.output_tokens, 5);
    let long = "a".repeat(300);
    let error = decoder.generate(&long, sampling).await.unwrap_err();
    assert!(matches!(&error, Error::Input(detail) if detail.contains("shorten the query")), "{error}");
    assert!(matches!(decoder.generate("a", Sampling::greedy(0)).await.unwrap_err(), Error::Input(_)));
    let cut = finish(decoder.generate(&"a".repeat(200), Sampling::greedy(10_000)).await.unwrap()).await;
    assert!(cut.output_tokens <= 256 - 200, "the context has 256 tokens");
}

/// A panic in a step is an error for those who were in it, and nothing for those who come later.
#[tokio::test]
async fn a_panic_is_an_error_and_not_the_end() {
    let decoder = decoder("qwen2-f16", few_places());
    let (events, stream) = tokio::sync::mpsc::channel(100);
    let sample = Sample {
        sampling: Sampling::greedy(5),
        events,
        started: None,
        waiter: None,
        presence: Counted::new(&decoder.present),
    };
    // A token that the model doesn't have.
    decoder.jobs.send(Job { prompt: vec![1, 1_000_000], samples: VecDeque::from([sample]) }).unwrap();
    let error = GenerationStream::new(stream).collect_until(None).await.unwrap_err();
    assert!(error.to_string().contains("broke off"), "{error}");
    let case = &cases("qwen2-f16")[0];
    let generation = finish(decoder.generate(&case.message, Sampling::greedy(40)).await.unwrap()).await;
    assert_eq!(generation.text, case.text);
    // The end of a passage is read before its place is given back.
    for _ in 0..1000 {
        if decoder.running() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!((decoder.running(), decoder.waiting()), (0, 0));
}

/// A copy of a checkpoint to be damaged.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(fixture(name)).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

#[tokio::test]
async fn damaged_weights_are_an_error_of_the_passage() {
    let folder = copy("llama-tied");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs_err::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes()); // the last norm's last weight
    fs_err::write(&path, bytes).unwrap();
    let decoder = Decoder::load(folder.path(), &DecoderOptions::default()).unwrap();
    let mut stream = decoder.generate("hello", Sampling::greedy(5)).await.unwrap();
    let event: crate::Result<StreamEvent> = stream.next().await.unwrap();
    assert!(event.unwrap_err().to_string().contains("not finite"));
}

#[test]
fn what_does_not_fit_is_refused_with_the_remedy() {
    let refused = |name: &str, file: &str, from: &str, to: &str| {
        let folder = copy(name);
        let path = folder.path().join(file);
        let text = fs_err::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from}");
        fs_err::write(&path, text.replace(from, to)).unwrap();
        let error = Decoder::load(folder.path(), &DecoderOptions::default()).err().unwrap();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
        error.to_string()
    };
    for (name, file, from, to, message) in [
        ("llama-tied", "config.json", "\"llama\"", "\"gpt2\"", "llama or qwen2"),
        ("llama-tied", "config.json", "\"silu\"", "\"gelu\"", "silu"),
        (
            "llama-tied",
            "config.json",
            "\"hidden_size\": 48",
            "\"hidden_size\": 0",
            "`hidden_size` is missing or 0",
        ),
        (
            "llama-tied",
            "config.json",
            "\"intermediate_size\": 80",
            "\"intermediate_size\": 81",
            "config.json says",
        ),
        (
            "llama-tied",
            "config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            "different models",
        ),
        ("llama-tied", "config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "no tensor"),
        (
            "llama-tied",
            "config.json",
            "\"num_attention_heads\": 3",
            "\"num_attention_heads\": 4",
            "belong to different",
        ),
        (
            "llama-tied",
            "config.json",
            "\"vocab_size\": 258",
            "\"vocab_size\": 200",
            "and the model has 200 words",
        ),
        ("llama-tied", "config.json", "\"default\"", "\"yarn\"", "rope scaling \"yarn\""),
        (
            "llama-scaled-bf16-sharded",
            "config.json",
            "\"low_freq_factor\": 1.0",
            "\"low\": 1.0",
            "low_freq_factor",
        ),
        (
            "qwen2-f16",
            "config.json",
            "\"use_sliding_window\": false",
            "\"use_sliding_window\": true",
            "mistralrs",
        ),
        ("qwen2-f16", "tokenizer_config.json", "\"default\"", "\"other\"", "no chat template"),
        ("llama-tied", "tokenizer_config.json", "endfor", "end", "chat template can't be used"),
        ("llama-tied", "tokenizer.json", "\"type\": \"BPE\"", "\"type\": \"X\"", "not a tokenizer"),
    ] {
        let error = refused(name, file, from, to);
        assert!(error.contains(message), "{file}, {from} → {to}: {error}");
    }
}

/// Random adapters of some of the layers (gaps in the common products), as PEFT would write them.
fn write_adapter(config: &DecoderConfig, target: &Path) {
    let sizes = [
        ("self_attn.q_proj", config.heads * config.head_width, config.hidden),
        ("self_attn.v_proj", config.kv_heads * config.head_width, config.hidden),
        ("self_attn.o_proj", config.hidden, config.heads * config.head_width),
        ("mlp.up_proj", config.intermediate, config.hidden),
        ("mlp.down_proj", config.hidden, config.intermediate),
    ];
    let rank = 3;
    let settings = LoraSettings {
        rank,
        alpha: 5.0,
        dropout: 0.0,
        target_modules: sizes.iter().map(|(name, ..)| (*name).to_owned()).collect(),
        rank_stabilised: false,
    };
    let mut state = 1u64;
    let mut random = |shape: [usize; 2]| {
        let mut value = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| value()).collect();
        Tensor::from_vec(values, &shape, &Device::Cpu).unwrap()
    };
    let mut tensors = HashMap::new();
    // The last layer goes without.
    for layer in 0..config.layers - 1 {
        for (name, outputs, inputs) in sizes {
            let matrix =
                |letter| format!("base_model.model.model.layers.{layer}.{name}.lora_{letter}.weight");
            tensors.insert(matrix("A"), random([rank, inputs]));
            tensors.insert(matrix("B"), random([outputs, rank]));
        }
    }
    let file = AdapterFile { settings, task: AdapterTask::CausalLm, base: "a test".into(), tensors };
    file.write(target).unwrap();
}

#[test]
fn an_adapter_beside_the_weights_is_the_merged_model() {
    let folder = tempfile::tempdir().unwrap();
    let (adapter, merged) = (folder.path().join("adapter"), folder.path().join("merged"));
    let name = "llama-tied";
    let config = DecoderConfig::read(&fixture(name)).unwrap();
    assert!(config.layers > 1);
    write_adapter(&config, &adapter);
    let file = AdapterFile::read(&adapter).unwrap();
    merge_adapter(&fixture(name), &file, &merged).unwrap();
    let read = |folder: &Path, adapter: Option<&AdapterFile>, threads| {
        let team = Team::new(threads, "test").unwrap();
        Model::read(folder, config.clone(), Precision::Exact, adapter, team).unwrap()
    };
    let (merged, beside) = (read(&merged, None, 2), read(&fixture(name), Some(&file), 2));
    let prompt = &cases(name)[0].prompt;
    let expected = all_logits(&merged, prompt, std::iter::repeat(1));
    let found = all_logits(&beside, prompt, std::iter::repeat(1));
    let without = all_logits(&model(name, 2), prompt, std::iter::repeat(1));
    let distance = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        let pairs = a.iter().flatten().zip(b.iter().flatten());
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    assert!(distance(&found, &expected) < 1e-4, "{}", distance(&found, &expected));
    assert!(distance(&without, &expected) > 0.1, "the adapter does nothing");
    // In any company.
    for (size, threads) in [(7, 1), (prompt.len(), 3)] {
        let other = all_logits(&read(&fixture(name), Some(&file), threads), prompt, std::iter::repeat(size));
        assert_eq!(bits(other.last().unwrap()), bits(found.last().unwrap()), "{size} tokens a step");
    }
    // Another model's: of another width, with more layers.
    for (wider, more) in [(1, 0), (0, 2)] {
        let other = DecoderConfig {
            intermediate: config.intermediate + wider,
            layers: config.layers + more,
            ..config.clone()
        };
        write_adapter(&other, &adapter);
        let options = DecoderOptions { adapter: Some(adapter.clone()), ..few_places() };
        let error = Decoder::load(&fixture(name), &options).err().unwrap().to_string();
        assert!(error.contains("belongs to another model"), "{error}");
    }
}
