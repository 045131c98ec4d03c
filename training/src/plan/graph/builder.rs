//! The stages behind one row after the other.
//!
//! A stage is asked for by the functions of [`Builder`], which take what it reads as handles of the right kind and
//! give one for what it writes. Asking twice for the same (kind, settings, inputs) gives the same node, and so rows
//! share whatever they can.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::json;

use super::work::{
    AdapterNode, AnswersNode, CandidatesNode, EncoderNode, EncoderRef, EvaluationNode, ExamplesNode,
    ExpanderNode, ExpanderRef, ExpansionsNode, GateNode, NegativesNode, NodeId, PairsNode, PreferencesNode,
    ScoresNode, TrainingText, VectorsNode, WeightNode, Work,
};
use super::{External, Node, canonical, inputs, settings};
use crate::plan::{Arm, EncoderTraining, ExpanderTraining, SearchText, Stage};
use crate::recipe::{QueryWeight, Recipe};
use crate::reward::RewardTerms;
use crate::seed::sha256;

/// The row whose stages lie in the run folder itself.
pub(super) const MAIN: &str = "expandr";
/// Stands for all rows.
pub(super) const REPORT: &str = "report";

pub(super) struct Builder<'a> {
    recipe: &'a Recipe,
    pub(super) nodes: Vec<Node>,
    by_key: BTreeMap<String, NodeId>,
    /// The row that is being planned.
    pub(super) arm: &'static str,
}

impl<'a> Builder<'a> {
    pub(super) fn new(recipe: &'a Recipe) -> Self {
        Self { recipe, nodes: Vec::new(), by_key: BTreeMap::new(), arm: "" }
    }

    /// The stages of one row; what is searched with at their end.
    pub(super) fn row(&mut self, arm: &Arm) -> Option<EvaluationNode> {
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
    pub(super) fn add(&mut self, work: Work) -> NodeId {
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
