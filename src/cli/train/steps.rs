//! What a training run needs of models on this machine.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use expandr_models::{
    DeviceChoice, Encoder, Expander,
    decoder::DecoderOptions,
    encoder::EncoderOptions,
    expander::{
        batched,
        mistral::{self, MistralOptions},
        openai::{OpenAiExpander, OpenAiOptions},
    },
    weights::{self, Role},
};
use expandr_training::{
    Error, Model, Result, Steps, Writer,
    recipe::MachineSettings,
    steps::{ContrastiveJob, DpoJob, MergeJob, WarmUpJob},
    trainers,
    writer::{Batched, OneByOne},
};
use serde_json::Value;
use tokio::task::block_in_place;

/// Texts that may wait for the encoder.
const ENCODER_QUEUE: usize = 4096;
/// Generations that may wait for the language model.
const EXPANDER_QUEUE: usize = 4096;

/// Loads models from the models folder, or asks the recipe's endpoint.
pub(super) struct LocalSteps {
    pub(super) models_dir: PathBuf,
    pub(super) machine: MachineSettings,
    /// What the recipe calls its language model.
    pub(super) expander: String,
    /// The run's folder.
    pub(super) run: PathBuf,
    pub(super) device: DeviceChoice,
    pub(super) api_key: Option<String>,
}

impl LocalSteps {
    fn folder(&self, model: &Model, role: Role) -> Result<PathBuf> {
        match model {
            Model::Named(name) => self.locate(name, role),
            Model::Made(folder) | Model::Adapted { merged: folder, .. } => Ok(folder.clone()),
        }
    }

    /// What our own decoder loads: an adapter beside its base, whose weights it keeps in fewer bits than those of the
    /// merged model, or a folder.
    fn parts(&self, model: &Model) -> Result<(PathBuf, Option<PathBuf>)> {
        if let Model::Adapted { base, adapter, .. } = model {
            let base = self.folder(base, Role::Expander)?;
            if batched::supports(&base) {
                return Ok((base, Some(adapter.clone())));
            }
        }
        Ok((self.folder(model, Role::Expander)?, None))
    }

    /// Whether our own decoder writes: on a CPU, with an architecture that it knows.
    fn is_batched(&self, model: &Model) -> Result<bool> {
        let device = self.device.open()?;
        Ok(device.is_cpu() && batched::supports(&self.folder(model, Role::Expander)?))
    }

    /// What the recipe's endpoint calls a model. A model that this run has made is another one than its base, so that it
    /// needs a name of its own there.
    fn name_there(&self, model: &Model) -> Result<String> {
        let folder = match model {
            Model::Named(name) if *name == self.expander => {
                return Ok(self.machine.endpoint_model.as_ref().unwrap_or(name).clone());
            }
            Model::Named(name) => return Ok(name.clone()),
            Model::Made(folder) | Model::Adapted { merged: folder, .. } => folder,
        };
        let made = folder.strip_prefix(&self.run).unwrap_or(folder);
        let named = self.machine.endpoint_made.iter().find(|served| served.folder == made);
        named.map(|served| served.name.clone()).ok_or_else(|| {
            Error::Input(format!(
                "`machine.endpoint` is set, and the model that is to write is one that this run has made ({}): serve that \
                 folder and add `[[machine.endpoint_made]]` with `folder = \"{}\"` and its `name` there to the recipe, or take \
                 the endpoint away for this stage",
                folder.display(),
                made.display()
            ))
        })
    }

    /// A client of the recipe's endpoint.
    fn remote(&self, endpoint: &str, model: &Model) -> Result<Arc<dyn Expander>> {
        let name = self.name_there(model)?;
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
            None if self.is_batched(model)? => {
                let mut options =
                    DecoderOptions { queue_capacity: EXPANDER_QUEUE, ..DecoderOptions::default() };
                if self.machine.concurrency > 0 {
                    options.places = self.machine.concurrency;
                }
                let (folder, adapter) = self.parts(model)?;
                options.adapter = adapter;
                let expander = batched::load(&folder, options).await?;
                return Ok(Arc::new(Batched::new(expander)));
            }
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

    async fn warm_up(&self, job: &WarmUpJob<'_>) -> Result<Value> {
        let device = self.device.open()?;
        block_in_place(|| trainers::warm_up(job, &device))
    }

    async fn dpo(&self, job: &DpoJob<'_>) -> Result<Value> {
        let device = self.device.open()?;
        block_in_place(|| trainers::dpo(job, &device))
    }

    async fn merge(&self, job: &MergeJob<'_>) -> Result<Value> {
        block_in_place(|| trainers::merge(job))
    }

    async fn contrastive(&self, job: &ContrastiveJob<'_>) -> Result<Value> {
        let device = self.device.open()?;
        block_in_place(|| trainers::contrastive(job, &device))
    }
}

#[cfg(test)]
mod tests {
    use expandr_training::recipe::ServedModel;

    use super::*;

    #[test]
    fn a_server_is_asked_for_the_model_that_is_to_write() {
        let mut steps = LocalSteps {
            models_dir: PathBuf::new(),
            machine: MachineSettings { endpoint_model: Some("llama-there".into()), ..Default::default() },
            expander: "llama".into(),
            run: "runs/a".into(),
            device: DeviceChoice::Cpu,
            api_key: None,
        };
        let named = |name: &str| Model::Named(name.into());
        assert_eq!(steps.name_there(&named("llama")).unwrap(), "llama-there");
        assert_eq!(
            steps.name_there(&named("larger")).unwrap(),
            "larger",
            "what another stage names is another model"
        );
        let tuned = |folder: &str| Model::Adapted {
            base: Box::new(named("llama")),
            adapter: "runs/a/adapter".into(),
            merged: folder.into(),
        };
        let error = steps.name_there(&tuned("runs/a/expander")).unwrap_err().to_string();
        assert!(error.contains("folder = \"expander\""), "{error}");
        steps.machine.endpoint_made.push(ServedModel { folder: "expander".into(), name: "tuned".into() });
        assert_eq!(steps.name_there(&tuned("runs/a/expander")).unwrap(), "tuned");
        let other = "runs/a/arms/without-self-reward/expander";
        assert!(steps.name_there(&tuned(other)).is_err(), "another row's model is another one");
    }
}
