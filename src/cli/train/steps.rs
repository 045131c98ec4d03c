//! What a training run needs of models on this machine.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use expandr_models::{
    DeviceChoice, Encoder, Expander,
    encoder::EncoderOptions,
    expander::{
        mistral::{self, MistralOptions},
        openai::{OpenAiExpander, OpenAiOptions},
    },
    weights::{self, Role},
};
use expandr_training::{
    Error, Model, Result, Steps, Writer,
    recipe::MachineSettings,
    steps::{ContrastiveJob, DpoJob, MergeJob, WarmUpJob},
    writer::OneByOne,
};
use serde_json::Value;

/// Texts that may wait for the encoder.
const ENCODER_QUEUE: usize = 4096;
/// Generations that may wait for the language model.
const EXPANDER_QUEUE: usize = 4096;

/// Loads models from the models folder, or asks the recipe's endpoint.
pub(super) struct LocalSteps {
    pub(super) models_dir: PathBuf,
    pub(super) machine: MachineSettings,
    pub(super) device: DeviceChoice,
    pub(super) api_key: Option<String>,
}

impl LocalSteps {
    fn folder(&self, model: &Model, role: Role) -> Result<PathBuf> {
        match model {
            Model::Named(name) => self.locate(name, role),
            Model::Made(folder) => Ok(folder.clone()),
        }
    }

    /// A client of the recipe's endpoint.
    fn remote(&self, endpoint: &str, model: &Model) -> Result<Arc<dyn Expander>> {
        let name = match (&self.machine.endpoint_model, model) {
            (Some(name), _) => name.clone(),
            (None, Model::Named(name)) => name.clone(),
            (None, Model::Made(folder)) => {
                return Err(Error::Input(format!(
                    "`machine.endpoint` is set, and the model is one that this run has made ({}): serve that folder and \
                     name it in `machine.endpoint_model`, or take the endpoint away for this stage",
                    folder.display()
                )));
            }
        };
        let mut options = OpenAiOptions {
            api_key: self.api_key.clone(),
            queue_capacity: EXPANDER_QUEUE,
            ..OpenAiOptions::new(endpoint, name)
        };
        if self.machine.concurrency > 0 {
            options.max_concurrency = self.machine.concurrency;
        }
        Ok(Arc::new(OpenAiExpander::new(options)?))
    }
}

#[async_trait]
impl Steps for LocalSteps {
    fn locate(&self, model: &str, role: Role) -> Result<PathBuf> {
        Ok(weights::resolve(&self.models_dir, model, role)?.path)
    }

    async fn writer(&self, model: &Model) -> Result<Arc<dyn Writer>> {
        let expander: Arc<dyn Expander> = match &self.machine.endpoint {
            Some(endpoint) => self.remote(endpoint, model)?,
            None => {
                let options = MistralOptions {
                    device: self.device,
                    queue_capacity: EXPANDER_QUEUE,
                    ..MistralOptions::default()
                };
                mistral::load(&self.folder(model, Role::Expander)?, options).await?
            }
        };
        Ok(Arc::new(OneByOne::new(expander, self.machine.concurrency, self.machine.retries)))
    }

    async fn encoder(&self, model: &Model) -> Result<Arc<dyn Encoder>> {
        let folder = self.folder(model, Role::Encoder)?;
        let options = EncoderOptions {
            device: self.device,
            queue_capacity: ENCODER_QUEUE,
            ..EncoderOptions::default()
        };
        let loading = tokio::task::spawn_blocking(move || expandr_models::encoder::load(&folder, &options));
        let encoder =
            loading.await.map_err(|error| Error::Input(format!("loading the encoder broke: {error}")))?;
        Ok(encoder?)
    }

    async fn warm_up(&self, _job: &WarmUpJob<'_>) -> Result<Value> {
        no_trainer("warm-up")
    }

    async fn dpo(&self, _job: &DpoJob<'_>) -> Result<Value> {
        no_trainer("dpo")
    }

    async fn merge(&self, _job: &MergeJob<'_>) -> Result<Value> {
        no_trainer("merge")
    }

    async fn contrastive(&self, _job: &ContrastiveJob<'_>) -> Result<Value> {
        no_trainer("contrastive")
    }
}

fn no_trainer(stage: &str) -> Result<Value> {
    Err(Error::Input(format!(
        "this build has no trainer for stage {stage}; do it elsewhere, as docs/training.md shows, and take it with --adopt {stage}"
    )))
}
