//! Files that were made elsewhere, taken as a stage's own.

use serde_json::Value;

use super::{Run, Status};
use crate::folder::work_folder;
use crate::plan::{Node, NodeId};
use crate::progress::Event;
use crate::stages;
use crate::{Error, Result};

/// In a stage's work folder: the file that was given to be adopted, until its stage is done.
const GIVEN: &str = "given.jsonl";

impl Run<'_> {
    /// Whether `--adopt` names it.
    pub(super) fn adopts(&self, node: &Node) -> bool {
        node.home.as_os_str().is_empty() && self.options.adopt.contains(&node.stage())
    }

    /// Takes files that were made elsewhere. What works query by query takes the lines that are there, and writes those
    /// that are missing; the rest is checked and taken whole.
    pub(super) async fn adopt(&mut self, id: NodeId) -> Result<()> {
        let node = &self.graph.nodes[id];
        let name = node.name();
        self.take_back(node)?;
        if let Some(detail) = self.nothing_to_adopt(node) {
            return Err(Error::Stage { stage: name, detail });
        }
        let inputs = self.inputs(id)?.unwrap_or_default();
        if self.graph.nodes[id].stage().is_line_by_line() {
            self.begin(id, &inputs)?;
            let context = self.context(id, &name, &inputs);
            let lines = stages::adopt(&context)?;
            // The journal has the lines now, and the file comes back in the order of the queries; until then it is kept.
            fs_err::rename(context.own(0), context.work().join(GIVEN))?;
            return self.execute(id, &format!("{lines} lines are taken from elsewhere"), true).await;
        }
        self.observer.observe(&Event::StageStarted { stage: &name, why: "taken from elsewhere" });
        let context = self.context(id, &name, &inputs);
        stages::check(&context)?;
        self.finish(id, inputs, Value::Null, 0.0, true)
    }

    /// What an adoption would do.
    pub(super) fn adoption(&self, id: NodeId) -> Status {
        let node = &self.graph.nodes[id];
        match self.nothing_to_adopt(node).filter(|_| !self.is_being_adopted(node)) {
            Some(why) => Status::Refused { why },
            None if node.work.inputs().iter().all(|input| self.done.contains_key(input)) => {
                Status::Todo { why: "taken from elsewhere".into(), afresh: false }
            }
            None => self.waits(id),
        }
    }

    /// Whether an adoption was begun and has not come to its end.
    pub(super) fn is_being_adopted(&self, node: &Node) -> bool {
        work_folder(&self.folder, node).join(GIVEN).is_file()
    }

    /// Why a node's files can't be taken as they are: one is missing.
    fn nothing_to_adopt(&self, node: &Node) -> Option<String> {
        let (label, path) = self.outputs(node).into_iter().find(|(_, path)| !path.exists())?;
        Some(format!("--adopt needs {label}, and {} isn't there; put it there first", path.display()))
    }

    /// Puts the file that an adoption has taken in, and did not finish, back to its place.
    fn take_back(&self, node: &Node) -> Result<()> {
        let given = work_folder(&self.folder, node).join(GIVEN);
        if let Some((_, place)) = self.outputs(node).into_iter().next()
            && given.is_file()
            && !place.exists()
        {
            fs_err::rename(given, place)?;
        }
        Ok(())
    }
}
