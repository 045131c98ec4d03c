//! LoRA: which modules get an adapter, and adapters in files.
//!
//! - this file: the settings; `peft`: reading and writing adapters as PEFT does; `merge`: into a checkpoint's weights;
//!   `mean`: one for several.

mod mean;
mod merge;
mod peft;

use serde::{Deserialize, Serialize};

pub use self::{
    merge::merge_adapter,
    peft::{ADAPTER_CONFIG, ADAPTER_FILES, ADAPTER_WEIGHTS, AdapterFile, AdapterTask},
};
use crate::{Error, Result};

/// What a module's name has before it in an adapter file.
const PREFIX: &str = "base_model.model.";

/// Low-rank adapters (Hu et al. 2021).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraSettings {
    /// Rank r of the update.
    pub rank: usize,
    /// The update is scaled by alpha / r.
    pub alpha: f64,
    /// The share of the adapter's inputs that is dropped in training.
    pub dropout: f64,
    /// The modules that get an adapter, by the ends of their names (`q_proj`, `attention.self.query`); `all-linear`
    /// stands for all linear layers but the head.
    pub target_modules: Vec<String>,
    /// Scale by alpha / √r instead (rsLoRA).
    #[serde(default)]
    pub rank_stabilised: bool,
}

impl LoraSettings {
    /// What the update is multiplied with.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// # Errors
    /// Names the setting that makes no sense.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |detail: String| Err(Error::Input(detail));
        if self.rank == 0 {
            return wrong("a LoRA rank of 0 trains nothing; use 4 to 64".into());
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return wrong(format!(
                "a LoRA alpha of {} scales the update away; use a positive number",
                self.alpha
            ));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return wrong(format!("a LoRA dropout of {} is no share; use 0 to below 1", self.dropout));
        }
        if self.target_modules.is_empty() {
            return wrong(
                "no target_modules are given, so nothing would train; use e.g. q_proj and v_proj".into(),
            );
        }
        Ok(())
    }

    /// Which target the module of this name meets.
    pub(super) fn target_of(&self, module: &str) -> Option<usize> {
        self.target_modules.iter().position(|target| {
            target == "all-linear"
                || module
                    .strip_suffix(target.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    /// What PEFT calls the matrices A and B of a module.
    pub(super) fn parameter_names(module: &str) -> [String; 2] {
        ["A", "B"].map(|matrix| format!("{PREFIX}{module}.lora_{matrix}.weight"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(targets: &[&str]) -> LoraSettings {
        let target_modules = targets.iter().map(|target| (*target).to_owned()).collect();
        LoraSettings { rank: 4, alpha: 8.0, dropout: 0.0, target_modules, rank_stabilised: false }
    }

    #[test]
    fn targets_are_ends_of_module_names() {
        let two = settings(&["q_proj", "self.value"]);
        assert_eq!(two.target_of("model.layers.0.self_attn.q_proj"), Some(0));
        assert_eq!(two.target_of("model.layers.0.self_attn.fq_proj"), None);
        assert_eq!(two.target_of("encoder.layer.1.attention.self.value"), Some(1));
        assert_eq!(settings(&["all-linear"]).target_of("anything"), Some(0));
    }

    #[test]
    fn scales_are_those_of_the_papers() {
        assert_eq!(settings(&["q"]).scale(), 2.0);
        assert_eq!(LoraSettings { rank_stabilised: true, ..settings(&["q"]) }.scale(), 4.0);
    }

    #[test]
    fn senseless_settings_are_refused() {
        let good = settings(&["q"]);
        assert!(good.check().is_ok());
        for (wrong, word) in [
            (LoraSettings { rank: 0, ..good.clone() }, "rank"),
            (LoraSettings { alpha: 0.0, ..good.clone() }, "alpha"),
            (LoraSettings { dropout: 1.0, ..good.clone() }, "dropout"),
            (settings(&[]), "target_modules"),
        ] {
            assert!(wrong.check().unwrap_err().to_string().contains(word));
        }
    }
}
