//! The sections of a recipe other than the trainers'.

use std::fmt;
use std::path::PathBuf;

use expandr_models::expander::{Q2A, Q2D};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::readers::SourceSettings;
use crate::reward::{Filter, RewardTerms};
use crate::split::PartSettings;

/// The language model and its prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpanderSettings {
    /// A name in the models folder, a folder in Hugging Face layout, or a hub id.
    pub model: String,
    /// The prompt that turns a query into a passage (Q2D); `{}` is the query.
    pub prompt: String,
    /// The prompt that answers a query from a document (Q2A); the slots are query and document.
    pub answer_prompt: String,
}

impl Default for ExpanderSettings {
    fn default() -> Self {
        Self {
            model: "meta-llama/Meta-Llama-3-8B-Instruct".into(),
            prompt: Q2D.into(),
            answer_prompt: Q2A.into(),
        }
    }
}

/// The retriever's encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncoderSettings {
    /// A name in the models folder, a folder in sentence-transformers or Hugging Face layout, or a hub id.
    pub model: String,
    /// Keep only so many of the first layers: a stand-in for an encoder that nobody tuned for retrieval. None keeps all.
    pub layers: Option<usize>,
}

impl Default for EncoderSettings {
    fn default() -> Self {
        Self { model: "anchor-dr".into(), layers: None }
    }
}

/// A test collection in BEIR's layout.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CollectionSettings {
    /// Its folder, relative to `data.folder`.
    pub path: PathBuf,
    /// Which judgments; none takes `test` (`dev` for a folder named msmarco).
    pub split: Option<String>,
}

/// Which pairs are trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSettings {
    /// Sources, their further files, and collections are relative to it; it is relative to where the command runs.
    pub folder: PathBuf,
    /// Where pairs come from.
    pub sources: Vec<SourceSettings>,
    /// Collections whose queries are not trained on, besides those of the evaluation.
    pub held_out: Vec<CollectionSettings>,
    /// Positives and negatives are cut to so many words; 0 cuts nothing.
    pub max_words: usize,
    /// At most so many given negatives a pair.
    pub max_negatives: usize,
    /// Queries that train the expander.
    pub dpo_queries: usize,
    /// The share of them kept for development.
    pub dpo_dev_share: f64,
    /// At most so many queries train the retriever; none takes all the others.
    pub retriever_queries: Option<usize>,
    /// The share of them kept for development.
    pub retriever_dev_share: f64,
    /// Whether the expander's queries train the retriever as well.
    pub share_queries: bool,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            folder: PathBuf::from("."),
            sources: Vec::new(),
            held_out: Vec::new(),
            max_words: 0,
            max_negatives: 1,
            dpo_queries: 100_000,
            dpo_dev_share: 0.1,
            retriever_queries: None,
            retriever_dev_share: 0.1,
            share_queries: false,
        }
    }
}

impl DataSettings {
    /// How many queries go where.
    pub fn parts(&self) -> PartSettings {
        PartSettings {
            dpo_queries: self.dpo_queries,
            dpo_dev_share: self.dpo_dev_share,
            retriever_queries: self.retriever_queries,
            retriever_dev_share: self.retriever_dev_share,
            share_queries: self.share_queries,
        }
    }
}

/// Candidate expansions of the expander's training queries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CandidateSettings {
    /// Another language model that writes the candidates (a stronger one); none means the expander itself.
    pub model: Option<String>,
    /// Each temperature gives `samples` candidates.
    pub temperatures: Vec<f64>,
    /// Candidates a temperature.
    pub samples: usize,
    /// Nucleus sampling.
    pub top_p: f64,
    /// Most tokens of a candidate.
    pub max_tokens: usize,
}

impl Default for CandidateSettings {
    fn default() -> Self {
        Self { model: None, temperatures: vec![0.8, 0.9, 1.0, 1.1], samples: 8, top_p: 0.9, max_tokens: 512 }
    }
}

/// Answers from query and gold document, which the self-reward ranks by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnswerSettings {
    /// Another language model that writes the answers; none means the expander itself.
    pub model: Option<String>,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus sampling.
    pub top_p: f64,
    /// Most tokens of an answer.
    pub max_tokens: usize,
}

impl Default for AnswerSettings {
    fn default() -> Self {
        Self { model: None, temperature: 1.0, top_p: 0.9, max_tokens: 512 }
    }
}

/// How texts are compared for rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// Of the L2-normalised vectors, so that thresholds mean the same for every encoder.
    #[default]
    Cosine,
    /// Of the vectors as the encoder gives them.
    Dot,
}

/// Which queries are worth learning from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilterKind {
    /// Those whose best candidate reaches `threshold` in sim(answer) + sim(gold): the paper's code.
    #[default]
    AnswerPlusGold,
    /// Those with a candidate whose similarity to the query reaches `threshold`: the paper's text.
    Query,
    /// All.
    None,
}

/// How preferences are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Prompt and completions are lists of messages; trainers put the model's chat template around them.
    #[default]
    Conversational,
    /// Prompt and completions are texts; the prompt is the rendered Q2D prompt without a chat template.
    Plain,
}

/// Rewards, the filter, and preference pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RewardSettings {
    /// Whether the rank by similarity to the answer counts (Eq. 13).
    pub self_reward: bool,
    /// Whether the rank by similarity to the gold document counts (Eq. 14).
    pub retriever_reward: bool,
    /// Another encoder that judges the candidates; none means the one that is trained, as it is before that.
    pub encoder: Option<String>,
    /// How texts are compared.
    pub similarity: Similarity,
    /// Which queries are kept.
    pub filter: FilterKind,
    /// What the filter asks for.
    pub threshold: f64,
    /// Candidates with fewer words are neither chosen nor rejected.
    pub min_words: usize,
    /// How preferences are written.
    pub layout: Layout,
}

impl Default for RewardSettings {
    fn default() -> Self {
        Self {
            self_reward: true,
            retriever_reward: true,
            encoder: None,
            similarity: Similarity::default(),
            filter: FilterKind::default(),
            threshold: 0.6,
            min_words: 1,
            layout: Layout::default(),
        }
    }
}

impl RewardSettings {
    /// Which terms of Eq. 11 count; none when both are switched off.
    pub fn terms(&self) -> Option<RewardTerms> {
        match (self.self_reward, self.retriever_reward) {
            (true, true) => Some(RewardTerms::Both),
            (true, false) => Some(RewardTerms::SelfOnly),
            (false, true) => Some(RewardTerms::RetrieverOnly),
            (false, false) => None,
        }
    }

    /// The filter with its threshold.
    pub fn filter(&self) -> Filter {
        match self.filter {
            FilterKind::AnswerPlusGold => Filter::AnswerPlusGold(self.threshold as f32),
            FilterKind::Query => Filter::Query(self.threshold as f32),
            FilterKind::None => Filter::None,
        }
    }
}

/// Expansions of queries, for the retriever's training and for the evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpansionSettings {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus sampling.
    pub top_p: f64,
    /// Most tokens of an expansion.
    pub max_tokens: usize,
    /// Expansions a query, whose vectors are averaged. More than one are sampled.
    pub count: usize,
    /// Whether they are embedded behind their query, as one text, in training and search alike.
    pub joint_encoding: bool,
}

impl Default for ExpansionSettings {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 0.9, max_tokens: 512, count: 1, joint_encoding: false }
    }
}

/// The weight of the query's vector in a search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum QueryWeight {
    /// This.
    Fixed(f64),
    /// The one that finds most on the retriever's development part; written `dev`.
    Dev,
}

impl Serialize for QueryWeight {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Fixed(weight) => serializer.serialize_f64(*weight),
            Self::Dev => serializer.serialize_str("dev"),
        }
    }
}

impl<'de> Deserialize<'de> for QueryWeight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeightVisitor;

        impl Visitor<'_> for WeightVisitor {
            type Value = QueryWeight;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number between 0 and 1, or \"dev\"")
            }

            fn visit_f64<E: de::Error>(self, weight: f64) -> Result<QueryWeight, E> {
                Ok(QueryWeight::Fixed(weight))
            }

            fn visit_i64<E: de::Error>(self, weight: i64) -> Result<QueryWeight, E> {
                Ok(QueryWeight::Fixed(weight as f64))
            }

            fn visit_u64<E: de::Error>(self, weight: u64) -> Result<QueryWeight, E> {
                Ok(QueryWeight::Fixed(weight as f64))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<QueryWeight, E> {
                match text {
                    "dev" => Ok(QueryWeight::Dev),
                    other => Err(E::invalid_value(de::Unexpected::Str(other), &self)),
                }
            }
        }

        deserializer.deserialize_any(WeightVisitor)
    }
}

/// Whether to expand, query by query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateSettings {
    /// Learn on the retriever's development part which queries to expand: gate.json for the service, and the row `auto`
    /// of the report.
    pub enabled: bool,
}

/// What is reported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationSettings {
    /// The collections. Their queries are never trained on.
    pub collections: Vec<CollectionSettings>,
    /// Measures; the first is the one that is tested for significance.
    pub metrics: Vec<String>,
    /// The weight of the query's vector; the expansion's is 1 less it (Eq. 8: 0.5). Or `dev`: each row takes the weight
    /// that finds most on the retriever's development part.
    pub query_weight: QueryWeight,
    /// The rows of the report, by name; `--ablations` takes all.
    pub arms: Vec<String>,
    /// At most so many queries a collection, drawn by the seed; none takes all. For trials only.
    pub max_queries: Option<usize>,
}

impl Default for EvaluationSettings {
    fn default() -> Self {
        Self {
            collections: Vec::new(),
            metrics: vec!["ndcg@10".into(), "recall@100".into()],
            query_weight: QueryWeight::Fixed(0.5),
            arms: vec!["query".into(), "ft".into(), "expandr".into()],
            max_queries: None,
        }
    }
}

/// A model of this run that a server has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServedModel {
    /// Its folder in the run folder, e.g. `expander`.
    pub folder: PathBuf,
    /// Its name there.
    pub name: String,
}

/// How and where the work is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MachineSettings {
    /// `auto`, `cpu`, `cuda[:N]` or `metal[:N]`.
    pub device: String,
    /// Base URL of an OpenAI-compatible server that serves the models of the stages at hand; none generates in this
    /// process.
    pub endpoint: Option<String>,
    /// The name of `expander.model` on that server; none asks for it, as for other models, by the recipe's name.
    pub endpoint_model: Option<String>,
    /// Generations at once; 0 leaves it to the engine.
    pub concurrency: usize,
    /// How often a failed generation is tried again.
    pub retries: usize,
    /// Texts that are encoded in one call.
    pub encode_batch: usize,
    /// The names on the endpoint's server of models that the run has made.
    pub endpoint_made: Vec<ServedModel>,
}

impl Default for MachineSettings {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            endpoint: None,
            endpoint_model: None,
            concurrency: 0,
            retries: 3,
            encode_batch: 64,
            endpoint_made: Vec::new(),
        }
    }
}
