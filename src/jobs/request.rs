//! What a job is asked to do: the body of `POST /admin/jobs`, strictly.

use expandr_evaluation::Metric;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::{
    http::{
        body::from_value,
        problem::{FieldError, Problem},
    },
    search::request::{ExpansionChoice, MAX_TOP_K},
};

/// A job's work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum JobRequest {
    /// Train, package, import, evaluate against the live bundle, decide, and activate or not.
    Retrain(Box<Retrain>),
    /// Embed the active bundle's documents anew.
    Reindex(Reindex),
    /// Write the index's snapshot.
    Snapshot(Snapshot),
    /// Take a bundle, a checkpoint or an adapter that was made elsewhere.
    Import(Import),
    /// Evaluate a bundle, against another one if wanted.
    Evaluate(Evaluate),
}

/// A retraining.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = RetrainJob)]
pub struct Retrain {
    /// A recipe of `--recipes-dir`, without `.toml`.
    pub recipe: Option<String>,
    /// Or a whole recipe.
    pub recipe_toml: Option<String>,
    /// Settings that are put over it: `{"dpo.epochs": 1}`; null takes one away.
    pub overrides: Map<String, Value>,
    /// Only these stages; then nothing is packaged unless they leave a model.
    pub stages: Option<Vec<String>>,
    /// All rows of the report.
    pub ablations: bool,
    /// Training pairs besides the recipe's sources, or instead of them.
    pub pairs: Pairs,
    /// The new bundle's name; default: the recipe's with the job's id.
    #[schema(min_length = 1, max_length = 100)]
    pub name: Option<String>,
    /// On what the new bundle is evaluated; none takes the recipe's evaluation collections.
    pub evaluate: Option<EvaluateOn>,
    /// When the new bundle becomes active.
    pub promotion: Promotion,
}

/// Where training pairs come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = TrainingPairs)]
pub struct Pairs {
    /// Names of uploaded datasets.
    pub datasets: Vec<String>,
    /// What users clicked and judged.
    pub feedback: bool,
    /// Without the recipe's own sources.
    pub only: bool,
}

/// Collections and how they are asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluateOn {
    /// Folders of `--data-dir` in BEIR's layout, by their paths in it.
    pub collections: Vec<String>,
    /// Which judgments; none: `test`, or `dev` where a collection is scored on that.
    pub split: Option<String>,
    /// At most so many queries a collection, always the same ones.
    #[schema(minimum = 1)]
    pub max_queries: Option<usize>,
    /// The `expansion` member of every search; none leaves it to each bundle.
    #[schema(value_type = Option<ExpansionChoice>)]
    pub expansion: Option<Value>,
}

/// When a new bundle becomes active.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Promotion {
    /// The rule.
    pub when: When,
    /// What is compared.
    pub metric: String,
    /// The collections that decide; none: all that are evaluated.
    pub collections: Option<Vec<String>>,
    /// Level of the two-sided paired permutation test.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    pub alpha: f64,
    /// No collection's mean may fall by more.
    #[schema(minimum = 0, maximum = 1)]
    pub max_regression: f64,
}

impl Default for Promotion {
    fn default() -> Self {
        Self {
            when: When::Never,
            metric: Metric::NDCG_10.to_string(),
            collections: None,
            alpha: 0.05,
            max_regression: 0.01,
        }
    }
}

/// A rule of promotion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = PromotionRule)]
pub enum When {
    /// The mean is significantly above the live bundle's, and no collection falls by more than is allowed.
    Significant,
    /// The mean is not significantly below the live bundle's, and no collection falls by more than is allowed.
    NotWorse,
    /// Whatever the evaluation says.
    Always,
    /// It is imported and waits for `POST /admin/bundles/{id}/activate`.
    Never,
}

impl When {
    /// Whether the rule needs figures.
    pub fn needs_evaluation(self) -> bool {
        matches!(self, Self::Significant | Self::NotWorse)
    }
}

/// Nothing to say about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReindexJob)]
pub struct Reindex {}

/// Nothing to say about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SnapshotJob)]
pub struct Snapshot {}

/// Something that was made elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ImportJob)]
pub struct Import {
    /// Its folder on the server's disk, in `--data-dir` or `--models-dir`; relative ones are in `--data-dir`.
    pub path: String,
    /// What it is. All but a bundle take their place in a copy of the active bundle.
    pub what: Imported,
    /// The new bundle's name.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 100)]
    pub name: Option<String>,
    /// Make it active.
    #[serde(default)]
    pub activate: bool,
}

/// What is imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ImportedKind)]
pub enum Imported {
    /// A bundle folder.
    Bundle,
    /// An encoder's checkpoint.
    Encoder,
    /// A LoRA adapter of the active bundle's encoder.
    EncoderAdapter,
    /// A language model's checkpoint.
    Expander,
    /// A LoRA adapter of the active bundle's language model.
    ExpanderAdapter,
}

/// An evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = EvaluateJob)]
pub struct Evaluate {
    /// The bundle; none: the active one.
    #[serde(default)]
    pub bundle: Option<String>,
    /// What it is compared with; none: the active one, unless that is the bundle itself.
    #[serde(default)]
    pub against: Option<String>,
    /// As in a retraining.
    pub collections: Vec<String>,
    /// As in a retraining.
    #[serde(default)]
    pub split: Option<String>,
    /// As in a retraining.
    #[serde(default)]
    #[schema(minimum = 1)]
    pub max_queries: Option<usize>,
    /// As in a retraining.
    #[serde(default)]
    #[schema(value_type = Option<ExpansionChoice>)]
    pub expansion: Option<Value>,
    /// What is compared.
    #[serde(default = "ndcg_10")]
    pub metric: String,
}

fn ndcg_10() -> String {
    Metric::NDCG_10.to_string()
}

impl Evaluate {
    /// The same words as a retraining's.
    pub fn on(&self) -> EvaluateOn {
        EvaluateOn {
            collections: self.collections.clone(),
            split: self.split.clone(),
            max_queries: self.max_queries,
            expansion: self.expansion.clone(),
        }
    }
}

const KINDS: &str = "retrain, reindex, evaluate, import or snapshot";

impl JobRequest {
    /// Reads a body. What is checked here is its form and its ranges; whether what it names is there is checked on acceptance.
    ///
    /// # Errors
    /// `invalid_request` with pointers.
    pub fn parse(mut body: Value) -> Result<Self, Problem> {
        let Some(members) = body.as_object_mut() else {
            return Err(Problem::field(
                "",
                "a job is an object such as {\"kind\": \"retrain\", \"recipe\": \"small\"}",
            ));
        };
        let kind = members.remove("kind");
        let request = match kind.as_ref().and_then(Value::as_str) {
            Some("retrain") => Self::Retrain(Box::new(from_value(body)?)),
            Some("reindex") => Self::Reindex(from_value(body)?),
            Some("snapshot") => Self::Snapshot(from_value(body)?),
            Some("import") => Self::Import(from_value(body)?),
            Some("evaluate") => Self::Evaluate(from_value(body)?),
            Some(other) => {
                return Err(Problem::field("/kind", format!("there is no kind `{other}`; use {KINDS}")));
            }
            None => return Err(Problem::field("/kind", format!("is missing; use {KINDS}"))),
        };
        let errors = request.ranges();
        if errors.is_empty() { Ok(request) } else { Err(Problem::fields(errors)) }
    }

    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Retrain(_) => "retrain",
            Self::Reindex(_) => "reindex",
            Self::Snapshot(_) => "snapshot",
            Self::Import(_) => "import",
            Self::Evaluate(_) => "evaluate",
        }
    }

    fn ranges(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        match self {
            Self::Retrain(retrain) => {
                if retrain.recipe.is_some() == retrain.recipe_toml.is_some() {
                    errors.push(wrong("/recipe", "give either a recipe's name or `recipe_toml`"));
                }
                if let Some(on) = &retrain.evaluate {
                    ranges_of_evaluation(on, "/evaluate", &mut errors);
                }
                check_metric(&retrain.promotion.metric, "/promotion/metric", &mut errors);
                let Promotion { alpha, max_regression, .. } = retrain.promotion;
                if !(alpha > 0.0 && alpha < 1.0) {
                    errors.push(wrong(
                        "/promotion/alpha",
                        format!("{alpha} is not between 0 and 1; 0.05 is usual"),
                    ));
                }
                if !(0.0..=1.0).contains(&max_regression) {
                    errors.push(wrong(
                        "/promotion/max_regression",
                        format!("{max_regression} is not between 0 and 1"),
                    ));
                }
                check_name(retrain.name.as_deref(), &mut errors);
            }
            Self::Evaluate(evaluate) => {
                if evaluate.collections.is_empty() {
                    errors.push(wrong("/collections", "is empty; name at least one"));
                }
                ranges_of_evaluation(&evaluate.on(), "", &mut errors);
                check_metric(&evaluate.metric, "/metric", &mut errors);
            }
            Self::Import(import) => check_name(import.name.as_deref(), &mut errors),
            Self::Reindex(_) | Self::Snapshot(_) => {}
        }
        errors
    }
}

/// A wrong value.
pub(super) fn wrong(pointer: impl Into<String>, detail: impl Into<String>) -> FieldError {
    FieldError { pointer: pointer.into(), detail: detail.into() }
}

fn ranges_of_evaluation(on: &EvaluateOn, prefix: &str, errors: &mut Vec<FieldError>) {
    if on.max_queries == Some(0) {
        errors.push(wrong(format!("{prefix}/max_queries"), "must be at least 1; leave it out for all"));
    }
    if let Some(expansion) = &on.expansion
        && !matches!(expansion, Value::Bool(_) | Value::String(_) | Value::Object(_))
    {
        let detail = "must be true, false, a mode or an object, as in a search";
        errors.push(wrong(format!("{prefix}/expansion"), detail));
    }
    let mut seen = std::collections::HashSet::new();
    for (i, name) in on.collections.iter().enumerate() {
        if !seen.insert(name) {
            errors.push(wrong(format!("{prefix}/collections/{i}"), format!("`{name}` is named twice")));
        }
    }
}

fn check_metric(metric: &str, pointer: &str, errors: &mut Vec<FieldError>) {
    match metric.parse::<Metric>() {
        Err(error) => errors.push(wrong(pointer, error.to_string())),
        Ok(Metric { cut: Some(cut), .. }) if cut > MAX_TOP_K => {
            errors.push(wrong(
                pointer,
                format!("looks at {cut} hits, and a search has {MAX_TOP_K} at most; name a smaller cut"),
            ));
        }
        Ok(_) => {}
    }
}

fn check_name(name: Option<&str>, errors: &mut Vec<FieldError>) {
    if let Some(name) = name
        && (name.trim().is_empty() || name.chars().count() > 100 || name.chars().any(char::is_control))
    {
        errors.push(wrong("/name", "must have 1 to 100 printable characters"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(body: Value) -> Vec<String> {
        JobRequest::parse(body).unwrap_err().errors.into_iter().map(|error| error.pointer).collect()
    }

    #[test]
    fn a_body_is_read_strictly_and_comes_back_as_it_was_meant() {
        let body = json!({
            "kind": "retrain", "recipe": "small", "recipe_toml": null, "overrides": {"dpo.epochs": 1},
            "stages": null, "pairs": {"datasets": ["a"], "feedback": true, "only": false},
            "evaluate": {"collections": ["scifact"], "max_queries": 50},
            "promotion": {"when": "not_worse", "alpha": 0.01},
        });
        let JobRequest::Retrain(retrain) = JobRequest::parse(body).unwrap() else { panic!("another kind") };
        assert_eq!(retrain.promotion.when, When::NotWorse);
        assert_eq!((retrain.promotion.max_regression, retrain.promotion.metric.as_str()), (0.01, "ndcg@10"));
        let request = JobRequest::Retrain(retrain);
        let stored = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<JobRequest>(&stored).unwrap(), request);
        assert!(JobRequest::parse(json!({"kind": "snapshot"})).is_ok());
    }

    #[test]
    fn errors_point_at_what_is_wrong() {
        assert_eq!(pointers(json!([])), [""]);
        assert_eq!(pointers(json!({"recipe": "small"})), ["/kind"]);
        assert_eq!(pointers(json!({"kind": "dance"})), ["/kind"]);
        assert_eq!(pointers(json!({"kind": "reindex", "now": true})), ["/now"]);
        assert_eq!(pointers(json!({"kind": "retrain"})), ["/recipe"]);
        assert_eq!(pointers(json!({"kind": "retrain", "recipe": "a", "recipe_toml": "b"})), ["/recipe"]);
        assert_eq!(
            pointers(json!({"kind": "retrain", "recipe": "a", "promotion": {"when": "sometimes"}})),
            ["/promotion/when"]
        );
        let several = json!({
            "kind": "retrain", "recipe": "a", "promotion": {"alpha": 0, "metric": "luck"},
            "evaluate": {"max_queries": 0, "collections": ["a", "a"]}, "name": " ",
        });
        assert_eq!(
            pointers(several),
            [
                "/evaluate/max_queries",
                "/evaluate/collections/1",
                "/promotion/metric",
                "/promotion/alpha",
                "/name"
            ]
        );
        assert_eq!(pointers(json!({"kind": "evaluate", "collections": []})), ["/collections"]);
        let too_deep = json!({"kind": "evaluate", "collections": ["a"], "metric": "recall@1001"});
        assert_eq!(pointers(too_deep), ["/metric"]);
    }
}
