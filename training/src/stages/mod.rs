//! What each stage does with its files.
//!
//! - `pairs`: sources to pairs.jsonl.
//! - `generate`: candidates, answers, expansions: one prompt a query, resumable query by query.
//! - `encode`: texts to vectors in calls of bounded size; similarities.
//! - `scores`, `preferences`: similarities, then rewards and preference pairs.
//! - `negatives`: hard negatives that the untrained encoder finds; `examples`: what the encoder is trained on.
//! - `train`: the jobs of [`crate::steps::Steps`], in folders that take their names when they are whole.
//! - `base_encoder`: the first layers of an encoder.
//! - `development`: the retriever's development part as a small collection; `weight`: the weight of the query in the
//!   search, and `gate`: whether to expand a query, both chosen on it.
//! - `vectors`, `search`, `evaluation`, `report`: the collections' vectors, exact search, scores, and the table.

mod base_encoder;
mod development;
mod encode;
mod evaluation;
mod examples;
mod gate;
mod generate;
mod negatives;
mod pairs;
mod preferences;
mod queries;
mod report;
mod scores;
mod search;
mod train;
mod vectors;
mod weight;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Result;
use crate::example::ExampleLine;
use crate::folder::{Manifest, manifest_path, work_folder};
use crate::pairs::Pair;
use crate::plan::{EncoderRef, ExpanderRef, Graph, Node, NodeId, Stage, Work};
use crate::progress::{Event, Observer};
use crate::recipe::Recipe;
use crate::steps::{Model, Steps};

pub use self::generate::{WrittenLine, WrittenText};
pub use self::scores::ScoreLine;

/// What a stage has at hand.
pub(crate) struct Context<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) steps: &'a dyn Steps,
    pub(crate) observer: &'a dyn Observer,
    pub(crate) graph: &'a Graph,
    pub(crate) node: &'a Node,
    /// The node's name in events and messages.
    pub(crate) name: &'a str,
    /// The run folder.
    pub(crate) folder: &'a Path,
    /// Hashes of what the node reads.
    pub(crate) inputs: &'a BTreeMap<String, String>,
}

/// Does a stage; what is to be said of it comes back.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    match context.node.stage() {
        Stage::Pairs => pairs::run(context),
        Stage::Candidates | Stage::Answers | Stage::Expansions | Stage::TestExpansions => {
            generate::run(context).await
        }
        Stage::Scores => scores::run(context).await,
        Stage::Preferences => preferences::run(context),
        Stage::Negatives => negatives::run(context).await,
        Stage::Examples => examples::run(context),
        Stage::WarmUp
        | Stage::WarmExpander
        | Stage::BaseEncoder
        | Stage::Dpo
        | Stage::Merge
        | Stage::Contrastive => train::run(context).await,
        Stage::Vectors => vectors::run(context).await,
        Stage::Weight => weight::run(context).await,
        Stage::Gate => gate::run(context).await,
        Stage::Evaluation => evaluation::run(context).await,
        Stage::Report => report::run(context).await,
    }
}

/// Takes the lines of a stage that works query by query from its own output, which was made elsewhere; how many.
pub(crate) fn adopt(context: &Context<'_>) -> Result<usize> {
    match context.node.stage() {
        Stage::Scores => scores::adopt(context),
        _ => generate::adopt(context),
    }
}

/// Whether the outputs of any other stage can be taken as they are.
pub(crate) fn check(context: &Context<'_>) -> Result<()> {
    match context.node.stage() {
        Stage::Pairs => check_training::<Pair>(context, |pair| [&pair.query, &pair.positive]),
        Stage::Preferences => {
            check_lines::<crate::preference::PreferenceLine>(&context.own(0))?;
            check_lines::<crate::preference::PreferenceLine>(&context.own(1))
        }
        Stage::Negatives => check_lines::<negatives::NegativesLine>(&context.own(0)),
        Stage::Examples => check_training::<ExampleLine>(context, |line| [&line.query, &line.positive]),
        Stage::Vectors | Stage::Weight | Stage::Gate | Stage::Evaluation | Stage::Report => {
            Err(crate::Error::Stage {
                stage: context.name.to_owned(),
                detail: "can't be taken from elsewhere; it is computed from what can".into(),
            })
        }
        _ => train::check(context, &context.own(0)),
    }
}

fn check_lines<T: serde::de::DeserializeOwned>(path: &Path) -> Result<()> {
    crate::folder::JsonLines::<T>::open(path)?.try_for_each(|line| line.map(|_| ()))
}

/// Whether all outputs can be read, and neither side of a line is a query that is tested on.
fn check_training<T: serde::de::DeserializeOwned>(
    context: &Context<'_>,
    sides: impl Fn(&T) -> [&str; 2],
) -> Result<()> {
    let held_out = pairs::held_out(context.recipe)?;
    for index in 0..context.node.stage().outputs().len() {
        let path = context.own(index);
        for line in crate::folder::JsonLines::<T>::open(&path)? {
            let line = line?;
            if let Some(query) = sides(&line).into_iter().find(|text| held_out.contains(text)) {
                return Err(crate::Error::Input(format!(
                    "{}: query {query:?} is one of the evaluation or of `data.held_out`; remove its lines",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// How an output of a node is called among the inputs of another: its path in the run folder.
pub(crate) fn input_label(node: &Node, output: &str) -> String {
    node.home.join(output).to_string_lossy().replace('\\', "/")
}

impl Context<'_> {
    /// The n-th output of a node.
    pub(crate) fn output(&self, node: NodeId, index: usize) -> PathBuf {
        let node = &self.graph.nodes[node];
        self.folder.join(&node.home).join(node.stage().outputs()[index])
    }

    /// The n-th output of this node.
    pub(crate) fn own(&self, index: usize) -> PathBuf {
        self.folder.join(&self.node.home).join(self.node.stage().outputs()[index])
    }

    /// Where what isn't finished is kept.
    pub(crate) fn work(&self) -> PathBuf {
        work_folder(self.folder, self.node)
    }

    /// The file to which the stage's training adds what happens.
    pub(crate) fn log(&self) -> Result<PathBuf> {
        let logs = self.folder.join(&self.node.home).join("logs");
        fs_err::create_dir_all(&logs)?;
        Ok(logs.join(format!("{}.jsonl", self.node.stage().name())))
    }

    pub(crate) fn note(&self, text: &str) {
        self.observer.observe(&Event::Note { stage: self.name, text });
    }

    /// A language model, and a hash of its weights.
    pub(crate) fn expander(&self, model: ExpanderRef) -> (Model, String) {
        let base = &self.recipe.expander.model;
        let named = |name: &String| (Model::Named(name.clone()), self.hash("expander"));
        match model {
            ExpanderRef::Base => named(base),
            ExpanderRef::CandidateWriter => named(self.recipe.candidates.model.as_ref().unwrap_or(base)),
            ExpanderRef::AnswerWriter => named(self.recipe.answers.model.as_ref().unwrap_or(base)),
            ExpanderRef::Made(node) => (self.made_expander(node.0), self.made_hash(node.0)),
        }
    }

    /// A language model of this run, with what it was made of. One that was put there from elsewhere is what it is: the
    /// adapter that lies beside it need not be in it.
    fn made_expander(&self, node: NodeId) -> Model {
        let merged = self.output(node, 0);
        let merge = &self.graph.nodes[node];
        let (base, adapter) = match &merge.work {
            Work::Merge { base, adapter } => (*base, adapter.0),
            Work::WarmExpander { adapter } => (ExpanderRef::Base, adapter.0),
            _ => return Model::Made(merged),
        };
        let manifest = Manifest::read(&manifest_path(self.folder, merge)).ok().flatten();
        if manifest.is_none_or(|manifest| manifest.adopted) {
            return Model::Made(merged);
        }
        let base = Box::new(self.expander(base).0);
        Model::Adapted { base, adapter: self.output(adapter, 0), merged }
    }

    /// An encoder, and a hash of its weights.
    pub(crate) fn encoder(&self, model: EncoderRef) -> (Model, String) {
        let base = &self.recipe.encoder.model;
        let named = |name: &String| (Model::Named(name.clone()), self.hash("encoder"));
        match model {
            EncoderRef::Base => named(base),
            EncoderRef::Judge => named(self.recipe.rewards.encoder.as_ref().unwrap_or(base)),
            EncoderRef::Made(node) => (Model::Made(self.output(node.0, 0)), self.made_hash(node.0)),
        }
    }

    fn made_hash(&self, node: NodeId) -> String {
        let node = &self.graph.nodes[node];
        self.hash(&input_label(node, node.stage().outputs()[0]))
    }

    fn hash(&self, label: &str) -> String {
        self.inputs.get(label).cloned().unwrap_or_default()
    }
}
