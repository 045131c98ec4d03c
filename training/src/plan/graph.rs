//! The stages behind the rows of the report, joined by what they read and write.
//!
//! A stage is asked for by the functions of [`Builder`], which take what it reads as handles of the right kind and
//! give one for what it writes. Asking twice for the same (kind, settings, inputs) gives the same node, and so rows
//! share whatever they can.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::arms::{Arm, EncoderTraining, ExpanderTraining, SearchText};
use super::stage::Stage;
use crate::recipe::{QueryWeight, Recipe};
use crate::reward::RewardTerms;
use crate::seed::sha256;

mod inputs;
mod settings;

pub(crate) use inputs::documents_label;
pub use inputs::{CollectionPart, External, Source};

/// The position of a node in its graph.
pub type NodeId = usize;

macro_rules! handles {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name(pub NodeId);
    )*};
}

handles! {
    /// A node that gives pairs.jsonl.
    PairsNode,
    /// A node that gives candidates.jsonl.
    CandidatesNode,
    /// A node that gives answers.jsonl.
    AnswersNode,
    /// A node that gives scores.jsonl.
    ScoresNode,
    /// A node that gives preferences.jsonl and preferences.dev.jsonl.
    PreferencesNode,
    /// A node that gives a language model's adapter.
    AdapterNode,
    /// A node that gives a language model.
    ExpanderNode,
    /// A node that gives an encoder.
    EncoderNode,
    /// A node that gives expansions of queries.
    ExpansionsNode,
    /// A node that gives negatives.jsonl.
    NegativesNode,
    /// A node that gives examples.jsonl and examples.dev.jsonl.
    ExamplesNode,
    /// A node that gives the vectors of the collections.
    VectorsNode,
    /// A node that gives weight.json.
    WeightNode,
    /// A node that gives gate.json.
    GateNode,
    /// A node that gives runs and their scores.
    EvaluationNode,
}

/// A language model: one by name, or one that a node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpanderRef {
    /// `expander.model`.
    Base,
    /// `candidates.model`.
    CandidateWriter,
    /// `answers.model`.
    AnswerWriter,
    /// One made in this run.
    Made(ExpanderNode),
}

/// An encoder: the recipe's, or one that a node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderRef {
    /// `encoder.model`.
    Base,
    /// `rewards.encoder`.
    Judge,
    /// One made in this run.
    Made(EncoderNode),
}

/// What stands beside a query when the encoder is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingText {
    /// Nothing.
    Query,
    /// Its expansion.
    Expansion(ExpansionsNode),
    /// The query, repeated to the length of its expansion.
    Repetition(ExpansionsNode),
}

/// What a stage does, and which nodes it reads.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Work {
    Pairs,
    WarmUp {
        pairs: PairsNode,
    },
    WarmExpander {
        adapter: AdapterNode,
    },
    BaseEncoder {
        layers: usize,
    },
    Candidates {
        pairs: PairsNode,
        writer: ExpanderRef,
    },
    Answers {
        pairs: PairsNode,
        writer: ExpanderRef,
    },
    Scores {
        pairs: PairsNode,
        candidates: CandidatesNode,
        answers: AnswersNode,
        encoder: EncoderRef,
    },
    Preferences {
        pairs: PairsNode,
        candidates: CandidatesNode,
        scores: ScoresNode,
        terms: RewardTerms,
    },
    Dpo {
        preferences: PreferencesNode,
        base: ExpanderRef,
    },
    Merge {
        base: ExpanderRef,
        adapter: AdapterNode,
    },
    Expansions {
        pairs: PairsNode,
        writer: ExpanderRef,
    },
    Negatives {
        pairs: PairsNode,
        encoder: EncoderRef,
    },
    Examples {
        pairs: PairsNode,
        text: TrainingText,
        negatives: Option<NegativesNode>,
    },
    Contrastive {
        examples: ExamplesNode,
        base: EncoderRef,
        averages: bool,
    },
    Vectors {
        encoder: EncoderRef,
    },
    TestExpansions {
        writer: ExpanderRef,
    },
    Weight {
        examples: ExamplesNode,
        encoder: EncoderRef,
    },
    Gate {
        examples: ExamplesNode,
        encoder: EncoderRef,
        /// Who wrote the examples' expansions.
        writer: ExpanderRef,
        weight: Option<WeightNode>,
    },
    Evaluation {
        encoder: EncoderRef,
        vectors: VectorsNode,
        text: SearchText,
        expansions: Option<ExpansionsNode>,
        weight: Option<WeightNode>,
        gate: Option<GateNode>,
    },
    Report {
        rows: Vec<(&'static Arm, EvaluationNode)>,
    },
}

impl Work {
    /// Its kind.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Pairs => Stage::Pairs,
            Self::WarmUp { .. } => Stage::WarmUp,
            Self::WarmExpander { .. } => Stage::WarmExpander,
            Self::BaseEncoder { .. } => Stage::BaseEncoder,
            Self::Candidates { .. } => Stage::Candidates,
            Self::Answers { .. } => Stage::Answers,
            Self::Scores { .. } => Stage::Scores,
            Self::Preferences { .. } => Stage::Preferences,
            Self::Dpo { .. } => Stage::Dpo,
            Self::Merge { .. } => Stage::Merge,
            Self::Expansions { .. } => Stage::Expansions,
            Self::Negatives { .. } => Stage::Negatives,
            Self::Examples { .. } => Stage::Examples,
            Self::Contrastive { .. } => Stage::Contrastive,
            Self::Vectors { .. } => Stage::Vectors,
            Self::TestExpansions { .. } => Stage::TestExpansions,
            Self::Weight { .. } => Stage::Weight,
            Self::Gate { .. } => Stage::Gate,
            Self::Evaluation { .. } => Stage::Evaluation,
            Self::Report { .. } => Stage::Report,
        }
    }

    /// The nodes that it reads.
    pub fn inputs(&self) -> Vec<NodeId> {
        let expander = |expander: &ExpanderRef| match expander {
            ExpanderRef::Made(node) => Some(node.0),
            _ => None,
        };
        let encoder = |encoder: &EncoderRef| match encoder {
            EncoderRef::Made(node) => Some(node.0),
            EncoderRef::Base | EncoderRef::Judge => None,
        };
        let (fixed, made): (Vec<NodeId>, Option<NodeId>) = match self {
            Self::Pairs | Self::BaseEncoder { .. } => (vec![], None),
            Self::WarmUp { pairs } => (vec![pairs.0], None),
            Self::WarmExpander { adapter } => (vec![adapter.0], None),
            Self::Candidates { pairs, writer }
            | Self::Answers { pairs, writer }
            | Self::Expansions { pairs, writer } => (vec![pairs.0], expander(writer)),
            Self::Scores { pairs, candidates, answers, encoder: by } => {
                (vec![pairs.0, candidates.0, answers.0], encoder(by))
            }
            Self::Preferences { pairs, candidates, scores, .. } => {
                (vec![pairs.0, candidates.0, scores.0], None)
            }
            Self::Dpo { preferences, base } => (vec![preferences.0], expander(base)),
            Self::Merge { base, adapter } => (vec![adapter.0], expander(base)),
            Self::Negatives { pairs, encoder: by } => (vec![pairs.0], encoder(by)),
            Self::Examples { pairs, text, negatives } => {
                let expansions = match text {
                    TrainingText::Query => None,
                    TrainingText::Expansion(of) | TrainingText::Repetition(of) => Some(of.0),
                };
                let further = expansions.into_iter().chain(negatives.map(|of| of.0));
                (std::iter::once(pairs.0).chain(further).collect(), None)
            }
            Self::Contrastive { examples, base, .. } => (vec![examples.0], encoder(base)),
            Self::Vectors { encoder: by } => (vec![], encoder(by)),
            Self::TestExpansions { writer } => (vec![], expander(writer)),
            Self::Weight { examples, encoder: by } => (vec![examples.0], encoder(by)),
            Self::Gate { examples, encoder: by, writer, weight } => {
                let further = weight.map(|of| of.0).into_iter().chain(expander(writer));
                (std::iter::once(examples.0).chain(further).collect(), encoder(by))
            }
            Self::Evaluation { encoder: by, vectors, expansions, weight, gate, .. } => {
                let chosen = weight.map(|of| of.0).into_iter().chain(gate.map(|of| of.0));
                let further = expansions.map(|of| of.0).into_iter().chain(chosen);
                (std::iter::once(vectors.0).chain(further).collect(), encoder(by))
            }
            Self::Report { rows } => (rows.iter().map(|(_, evaluation)| evaluation.0).collect(), None),
        };
        fixed.into_iter().chain(made).collect()
    }
}

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
        let mut builder = Builder { recipe, nodes: Vec::new(), by_key: BTreeMap::new(), arm: "" };
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

/// The row whose stages lie in the run folder itself.
const MAIN: &str = "expandr";
/// Stands for all rows.
const REPORT: &str = "report";

struct Builder<'a> {
    recipe: &'a Recipe,
    nodes: Vec<Node>,
    by_key: BTreeMap<String, NodeId>,
    /// The row that is being planned.
    arm: &'static str,
}

impl Builder<'_> {
    /// The stages of one row; what is searched with at their end.
    fn row(&mut self, arm: &Arm) -> Option<EvaluationNode> {
        let has_collections = !self.recipe.evaluation.collections.is_empty();
        let wants_expander =
            arm.encoder == EncoderTraining::Expansions || arm.encoder == EncoderTraining::Repetitions;
        let searches_with_it = has_collections && arm.text != SearchText::Query;
        let expander =
            if wants_expander || searches_with_it { self.expander(arm.expander) } else { ExpanderRef::Base };
        let encoder = self.encoder(arm.encoder, expander);
        let gate = (arm.text == SearchText::Gated).then(|| self.gate(expander, encoder));
        if !has_collections {
            return None;
        }
        let vectors = VectorsNode(self.add(Work::Vectors { encoder }));
        let expansions =
            searches_with_it.then(|| ExpansionsNode(self.add(Work::TestExpansions { writer: expander })));
        let weight = self.weight(arm.text, expander, encoder);
        let text = arm.text;
        Some(EvaluationNode(self.add(Work::Evaluation { encoder, vectors, text, expansions, weight, gate })))
    }

    fn pairs(&mut self) -> PairsNode {
        PairsNode(self.add(Work::Pairs))
    }

    /// The language model before DPO.
    fn base_expander(&mut self) -> ExpanderRef {
        if !self.recipe.warm_up.enabled {
            return ExpanderRef::Base;
        }
        let pairs = self.pairs();
        let adapter = AdapterNode(self.add(Work::WarmUp { pairs }));
        ExpanderRef::Made(ExpanderNode(self.add(Work::WarmExpander { adapter })))
    }

    fn expander(&mut self, training: ExpanderTraining) -> ExpanderRef {
        let base = self.base_expander();
        let terms = match training {
            ExpanderTraining::None => return base,
            ExpanderTraining::Dpo => self.recipe.rewards.terms().unwrap_or_default(),
            ExpanderTraining::DpoWithoutSelfReward => RewardTerms::RetrieverOnly,
            ExpanderTraining::DpoWithoutRetrieverReward => RewardTerms::SelfOnly,
        };
        let pairs = self.pairs();
        let candidate_writer =
            if self.recipe.candidates.model.is_some() { ExpanderRef::CandidateWriter } else { base };
        let answer_writer =
            if self.recipe.answers.model.is_some() { ExpanderRef::AnswerWriter } else { base };
        let candidates = CandidatesNode(self.add(Work::Candidates { pairs, writer: candidate_writer }));
        let answers = AnswersNode(self.add(Work::Answers { pairs, writer: answer_writer }));
        let encoder = self.judge();
        let scores = ScoresNode(self.add(Work::Scores { pairs, candidates, answers, encoder }));
        let preferences = PreferencesNode(self.add(Work::Preferences { pairs, candidates, scores, terms }));
        let adapter = AdapterNode(self.add(Work::Dpo { preferences, base }));
        ExpanderRef::Made(ExpanderNode(self.add(Work::Merge { base, adapter })))
    }

    /// The encoder before its training.
    fn base_encoder(&mut self) -> EncoderRef {
        match self.recipe.encoder.layers {
            Some(layers) => EncoderRef::Made(EncoderNode(self.add(Work::BaseEncoder { layers }))),
            None => EncoderRef::Base,
        }
    }

    /// The encoder that candidates are judged by.
    fn judge(&mut self) -> EncoderRef {
        if self.recipe.rewards.encoder.is_some() { EncoderRef::Judge } else { self.base_encoder() }
    }

    fn encoder(&mut self, training: EncoderTraining, expander: ExpanderRef) -> EncoderRef {
        let base = self.base_encoder();
        if training == EncoderTraining::None || !self.recipe.contrastive.enabled {
            return base;
        }
        let text = match training {
            EncoderTraining::None | EncoderTraining::Queries => SearchText::Query,
            EncoderTraining::Expansions => SearchText::Expansion,
            EncoderTraining::Repetitions => SearchText::Repetition,
        };
        let examples = self.examples(text, expander);
        let averages = text != SearchText::Query;
        EncoderRef::Made(EncoderNode(self.add(Work::Contrastive { examples, base, averages })))
    }

    /// The pairs of the retriever's part with what stands beside their queries.
    fn examples(&mut self, text: SearchText, writer: ExpanderRef) -> ExamplesNode {
        let pairs = self.pairs();
        let mut expansions = || ExpansionsNode(self.add(Work::Expansions { pairs, writer }));
        let text = match text {
            SearchText::Query => TrainingText::Query,
            SearchText::Expansion | SearchText::Gated => TrainingText::Expansion(expansions()),
            SearchText::Repetition => TrainingText::Repetition(expansions()),
        };
        let negatives = (self.recipe.contrastive.mined_negatives > 0).then(|| {
            let encoder = self.base_encoder();
            NegativesNode(self.add(Work::Negatives { pairs, encoder }))
        });
        ExamplesNode(self.add(Work::Examples { pairs, text, negatives }))
    }

    /// The weight of the query in the search, if the recipe wants it chosen and there is something to weigh.
    fn weight(&mut self, text: SearchText, writer: ExpanderRef, encoder: EncoderRef) -> Option<WeightNode> {
        let chosen = self.recipe.evaluation.query_weight == QueryWeight::Dev && text != SearchText::Query;
        chosen.then(|| {
            let examples = self.examples(text, writer);
            WeightNode(self.add(Work::Weight { examples, encoder }))
        })
    }

    /// Whether to expand, for what this expander writes and this encoder finds.
    fn gate(&mut self, writer: ExpanderRef, encoder: EncoderRef) -> GateNode {
        let examples = self.examples(SearchText::Expansion, writer);
        let weight = self.weight(SearchText::Expansion, writer, encoder);
        GateNode(self.add(Work::Gate { examples, encoder, writer, weight }))
    }

    /// The node that does this, which may be there already.
    fn add(&mut self, work: Work) -> NodeId {
        let settings = settings::of(&work, self.recipe);
        let external = inputs::of(&work, self.recipe);
        let keys: Vec<&str> = work.inputs().iter().map(|id| self.nodes[*id].key.as_str()).collect();
        let identity = json!({
            "stage": work.stage(),
            "version": work.stage().version(),
            "settings": settings,
            "inputs": keys,
            "external": external.iter().map(External::name).collect::<Vec<_>>(),
        });
        let key = sha256(canonical(&identity).as_bytes());
        let id = match self.by_key.get(&key) {
            Some(id) => *id,
            None => {
                // There is but one gate; it lies beside the models that it belongs to.
                let home = match self.arm {
                    MAIN | REPORT => PathBuf::new(),
                    _ if work.stage() == Stage::Gate => PathBuf::new(),
                    arm => PathBuf::from("arms").join(arm),
                };
                self.nodes.push(Node { work, home, settings, external, key: key.clone(), arms: Vec::new() });
                self.by_key.insert(key, self.nodes.len() - 1);
                self.nodes.len() - 1
            }
        };
        if !self.nodes[id].arms.contains(&self.arm) {
            self.nodes[id].arms.push(self.arm);
        }
        id
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
