//! What a checkpoint folder says: where its parts are and how texts become vectors.
//!
//! Two layouts are read. sentence-transformers': `modules.json` lists Transformer, Pooling and perhaps Normalize,
//! `sentence_bert_config.json` has the maximum length, `config_sentence_transformers.json` the prefixes. Plain
//! Hugging Face: `config.json`, `tokenizer.json`, `model.safetensors`; the vector is then the mean over tokens and
//! not normalised, which is what sentence-transformers does with such a folder. In both, an `expandr.json` beside
//! them overrides what it names (see [`Overrides`]).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use fs_err as fs;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Pooling, config::Architecture};
use crate::{
    Result,
    folder::{Tensors, checkpoint_error, read_json, read_json_if_there},
};

/// A checkpoint folder, read and understood; the weights are still on disk.
pub(crate) struct Checkpoint {
    /// The folder as given.
    pub(crate) folder: PathBuf,
    /// The architecture and its sizes.
    pub(crate) architecture: Architecture,
    /// The tensors.
    pub(crate) tensors: Tensors,
    /// `tokenizer.json`.
    pub(crate) tokenizer: PathBuf,
    /// How texts become vectors.
    pub(crate) settings: Settings,
}

/// Everything beside weights and tokenizer that changes vectors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    /// How hidden states become one vector.
    pub(crate) pooling: Pooling,
    /// Whether the vector is L2-normalised.
    pub(crate) normalize: bool,
    /// Before a query.
    pub(crate) query_prefix: String,
    /// Before a document.
    pub(crate) document_prefix: String,
    /// Longest text in tokens, special tokens included.
    pub(crate) max_length: usize,
    /// Whether texts are lower-cased first, whatever the tokenizer does.
    pub(crate) lowercase: bool,
}

/// `expandr.json`: what to use instead of what the rest of the folder says (or doesn't say).
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Overrides {
    pooling: Option<Pooling>,
    normalize: Option<bool>,
    query_prefix: Option<String>,
    document_prefix: Option<String>,
    max_length: Option<usize>,
}

#[derive(Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Default, Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Default, Deserialize)]
struct PromptConfig {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// A float, because absent limits are written as 1e30.
    model_max_length: Option<f64>,
}

/// What `modules.json` boils down to.
struct Layout {
    transformer: PathBuf,
    pooling: Pooling,
    include_prompt: bool,
    normalize: bool,
}

impl Checkpoint {
    /// Reads everything but the weights' values.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            let detail =
                "not a folder; give a sentence-transformers or Hugging Face checkpoint folder".to_owned();
            return Err(checkpoint_error(folder, detail));
        }
        let layout = Layout::read(folder)?;
        let architecture = Architecture::read(&layout.transformer.join("config.json"))?;
        let tokenizer = layout.transformer.join("tokenizer.json");
        if !tokenizer.is_file() {
            let detail = "the file is missing; save it with AutoTokenizer.from_pretrained(folder).save_pretrained(folder)";
            return Err(checkpoint_error(&tokenizer, detail.into()));
        }
        let tensors = Tensors::open(&layout.transformer)?;
        let settings = Settings::read(folder, &layout, &architecture)?;
        Ok(Self { folder: folder.to_path_buf(), architecture, tensors, tokenizer, settings })
    }

    /// `<folder name>@<12 hex digits>`, the digits from a sha256 over weights, config, tokenizer and settings.
    pub(crate) fn id(&self) -> Result<String> {
        let mut hash = Sha256::new();
        for file in self.tensors.files().iter().chain([&self.tokenizer]) {
            let mut reader = fs::File::open(file)?;
            let length = std::io::copy(&mut reader, &mut hash)?;
            hash.update(length.to_le_bytes());
        }
        hash.update(format!("{:?} {:?}", self.architecture, self.settings));
        let digits: String = hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let absolute = self.folder.canonicalize().unwrap_or_else(|_| self.folder.clone());
        let name = absolute.file_name().map_or("encoder".into(), |name| name.to_string_lossy().into_owned());
        Ok(format!("{name}@{digits}"))
    }
}

impl Layout {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("modules.json");
        let Some(modules) = read_json_if_there::<Vec<ModuleEntry>>(&path)? else {
            let transformer = folder.to_path_buf();
            return Ok(Self { transformer, pooling: Pooling::Mean, include_prompt: true, normalize: false });
        };
        let kinds: Vec<&str> =
            modules.iter().map(|m| m.kind.rsplit('.').next().unwrap_or_default()).collect();
        let normalize = match kinds.as_slice() {
            ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            _ => {
                let detail = format!(
                    "the modules [{}] are not supported; use a checkpoint made of Transformer, Pooling and, at the \
                     end, perhaps Normalize",
                    kinds.join(", ")
                );
                return Err(checkpoint_error(&path, detail));
            }
        };
        for module in &modules {
            if Path::new(&module.path)
                .components()
                .any(|part| !matches!(part, std::path::Component::Normal(_)))
            {
                let detail = format!(
                    "module path {:?} leads out of the checkpoint; use a folder within it",
                    module.path
                );
                return Err(checkpoint_error(&path, detail));
            }
        }
        let (pooling, include_prompt) = read_pooling(&folder.join(&modules[1].path).join("config.json"))?;
        Ok(Self { transformer: folder.join(&modules[0].path), pooling, include_prompt, normalize })
    }
}

/// Reads a Pooling module's config: `pooling_mode` as a name or a list, or the older one flag a mode.
fn read_pooling(path: &Path) -> Result<(Pooling, bool)> {
    let config: BTreeMap<String, serde_json::Value> = read_json(path, "fetch the checkpoint again")?;
    let modes: Vec<&str> = match config.get("pooling_mode") {
        Some(serde_json::Value::String(mode)) => vec![mode],
        Some(serde_json::Value::Array(modes)) => modes.iter().filter_map(|mode| mode.as_str()).collect(),
        _ => config
            .iter()
            .filter(|(_, value)| value.as_bool() == Some(true))
            .filter_map(|(name, _)| name.strip_prefix("pooling_mode_"))
            .collect(),
    };
    let pooling = match modes.as_slice() {
        [] | ["mean" | "mean_tokens"] => Pooling::Mean,
        ["cls" | "cls_token"] => Pooling::Cls,
        other => {
            let detail = format!(
                "pooling [{}] is not supported; use a checkpoint with mean or cls pooling",
                other.join(", ")
            );
            return Err(checkpoint_error(path, detail));
        }
    };
    Ok((pooling, config.get("include_prompt").and_then(|v| v.as_bool()).unwrap_or(true)))
}

impl Settings {
    fn read(folder: &Path, layout: &Layout, architecture: &Architecture) -> Result<Self> {
        let overrides_path = folder.join("expandr.json");
        let overrides: Overrides = read_json_if_there(&overrides_path)?.unwrap_or_default();
        let transformer: TransformerConfig =
            read_json_if_there(&layout.transformer.join("sentence_bert_config.json"))?.unwrap_or_default();
        let tokenizer: TokenizerConfig =
            read_json_if_there(&layout.transformer.join("tokenizer_config.json"))?.unwrap_or_default();
        let (query, document) = read_prefixes(&folder.join("config_sentence_transformers.json"))?;
        let Architecture::Bert(bert) = architecture;
        let positions = bert.longest_text();
        let of_tokenizer = tokenizer.model_max_length.filter(|l| *l >= 1.0 && *l < 1e9).map(|l| l as usize);
        let wanted =
            overrides.max_length.or(transformer.max_seq_length).or(of_tokenizer).unwrap_or(positions);
        if wanted > positions {
            tracing::warn!(folder = %folder.display(), wanted, positions, "maximum length cut to the model's positions");
        }
        let settings = Self {
            pooling: overrides.pooling.unwrap_or(layout.pooling),
            normalize: overrides.normalize.unwrap_or(layout.normalize),
            query_prefix: overrides.query_prefix.unwrap_or(query),
            document_prefix: overrides.document_prefix.unwrap_or(document),
            max_length: wanted.min(positions),
            lowercase: transformer.do_lower_case,
        };
        let prefixed = !settings.query_prefix.is_empty() || !settings.document_prefix.is_empty();
        if prefixed && !layout.include_prompt {
            let detail = "pooling that leaves the prefix out (include_prompt: false) is not supported; use a checkpoint \
                          that pools over all tokens";
            return Err(checkpoint_error(folder, detail.into()));
        }
        Ok(settings)
    }
}

/// The prefixes of queries and documents, by sentence-transformers' names for them.
fn read_prefixes(path: &Path) -> Result<(String, String)> {
    let config: PromptConfig = read_json_if_there(path)?.unwrap_or_default();
    let named = |name: &str| config.prompts.get(name).cloned().flatten();
    let default = match &config.default_prompt_name {
        Some(name) => named(name).ok_or_else(|| {
            checkpoint_error(
                path,
                format!("`default_prompt_name` {name:?} is not among its prompts; add it or remove the name"),
            )
        })?,
        None => String::new(),
    };
    // sentence-transformers writes empty prompts for the names that a checkpoint doesn't use.
    let documents = ["document", "passage", "corpus"].map(named);
    let document =
        documents.iter().flatten().find(|prompt| !prompt.is_empty()).or(documents.iter().flatten().next());
    Ok((named("query").unwrap_or(default.clone()), document.cloned().unwrap_or(default)))
}
