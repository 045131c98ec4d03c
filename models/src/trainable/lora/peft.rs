//! Adapters in files, as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::{LoraSettings, PREFIX};
use crate::{
    Result,
    folder::{NewFolder, checkpoint_error, read_json},
    trainable::Parameters,
};

/// The settings of an adapter folder.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// The weights of an adapter folder.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// The files of an adapter folder that are the adapter, and not the rest of its training.
pub const ADAPTER_FILES: [&str; 2] = [ADAPTER_CONFIG, ADAPTER_WEIGHTS];

/// What the model behind an adapter is for, in PEFT's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdapterTask {
    /// A language model.
    CausalLm,
    /// An encoder.
    FeatureExtraction,
}

/// An adapter, in memory.
#[derive(Clone, Debug)]
pub struct AdapterFile {
    /// Rank, scale and targets.
    pub settings: LoraSettings,
    /// What the model behind it is for.
    pub task: AdapterTask,
    /// The name or folder of the model that it belongs to.
    pub base: String,
    /// The matrices by PEFT's names; f32 where they were read.
    pub tensors: HashMap<String, Tensor>,
}

impl AdapterFile {
    /// The adapters of a model as they are now.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of(
        parameters: &Parameters,
        settings: &LoraSettings,
        task: AdapterTask,
        base: &str,
    ) -> Result<Self> {
        let (settings, base) = (settings.clone(), base.to_owned());
        Ok(Self { settings, task, base, tensors: parameters.values()? })
    }

    /// Takes the matrices to another type, which [`AdapterFile::write`] then writes.
    ///
    /// # Errors
    /// When there is no way to that type.
    pub fn round(&mut self, to: DType) -> Result<()> {
        for tensor in self.tensors.values_mut() {
            *tensor = tensor.to_dtype(to)?;
        }
        Ok(())
    }

    /// Writes the adapter folder, which appears whole or not at all, and replaces one that is there.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, target: &Path) -> Result<()> {
        let folder = NewFolder::create(target)?;
        let settings = &self.settings;
        let alpha = match settings.alpha.fract() == 0.0 {
            true => json!(settings.alpha as i64),
            false => json!(settings.alpha),
        };
        let task = match self.task {
            AdapterTask::CausalLm => "CAUSAL_LM",
            AdapterTask::FeatureExtraction => "FEATURE_EXTRACTION",
        };
        let targets = match settings.target_modules.as_slice() {
            [all] if all == "all-linear" => json!(all),
            targets => json!(targets),
        };
        let config = json!({
            "alpha_pattern": {}, "auto_mapping": null, "base_model_name_or_path": self.base, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "layers_pattern": null,
            "layers_to_transform": null, "lora_alpha": alpha, "lora_dropout": settings.dropout,
            "modules_to_save": null, "peft_type": "LORA", "r": settings.rank, "rank_pattern": {}, "revision": null,
            "target_modules": targets, "task_type": task, "use_dora": false,
            "use_rslora": settings.rank_stabilised,
        });
        fs_err::write(folder.path().join(ADAPTER_CONFIG), format!("{config:#}\n"))?;
        let sorted: BTreeMap<&String, &Tensor> = self.tensors.iter().collect();
        let path = folder.path().join(ADAPTER_WEIGHTS);
        let metadata = Some(HashMap::from([("format".to_owned(), "pt".to_owned())]));
        safetensors::serialize_to_file(sorted, metadata, &path)
            .map_err(|error| checkpoint_error(&path, format!("can't be written: {error}")))?;
        folder.finish()
    }

    /// Reads an adapter folder, made here or by PEFT.
    ///
    /// # Errors
    /// When a file is missing or broken, and when the adapter is of a kind that is more than LoRA's two matrices.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(ADAPTER_CONFIG);
        let config: Map<String, Value> = read_json(&path, "give a folder that PEFT has saved an adapter to")?;
        refuse_other_kinds(&config).map_err(|detail| checkpoint_error(&path, detail))?;
        let weights = folder.join(ADAPTER_WEIGHTS);
        let broken = |error: &dyn std::fmt::Display| {
            checkpoint_error(&weights, format!("not whole ({error}); save the adapter again as safetensors"))
        };
        let found = candle_core::safetensors::load(&weights, &Device::Cpu).map_err(|e| broken(&e))?;
        let mut tensors = HashMap::new();
        for (name, tensor) in found {
            if modules_of(&name).is_none() {
                return Err(broken(&format!("`{name}` is no matrix of LoRA")));
            }
            tensors.insert(name, tensor.to_dtype(DType::F32)?);
        }
        let number = |key: &str| config.get(key).and_then(Value::as_f64);
        let rank = number("r").filter(|rank| *rank >= 1.0).map(|rank| rank as usize);
        let (Some(rank), Some(alpha)) = (rank, number("lora_alpha")) else {
            return Err(checkpoint_error(
                &path,
                "`r` or `lora_alpha` is missing; save the adapter again".into(),
            ));
        };
        let settings = LoraSettings {
            rank,
            alpha,
            dropout: number("lora_dropout").unwrap_or(0.0),
            target_modules: targets(&config, &tensors),
            rank_stabilised: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        };
        if let Some((name, tensor)) = tensors.iter().find(|(name, tensor)| wrong_shape(name, tensor, rank)) {
            return Err(broken(&format!("`{name}` has shape {:?}, and the rank is {rank}", tensor.dims())));
        }
        let task = match config.get("task_type").and_then(Value::as_str) {
            Some("CAUSAL_LM") => AdapterTask::CausalLm,
            _ => AdapterTask::FeatureExtraction,
        };
        let base =
            config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Self { settings, task, base, tensors })
    }

    /// A module's matrices A (rank × inputs) and B (outputs × rank).
    pub fn matrices(&self, module: &str) -> Option<[&Tensor; 2]> {
        let [a, b] = LoraSettings::parameter_names(module);
        Some([self.tensors.get(&a)?, self.tensors.get(&b)?])
    }

    /// The modules that have an adapter, sorted.
    pub fn modules(&self) -> Vec<&str> {
        let mut modules: Vec<&str> = self.tensors.keys().filter_map(|name| modules_of(name)).collect();
        modules.sort_unstable();
        modules.dedup();
        modules
    }
}

/// The module that a matrix belongs to.
fn modules_of(name: &str) -> Option<&str> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.strip_suffix(".lora_A.weight").or_else(|| rest.strip_suffix(".lora_B.weight"))
}

fn wrong_shape(name: &str, tensor: &Tensor, rank: usize) -> bool {
    let side = if name.ends_with(".lora_A.weight") { 0 } else { 1 };
    tensor.rank() != 2 || tensor.dims()[side] != rank
}

/// The targets as given, or every module by its whole name where they were given as a pattern.
fn targets(config: &Map<String, Value>, tensors: &HashMap<String, Tensor>) -> Vec<String> {
    if let Some(Value::Array(names)) = config.get("target_modules") {
        let mut names: Vec<String> =
            names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect();
        names.sort();
        return names;
    }
    let mut names: Vec<String> =
        tensors.keys().filter_map(|name| modules_of(name).map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    names
}

/// PEFT can do more than two matrices beside a linear layer; an adapter that needs more must not be half read.
fn refuse_other_kinds(config: &Map<String, Value>) -> std::result::Result<(), String> {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        return Err("`peft_type` is not LORA; only LoRA adapters are read".into());
    }
    if config.get("bias").and_then(Value::as_str).is_some_and(|bias| bias != "none") {
        return Err("adapters that train biases are not supported; train with bias: none".into());
    }
    let others = [
        "use_dora",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "fan_in_fan_out",
        "exclude_modules",
        "target_parameters",
        "trainable_token_indices",
        "layer_replication",
        "lora_bias",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "use_bdlora",
        "use_qalora",
    ];
    match others.into_iter().find(|key| config.get(*key).is_some_and(|value| !empty(value))) {
        Some(key) => {
            Err(format!("`{key}` is not supported; train a plain LoRA adapter, or merge it with PEFT"))
        }
        None => Ok(()),
    }
}
