//! TriviaQA: questions with the names of evidence files, from which the passage with the answer is taken.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{Example, Intake, json_lines::for_each_element};
use crate::{
    Result,
    text::{joined, normalize},
};

/// Words of a passage, as in DPR's cut of Wikipedia.
const PASSAGE_WORDS: usize = 100;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    question: String,
    answer: Answer,
    #[serde(default)]
    entity_pages: Vec<Evidence>,
    #[serde(default)]
    search_results: Vec<Evidence>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    value: String,
    #[serde(default)]
    aliases: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Evidence {
    #[serde(default)]
    title: String,
    #[serde(default)]
    filename: String,
    #[serde(default)]
    description: String,
}

/// The positive is the first passage of 100 words, in Wikipedia's pages before the web's, that holds the answer or an alias of it; without an evidence
/// folder, the first search result whose description does. Questions for which none does are counted.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let source = intake.source();
    let wanted = "{\"Question\", \"Answer\": {\"Value\", \"Aliases\"}, \"EntityPages\", \"SearchResults\"}";
    for_each_element(&source.path, Some("Data"), wanted, intake, |entry: Entry, _, intake| {
        let mut answers: Vec<String> =
            std::iter::once(&entry.answer.value).chain(&entry.answer.aliases).map(|a| padded(a)).collect();
        answers.retain(|answer| !answer.trim().is_empty());
        let holds_answer = |text: &str| {
            let text = padded(text);
            answers.iter().any(|answer| text.contains(answer.as_str()))
        };
        let positive = match &source.evidence {
            Some(folder) => from_files(folder, &entry, holds_answer)?,
            None => entry
                .search_results
                .iter()
                .find(|result| holds_answer(&result.description))
                .map(|result| joined(&result.title, &result.description)),
        };
        match positive {
            Some(positive) => {
                intake.example(Example { query: entry.question, positive, ..Example::default() })
            }
            None => {
                intake.without_positive();
                Ok(())
            }
        }
    })
}

/// Whole words only: both sides are normalised and have a space at either end.
fn padded(text: &str) -> String {
    format!(" {} ", normalize(text))
}

fn from_files(folder: &Path, entry: &Entry, holds_answer: impl Fn(&str) -> bool) -> Result<Option<String>> {
    let pages = entry.entity_pages.iter().map(|page| ("wikipedia", page));
    let results = entry.search_results.iter().map(|result| ("web", result));
    for (kind, evidence) in pages.chain(results) {
        let Some(path) = evidence_file(folder, kind, &evidence.filename) else { continue };
        let bytes = fs_err::read(&path)?;
        // A few of the web's pages are not clean UTF-8.
        let text = String::from_utf8_lossy(&bytes);
        let words: Vec<&str> = text.split_whitespace().collect();
        let passage = words.chunks(PASSAGE_WORDS).map(|words| words.join(" ")).find(|p| holds_answer(p));
        if let Some(passage) = passage {
            return Ok(Some(joined(&evidence.title, &passage)));
        }
    }
    Ok(None)
}

/// Under the folder itself or the published subfolder. Names that would lead out of the folder are passed over.
fn evidence_file(folder: &Path, kind: &str, name: &str) -> Option<PathBuf> {
    let name = Path::new(name);
    let plain = name.components().all(|component| matches!(component, Component::Normal(_)));
    if name.as_os_str().is_empty() || !plain {
        return None;
    }
    [folder.join(kind).join(name), folder.join(name)].into_iter().find(|path| path.is_file())
}
