//! The stages behind the rows of the report, joined by what they read and write.
//!
//! `work`: what stages do and read; `builder`: which stages a row needs; `settings`, `inputs`: what a stage's outcome
//! depends on besides.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use self::builder::{Builder, MAIN, REPORT};
use self::work::EvaluationNode;
use super::arms::{Arm, SearchText};
use super::stage::Stage;
use crate::recipe::Recipe;

mod builder;
mod inputs;
mod settings;
mod work;

pub(crate) use inputs::documents_label;
pub use inputs::{CollectionPart, External, Source};
pub use work::{EncoderRef, ExamplesNode, ExpanderRef, NodeId, TrainingText, WeightNode, Work};

/// One stage of a run.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub work: Work,
    /// Where its files are, relative to the run folder: empty for what ExpandR itself needs, `arms/<arm>` for what
    /// another row needs besides.
    pub home: PathBuf,
    /// The settings that its outcome depends on.
    pub settings: Value,
    /// Files and models from outside of the run that it reads.
    pub external: Vec<External>,
    /// The same for the same kind, settings and inputs.
    pub key: String,
    /// The rows asked for that need it.
    pub arms: Vec<&'static str>,
}

impl Node {
    /// Its kind.
    pub fn stage(&self) -> Stage {
        self.work.stage()
    }

    /// How it is called: the stage, and the arm if it is not in the run folder itself (`dpo`,
    /// `dpo@without-self-reward`).
    pub fn name(&self) -> String {
        match self.home.file_name() {
            Some(arm) => format!("{}@{}", self.stage().name(), arm.to_string_lossy()),
            None => self.stage().name().to_owned(),
        }
    }
}

/// A row of the report with its last stage.
#[derive(Clone, Copy, Debug)]
pub struct PlannedArm {
    /// The row.
    pub arm: &'static Arm,
    /// Its evaluation; none when the recipe names no collection.
    pub evaluation: Option<EvaluationNode>,
}

/// The stages of a run.
#[derive(Clone, Debug)]
pub struct Graph {
    /// The stages of all rows, none before what it reads. Those that only rows need that were not asked for have no
    /// arms.
    pub nodes: Vec<Node>,
    /// The rows.
    pub arms: Vec<PlannedArm>,
}

impl Graph {
    /// Plans the stages of `arms`, and of the gated row where the recipe has a gate and ExpandR is among them. Where a stage's files lie doesn't depend on which rows are asked for. Without
    /// collections in the recipe there is no evaluation and no report, and rows differ only in what they train.
    ///
    /// # Errors
    /// When there is no arm.
    pub fn plan(recipe: &Recipe, arms: &[&'static Arm]) -> crate::Result<Self> {
        let mut builder = Builder::new(recipe);
        let mut planned = Vec::new();
        let mut rows = Vec::new();
        for arm in super::ARMS {
            let gated = arm.text == SearchText::Gated;
            if gated && !recipe.gate.enabled {
                continue;
            }
            builder.arm = arm.name;
            let evaluation = builder.row(arm);
            // The gate comes with the row whose expansions it keeps back.
            let is_wanted = |wanted: &&'static Arm| wanted.name == arm.name || (gated && wanted.name == MAIN);
            if arms.iter().any(is_wanted) {
                rows.extend(evaluation.map(|evaluation| (arm, evaluation)));
                planned.push(PlannedArm { arm, evaluation });
            }
        }
        if planned.is_empty() {
            return Err(crate::Error::Input("no arm is asked for; set `evaluation.arms`".into()));
        }
        for node in &mut builder.nodes {
            node.arms.retain(|name| planned.iter().any(|planned| planned.arm.name == *name));
        }
        if !rows.is_empty() {
            builder.arm = REPORT;
            builder.add(Work::Report { rows });
        }
        Ok(Self { nodes: builder.nodes, arms: planned })
    }

    /// The stages that the rows asked for need, none before what it reads.
    pub fn needed(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().filter(|(_, node)| !node.arms.is_empty())
    }
}

/// JSON with the members of every object sorted, whatever the build's map keeps.
pub(crate) fn canonical(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            let members: Vec<String> = sorted
                .into_iter()
                .map(|(name, value)| format!("{}:{}", Value::String(name.clone()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
