//! What a client may ask: the wire form of `POST /search`.

use std::fmt;

use clap::ValueEnum;
use expandr_index::{Filter, SearchMode};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, MapAccess, Unexpected, Visitor, value::MapAccessDeserializer},
};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, OneOfBuilder, Ref, RefOr, Schema, Type},
};

/// Most hits that a search returns.
pub const MAX_TOP_K: usize = 1000;

/// A search as the client sends it.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// The query.
    #[schema(min_length = 1, max_length = 8192, pattern = r"\S")]
    pub query: String,
    /// How many hits, 1 to 1000; default 10. Also called `limit` and `k`.
    #[serde(alias = "limit", alias = "k")]
    #[schema(minimum = 1, maximum = 1000)]
    pub top_k: Option<usize>,
    /// What ranks the documents; default: as the server is configured.
    pub ranking: Option<Ranking>,
    /// How `hybrid` puts its two rankings together.
    pub hybrid: Option<HybridRequest>,
    /// Whether and how to expand; default: as the server is configured.
    pub expansion: Option<ExpansionChoice>,
    /// Only documents whose metadata matches.
    pub filter: Option<Filter>,
    /// Whether to say per hit how it was found.
    #[serde(default)]
    pub explain: bool,
    /// Whether hits carry title, text and metadata of their documents; default true.
    #[serde(default = "yes")]
    pub include_text: bool,
    /// Which way the index searches; default `auto`.
    #[serde(default)]
    pub search_mode: SearchMode,
    /// How many candidates the HNSW graph keeps while searching; default: as the server is configured.
    #[schema(minimum = 1, maximum = 10000)]
    pub ef: Option<usize>,
    /// Deadline of the whole request in milliseconds; default and limit: as the server is configured.
    #[schema(minimum = 1)]
    pub timeout_ms: Option<u64>,
}

/// What ranks the documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, ValueEnum, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ranking {
    /// The inner product of vectors.
    #[default]
    Dense,
    /// BM25 over words.
    Lexical,
    /// Both, fused by their ranks.
    Hybrid,
}

impl Ranking {
    /// The name on the wire and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Lexical => "lexical",
            Self::Hybrid => "hybrid",
        }
    }
}

/// The `hybrid` object: weighted reciprocal rank fusion, score = Σ weight / (k + rank).
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HybridRequest {
    /// How little the first ranks count more than the others; default 60.
    #[schema(minimum = 1, maximum = 10000)]
    pub k: Option<f64>,
    /// Weight of the ranking by vectors; default 1.
    #[schema(minimum = 0, maximum = 1000)]
    pub dense_weight: Option<f64>,
    /// Weight of the ranking by words; default 1.
    #[schema(minimum = 0, maximum = 1000)]
    pub lexical_weight: Option<f64>,
    /// How many hits of each ranking are fused; default 100, or `top_k` if that is more.
    #[schema(minimum = 1, maximum = 1000)]
    pub depth: Option<usize>,
}

fn yes() -> bool {
    true
}

/// `expansion`: true, false, a mode, or an object.
#[derive(Clone, Debug)]
pub enum ExpansionChoice {
    /// `true`: as the server is configured; `false`: off.
    Simple(bool),
    /// How exactly.
    Detailed(Box<ExpansionRequest>),
}

/// Whether to expand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExpansionMode {
    /// Expand.
    #[default]
    Always,
    /// Expand where the bundle's gate expects a gain.
    Auto,
    /// Search with the query alone.
    Off,
}

/// What to do when no expansion came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Answer with the raw hits, and say so.
    #[default]
    Degrade,
    /// Answer 503 or 504.
    Fail,
}

/// The object form of `expansion`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpansionRequest {
    /// Whether to expand; default `always`, or `auto` where that is the server's default.
    pub mode: Option<ExpansionMode>,
    /// How many passages to write and average, 1 to 8; default: as `/info` says, 1 at temperature 0. More than one needs a
    /// temperature above 0.
    #[schema(minimum = 1, maximum = 8)]
    pub count: Option<usize>,
    /// Most tokens of a passage.
    #[schema(minimum = 1)]
    pub max_tokens: Option<usize>,
    /// 0 is greedy.
    #[schema(minimum = 0, maximum = 2)]
    pub temperature: Option<f32>,
    /// Nucleus sampling.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Makes samples repeatable, where the engine honours it (`/info` says).
    pub seed: Option<u64>,
    /// Budget of the expansion in milliseconds; what has been written by then is used if it is enough.
    #[schema(minimum = 1)]
    pub timeout_ms: Option<u64>,
    /// Share of the query in the averaged vector, 0 to 1; default 0.5 (the paper's Eq. 8).
    #[schema(minimum = 0, maximum = 1)]
    pub query_weight: Option<f32>,
    /// Whether each passage is embedded behind the query, as one text, instead of by itself; default false.
    pub joint_encoding: Option<bool>,
    /// Passages to use instead of generating some.
    #[schema(min_items = 1, max_items = 8)]
    pub texts: Option<Vec<String>>,
    /// What to do when no expansion came; default `degrade`.
    #[serde(default)]
    pub on_failure: OnFailure,
}

impl PartialSchema for ExpansionChoice {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new()
            .item(ObjectBuilder::new().schema_type(Type::Boolean))
            .item(Ref::from_schema_name(ExpansionMode::name()))
            .item(Ref::from_schema_name(ExpansionRequest::name()))
            .description(Some("`true`: as the server is configured; `false`: off; a mode; or how exactly."))
            .into()
    }
}

impl ToSchema for ExpansionChoice {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((ExpansionMode::name().into(), ExpansionMode::schema()));
        schemas.push((ExpansionRequest::name().into(), ExpansionRequest::schema()));
        ExpansionRequest::schemas(schemas);
    }
}

impl<'de> Deserialize<'de> for ExpansionChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ChoiceVisitor;
        impl<'de> Visitor<'de> for ChoiceVisitor {
            type Value = ExpansionChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "true, false, always, auto, off, or an object such as {\"mode\":\"always\",\"max_tokens\":64}",
                )
            }

            fn visit_bool<E>(self, value: bool) -> Result<Self::Value, E> {
                Ok(ExpansionChoice::Simple(value))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
                let mode = match name {
                    "always" => ExpansionMode::Always,
                    "auto" => ExpansionMode::Auto,
                    "off" => ExpansionMode::Off,
                    _ => return Err(E::invalid_value(Unexpected::Str(name), &self)),
                };
                let request = ExpansionRequest { mode: Some(mode), ..ExpansionRequest::default() };
                Ok(ExpansionChoice::Detailed(Box::new(request)))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let request = ExpansionRequest::deserialize(MapAccessDeserializer::new(map))?;
                Ok(ExpansionChoice::Detailed(Box::new(request)))
            }
        }
        deserializer.deserialize_any(ChoiceVisitor)
    }
}
