//! A [`Steps`] without tensors: doubles that generate and encode, and trainers whose outcome is a hash of what they
//! read. Models are folders with a file `weights`; other weights write and encode otherwise.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use expandr_models::testing::{HashEncoder, Script, ScriptedExpander};
use expandr_models::trainable::ADAPTER_FILES;
use expandr_models::weights::Role;
use expandr_models::{Encoder, EncoderInfo, Generation, Priority, Sampling, TextKind};
use serde_json::{Value, json};

use crate::progress::{Event, Observer};
use crate::seed::sha256;
use crate::steps::{ContrastiveJob, DpoJob, MergeJob, Model, Steps, WarmUpJob};
use crate::writer::{OneByOne, Writer};
use crate::{Error, Result};

/// The double of everything that needs tensors.
pub(super) struct FakeSteps {
    models: PathBuf,
    /// Generations at once.
    pub(super) concurrency: usize,
    /// Between two tokens.
    pub(super) token_delay: Duration,
    /// Prompts that may still be written for before the language model breaks.
    pub(super) prompts_left: Arc<AtomicUsize>,
    /// Prompts that were written for.
    pub(super) prompts: Arc<AtomicUsize>,
    /// Texts that were encoded.
    pub(super) encoded: Arc<AtomicUsize>,
    /// Whether trainers break in the middle of their work.
    pub(super) trainers_break: Mutex<bool>,
    /// The language models that were asked for, in order.
    pub(super) loaded: Mutex<Vec<Model>>,
    /// The jobs that were done, in order.
    pub(super) jobs: Mutex<Vec<String>>,
}

const MODEL_FILES: [&str; 3] = ["config.json", "tokenizer.json", "weights"];

impl FakeSteps {
    pub(super) fn new(models: &Path) -> Self {
        for name in ["language-model", "encoder", "teacher"] {
            fs_err::create_dir_all(models.join(name)).unwrap();
            for file in MODEL_FILES {
                fs_err::write(models.join(name).join(file), name).unwrap();
            }
        }
        Self {
            models: models.to_owned(),
            concurrency: 4,
            token_delay: Duration::ZERO,
            prompts_left: Arc::new(AtomicUsize::new(usize::MAX)),
            prompts: Arc::default(),
            encoded: Arc::default(),
            trainers_break: Mutex::new(false),
            loaded: Mutex::new(Vec::new()),
            jobs: Mutex::new(Vec::new()),
        }
    }

    fn weights(&self, model: &Model) -> Result<String> {
        let folder = match model {
            Model::Named(name) => match self.locate(name, Role::Expander) {
                Ok(folder) => folder,
                Err(_) => return Ok(format!("w-{name}")),
            },
            Model::Made(folder) | Model::Adapted { merged: folder, .. } => folder.clone(),
        };
        Ok(format!("w{}", &sha256(&fs_err::read(folder.join("weights"))?)[..8]))
    }

    /// A trainer that counts to ten in its work folder, and whose outcome follows from what it reads.
    fn train(&self, job: &str, read: &[PathBuf], work: &Path, out: &Path, files: &[&str]) -> Result<Value> {
        let steps = work.join("steps");
        let before: usize = fs_err::read_to_string(&steps).map_or(0, |text| text.parse().unwrap_or(0));
        for step in before + 1..=10 {
            fs_err::write(&steps, step.to_string())?;
            if step == 5 && *self.trainers_break.lock().unwrap() {
                return Err(Error::Input("the trainer breaks at step 5".into()));
            }
        }
        let mut text = job.to_owned();
        for path in read {
            text.push_str(&sha256(&fs_err::read(path)?));
        }
        for file in files {
            fs_err::write(out.join(file), sha256(text.as_bytes()))?;
        }
        self.jobs.lock().unwrap().push(format!("{job} from step {before}"));
        Ok(json!({ "loss": 0.5 }))
    }
}

#[async_trait]
impl Steps for FakeSteps {
    fn locate(&self, model: &str, _role: Role) -> Result<PathBuf> {
        let folder = self.models.join(model);
        if folder.is_dir() { Ok(folder) } else { Err(Error::Input(format!("there is no model {model}"))) }
    }

    async fn writer(&self, model: &Model) -> Result<Arc<dyn Writer>> {
        self.loaded.lock().unwrap().push(model.clone());
        let script = Script {
            concurrency: self.concurrency,
            natural_length: 12,
            token_delay: self.token_delay,
            ..Script::default()
        };
        Ok(Arc::new(FakeWriter {
            inner: OneByOne::new(Arc::new(ScriptedExpander::new(script)), 0, 0),
            weights: self.weights(model)?,
            left: self.prompts_left.clone(),
            done: self.prompts.clone(),
        }))
    }

    async fn encoder(&self, model: &Model) -> Result<Arc<dyn Encoder>> {
        let inner = HashEncoder::new(32);
        Ok(Arc::new(FakeEncoder { inner, weights: self.weights(model)?, encoded: self.encoded.clone() }))
    }

    async fn warm_up(&self, job: &WarmUpJob<'_>) -> Result<Value> {
        let read = [job.base.join("weights"), job.train.to_owned(), job.dev.to_owned()];
        self.train("warm-up", &read, job.places.work, job.places.out, &ADAPTER_FILES)
    }

    async fn dpo(&self, job: &DpoJob<'_>) -> Result<Value> {
        let read = [job.base.join("weights"), job.train.to_owned(), job.dev.to_owned()];
        self.train("dpo", &read, job.places.work, job.places.out, &ADAPTER_FILES)
    }

    async fn merge(&self, job: &MergeJob<'_>) -> Result<Value> {
        let read = [job.base.join("weights"), job.adapter.join("adapter_model.safetensors")];
        let work = tempfile::tempdir()?;
        self.train("merge", &read, work.path(), job.out, &MODEL_FILES)
    }

    async fn contrastive(&self, job: &ContrastiveJob<'_>) -> Result<Value> {
        let read = [job.base.join("weights"), job.train.to_owned(), job.dev.to_owned()];
        self.train("contrastive", &read, job.places.work, job.places.out, &MODEL_FILES)
    }
}

/// Counts prompts, and breaks when it may write no more.
struct FakeWriter {
    inner: OneByOne,
    weights: String,
    left: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
}

#[async_trait]
impl Writer for FakeWriter {
    fn id(&self) -> &str {
        &self.weights
    }

    fn honours_seed(&self) -> bool {
        true
    }

    fn concurrency(&self) -> usize {
        self.inner.concurrency()
    }

    async fn write(&self, prompt: &str, samplings: &[Sampling]) -> Result<Vec<Generation>> {
        if self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(Error::Input("the language model breaks".into()));
        }
        let mut generations = self.inner.write(&format!("{prompt} {}", self.weights), samplings).await?;
        for generation in &mut generations {
            generation.text = format!("Passage: {}", generation.text);
        }
        self.done.fetch_add(1, Ordering::SeqCst);
        Ok(generations)
    }
}

/// Puts a word of its weights into every text.
struct FakeEncoder {
    inner: HashEncoder,
    weights: String,
    encoded: Arc<AtomicUsize>,
}

#[async_trait]
impl Encoder for FakeEncoder {
    fn info(&self) -> &EncoderInfo {
        self.inner.info()
    }

    async fn encode(
        &self,
        kind: TextKind,
        priority: Priority,
        texts: Vec<String>,
    ) -> expandr_models::Result<Vec<Vec<f32>>> {
        self.encoded.fetch_add(texts.len(), Ordering::SeqCst);
        let texts = texts.iter().map(|text| format!("{text} {}", self.weights)).collect();
        self.inner.encode(kind, priority, texts).await
    }

    fn queued(&self) -> usize {
        self.inner.queued()
    }
}

/// Remembers what it hears, as lines of JSON.
#[derive(Default)]
pub(super) struct Ears(pub(super) Mutex<Vec<Value>>);

impl Observer for Ears {
    fn observe(&self, event: &Event<'_>) {
        self.0.lock().unwrap().push(serde_json::to_value(event).unwrap());
    }
}

impl Ears {
    /// The stages of which this kind of event came.
    pub(super) fn stages(&self, event: &str) -> Vec<String> {
        let events = self.0.lock().unwrap();
        let found = events.iter().filter(|heard| heard["event"] == event);
        found.map(|heard| heard["stage"].as_str().unwrap_or_default().to_owned()).collect()
    }
}
