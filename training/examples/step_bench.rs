//! Times optimiser steps of both trainers, for `step_bench_pytorch.py`, which does the same with PyTorch and compares.
//!
//! Usage: `step_bench contrastive|dpo|dpo-checkpointed <model folder> <data.json> <steps> [device]`; one JSON object comes
//! out. The device is cpu (the default), cuda or metal.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use expandr_models::device::DeviceChoice;
use expandr_models::trainable::{
    Gradients, Key, LoraSettings, Method, TextLengths, TrainableDecoder, TrainableEncoder, TrainableOptions,
};
use expandr_training::contrastive::{ContrastiveExample, ContrastiveOptions, ContrastiveTask};
use expandr_training::dpo::{DpoOptions, DpoTask, PreferenceExample};
use expandr_training::optim::{AdamW, AdamWSettings, clip_scale};
use expandr_training::trainer::Task;
use serde::Deserialize;

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    queries: Vec<Vec<u32>>,
    #[serde(default)]
    passages: Vec<Vec<u32>>,
    #[serde(default)]
    prompts: Vec<Vec<u32>>,
    #[serde(default)]
    chosen: Vec<Vec<u32>>,
    #[serde(default)]
    rejected: Vec<Vec<u32>>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ([kind, folder, data, steps], device) = (match arguments.as_slice() {
        [first @ .., device] if first.len() == 4 => (first, device.as_str()),
        all => (all, "cpu"),
    }) else {
        bail!(
            "give: contrastive|dpo|dpo-checkpointed, a model folder, a data file, a number of steps, perhaps a device"
        )
    };
    let device = device.parse::<DeviceChoice>().map_err(anyhow::Error::msg)?.open()?;
    let folder = Path::new(folder);
    let data: Data = serde_json::from_slice(&fs_err::read(data)?)?;
    let steps = steps.parse().context("the number of steps")?;
    match kind.as_str() {
        "contrastive" => {
            let options = TrainableOptions { dropout: Some(0.0), ..TrainableOptions::default() };
            let encoder = TrainableEncoder::load(folder, TextLengths::default(), &options, &device)?;
            let example = |(query, passage): (&Vec<u32>, &Vec<u32>)| ContrastiveExample {
                query: query.clone(),
                positive: passage.clone(),
                ..ContrastiveExample::default()
            };
            let examples = data.queries.iter().zip(&data.passages).map(example).collect();
            let settings =
                ContrastiveOptions { normalize: true, temperature: 0.05, ..ContrastiveOptions::default() };
            let task = ContrastiveTask::new(&encoder, settings, examples, Vec::new())?;
            measure(&task, steps, 5e-5)
        }
        "dpo" | "dpo-checkpointed" => {
            let settings = LoraSettings {
                rank: 8,
                alpha: 16.0,
                dropout: 0.0,
                target_modules: vec!["q_proj".into(), "v_proj".into()],
                rank_stabilised: false,
            };
            let options = TrainableOptions { method: Method::Lora(settings), ..TrainableOptions::default() };
            let decoder = TrainableDecoder::load(folder, &options, &device)?;
            let completions = data.chosen.iter().zip(&data.rejected);
            let example =
                |(prompt, (chosen, rejected)): (&Vec<u32>, (&Vec<u32>, &Vec<u32>))| PreferenceExample {
                    prompt: prompt.clone(),
                    chosen: chosen.clone(),
                    rejected: rejected.clone(),
                };
            let examples = data.prompts.iter().zip(completions).map(example).collect();
            let checkpoint_activations = kind == "dpo-checkpointed";
            let settings = DpoOptions { checkpoint_activations, ..DpoOptions::default() };
            let task = DpoTask::new(&decoder, settings, examples, Vec::new(), None, &mut |_, _| ())?;
            measure(&task, steps, 1e-3)
        }
        other => bail!("`{other}` is no kind of step"),
    }
}

/// Times steps with clipping and AdamW, all examples in each.
fn measure(task: &dyn Task, steps: usize, learning_rate: f64) -> Result<()> {
    let parameters = task.parameters();
    let examples: Vec<usize> = (0..task.lengths().len()).collect();
    let mut optimiser =
        AdamW::new(parameters, AdamWSettings { weight_decay: 0.01, ..AdamWSettings::default() })?;
    let mut gradients = Gradients::new(parameters);
    let (mut seconds, mut cpu_seconds, mut losses) = (Vec::new(), Vec::new(), Vec::new());
    for step in 0..steps {
        let (began, cpu_began) = (Instant::now(), cpu_time()?);
        gradients.reset();
        let outcome = task.step(&examples, Key::new(step as u64), &mut gradients)?;
        let scale = clip_scale(gradients.norm()?, 1.0);
        optimiser.step(parameters, &gradients, learning_rate, scale)?;
        seconds.push(began.elapsed().as_secs_f64());
        cpu_seconds.push(cpu_time()? - cpu_began);
        losses.push(outcome.loss);
    }
    let report = serde_json::json!({
        "seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses, "peak_mb": peak_memory_mb()?,
    });
    println!("{report}");
    Ok(())
}

/// Processor time of this process so far, in seconds (Linux).
fn cpu_time() -> Result<f64> {
    let stat = fs_err::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| -> Result<f64> { Ok(fields.get(field).context("/proc/self/stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

/// The most memory that this process has had (Linux).
fn peak_memory_mb() -> Result<f64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("/proc/self/status")?;
    Ok(line.split_whitespace().next().context("VmHWM")?.parse::<f64>()? / 1024.0)
}
