//! Recipes: everything that decides what a training run does, in one TOML file.
//!
//! - `sections`: the settings; `training`: those of the three trainers. Every default is the paper's.
//! - `keys`: overrides from the command line, and unknown keys with a suggestion.
//! - `check`: ranges.

mod check;
mod keys;
mod sections;
#[cfg(test)]
mod tests;
mod training;

use std::path::{Path, PathBuf};

use expandr_evaluation::Metric;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::sections::{
    AnswerSettings, CandidateSettings, CollectionSettings, DataSettings, EncoderSettings, EvaluationSettings,
    ExpanderSettings, ExpansionSettings, FilterKind, GateSettings, Layout, MachineSettings, QueryWeight,
    RewardSettings, ServedModel, Similarity,
};
pub use self::training::{ContrastiveSettings, DpoSettings, Method, Precision, SavedAs, WarmUpSettings};
use crate::{Error, Result};

/// A training run. Settings that are not given have the paper's values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Everything random follows from it.
    pub seed: u64,
    /// The run folder.
    pub output: PathBuf,
    /// The language model.
    pub expander: ExpanderSettings,
    /// The retriever's encoder.
    pub encoder: EncoderSettings,
    /// Training pairs.
    pub data: DataSettings,
    /// Candidate expansions (Eq. 15).
    pub candidates: CandidateSettings,
    /// Answers that know the gold document (Eq. 12).
    pub answers: AnswerSettings,
    /// Rewards and preference pairs (Eq. 11, 13, 14, 16).
    pub rewards: RewardSettings,
    /// Supervised training of the language model on gold passages, before everything else.
    pub warm_up: WarmUpSettings,
    /// Direct preference optimisation (Eq. 17).
    pub dpo: DpoSettings,
    /// Expansions of training and test queries (Eq. 3).
    pub expansions: ExpansionSettings,
    /// Contrastive training of the encoder (Eq. 8, 9).
    pub contrastive: ContrastiveSettings,
    /// Whether to expand, query by query.
    pub gate: GateSettings,
    /// What is reported, and on which collections.
    pub evaluation: EvaluationSettings,
    /// How and where the work is done. Nothing in it changes what a run is, so no fingerprint covers it.
    pub machine: MachineSettings,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            seed: 42,
            output: PathBuf::from("training/store/run"),
            expander: ExpanderSettings::default(),
            encoder: EncoderSettings::default(),
            data: DataSettings::default(),
            candidates: CandidateSettings::default(),
            answers: AnswerSettings::default(),
            rewards: RewardSettings::default(),
            warm_up: WarmUpSettings::default(),
            dpo: DpoSettings::default(),
            expansions: ExpansionSettings::default(),
            contrastive: ContrastiveSettings::default(),
            gate: GateSettings::default(),
            evaluation: EvaluationSettings::default(),
            machine: MachineSettings::default(),
        }
    }
}

impl Recipe {
    /// Reads a recipe, puts `overrides` (`dpo.learning_rate=1e-5`, `data.sources.0.limit=100`) over it, and checks it.
    ///
    /// # Errors
    /// When the file can't be read or is not TOML, at unknown settings (with a suggestion), values of another type,
    /// and values out of range.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        Self::parse(&text, overrides).map_err(|detail| Error::Recipe { recipe: path.to_owned(), detail })
    }

    /// The same from a text; the error says what is wrong, without the file.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn parse(text: &str, overrides: &[String]) -> std::result::Result<Self, String> {
        let table: toml::Table =
            toml::from_str(text).map_err(|error| format!("not TOML: {}", error.to_string().trim_end()))?;
        let mut given = toml::Value::Table(table);
        for text in overrides {
            keys::set(&mut given, text)?;
        }
        let schema = Self::schema();
        keys::check(&given, &schema)?;
        let mut recipe: Self = serde_path_to_error::deserialize(given)
            .map_err(|error| format!("`{}`: {}", error.path(), one_line(&error.inner().to_string())))?;
        check::ranges(&recipe)?;
        // Figures are kept by a measure's own name, however the recipe spells it.
        for name in &mut recipe.evaluation.metrics {
            let metric: Metric = name.parse().map_err(|error| format!("`evaluation.metrics`: {error}"))?;
            *name = metric.to_string();
        }
        Ok(recipe)
    }

    /// Every setting with its default, as JSON; lists hold one element if they are lists of tables.
    pub fn schema() -> Value {
        let mut example = Self::default();
        example.data.sources.push(Default::default());
        example.data.held_out.push(Default::default());
        example.evaluation.collections.push(Default::default());
        example.machine.endpoint_made.push(Default::default());
        // Plain data: nothing in it can fail to become JSON.
        serde_json::to_value(example).unwrap_or_default()
    }

    /// Every setting's name with dots between the parts, sorted; those of a list of tables without a number
    /// (`data.sources.path`).
    pub fn setting_names() -> Vec<String> {
        let mut names = Vec::new();
        keys::names(&Self::schema(), "", &mut names);
        names.sort();
        names
    }

    /// As TOML, with every setting that has a value.
    ///
    /// # Errors
    /// When a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self)
            .map_err(|error| Error::Input(format!("the recipe can't be written as TOML: {error}")))
    }

    /// A source's or collection's path, which is relative to `data.folder`.
    pub fn data_path(&self, path: &Path) -> PathBuf {
        self.data.folder.join(path)
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
