//! Hub ids (`organisation/name`): downloaded into the hub's own cache, where the network allows it.

use std::path::PathBuf;

use hf_hub::{Cache, Repo, RepoType, api::sync::ApiBuilder};

use super::resolve::complete;
use crate::{Error, Result};

/// A repository of the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubId {
    name: String,
    revision: String,
}

impl HubId {
    /// Reads `organisation/name` or `organisation/name@revision`.
    pub(super) fn parse(spec: &str) -> Option<Self> {
        let (name, revision) = spec.split_once('@').unwrap_or((spec, "main"));
        let (organisation, model) = name.split_once('/')?;
        let is_word = |word: &str| {
            !word.is_empty()
                && !word.starts_with('.')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let is_revision = !revision.is_empty() && !revision.contains("..");
        (is_word(organisation) && is_word(model) && is_revision)
            .then(|| Self { name: name.into(), revision: revision.into() })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.name.clone(), RepoType::Model, self.revision.clone())
    }
}

/// The folder with the checkpoint: downloaded, or, when the hub can't be reached, as it is in the cache.
pub(super) fn fetch(id: &HubId) -> Result<PathBuf> {
    match download(id) {
        Ok(folder) => Ok(folder),
        Err(error) => match cached(id) {
            Some(folder) => {
                tracing::warn!("the hub can't be asked for {} ({error}); using the cached copy", id.name);
                Ok(folder)
            }
            None => Err(error),
        },
    }
}

fn download(id: &HubId) -> Result<PathBuf> {
    let failed = |error: hf_hub::api::sync::ApiError| {
        Error::Weights(format!(
            "{} can't be fetched from the hub ({error}); when the network is closed, download the repository elsewhere and \
             give the folder",
            id.name
        ))
    };
    let api = ApiBuilder::from_env().with_progress(false).build().map_err(failed)?;
    let repo = api.repo(id.repo());
    let files: Vec<String> = repo
        .info()
        .map_err(failed)?
        .siblings
        .into_iter()
        .map(|file| file.rfilename)
        .filter(|file| is_needed(file))
        .collect();
    if files.iter().all(|file| !file.ends_with(".safetensors")) {
        return Err(Error::Weights(format!(
            "{} has no safetensors; of a repository with GGUF files download one and give its path",
            id.name
        )));
    }
    let mut folder = None;
    for file in &files {
        let path = repo.get(file).map_err(failed)?;
        if file == "config.json" {
            folder = path.parent().map(PathBuf::from);
        }
    }
    folder.ok_or_else(|| Error::Weights(format!("{} has no config.json; it is no checkpoint", id.name)))
}

/// Weights, tokenizer and configuration in the places where loaders look; no other formats of the same weights.
fn is_needed(file: &str) -> bool {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    if !folder.is_empty() {
        return name == "config.json" && folder.chars().next().is_some_and(|first| first.is_ascii_digit());
    }
    [".json", ".safetensors", ".jinja"].iter().any(|ending| name.ends_with(ending))
        || name == "vocab.txt"
        || name == "merges.txt"
}

fn cached(id: &HubId) -> Option<PathBuf> {
    let config = Cache::from_env().repo(id.repo()).get("config.json")?;
    let folder = config.parent()?.to_path_buf();
    complete(&folder).ok().map(|()| folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_are_told_from_paths() {
        let id = HubId::parse("HuggingFaceTB/SmolLM2-135M-Instruct").unwrap();
        assert_eq!((id.name.as_str(), id.revision.as_str()), ("HuggingFaceTB/SmolLM2-135M-Instruct", "main"));
        assert_eq!(HubId::parse("a/b@refs/pr/1").unwrap().revision, "refs/pr/1");
        for spec in ["a", "a/b/c", "/a", "./a", "../a", "a/", "a/b@", "a b/c", "a/b@../x"] {
            assert_eq!(HubId::parse(spec), None, "{spec}");
        }
    }

    #[test]
    fn other_formats_of_the_weights_are_left_out() {
        let needed = [
            "config.json",
            "model-00001-of-00002.safetensors",
            "1_Pooling/config.json",
            "chat_template.jinja",
        ];
        assert!(needed.iter().all(|file| is_needed(file)));
        let others =
            ["onnx/model.onnx", "onnx/config.json", "pytorch_model.bin", "original/params.json", "README.md"];
        assert!(!others.iter().any(|file| is_needed(file)));
    }
}
