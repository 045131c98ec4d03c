//! Running a recipe: which stages are done, which are to be done, and doing them one after the other.
//!
//! A stage is done when its manifest names the same settings and the same inputs (by content) as now, and its files
//! are as it left them. One that was interrupted goes on where it was. One whose settings or inputs have changed is
//! done again without asking only if that is cheap; otherwise the run stops and says what has changed.
//!
//! - `status`: what there is, and what is to be done about it; `reuse`: what another run has done;
//!   `adoption`: what was made with other tools; `finished`: whether what lies in a folder belongs together.

mod adoption;
mod finished;
mod reuse;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use expandr_models::weights::Role;
use serde_json::Value;

pub use self::finished::finished_stages;
pub use self::status::{PlannedStage, Status};
use crate::folder::{Begun, Hashes, Lock, Manifest, manifest_path, replace_file, work_folder};
use crate::plan::{Arm, CollectionPart, External, Graph, Node, NodeId, Source, Stage};
use crate::progress::{Event, Observer};
use crate::recipe::Recipe;
use crate::stages::{self, Context, input_label};
use crate::steps::Steps;
use crate::{Error, Result};

/// What is asked of a run besides its recipe.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only these stages; those before them must be done. None does all.
    pub stages: Option<Vec<Stage>>,
    /// All rows of Table 3 and the controls, instead of the recipe's.
    pub ablations: bool,
    /// Do stages again whose settings or inputs have changed, whatever they cost.
    pub redo: bool,
    /// Take the files of these stages (ExpandR's own) as they are: they were made elsewhere.
    pub adopt: Vec<Stage>,
    /// Run folders from which stages are taken that have been done there with the same settings and inputs.
    pub reuse: Vec<PathBuf>,
}

/// A recipe on its way.
pub struct Run<'a> {
    recipe: &'a Recipe,
    graph: Graph,
    steps: &'a dyn Steps,
    observer: &'a dyn Observer,
    options: Options,
    folder: PathBuf,
    hashes: Hashes,
    /// Hashes of what is outside, by [`External::name`].
    external: BTreeMap<String, String>,
    /// Output hashes of the nodes that are done.
    done: BTreeMap<NodeId, BTreeMap<String, String>>,
}

impl<'a> Run<'a> {
    /// Plans a run in the recipe's output folder.
    ///
    /// # Errors
    /// When an arm or a stage that is asked for isn't there.
    pub fn new(
        recipe: &'a Recipe,
        options: Options,
        steps: &'a dyn Steps,
        observer: &'a dyn Observer,
    ) -> Result<Self> {
        let mut arms: Vec<&'static Arm> = Vec::new();
        if options.ablations {
            arms.extend(crate::plan::ARMS);
        } else {
            for name in &recipe.evaluation.arms {
                arms.push(Arm::named(name).map_err(Error::Input)?);
            }
        }
        let graph = Graph::plan(recipe, &arms)?;
        for stage in options.stages.iter().flatten().chain(&options.adopt) {
            if !graph.needed().any(|(_, node)| node.stage() == *stage) {
                return Err(Error::Input(format!(
                    "stage {} is no part of this run; its stages are {}",
                    stage.name(),
                    stage_names(&graph)
                )));
            }
        }
        for folder in &options.reuse {
            if !folder.join("stages").is_dir() {
                return Err(Error::Input(format!(
                    "--reuse {}: not a run folder (it has no folder stages); give one that `expandr train` has made",
                    folder.display()
                )));
            }
        }
        let folder = recipe.output.clone();
        let hashes = Hashes::open(&folder.join("hashes.json"));
        Ok(Self {
            recipe,
            graph,
            steps,
            observer,
            options,
            folder,
            hashes,
            external: BTreeMap::new(),
            done: BTreeMap::new(),
        })
    }

    /// The stages of the run.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// What would be done, without doing it. Nothing is written but the hashes of what was read.
    ///
    /// # Errors
    /// When an input can't be read or a manifest is damaged.
    pub fn plan(&mut self) -> Result<Vec<PlannedStage>> {
        let ids: Vec<NodeId> = self.graph.needed().map(|(id, _)| id).collect();
        let mut planned = Vec::new();
        for id in ids {
            let adopted = self.is_selected(&self.graph.nodes[id]) && self.adopts(&self.graph.nodes[id]);
            let status = if adopted { self.adoption(id) } else { self.status(id)? };
            let node = &self.graph.nodes[id];
            planned.push(PlannedStage {
                name: node.name(),
                stage: node.stage(),
                selected: self.is_selected(node),
                arms: node.arms.clone(),
                outputs: self.outputs(node).iter().map(|(label, _)| label.clone()).collect(),
                status,
            });
        }
        if self.folder.is_dir() {
            self.hashes.save()?;
        }
        Ok(planned)
    }

    /// Does what is to be done.
    ///
    /// # Errors
    /// When another run is at work in the folder, when a stage fails or may not be done again, and when what it needs
    /// is neither done nor asked for.
    pub async fn run(&mut self) -> Result<()> {
        let _lock = Lock::take(&self.folder)?;
        self.refuse_early()?;
        // What is refused leaves the recipe of what is there as it was.
        replace_file(&self.folder.join("recipe.toml"), self.recipe.to_toml()?.as_bytes())?;
        let ids: Vec<NodeId> = self.graph.needed().map(|(id, _)| id).collect();
        for id in ids {
            let selected = self.is_selected(&self.graph.nodes[id]);
            let adopted = selected && self.adopts(&self.graph.nodes[id]);
            let name = self.graph.nodes[id].name();
            if adopted {
                self.require_inputs(id, &name)?;
                self.adopt(id).await?;
                continue;
            }
            match self.status(id)? {
                Status::Done if selected => self.observer.observe(&Event::StageSkipped { stage: &name }),
                Status::Done => {}
                _ if !selected => {}
                Status::Waits { needs } => return Err(needs_error(&name, &needs)),
                Status::Refused { why } => return Err(Error::Stage { stage: name, detail: why }),
                Status::Todo { why, afresh } => {
                    if afresh {
                        self.remove_outputs(id)?;
                    }
                    // An adoption that was interrupted, and that the user goes on with, is still one.
                    let adopted = !afresh && self.is_being_adopted(&self.graph.nodes[id]);
                    if adopted || !self.reuse(id)? {
                        self.execute(id, &why, adopted).await?;
                    }
                }
            }
        }
        self.hashes.save()?;
        self.observer.observe(&Event::Finished { folder: &self.folder.to_string_lossy() });
        Ok(())
    }

    /// What can be refused before hours of work is refused now.
    fn refuse_early(&mut self) -> Result<()> {
        let ids: Vec<NodeId> = self.graph.needed().map(|(id, _)| id).collect();
        let mut missing = BTreeSet::new();
        for id in ids {
            let node = &self.graph.nodes[id];
            let (name, selected) = (node.name(), self.is_selected(node));
            if selected && self.adopts(node) {
                continue;
            }
            match self.status(id)? {
                Status::Refused { why } if selected => return Err(Error::Stage { stage: name, detail: why }),
                Status::Waits { needs } if selected && missing.contains(&needs) => {
                    return Err(needs_error(&name, &needs));
                }
                Status::Done => {}
                _ if selected => {}
                _ => {
                    missing.insert(name);
                }
            }
        }
        self.done.clear();
        Ok(())
    }

    fn require_inputs(&self, id: NodeId, name: &str) -> Result<()> {
        let node = &self.graph.nodes[id];
        let missing = node.work.inputs().into_iter().find(|input| !self.done.contains_key(input));
        match missing {
            Some(input) => Err(needs_error(name, &self.graph.nodes[input].name())),
            None => Ok(()),
        }
    }

    fn is_selected(&self, node: &Node) -> bool {
        self.options.stages.as_ref().is_none_or(|stages| stages.contains(&node.stage()))
    }

    /// Does one stage and writes down that it is done.
    async fn execute(&mut self, id: NodeId, why: &str, adopted: bool) -> Result<()> {
        let node = &self.graph.nodes[id];
        let name = node.name();
        self.observer.observe(&Event::StageStarted { stage: &name, why });
        let inputs = self.inputs(id)?.unwrap_or_default();
        self.begin(id, &inputs)?;
        let start = Instant::now();
        let context = self.context(id, &name, &inputs);
        let summary = stages::run(&context).await?;
        let seconds = start.elapsed().as_secs_f64();
        self.finish(id, inputs, summary, seconds, adopted)
    }

    fn context<'b>(&'b self, id: NodeId, name: &'b str, inputs: &'b BTreeMap<String, String>) -> Context<'b> {
        Context {
            recipe: self.recipe,
            steps: self.steps,
            observer: self.observer,
            graph: &self.graph,
            node: &self.graph.nodes[id],
            name,
            folder: &self.folder,
            inputs,
        }
    }

    /// Takes away what is of no use any more, with its manifest.
    fn remove_outputs(&self, id: NodeId) -> Result<()> {
        let node = &self.graph.nodes[id];
        let manifest = manifest_path(&self.folder, node);
        let outputs = self.outputs(node).into_iter().map(|(_, path)| path);
        for path in std::iter::once(manifest).chain(outputs) {
            if path.is_dir() {
                fs_err::remove_dir_all(&path)?;
            } else if path.exists() {
                fs_err::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Makes the stage's work folder, or keeps the one that an interrupted attempt left if it is of the same work.
    fn begin(&self, id: NodeId, inputs: &BTreeMap<String, String>) -> Result<()> {
        let node = &self.graph.nodes[id];
        let work = work_folder(&self.folder, node);
        let now = Begun {
            version: node.stage().version(),
            settings: node.settings.clone(),
            inputs: inputs.clone(),
        };
        let before = Begun::read(&work)?;
        let same_settings =
            before.as_ref().is_some_and(|b| b.settings == now.settings && b.version == now.version);
        let goes_on = before.as_ref() == Some(&now) || (same_settings && node.stage().is_incremental());
        if !goes_on && work.exists() && before.is_some() {
            fs_err::remove_dir_all(&work)?;
        }
        now.write(&work)?;
        // From here on until it is done, what lies there is neither the old nor the new.
        let manifest = manifest_path(&self.folder, node);
        if manifest.exists() {
            fs_err::remove_file(&manifest)?;
        }
        Ok(())
    }

    fn finish(
        &mut self,
        id: NodeId,
        inputs: BTreeMap<String, String>,
        summary: Value,
        seconds: f64,
        adopted: bool,
    ) -> Result<()> {
        let node = &self.graph.nodes[id];
        let mut manifest = Manifest::new(node, inputs);
        for (label, path) in self.outputs(node) {
            manifest.outputs.insert(label, self.hashes.of(&path)?);
        }
        manifest.summary = summary;
        manifest.seconds = seconds;
        manifest.adopted = adopted;
        let node = &self.graph.nodes[id];
        manifest.write(&manifest_path(&self.folder, node))?;
        let work = work_folder(&self.folder, node);
        if work.exists() {
            fs_err::remove_dir_all(&work)?;
        }
        self.hashes.save()?;
        let name = self.graph.nodes[id].name();
        self.observer.observe(&Event::StageFinished { stage: &name, seconds, summary: &manifest.summary });
        self.done.insert(id, manifest.outputs);
        Ok(())
    }

    /// What a node writes: how it is called, and where it is.
    fn outputs(&self, node: &Node) -> Vec<(String, PathBuf)> {
        let outputs = node.stage().outputs().iter();
        outputs.map(|output| (input_label(node, output), self.folder.join(&node.home).join(output))).collect()
    }

    /// Hashes of what a node reads; none when a node before it isn't done.
    fn inputs(&mut self, id: NodeId) -> Result<Option<BTreeMap<String, String>>> {
        let node = &self.graph.nodes[id];
        let mut inputs = BTreeMap::new();
        for input in node.work.inputs() {
            match self.done.get(&input) {
                Some(outputs) => inputs.extend(outputs.clone()),
                None => return Ok(None),
            }
        }
        let (external, begun) = (node.external.clone(), self.begun_with(node)?);
        for external in external {
            let hash = match &external.source {
                // It was a server's when the stage began, and is the same now that this machine has it, too.
                Source::Expander(model) if begun.get(&external.label) == Some(&by_name(model)) => {
                    by_name(model)
                }
                _ => self.external(&external)?,
            };
            inputs.insert(external.label, hash);
        }
        Ok(Some(inputs))
    }

    /// What a stage was done with, or was begun with.
    fn begun_with(&self, node: &Node) -> Result<BTreeMap<String, String>> {
        if let Some(manifest) = Manifest::read(&manifest_path(&self.folder, node))? {
            return Ok(manifest.inputs);
        }
        let begun = Begun::read(&work_folder(&self.folder, node))?;
        Ok(begun.map(|begun| begun.inputs).unwrap_or_default())
    }

    fn external(&mut self, external: &External) -> Result<String> {
        // Not by its label: different stages may read different models under the same one.
        let name = external.name();
        if let Some(hash) = self.external.get(&name) {
            return Ok(hash.clone());
        }
        let hash = match &external.source {
            Source::File(path) => self.hashes.of(path)?,
            Source::Listing(path) => self.hashes.of_listing(path)?,
            Source::Collection { folder, split, part } => self.collection(folder, split.as_deref(), *part)?,
            Source::Setting(value) => value.clone(),
            Source::Expander(model) => self.model(model, Role::Expander)?,
            Source::Encoder(model) => self.model(model, Role::Encoder)?,
        };
        self.external.insert(name, hash.clone());
        Ok(hash)
    }

    /// The files of a collection.
    fn collection(&mut self, folder: &Path, split: Option<&str>, part: CollectionPart) -> Result<String> {
        let collection = expandr_evaluation::Collection::open(folder, split)?;
        let [queries, judgments] = collection.query_paths();
        let files = match part {
            CollectionPart::Documents => vec![collection.corpus_path()],
            CollectionPart::Queries => vec![queries, judgments],
            CollectionPart::All => vec![collection.corpus_path(), queries, judgments],
        };
        let hashes: Result<Vec<String>> = files.into_iter().map(|file| self.hashes.of(file)).collect();
        Ok(crate::seed::sha256(hashes?.join("\n").as_bytes()))
    }

    /// A model's weights; where they are not on this machine (a remote server has them), its name must do.
    fn model(&mut self, model: &str, role: Role) -> Result<String> {
        match self.steps.locate(model, role) {
            Ok(folder) => self.hashes.of(&folder),
            Err(_) if role == Role::Expander && self.recipe.machine.endpoint.is_some() => Ok(by_name(model)),
            Err(error) => Err(error),
        }
    }
}

/// Stands for the weights of a model that only a server has.
fn by_name(model: &str) -> String {
    format!("name:{model}")
}

fn needs_error(name: &str, needs: &str) -> Error {
    let stage = needs.split('@').next().unwrap_or(needs);
    Error::Stage {
        stage: name.to_owned(),
        detail: format!("needs stage {needs}, which is not done; add {stage} to --stages"),
    }
}

fn stage_names(graph: &Graph) -> String {
    let stages: BTreeSet<Stage> = graph.needed().map(|(_, node)| node.stage()).collect();
    stages.into_iter().map(Stage::name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
