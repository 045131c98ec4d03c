//! What stages do, and what they read: handles of nodes, one kind for each kind of file.

use crate::plan::{Arm, SearchText, Stage};
use crate::reward::RewardTerms;

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
