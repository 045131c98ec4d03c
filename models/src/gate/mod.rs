//! Whether to expand a query, decided before anything is generated for it.
//!
//! Expansion helps some queries and hurts others, and it costs a generation either way. A [`Gate`] predicts what it would
//! gain from what is there already ([`Features`]: the query's text and the cosines of its raw hits) and asks for it only
//! where the prediction is above a threshold. It is a linear function of seven numbers, fitted on development queries
//! ([`Gate::fit`]), kept in a file of readable JSON, and belongs to the encoder whose cosines it was fitted on.
//!
//! - `features`: what is looked at; `ridge`: the regression; `fit`: from measured gains to a gate.

mod features;
mod fit;
mod ridge;

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

pub use self::features::{DEPTH, Features, NAMES};
pub use self::fit::Row;
use self::ridge::Linear;
use crate::{Error, Result};

/// The name of a gate's file in a folder.
pub const GATE_FILE: &str = "gate.json";

/// The form of the file.
const FORM: u32 = 1;

/// What the gains were measured with.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// The encoder's id.
    pub encoder: String,
    /// The expander's id; none where it is not known.
    pub expander: Option<String>,
    /// The query's share in the averaged vector.
    pub query_weight: f64,
    /// Whether passages were embedded behind their query, as one text.
    pub joint_encoding: bool,
}

/// A fitted gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gate {
    version: u32,
    features: Vec<String>,
    means: Vec<f64>,
    scales: Vec<f64>,
    weights: Vec<f64>,
    bias: f64,
    #[serde(deserialize_with = "stated")]
    threshold: Option<f64>,
    query_weight: f64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    joint_encoding: bool,
    encoder: String,
    #[serde(deserialize_with = "stated")]
    expander: Option<String>,
    /// The same expander's id where adapter and base are one model; only for one with an adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expander_merged: Option<String>,
    trained_on: TrainedOn,
}

/// What a gate was fitted on, and what it gained there, on queries that the predictions had not seen. Gains are in
/// nDCG@10 over the raw search, means over all queries.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainedOn {
    /// How many queries.
    pub queries: usize,
    /// The strength of the ridge that was chosen.
    pub ridge: f64,
    /// The gain of always expanding.
    pub gain_always: f64,
    /// The gain of expanding what thresholds chosen on the other queries let through.
    pub gain_gated: f64,
    /// Its one-sided 95 % lower bound; unless it is above 0 the gate never expands. None with too few queries to tell.
    #[serde(deserialize_with = "stated")]
    pub gain_gated_lower_bound: Option<f64>,
    /// The share of the queries that the gate does not expand.
    pub share_skipped: f64,
}

/// What a gate says of one query.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = GateDecision)]
pub struct Decision {
    /// What expanding is expected to gain in nDCG@10.
    pub predicted_gain: f64,
    /// What the prediction must be above; none: it never suffices.
    pub threshold: Option<f64>,
    /// Whether to expand.
    pub expand: bool,
}

impl Gate {
    /// Reads a gate.
    ///
    /// # Errors
    /// When the file can't be read, is not a gate of this version's form, knows other features, or holds what is no
    /// number.
    pub fn read(path: &Path) -> Result<Self> {
        let broken = |detail: String| Error::Checkpoint { path: path.to_owned(), detail };
        let refit = "fit it again with stage gate of `expandr train`";
        let json: Value = serde_json::from_slice(&fs_err::read(path)?)
            .map_err(|error| broken(format!("not a gate: not JSON ({error}); {refit}")))?;
        let version = &json["version"];
        if *version != FORM {
            return Err(broken(format!(
                "a gate of form {version}, and this version reads form {FORM}; {refit}"
            )));
        }
        let gate: Self =
            serde_json::from_value(json).map_err(|error| broken(format!("not a gate: {error}; {refit}")))?;
        gate.check().map_err(|detail| broken(format!("{detail}; {refit}")))?;
        Ok(gate)
    }

    fn check(&self) -> std::result::Result<(), String> {
        if self.features != NAMES {
            return Err(format!("its features are {}, not {}", self.features.join(", "), NAMES.join(", ")));
        }
        for (name, values) in [("means", &self.means), ("scales", &self.scales), ("weights", &self.weights)] {
            if values.len() != NAMES.len() {
                return Err(format!("`{name}` has {} numbers for {} features", values.len(), NAMES.len()));
            }
            if values.iter().any(|value| !value.is_finite()) {
                return Err(format!("`{name}` holds a number that is not finite"));
            }
        }
        if let Some(scale) = self.scales.iter().find(|scale| **scale <= 0.0) {
            return Err(format!("`scales` holds {scale}, and must be above 0"));
        }
        if !self.bias.is_finite() || self.threshold.is_some_and(|threshold| !threshold.is_finite()) {
            return Err("`bias` or `threshold` is not finite".into());
        }
        if !(0.0..=1.0).contains(&self.query_weight) {
            return Err(format!("`query_weight` is {}, not between 0 and 1", self.query_weight));
        }
        if self.encoder.is_empty() {
            return Err("`encoder` is empty".into());
        }
        Ok(())
    }

    /// The file's content.
    ///
    /// # Errors
    /// Never for a gate that was fitted or read; serde_json's own type.
    pub fn to_json(&self) -> std::result::Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }

    /// Whether to expand the query with these features.
    pub fn decide(&self, features: &Features) -> Decision {
        let predicted_gain = self.linear().predict(features.array());
        let expand = self.threshold.is_some_and(|threshold| predicted_gain > threshold);
        Decision { predicted_gain, threshold: self.threshold, expand }
    }

    fn linear(&self) -> Linear {
        // Lengths were checked when it was read, and are right where it was fitted.
        let array = |values: &[f64]| std::array::from_fn(|at| values.get(at).copied().unwrap_or_default());
        Linear {
            means: array(&self.means),
            scales: array(&self.scales),
            weights: array(&self.weights),
            bias: self.bias,
        }
    }

    /// What a prediction must be above; none: the gate never expands.
    pub fn threshold(&self) -> Option<f64> {
        self.threshold
    }

    /// The query's share in the averaged vector that the gains were measured with.
    pub fn query_weight(&self) -> f64 {
        self.query_weight
    }

    /// Whether the gains were measured with passages that were embedded behind their query, as one text.
    pub fn joint_encoding(&self) -> bool {
        self.joint_encoding
    }

    /// The id of the encoder whose cosines it was fitted on.
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// The id of the expander whose passages it was fitted on; none where that is not known.
    pub fn expander(&self) -> Option<&str> {
        self.expander.as_deref()
    }

    /// Notes the id that the expander has when its adapter is merged into its base.
    #[must_use]
    pub fn merged(mut self, id: Option<String>) -> Self {
        self.expander_merged = id;
        self
    }

    /// Whether `id` names the expander that it was fitted on: with its adapter beside the base, or merged into it. None
    /// where it doesn't know what it was fitted on.
    pub fn is_of_expander(&self, id: &str) -> Option<bool> {
        let fitted = self.expander.as_deref()?;
        let merged = self.expander_merged.as_deref();
        Some(same_weights(fitted, id) || merged.is_some_and(|merged| same_weights(merged, id)))
    }

    /// What it was fitted on, and what it gained there.
    pub fn trained_on(&self) -> &TrainedOn {
        &self.trained_on
    }

    /// Names its content: `gate-` and 12 hexadecimal digits.
    pub fn id(&self) -> String {
        let digest = Sha256::digest(self.to_json().unwrap_or_default());
        let digits: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("gate-{digits}")
    }
}

/// Whether two ids name the same weights, wherever their folders are: what follows `@` is a hash of the content. Of a
/// model with an adapter beside it (`base@…+adapter@…`) both must be the same.
pub fn same_weights(one: &str, other: &str) -> bool {
    fn hashes(id: &str) -> Vec<&str> {
        // A name may have a `+` of its own; a hash hasn't.
        id.split('+').filter_map(|part| part.rsplit_once('@')).map(|(_, hash)| hash).collect()
    }
    one == other || (!hashes(one).is_empty() && hashes(one) == hashes(other))
}

/// A member that may be null but not missing: an absent threshold is not the same as "never".
fn stated<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<Option<T>, D::Error> {
    Option::deserialize(deserializer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gate() -> Gate {
        let rows: Vec<Row> = (0..60)
            .map(|n| {
                let top1 = f64::from(n % 20) / 20.0;
                let query = "word ".repeat(1 + n as usize % 3);
                Row {
                    id: n.to_string(),
                    features: Features::new(&query, &[top1 as f32, 0.1, 0.05]),
                    gain: 0.4 - top1,
                }
            })
            .collect();
        let with = Combination {
            encoder: "e@12".into(),
            expander: Some("x@34".into()),
            query_weight: 0.75,
            joint_encoding: true,
        };
        Gate::fit(&rows, with)
    }

    #[test]
    fn what_is_written_reads_back_and_decides_alike() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(GATE_FILE);
        let gate = gate();
        assert!(gate.threshold().is_some());
        fs_err::write(&path, gate.to_json().unwrap()).unwrap();
        let again = Gate::read(&path).unwrap();
        assert_eq!((again.query_weight(), again.encoder(), again.expander()), (0.75, "e@12", Some("x@34")));
        let mut expanded = 0;
        for n in 0..20 {
            let features = Features::new("a word", &[n as f32 / 20.0, 0.1]);
            let (one, other) = (gate.decide(&features), again.decide(&features));
            assert!((one.predicted_gain - other.predicted_gain).abs() < 1e-12);
            assert_eq!(one.expand, other.expand);
            expanded += usize::from(one.expand);
        }
        assert!((4..16).contains(&expanded), "{expanded}");
        fs_err::write(&path, again.to_json().unwrap()).unwrap();
        assert_eq!(Gate::read(&path).unwrap().id(), again.id());
    }

    #[test]
    fn broken_files_are_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(GATE_FILE);
        let whole: Value = serde_json::from_slice(&gate().to_json().unwrap()).unwrap();
        let refused = |content: &str| {
            fs_err::write(&path, content).unwrap();
            let error = Gate::read(&path).unwrap_err().to_string();
            assert!(error.contains(GATE_FILE) && error.contains("fit it again"), "{error}");
            error
        };
        assert!(refused("{\"version\": 1").contains("not JSON"));
        assert!(refused("{}").contains("form null"));
        let mut cases = Vec::new();
        for (member, value, wrong) in [
            ("version", json!(2), "form 2"),
            ("features", json!(["top1"]), "its features are top1"),
            ("means", json!([1.0]), "`means` has 1 numbers for 7"),
            ("weights", json!([0, 0, 0, 0, 0, 0, null]), "not a gate"),
            ("scales", json!([1, 1, 1, 0, 1, 1, 1]), "above 0"),
            ("query_weight", json!(1.5), "not between 0 and 1"),
            ("encoder", json!(""), "`encoder` is empty"),
            ("colour", json!("red"), "unknown field `colour`"),
        ] {
            let mut other = whole.clone();
            other[member] = value;
            cases.push((other, wrong.to_owned()));
        }
        for member in ["threshold", "expander", "bias", "trained_on"] {
            let mut other = whole.clone();
            other.as_object_mut().unwrap().remove(member);
            cases.push((other, format!("missing field `{member}`")));
        }
        for (content, wrong) in cases {
            let error = refused(&content.to_string());
            assert!(error.contains(&wrong), "{wrong}: {error}");
        }
        let huge = whole.to_string().replace("\"bias\":", "\"bias\":1e999,\"b\":");
        assert!(refused(&huge).contains("number out of range"));
        let mut never = whole;
        never["threshold"] = Value::Null;
        fs_err::write(&path, never.to_string()).unwrap();
        let never = Gate::read(&path).unwrap();
        assert!(!never.decide(&Features::new("why", &[0.01])).expand);
        assert!(Gate::read(&folder.path().join("none.json")).unwrap_err().to_string().contains("none.json"));
    }

    #[test]
    fn ids_are_compared_by_their_content() {
        assert!(same_weights("encoder@12ab", "other-name@12ab") && same_weights("plain", "plain"));
        assert!(!same_weights("encoder@12ab", "encoder@12ac") && !same_weights("plain", "other"));
        assert!(same_weights("base@12ab+adapter@34cd", "moved@12ab+other@34cd"));
        assert!(same_weights("a+b@12ab", "b@12ab"), "a name with a plus");
        // The same adapter beside another base, or the adapter alone, is another model.
        assert!(!same_weights("base@12ab+adapter@34cd", "base@56ef+adapter@34cd"));
        assert!(!same_weights("base@12ab+adapter@34cd", "adapter@34cd"));
    }

    #[test]
    fn an_expander_is_known_merged_and_with_its_adapter_beside() {
        let beside = Some("base@12+adapter@34".to_owned());
        let fitted = Gate { expander: beside, ..gate() }.merged(Some("expander@56".into()));
        let written = fitted.to_json().unwrap();
        let again: Gate = serde_json::from_slice(&written).unwrap();
        for (id, known) in [
            ("other@12+name@34", true),
            ("base-12-adapted-34@56", true),
            ("base@12", false),
            ("adapter@34", false),
        ] {
            assert_eq!(again.is_of_expander(id), Some(known), "{id}");
        }
        let unknown = Gate { expander: None, ..gate() };
        assert_eq!(unknown.is_of_expander("base@12"), None);
    }
}
