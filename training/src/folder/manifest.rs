//! What made a stage's files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::replace_file;
use crate::plan::{Node, Stage};
use crate::{Error, Result};

/// The layout of manifests; raised when their meaning changes.
const FORMAT: u32 = 1;

/// A stage that is done: `stages/<stage>.json` beside its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The layout of this file.
    pub format: u32,
    /// Which stage.
    pub stage: Stage,
    /// Raised when a stage's code gives something else for the same settings and inputs.
    pub version: u32,
    /// The settings that its outcome depends on.
    pub settings: Value,
    /// Hashes of what it read.
    pub inputs: BTreeMap<String, String>,
    /// Hashes of what it wrote.
    pub outputs: BTreeMap<String, String>,
    /// What is to be said of it: counts, losses.
    pub summary: Value,
    /// How long the attempt took that finished it.
    pub seconds: f64,
    /// Whether its files were made elsewhere and taken as they are.
    pub adopted: bool,
    /// The version of expandr that wrote it.
    pub program: String,
}

/// A stage in the middle of its work: `begun.json` in its work folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Begun {
    pub(crate) version: u32,
    pub(crate) settings: Value,
    pub(crate) inputs: BTreeMap<String, String>,
}

/// Where the manifest of a node is.
pub(crate) fn manifest_path(run: &Path, node: &Node) -> PathBuf {
    run.join(&node.home).join("stages").join(format!("{}.json", node.stage().name()))
}

/// Where a node keeps what it has not finished.
pub(crate) fn work_folder(run: &Path, node: &Node) -> PathBuf {
    run.join(&node.home).join("work").join(node.stage().name())
}

impl Manifest {
    pub(crate) fn new(node: &Node, inputs: BTreeMap<String, String>) -> Self {
        Self {
            format: FORMAT,
            stage: node.stage(),
            version: node.stage().version(),
            settings: node.settings.clone(),
            inputs,
            outputs: BTreeMap::new(),
            summary: Value::Null,
            seconds: 0.0,
            adopted: false,
            program: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Reads a manifest; none when there is none.
    ///
    /// # Errors
    /// When there is one that can't be read or understood.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let Some(manifest) = read_json::<Self>(path)? else { return Ok(None) };
        if manifest.format != FORMAT {
            return Err(Error::Input(format!(
                "{}: manifest format {} where this version understands {FORMAT}; use another run folder",
                path.display(),
                manifest.format
            )));
        }
        Ok(Some(manifest))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }
}

impl Begun {
    pub(crate) fn read(work: &Path) -> Result<Option<Self>> {
        read_json(&work.join("begun.json"))
    }

    pub(crate) fn write(&self, work: &Path) -> Result<()> {
        write_json(&work.join("begun.json"), self)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs_err::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Error::Input(format!(
            "{}: not a file that this version understands ({error}); delete it, and its stage is done again",
            path.display()
        ))
    })
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut json = serde_json::to_vec_pretty(value).map_err(|error| Error::Input(error.to_string()))?;
    json.push(b'\n');
    replace_file(path, &json)
}

/// What differs between two objects, as `name: before → now`, joined by commas; empty when nothing does.
pub(crate) fn difference(before: &Value, now: &Value) -> String {
    let empty = serde_json::Map::new();
    let (before, now) = (before.as_object().unwrap_or(&empty), now.as_object().unwrap_or(&empty));
    let mut names: Vec<&String> = before.keys().chain(now.keys()).collect();
    names.sort();
    names.dedup();
    let shown = |value: Option<&Value>| value.map_or("nothing".to_owned(), shorten);
    let changes: Vec<String> = names
        .into_iter()
        .filter(|name| before.get(*name) != now.get(*name))
        .map(|name| format!("{name}: {} → {}", shown(before.get(name)), shown(now.get(name))))
        .collect();
    changes.join(", ")
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_named() {
        let before = json!({"a": 1, "b": [0.8], "c": "x"});
        assert_eq!(difference(&before, &before), "");
        let now = json!({"a": 1, "b": [0.8, 0.9], "d": true});
        assert_eq!(difference(&before, &now), "b: [0.8] → [0.8,0.9], c: \"x\" → nothing, d: nothing → true");
        let long = json!({ "a": "é".repeat(100) });
        assert!(difference(&before, &long).contains('…'));
    }

    #[test]
    fn a_broken_manifest_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.json");
        assert_eq!(Manifest::read(&path).unwrap(), None);
        fs_err::write(&path, "{\"format\":").unwrap();
        let error = Manifest::read(&path).unwrap_err().to_string();
        assert!(error.contains("pairs.json: not a file that this version understands"), "{error}");
    }
}
