//! What the service answers: the wire form of a search's result.

use expandr_index::How;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::timings::Timings;

/// How the expansion of a search came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpansionStatus {
    /// Written for this request (or for an identical one in flight).
    Applied,
    /// Every passage came from the cache.
    Cached,
    /// The client supplied the passages.
    Supplied,
    /// The client or the configuration switched it off.
    Disabled,
    /// It was wanted, but the raw hits had to answer; `reason` says why.
    Degraded,
}

impl ExpansionStatus {
    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Cached => "cached",
            Self::Supplied => "supplied",
            Self::Disabled => "disabled",
            Self::Degraded => "degraded",
        }
    }
}

/// Why an answer is degraded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DegradedReason {
    /// The budget ended before enough text was there, or before it was embedded.
    Timeout,
    /// The expander or encoder had no place.
    Overloaded,
    /// The language model failed.
    LlmError,
    /// The language model wrote nothing of use.
    EmptyOutput,
}

impl DegradedReason {
    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::LlmError => "llm_error",
            Self::EmptyOutput => "empty_output",
        }
    }
}

/// What became of the expansion.
#[derive(Clone, Debug, Serialize)]
pub struct ExpansionReport {
    /// How it came about.
    pub status: ExpansionStatus,
    /// Why the answer is degraded; none otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<DegradedReason>,
    /// What the failing part said; none when nothing failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The passages that were embedded; empty when the query was searched alone.
    pub texts: Vec<String>,
    /// Tokens that the language model wrote for these passages (0 for supplied ones).
    pub output_tokens: usize,
    /// Whether the budget cut a passage that is used all the same.
    pub cut: bool,
    /// The query's share in the averaged vector; 1 when the query was searched alone.
    pub query_weight: f32,
}

impl ExpansionReport {
    /// A search with the query alone, for which `status` gives the kind.
    pub fn without(status: ExpansionStatus) -> Self {
        Self {
            status,
            reason: None,
            detail: None,
            texts: Vec::new(),
            output_tokens: 0,
            cut: false,
            query_weight: 1.0,
        }
    }
}

/// How a hit was found (`explain: true`).
#[derive(Clone, Debug, Serialize)]
pub struct HitExplanation {
    /// Cosine of the document with the query.
    pub query_cosine: f32,
    /// Cosine of the document with each expansion.
    pub expansion_cosines: Vec<f32>,
    /// Rank that the query alone gives the document, 1 being best; null when it is not among the raw hits that
    /// were looked at (as many as `top_k`, at least 100).
    pub rank_without_expansion: Option<usize>,
}

/// What a hit says of its document (`include_text: true`).
#[derive(Clone, Debug, Serialize)]
pub struct HitDocument {
    /// The document's title.
    pub title: String,
    /// The document's text.
    pub text: String,
    /// The document's metadata.
    pub metadata: Map<String, Value>,
}

/// One found document.
#[derive(Clone, Debug, Serialize)]
pub struct SearchHit {
    /// Position in the answer, from 1.
    pub rank: usize,
    /// The document's id, exactly as it was given.
    pub id: String,
    /// Inner product of the document's vector with the averaged vector.
    pub score: f32,
    /// The document's title, text and metadata; none when the search left them out.
    #[serde(flatten)]
    pub document: Option<HitDocument>,
    /// How the hit was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<HitExplanation>,
}

/// A whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct SearchAnswer {
    /// Names this request in logs.
    pub request_id: String,
    /// The found documents, best first.
    pub hits: Vec<SearchHit>,
    /// What became of the expansion.
    pub expansion: ExpansionReport,
    /// The bundle that answered.
    pub bundle: String,
    /// Which way the index searched.
    pub searched: How,
    /// Wall time from the request's arrival to this answer, in milliseconds.
    pub took_ms: f64,
    /// Where the time went.
    pub timings: Timings,
}
