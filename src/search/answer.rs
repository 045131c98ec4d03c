//! What the service answers: the wire form of a search's result.

use expandr_index::How;
use expandr_models::gate::Decision;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema, Type},
};

use super::{request::Ranking, timings::Timings};

/// How the expansion of a search came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
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
    /// The gate expects no gain from it (`auto`): the raw hits are the answer.
    Skipped,
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
            Self::Skipped => "skipped",
            Self::Degraded => "degraded",
        }
    }
}

/// Why the raw hits answer a search that would be expanded: by the gate's decision, or because something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RawReason {
    /// The budget ended before enough text was there, or before it was embedded.
    Timeout,
    /// The expander or encoder had no place.
    Overloaded,
    /// The language model failed.
    LlmError,
    /// The language model wrote nothing of use.
    EmptyOutput,
    /// The gate expects no gain.
    Gate,
}

impl RawReason {
    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::LlmError => "llm_error",
            Self::EmptyOutput => "empty_output",
            Self::Gate => "gate",
        }
    }
}

/// What became of the expansion.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct ExpansionReport {
    /// How it came about.
    pub status: ExpansionStatus,
    /// Why the answer is degraded or skipped; none otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<RawReason>,
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
    /// Whether the passages were embedded behind the query, as one text; absent where they were not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub joint_encoding: bool,
    /// Cosine of the query and the passages, the mean over these; none when the query was searched alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub query_cosine: Option<f32>,
    /// Share of the ten best hits (all, if there are fewer) of the averaged vector that are also among the ten best of the
    /// query alone; none when the query was searched alone or nothing was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_overlap_at_10: Option<f32>,
    /// What the gate said (`auto` with `explain: true`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<Decision>,
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
            joint_encoding: false,
            query_cosine: None,
            raw_overlap_at_10: None,
            gate: None,
        }
    }
}

/// How a hit was found (`explain: true`).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HitExplanation {
    /// What its vector says; none when no vector was searched with.
    #[serde(flatten)]
    pub vectors: Option<VectorExplanation>,
    /// Where the ranking by vectors had it; null when that had it not among the hits that were fused; absent when there was
    /// no such ranking.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Place>)]
    pub dense: Option<Option<Place>>,
    /// Where the ranking by words had it; null and absent as with `dense`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Place>)]
    pub lexical: Option<Option<Place>>,
}

/// What a hit's vector says about it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct VectorExplanation {
    /// Cosine of the document with the query.
    pub query_cosine: f32,
    /// Cosine of the document with each expansion.
    pub expansion_cosines: Vec<f32>,
    /// Rank that the query alone gives the document, 1 being best; null when it is not among the raw hits that
    /// were looked at (as many as `top_k`, at least 100).
    pub rank_without_expansion: Option<usize>,
}

/// A place in one ranking.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
pub struct Place {
    /// From 1.
    pub rank: usize,
    /// The ranking's own score.
    pub score: f32,
}

/// What a hit says of its document (`include_text: true`).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct HitDocument {
    /// The document's title.
    pub title: String,
    /// The document's text.
    pub text: String,
    /// The document's metadata.
    pub metadata: Map<String, Value>,
}

/// One found document.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchHit {
    /// Position in the answer, from 1.
    pub rank: usize,
    /// The document's id, exactly as it was given.
    pub id: String,
    /// By ranking. Dense: inner product of the document's vector with the averaged vector. Lexical: BM25. Hybrid: the sum
    /// of weight / (k + rank).
    pub score: f32,
    /// The document's title, text and metadata; none when the search left them out.
    #[serde(flatten)]
    pub document: Option<HitDocument>,
    /// How the hit was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub explain: Option<HitExplanation>,
}

/// Which way the index searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Searched {
    /// By vector; none when it did not.
    pub dense: Option<How>,
    /// Whether it searched by words.
    pub lexical: bool,
}

impl PartialSchema for Searched {
    fn schema() -> RefOr<Schema> {
        let dense = ["exact", "hnsw", "filtered_exact", "filtered_hnsw"];
        let names = dense.iter().flat_map(|way| [(*way).to_owned(), format!("{way}+lexical")]);
        ObjectBuilder::new()
            .schema_type(Type::String)
            .enum_values(Some(names.chain(["lexical".to_owned()])))
            .description(Some("Which way the index searched."))
            .into()
    }
}

impl ToSchema for Searched {}

impl Serialize for Searched {
    /// `exact`, `lexical`, `hnsw+lexical`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let dense = match self.dense {
            Some(How::Exact) => "exact",
            Some(How::Hnsw) => "hnsw",
            Some(How::FilteredExact) => "filtered_exact",
            Some(How::FilteredHnsw) => "filtered_hnsw",
            None => return serializer.serialize_str("lexical"),
        };
        serializer.serialize_str(&if self.lexical { format!("{dense}+lexical") } else { dense.to_owned() })
    }
}

/// A whole answer.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct SearchAnswer {
    /// Names this request in logs.
    pub request_id: String,
    /// The found documents, best first.
    pub hits: Vec<SearchHit>,
    /// What became of the expansion.
    pub expansion: ExpansionReport,
    /// The bundle that answered.
    pub bundle: String,
    /// What ranked the documents.
    pub ranking: Ranking,
    /// Which way the index searched.
    pub searched: Searched,
    /// Wall time from the request's arrival to this answer, in milliseconds.
    pub took_ms: f64,
    /// Where the time went.
    pub timings: Timings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searched_names_each_way() {
        let name = |dense, lexical| serde_json::to_value(Searched { dense, lexical }).unwrap();
        for how in [How::Exact, How::Hnsw, How::FilteredExact, How::FilteredHnsw] {
            // The index's own names.
            assert_eq!(name(Some(how), false), serde_json::to_value(how).unwrap());
        }
        assert_eq!(name(None, true), "lexical");
        assert_eq!(name(Some(How::Hnsw), true), "hnsw+lexical");
    }

    #[test]
    fn explanations_tell_absent_from_null() {
        let explanation = HitExplanation { vectors: None, dense: None, lexical: Some(None) };
        assert_eq!(serde_json::to_string(&explanation).unwrap(), r#"{"lexical":null}"#);
    }
}
