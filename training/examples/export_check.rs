//! Trains both models for a few steps on the default weights and writes what training writes, for `export_check.py`,
//! which loads it with transformers, PEFT and sentence-transformers and compares.
//!
//! Usage: `export_check <encoder folder> <language model folder> <folder for the outcome>`

use std::path::Path;

use anyhow::{Result, bail};
use candle_core::Device;
use expandr_models::TextKind;
use expandr_models::trainable::{
    AdapterFile, AdapterTask, CompletionBatch, DecoderText, LoraSettings, Method, Pass, TextBatch,
    TextLengths, TrainableDecoder, TrainableEncoder, TrainableOptions, merge_adapter,
};
use expandr_training::contrastive::{ContrastiveOptions, ContrastiveTask, ContrastiveText, tokenize};
use expandr_training::dpo::{DpoOptions, DpoTask, Limits, PreferenceText, tokenize_preferences};
use expandr_training::trainer::{Event, StopSignal, Surroundings, Task, TrainerSettings, train};
use serde_json::{Value, json};

const ROWS: [[&str; 4]; 4] = [
    [
        "what is query expansion",
        "Query expansion adds words to a query that documents about its subject are likely to contain.",
        "Queries are things that people type.",
        "A query is a question; expanding it means to add what an answer would say.",
    ],
    [
        "how tall is mount everest",
        "Mount Everest rises 8,849 metres above sea level, more than any other mountain.",
        "Mountains are tall.",
        "The height of Mount Everest is about 8.8 kilometres.",
    ],
    [
        "who wrote faust",
        "Faust is a tragic play in two parts by Johann Wolfgang von Goethe.",
        "It was written by hand, long ago, in a book.",
        "Goethe wrote the tragedy Faust.",
    ],
    [
        "why is the sky blue",
        "Air scatters short wavelengths of sunlight more than long ones (Rayleigh scattering).",
        "Because it is not green.",
        "The sky is blue because molecules scatter blue light most.",
    ],
];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [encoder, decoder, out] = arguments.as_slice() else {
        bail!("give an encoder's folder, a language model's folder, and a folder for the outcome")
    };
    let out = Path::new(out);
    fs_err::create_dir_all(out)?;
    let expected = json!({
        "encoder": export_encoder(Path::new(encoder), out)?,
        "decoder": export_decoder(Path::new(decoder), out)?,
    });
    fs_err::write(out.join("expected.json"), expected.to_string())?;
    Ok(())
}

fn fit(task: &dyn Task, learning_rate: f64) -> Result<()> {
    let settings =
        TrainerSettings { epochs: 3.0, batch_size: 4, learning_rate, ..TrainerSettings::default() };
    let mut tell = |event: &Event| {
        if let Event::Step(report) = event {
            eprintln!("step {} of {}: loss {:.4}", report.step, report.total, report.loss);
        }
    };
    train(task, &settings, Surroundings { folder: None, stop: &StopSignal::default(), tell: &mut tell })?;
    Ok(())
}

fn lora(targets: &[&str]) -> LoraSettings {
    let target_modules = targets.iter().map(|target| (*target).to_owned()).collect();
    LoraSettings { rank: 8, alpha: 32.0, dropout: 0.1, target_modules, rank_stabilised: false }
}

/// `encoder` (all weights trained) and `encoder-merged` with its `encoder-adapter`.
fn export_encoder(folder: &Path, out: &Path) -> Result<Value> {
    let texts = ROWS.map(|[query, positive, negative, expansion]| ContrastiveText {
        query: query.into(),
        expansions: vec![expansion.into()],
        positive: positive.into(),
        negatives: vec![negative.into()],
    });
    let settings = ContrastiveOptions { normalize: true, temperature: 0.05, ..ContrastiveOptions::default() };
    let mut expected = json!({ "texts": ROWS.concat() });
    let adapter = lora(&["query", "value"]);
    for (name, method) in [("encoder", Method::Full), ("encoder-merged", Method::Lora(adapter.clone()))] {
        let options = TrainableOptions { method: method.clone(), ..TrainableOptions::default() };
        let encoder = TrainableEncoder::load(folder, TextLengths::default(), &options, &Device::Cpu)?;
        let examples = tokenize(&encoder, &texts)?;
        fit(&ContrastiveTask::new(&encoder, settings.clone(), examples, Vec::new())?, 1e-3)?;
        if matches!(method, Method::Full) {
            encoder.save(&out.join(name))?;
        } else {
            let base = folder.to_string_lossy();
            let file =
                AdapterFile::of(encoder.parameters(), &adapter, AdapterTask::FeatureExtraction, &base)?;
            file.write(&out.join("encoder-adapter"))?;
            merge_adapter(folder, &AdapterFile::read(&out.join("encoder-adapter"))?, &out.join(name))?;
        }
        let ids = ROWS
            .concat()
            .iter()
            .map(|text| encoder.ids(TextKind::Document, text))
            .collect::<Result<Vec<_>, _>>()?;
        let vectors = encoder.embed(&TextBatch::new(ids)?, Pass::inference())?.0;
        let vectors = vectors.broadcast_div(&vectors.sqr()?.sum_keepdim(1)?.sqrt()?)?;
        expected[name] = json!(vectors.to_vec2::<f32>()?);
    }
    Ok(expected)
}

/// `expander` with its `adapter`.
fn export_decoder(folder: &Path, out: &Path) -> Result<Value> {
    let settings = lora(&["q_proj", "v_proj", "down_proj"]);
    let options = TrainableOptions { method: Method::Lora(settings.clone()), ..TrainableOptions::default() };
    let decoder = TrainableDecoder::load(folder, &options, &Device::Cpu)?;
    let text = DecoderText::read(folder)?;
    let preferences = ROWS.map(|[query, positive, negative, _]| PreferenceText {
        prompt: format!("Please write a passage to answer the question:\nQuestion: {query}\nPassage:"),
        chosen: positive.into(),
        rejected: negative.into(),
        cut: [false; 2],
    });
    let limits = Limits { max_length: 612, max_prompt_length: 100 };
    let (examples, _) = tokenize_preferences(&text, &preferences, limits)?;
    let task =
        DpoTask::new(&decoder, DpoOptions::default(), examples.clone(), Vec::new(), None, &mut |_, _| ())?;
    fit(&task, 1e-3)?;
    let base = folder.to_string_lossy();
    let file = AdapterFile::of(decoder.parameters(), &settings, AdapterTask::CausalLm, &base)?;
    file.write(&out.join("adapter"))?;
    merge_adapter(folder, &AdapterFile::read(&out.join("adapter"))?, &out.join("expander"))?;
    let mut rows = Vec::new();
    for (example, preference) in examples.iter().zip(&preferences) {
        let mut batch = CompletionBatch::default();
        batch.push(&example.prompt, &[&example.chosen])?;
        rows.push(json!({
            "message": preference.prompt,
            "answer": preference.chosen,
            "prompt": example.prompt,
            "completion": example.chosen,
            "adapted": decoder.log_probabilities(&batch, Pass::inference())?.0,
            "reference": decoder.log_probabilities(&batch, Pass::reference())?.0,
        }));
    }
    Ok(json!(rows))
}
