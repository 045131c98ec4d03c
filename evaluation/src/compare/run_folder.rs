//! One run folder as `expandr eval` writes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::client::read_scores;
use crate::lines::Lines;
use crate::{Error, Result, Run, Scores};

/// A run folder, read whole.
#[derive(Clone, Debug)]
pub struct RunFolder {
    /// Where it is.
    pub path: PathBuf,
    /// The collection's name; `group/member` for a member of a group.
    pub collection: String,
    /// Which judgments.
    pub split: String,
    /// Checksum of the queries' ids and texts (see [`Collection::queries_crc32`](crate::Collection::queries_crc32)).
    pub queries_crc32: String,
    /// What was asked: `settings.json`.
    pub settings: Value,
    /// What came of it: `metrics.json` without the values by query.
    pub metrics: Value,
    /// Values by query.
    pub scores: Scores,
    /// Ranked lists.
    pub run: Run,
    /// What became of the expansion, by query.
    pub expansions: BTreeMap<String, QueryExpansion>,
}

/// What became of the expansion of one query: a line of `expansions.jsonl`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct QueryExpansion {
    /// The query's text.
    pub query: String,
    /// `applied`, `cached`, `supplied`, `skipped`, `disabled`, `degraded`, …
    pub status: String,
    /// Why it degraded.
    #[serde(default)]
    pub reason: Option<String>,
    /// The passages that were embedded.
    #[serde(default)]
    pub texts: Vec<String>,
    /// Tokens of these passages; 0 where the server doesn't say.
    #[serde(default)]
    pub output_tokens: u64,
    /// The query's share in the averaged vector.
    #[serde(default)]
    pub query_weight: Option<f64>,
    /// Cosine of query and expansion, where the server recorded it; of several passages, their mean.
    #[serde(default, deserialize_with = "number_or_mean")]
    pub query_cosine: Option<f64>,
    /// Share of the ten best raw hits among the ten best expanded ones, where the server recorded it.
    #[serde(default, deserialize_with = "number_or_mean")]
    pub raw_overlap_at_10: Option<f64>,
}

#[derive(Deserialize)]
struct Line {
    query_id: String,
    #[serde(flatten)]
    expansion: QueryExpansion,
}

impl RunFolder {
    /// Reads a folder that `expandr eval` finished.
    ///
    /// # Errors
    /// When a file is missing or of another form; an interrupted run, which lacks `metrics.json`, is named as such.
    pub fn read(path: &Path) -> Result<Self> {
        let settings_path = path.join("settings.json");
        if !settings_path.is_file() {
            return Err(Error::file(
                path,
                "not a run folder: no settings.json in it; give folders that `expandr eval --run` wrote",
            ));
        }
        let metrics_path = path.join("metrics.json");
        if !metrics_path.is_file() {
            return Err(Error::file(
                path,
                "the run is not finished: no metrics.json in it; `expandr eval` with the same flags goes on where it stopped",
            ));
        }
        let settings = read_json(&settings_path)?;
        let mut metrics = read_json(&metrics_path)?;
        let scores = read_scores(path)?;
        if let Some(metrics) = metrics.as_object_mut() {
            metrics.remove("per_query");
        }
        let text = |name: &str| -> Result<String> {
            let value = settings[name].as_str().map(str::to_owned);
            value.ok_or_else(|| Error::file(&settings_path, format!("`{name}` is missing; evaluate again")))
        };
        Ok(Self {
            collection: text("collection")?,
            split: text("split")?,
            queries_crc32: text("queries_crc32")?,
            run: Run::read(&path.join("run.trec"))?,
            expansions: read_expansions(&path.join("expansions.jsonl"))?,
            path: path.to_owned(),
            settings,
            metrics,
            scores,
        })
    }

    /// The bundle that answered; empty where the server named none.
    pub fn bundle(&self) -> &str {
        self.metrics["bundle"].as_str().unwrap_or_default()
    }

    /// Answers without the expansion that was asked for.
    pub fn degraded_queries(&self) -> usize {
        self.metrics["degraded_queries"].as_u64().map_or(0, |count| count as usize)
    }

    /// Documents that the server had when the run ended; none where it didn't say.
    pub fn documents(&self) -> Option<u64> {
        self.metrics["server"]["documents"].as_u64()
    }

    /// The id of the encoder that answered; none where the server didn't say.
    pub fn encoder(&self) -> Option<&str> {
        self.metrics["server"]["bundle"]["encoder"]["id"].as_str()
    }

    /// Whether some query was searched with a passage.
    pub fn has_expansions(&self) -> bool {
        self.expansions.values().any(|expansion| !expansion.texts.is_empty())
    }

    /// What ranked: `dense` (also where the settings don't say), `lexical`, `hybrid`.
    pub fn ranking(&self) -> &str {
        let holders = [&self.settings, &self.settings["search"], &self.settings["server"]];
        let named = holders.into_iter().find_map(|holder| holder["ranking"].as_str());
        named.unwrap_or("dense")
    }
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs_err::read(path)?)
        .map_err(|error| Error::file(path, format!("not JSON ({error}); evaluate the collection again")))
}

fn read_expansions(path: &Path) -> Result<BTreeMap<String, QueryExpansion>> {
    let mut lines = Lines::open(path)?;
    let mut expansions = BTreeMap::new();
    while let Some((number, line)) = lines.next_line()? {
        let line: Line = serde_json::from_str(line).map_err(|error| {
            let detail = format!("not the expansion of a query ({error}); evaluate the collection again");
            Error::line(path, number, detail)
        })?;
        expansions.insert(line.query_id, line.expansion);
    }
    Ok(expansions)
}

/// A number as it is, of a list the mean; anything else counts as not recorded.
fn number_or_mean<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<f64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let numbers: Vec<f64> = match &value {
        Value::Array(values) => values.iter().filter_map(Value::as_f64).collect(),
        other => other.as_f64().into_iter().collect(),
    };
    Ok((!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64))
}
