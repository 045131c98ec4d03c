//! The jobs of [`Steps`](crate::steps::Steps) done by the trainers of this crate.
//!
//! Every function blocks for as long as its training takes. Checkpoints lie in the job's work folder, from which an
//! interrupted attempt goes on.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use candle_core::{DType, Device};
use expandr_models::trainable::{
    self, AdapterFile, AdapterTask, DecoderText, LoraSettings, TextLengths, TrainableDecoder,
    TrainableEncoder, TrainableOptions, merge_adapter,
};
use fs_err as fs;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::contrastive::{self, ContrastiveOptions, ContrastiveTask, ContrastiveText, Interpolation};
use crate::dpo::{
    CompletionText, DpoOptions, DpoTask, Limits, PreferenceText, SupervisedOptions, SupervisedTask,
    tokenize_completions, tokenize_preferences,
};
use crate::example::ExampleLine;
use crate::folder::JsonLines;
use crate::optim::AdamWSettings;
use crate::preference::{CompletionLine, PreferenceLine, Turn};
use crate::progress::StepProgress;
use crate::recipe::{ContrastiveSettings, Method, Precision, SavedAs};
use crate::steps::{ContrastiveJob, DpoJob, MergeJob, Places, WarmUpJob};
use crate::trainer::{Event, StopSignal, Surroundings, Task, TrainerSettings, train};
use crate::{Error, Result};

/// Batches whose examples are sorted by length together.
const BUCKET: usize = 8;
/// Preferences between two notes on the reference model's progress.
const REFERENCE_NOTE: usize = 256;
/// In a trained encoder's folder: the adapter that was merged into it.
const ADAPTER: &str = "adapter";

/// Supervised training of a language model on gold passages; leaves an adapter.
///
/// # Errors
/// When data or model can't be read, when a setting makes no sense, and when the training fails.
pub fn warm_up(job: &WarmUpJob<'_>, device: &Device) -> Result<Value> {
    let settings = job.settings;
    let lora = lora(settings.lora_rank, settings.lora_alpha, settings.lora_dropout, &settings.target_modules);
    let decoder = decoder(job.base, &lora, Precision::Auto, job.seed, device)?;
    let text = DecoderText::read(job.base)?;
    let limits = Limits { max_length: settings.max_length, max_prompt_length: settings.max_prompt_length };
    let (train, cut) = tokenize_completions(&text, &completions(job.train)?, limits)?;
    let (dev, _) = tokenize_completions(&text, &completions(job.dev)?, limits)?;
    let counts = json!({ "train": train.len(), "dev": dev.len(), "shortened": cut });
    let options = SupervisedOptions {
        examples_at_once: settings.batch_size.div_ceil(settings.accumulation),
        checkpoint_activations: false,
    };
    let task = SupervisedTask::new(&decoder, options, train, dev)?;
    let trainer = TrainerSettings {
        epochs: settings.epochs,
        batch_size: settings.batch_size,
        learning_rate: settings.learning_rate,
        schedule: settings.schedule,
        warmup_ratio: settings.warmup_ratio,
        optimiser: AdamWSettings { weight_decay: settings.weight_decay, ..AdamWSettings::default() },
        clip: settings.clip,
        bucket: BUCKET,
        seed: job.seed,
        ..TrainerSettings::default()
    };
    let summary = fit(&task, &trainer, &job.places, &job.progress)?;
    write_adapter(&decoder, &lora, SavedAs::F32, (job.base, job.places.out))?;
    Ok(json!({ "examples": counts, "outcome": summary }))
}

/// Direct preference optimisation of a language model (Eq. 17); leaves an adapter.
///
/// # Errors
/// As [`warm_up`].
pub fn dpo(job: &DpoJob<'_>, device: &Device) -> Result<Value> {
    let settings = job.settings;
    let lora = lora(settings.lora_rank, settings.lora_alpha, settings.lora_dropout, &settings.target_modules);
    let decoder = decoder(job.base, &lora, settings.precision, job.seed, device)?;
    let text = DecoderText::read(job.base)?;
    let limits = Limits { max_length: settings.max_length, max_prompt_length: settings.max_prompt_length };
    let (train, cut) = tokenize_preferences(&text, &preferences(job.train)?, limits)?;
    let (dev, _) = tokenize_preferences(&text, &preferences(job.dev)?, limits)?;
    let counts = json!({ "train": train.len(), "dev": dev.len(), "shortened": cut });
    let options = DpoOptions {
        beta: settings.beta,
        pairs_at_once: settings.batch_size.div_ceil(settings.accumulation),
        checkpoint_activations: settings.checkpoint_activations,
    };
    let mut reference = |done: usize, total: usize| {
        if done == total || done.is_multiple_of(REFERENCE_NOTE) {
            job.progress.note(&format!("the reference model has seen {done} of {total} preferences"));
        }
    };
    let task = DpoTask::new(&decoder, options, train, dev, Some(job.places.work), &mut reference)?;
    let trainer = TrainerSettings {
        epochs: settings.epochs,
        batch_size: settings.batch_size,
        learning_rate: settings.learning_rate,
        schedule: settings.schedule,
        warmup_ratio: settings.warmup_ratio,
        optimiser: AdamWSettings { weight_decay: settings.weight_decay, ..AdamWSettings::default() },
        clip: settings.clip,
        bucket: BUCKET,
        seed: job.seed,
        evaluate_every: settings.evaluate_every,
        patience: settings.patience,
        keep_best: settings.patience.is_some(),
        checkpoint_every: settings.checkpoint_every,
        ..TrainerSettings::default()
    };
    let summary = fit(&task, &trainer, &job.places, &job.progress)?;
    write_adapter(&decoder, &lora, settings.saved_as, (job.base, job.places.out))?;
    Ok(json!({ "examples": counts, "outcome": summary }))
}

/// Merges an adapter into its model.
///
/// # Errors
/// When the adapter belongs to another model, and when a file can't be read or written.
pub fn merge(job: &MergeJob<'_>) -> Result<Value> {
    let adapter = AdapterFile::read(job.adapter)?;
    merge_adapter(job.base, &adapter, job.out)?;
    Ok(json!({ "modules": adapter.modules().len() }))
}

/// Contrastive training of an encoder (Eq. 8, 9), several times where the mean of the outcomes is asked for; leaves the
/// encoder, adapters merged, and beside them the adapter. An outcome between before and after training is evaluated again
/// (`interpolated`), and so is a mean (`averaged`).
///
/// # Errors
/// As [`warm_up`].
pub fn contrastive(job: &ContrastiveJob<'_>, device: &Device) -> Result<Value> {
    let count = job.settings.soup;
    let mut members = Vec::with_capacity(count);
    for number in 0..count {
        members.push(member(job, number, device)?);
    }
    match job.settings.method {
        Method::Full => {
            let encoder = encoder(job, job.base, (trainable::Method::Full, job.seed), device)?;
            contrastive::average(&members, encoder.parameters())?;
            encoder.save(job.places.out)?;
        }
        Method::Lora => {
            let adapters: Vec<AdapterFile> = members.iter().map(|member| adapter(job, member)).collect();
            let mean = AdapterFile::mean(&adapters)?;
            merge_adapter(job.base, &mean, job.places.out)?;
            mean.write(&job.places.out.join(ADAPTER))?;
        }
    }
    if let [alone] = members.as_slice() {
        return Ok(alone.summary.clone());
    }
    let encoder = encoder(job, job.places.out, (trainable::Method::Full, job.seed), device)?;
    let averaged = task(job, &encoder)?.evaluate()?;
    let told: Vec<&Value> = members.iter().map(|member| &member.summary).collect();
    Ok(json!({ "members": told, "averaged": averaged }))
}

/// One training of the encoder. Of several, what it leaves is kept in the work folder.
fn member(job: &ContrastiveJob<'_>, number: usize, device: &Device) -> Result<contrastive::Member> {
    let (settings, count) = (job.settings, job.settings.soup);
    let work = if count == 1 {
        job.places.work.to_owned()
    } else {
        job.places.work.join(format!("member-{number}"))
    };
    if count > 1 {
        if let Some(member) = contrastive::Member::read(&work)? {
            return Ok(member);
        }
        fs::create_dir_all(&work)?;
        job.progress.note(&format!("training {} of {count}", number + 1));
    }
    let seed = job.seed.wrapping_add(number as u64);
    let method = match settings.method {
        Method::Full => trainable::Method::Full,
        Method::Lora => trainable::Method::Lora(contrastive_lora(settings)),
    };
    let encoder = encoder(job, job.base, (method, seed), device)?;
    let task = task(job, &encoder)?;
    let trainer = TrainerSettings {
        epochs: settings.epochs,
        batch_size: settings.batch_size,
        learning_rate: settings.learning_rate,
        schedule: settings.schedule,
        warmup_ratio: settings.warmup_ratio,
        optimiser: AdamWSettings { weight_decay: settings.weight_decay, ..AdamWSettings::default() },
        clip: settings.clip,
        seed,
        evaluate_every: settings.evaluate_every,
        patience: settings.patience,
        keep_best: settings.patience.is_some(),
        checkpoint_every: settings.checkpoint_every,
        ..TrainerSettings::default()
    };
    let way = (settings.interpolation < 1.0)
        .then(|| Interpolation::from_here(encoder.parameters(), settings.interpolation))
        .transpose()?;
    let places = Places { work: &work, ..job.places };
    let outcome = fit(&task, &trainer, &places, &job.progress.part(number, count))?;
    let (train, dev) = task.examples();
    let mut summary = json!({ "examples": { "train": train, "dev": dev }, "outcome": outcome });
    if let Some(way) = way {
        way.apply(encoder.parameters())?;
        summary["interpolated"] = json!(task.evaluate()?);
    }
    let member = contrastive::Member::new(encoder.parameters(), summary)?;
    if count > 1 {
        member.write(&work)?;
    }
    Ok(member)
}

/// The encoder in `folder`, to be trained in the job's way.
fn encoder(
    job: &ContrastiveJob<'_>,
    folder: &Path,
    (method, seed): (trainable::Method, u64),
    device: &Device,
) -> Result<TrainableEncoder> {
    let settings = job.settings;
    let lengths =
        TextLengths { query: Some(settings.max_query_length), document: Some(settings.max_document_length) };
    let options = TrainableOptions { method, seed, ..TrainableOptions::default() };
    Ok(TrainableEncoder::load(folder, lengths, &options, device)?)
}

/// The job's examples and loss for an encoder.
fn task<'e>(job: &ContrastiveJob<'_>, encoder: &'e TrainableEncoder) -> Result<ContrastiveTask<'e>> {
    let settings = job.settings;
    let train = contrastive::tokenize(encoder, &examples(job.train)?)?;
    let dev = contrastive::tokenize(encoder, &examples(job.dev)?)?;
    let options = ContrastiveOptions {
        query_weight: settings.query_weight,
        expansion_dropout: settings.expansion_dropout,
        normalize: settings.normalize,
        temperature: settings.temperature,
        chunk: settings.chunk,
        checkpoint_activations: settings.checkpoint_activations,
        ..ContrastiveOptions::default()
    };
    ContrastiveTask::new(encoder, options, train, dev)
}

fn contrastive_lora(settings: &ContrastiveSettings) -> LoraSettings {
    lora(settings.lora_rank, settings.lora_alpha, settings.lora_dropout, &settings.target_modules)
}

fn adapter(job: &ContrastiveJob<'_>, member: &contrastive::Member) -> AdapterFile {
    AdapterFile {
        settings: contrastive_lora(job.settings),
        task: AdapterTask::FeatureExtraction,
        base: name_of(job.base).into_owned(),
        tensors: member.weights.clone(),
    }
}

fn lora(rank: usize, alpha: f64, dropout: f64, target_modules: &[String]) -> LoraSettings {
    LoraSettings { rank, alpha, dropout, target_modules: target_modules.to_vec(), rank_stabilised: false }
}

/// A language model with fresh adapters.
fn decoder(
    base: &Path,
    lora: &LoraSettings,
    precision: Precision,
    seed: u64,
    device: &Device,
) -> Result<TrainableDecoder> {
    let precision = match precision {
        Precision::Auto if device.is_cuda() => trainable::Precision::Bf16,
        Precision::Auto | Precision::F32 => trainable::Precision::F32,
        Precision::Bf16 => trainable::Precision::Bf16,
    };
    let method = trainable::Method::Lora(lora.clone());
    let options = TrainableOptions { method, precision, seed, ..TrainableOptions::default() };
    Ok(TrainableDecoder::load(base, &options, device)?)
}

/// Writes the adapter of the model `base` to `out`.
fn write_adapter(
    decoder: &TrainableDecoder,
    lora: &LoraSettings,
    saved_as: SavedAs,
    (base, out): (&Path, &Path),
) -> Result<()> {
    let base = name_of(base);
    let mut file = AdapterFile::of(decoder.parameters(), lora, AdapterTask::CausalLm, &base)?;
    if saved_as == SavedAs::Bf16 {
        file.round(DType::BF16)?;
    }
    Ok(file.write(out)?)
}

/// What an adapter calls its base model: the name of its folder, without the rest of the path, so that the same training
/// leaves the same files on every machine.
fn name_of(base: &Path) -> Cow<'_, str> {
    base.file_name().unwrap_or(base.as_os_str()).to_string_lossy()
}

/// Trains, telling progress and adding everything that happens to the job's log.
fn fit(
    task: &dyn Task,
    settings: &TrainerSettings,
    places: &Places<'_>,
    progress: &StepProgress<'_>,
) -> Result<Value> {
    let folder = places.work.join("checkpoints");
    let log = fs::OpenOptions::new().create(true).append(true).open(places.log)?;
    let mut log = BufWriter::new(log.into_parts().0);
    let mut failure = None;
    let mut tell = |event: &Event| {
        tell_progress(event, progress);
        if let Err(error) = write_event(&mut log, event) {
            failure.get_or_insert(error);
        }
    };
    let surroundings = Surroundings { folder: Some(&folder), stop: &StopSignal::default(), tell: &mut tell };
    let summary = train(task, settings, surroundings)?;
    if let Some(error) = failure {
        progress.note(&format!("{}: not all of the log could be written: {error}", places.log.display()));
    }
    let mut summary = serde_json::to_value(summary).map_err(|error| Error::Training(error.to_string()))?;
    summary["parameters"] = json!(task.parameters().elements());
    Ok(summary)
}

fn write_event(log: &mut BufWriter<File>, event: &Event) -> std::io::Result<()> {
    serde_json::to_writer(&mut *log, event)?;
    log.write_all(b"\n")?;
    log.flush()
}

fn tell_progress(event: &Event, progress: &StepProgress<'_>) {
    match event {
        Event::Started { done, total, .. } => progress.step(*done, *total, Map::new()),
        Event::Step(report) => {
            let mut figures = Map::from_iter([
                ("loss".to_owned(), json!(report.loss)),
                ("learning_rate".to_owned(), json!(report.learning_rate)),
                ("gradient_norm".to_owned(), json!(report.gradient_norm)),
                ("tokens_per_second".to_owned(), json!(report.tokens_per_second)),
            ]);
            figures.extend(report.figures.iter().map(|(name, value)| (name.clone(), json!(value))));
            progress.step(report.step, report.total, figures);
        }
        Event::Evaluated { step, outcome, best } => {
            let best = if *best { ", the best so far" } else { "" };
            progress.note(&format!("after step {step}: development loss {:.4}{best}", outcome.loss));
        }
        Event::Checkpointed { .. } => {}
    }
}

fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    JsonLines::<T>::open(path)?.collect()
}

/// Our trainers put the served model's chat template around a prompt; a text without one would be learnt for nothing.
fn conversational<'t>(turn: &'t Turn, path: &Path) -> Result<&'t str> {
    if !turn.is_conversational() {
        return Err(Error::Input(format!(
            "{}: a prompt is a plain text, and the model is served with its chat template; write preferences with \
             `rewards.layout = \"conversational\"`",
            path.display()
        )));
    }
    Ok(turn.text())
}

fn preferences(path: &Path) -> Result<Vec<PreferenceText>> {
    let text = |line: PreferenceLine| {
        Ok(PreferenceText {
            prompt: conversational(&line.prompt, path)?.to_owned(),
            chosen: line.chosen.text().to_owned(),
            rejected: line.rejected.text().to_owned(),
            cut: [!line.chosen_complete, !line.rejected_complete],
        })
    };
    lines(path)?.into_iter().map(text).collect()
}

fn completions(path: &Path) -> Result<Vec<CompletionText>> {
    let text = |line: CompletionLine| {
        Ok(CompletionText {
            prompt: conversational(&line.prompt, path)?.to_owned(),
            completion: line.completion.text().to_owned(),
        })
    };
    lines(path)?.into_iter().map(text).collect()
}

fn examples(path: &Path) -> Result<Vec<ContrastiveText>> {
    let text = |line: ExampleLine| ContrastiveText {
        query: line.query,
        expansions: line.expansions,
        positive: line.positive,
        negatives: line.negatives,
    };
    Ok(lines(path)?.into_iter().map(text).collect())
}
