//! What there is of a stage, and what is to be done about it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::Run;
use crate::Result;
use crate::folder::{Begun, Manifest, difference, manifest_path, work_folder};
use crate::plan::{Node, NodeId, Stage};

/// What is to be done about a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Status {
    /// Nothing: it is done.
    Done,
    /// It is to be done.
    Todo {
        /// Why.
        why: String,
        /// Whether what is there is of no use any more.
        afresh: bool,
    },
    /// It is to be done when a stage before it is.
    Waits {
        /// That stage.
        needs: String,
    },
    /// It may not be done without being told to.
    Refused {
        /// Why, and the remedy.
        why: String,
    },
}

/// One line of the plan.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedStage {
    /// Its name, with the arm if it isn't ExpandR's own.
    pub name: String,
    /// What it is.
    pub stage: Stage,
    /// Whether `--stages` asks for it.
    pub selected: bool,
    /// The rows that need it.
    pub arms: Vec<&'static str>,
    /// What it leaves in the run folder.
    pub outputs: Vec<String>,
    /// What is to be done about it.
    #[serde(flatten)]
    pub status: Status,
}

/// What speaks against taking a stage as done.
enum Finding {
    /// Nothing was there.
    Nothing,
    /// It was interrupted.
    Interrupted,
    /// It was made from something else, or has been changed.
    Changed {
        change: String,
        /// Whether queries or collections are all that differs, so that what is there is of use still.
        only_data: bool,
    },
}

/// What models are called among a stage's inputs.
const MODELS: [&str; 4] = ["expander", "warm-expander", "encoder", "base-encoder"];
/// How the change of a stage's own files is told.
const EDITED: &str = "has been changed since";

impl Run<'_> {
    /// What there is of a node. A node that is done is remembered, for those after it.
    pub(super) fn status(&mut self, id: NodeId) -> Result<Status> {
        let inputs = self.inputs(id)?;
        let node = self.graph.nodes[id].clone();
        let manifest = Manifest::read(&manifest_path(&self.folder, &node))?;
        let begun = Begun::read(&work_folder(&self.folder, &node))?;
        let outputs: Vec<_> = self.outputs(&node);

        let finding = if let Some(manifest) = &manifest {
            match self.change(&node, manifest, inputs.as_ref())? {
                None if inputs.is_some() => {
                    self.done.insert(id, manifest.outputs.clone());
                    return Ok(Status::Done);
                }
                None => return Ok(self.waits(id)),
                Some(finding) => finding,
            }
        } else if let Some(begun) = begun {
            let now = (node.stage().version(), &node.settings);
            if (begun.version, &begun.settings) != now {
                let change = difference(&begun.settings, &node.settings);
                changed(format!("it was begun with other settings ({change})"))
            } else {
                match &inputs {
                    Some(inputs) => {
                        changed_inputs("begun", &begun.inputs, inputs).unwrap_or(Finding::Interrupted)
                    }
                    None => Finding::Interrupted,
                }
            }
        } else if let Some((label, _)) = outputs.iter().find(|(_, path)| path.exists()) {
            let stage = node.stage().name();
            let remedy = match node.home.as_os_str().is_empty() {
                true => format!("take it as it is with --adopt {stage}, or move it away"),
                false => "move it away".to_owned(),
            };
            let why = format!("{label} is there, and nothing says what made it; {remedy}");
            return Ok(Status::Refused { why });
        } else {
            Finding::Nothing
        };
        let adopted = manifest.is_some_and(|manifest| manifest.adopted) || self.is_being_adopted(&node);
        Ok(self.verdict(id, &node, &finding, adopted, inputs.is_some()))
    }

    fn verdict(&self, id: NodeId, node: &Node, finding: &Finding, adopted: bool, ready: bool) -> Status {
        let (why, afresh) = match finding {
            Finding::Nothing => ("not done yet".to_owned(), false),
            Finding::Interrupted => ("interrupted; goes on where it was".to_owned(), false),
            Finding::Changed { change, only_data } => {
                let incremental = *only_data && node.stage().is_incremental();
                // What was made elsewhere can't be made here again.
                let costs_nothing = !adopted && (node.stage().is_cheap() || incremental);
                if !(costs_nothing || self.options.redo) {
                    let adopt = match adopted || change.ends_with(EDITED) {
                        true => format!("take it as it is with --adopt {}, ", node.stage().name()),
                        false => String::new(),
                    };
                    let origin = if adopted { " and was taken from elsewhere" } else { "" };
                    return Status::Refused {
                        why: format!(
                            "{change}{origin}; {adopt}do it again with --redo (what it left is lost), undo the change, \
                             or use another folder with --out"
                        ),
                    };
                }
                (change.clone(), adopted || !incremental)
            }
        };
        if ready { Status::Todo { why, afresh } } else { self.waits(id) }
    }

    pub(super) fn waits(&self, id: NodeId) -> Status {
        let inputs = self.graph.nodes[id].work.inputs();
        let first = inputs.into_iter().find(|input| !self.done.contains_key(input));
        Status::Waits { needs: first.map_or_else(String::new, |input| self.graph.nodes[input].name()) }
    }

    /// How the state of things differs from a manifest; none when it doesn't, as far as can be told.
    fn change(
        &mut self,
        node: &Node,
        manifest: &Manifest,
        inputs: Option<&BTreeMap<String, String>>,
    ) -> Result<Option<Finding>> {
        if manifest.version != node.stage().version() {
            return Ok(Some(changed("it was done by another version of this stage")));
        }
        // What was made elsewhere has no settings of ours.
        if manifest.settings != node.settings && !manifest.adopted {
            let change = difference(&manifest.settings, &node.settings);
            return Ok(Some(changed(format!("it was done with other settings ({change})"))));
        }
        for (label, path) in self.outputs(node) {
            if !path.exists() {
                return Ok(Some(changed(format!("{label} is gone"))));
            }
            if manifest.outputs.get(&label) != Some(&self.hashes.of(&path)?) {
                return Ok(Some(changed(format!("{label} {EDITED}"))));
            }
        }
        Ok(inputs.and_then(|inputs| changed_inputs("done", &manifest.inputs, inputs)))
    }
}

/// A change after which nothing that is there is of use.
fn changed(change: impl Into<String>) -> Finding {
    Finding::Changed { change: change.into(), only_data: false }
}

/// How inputs differ from those that a stage was done or begun with; none when they don't.
fn changed_inputs(
    verb: &str,
    before: &BTreeMap<String, String>,
    now: &BTreeMap<String, String>,
) -> Option<Finding> {
    if before == now {
        return None;
    }
    let short = |inputs: &BTreeMap<String, String>| {
        json!(
            inputs
                .iter()
                .map(|(name, hash)| (name, hash.get(..12).unwrap_or(hash)))
                .collect::<BTreeMap<_, _>>()
        )
    };
    let differ = |label: &&String| before.get(*label) != now.get(*label);
    let only_data = before.keys().chain(now.keys()).filter(differ).all(|label| !is_model(label));
    let change = format!("it was {verb} with other inputs ({})", difference(&short(before), &short(now)));
    Some(Finding::Changed { change, only_data })
}

/// Whether an input is a model: one from outside, or one that a stage before has left, for the row at hand or another.
fn is_model(label: &str) -> bool {
    let of_a_row = label.strip_prefix("arms/").and_then(|rest| rest.split_once('/'));
    MODELS.contains(&of_a_row.map_or(label, |(_, name)| name))
}
