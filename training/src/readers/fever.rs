//! FEVER: claims as JSON lines, their evidence as page and sentence numbers to look up in the wiki-pages folder, or
//! already resolved to text.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use expandr_evaluation::lines::Lines;
use serde::Deserialize;
use serde::de::IgnoredAny;
use unicode_normalization::UnicodeNormalization;

use super::{Example, Intake, json_lines::for_each_line, json_lines::object};
use crate::{Error, Result, text::joined};

#[derive(Deserialize)]
struct Claim {
    claim: String,
    label: Option<String>,
    evidence: Evidence,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Evidence {
    /// As published: sets of sentences, any of which is evidence on its own.
    Sets(Vec<Vec<Reference>>),
    /// Resolved: the text.
    Text(String),
    /// Resolved: sentences.
    Texts(Vec<String>),
    /// Resolved: page, sentence number, sentence.
    Sentences(Vec<(String, IgnoredAny, String)>),
}

/// Annotation, evidence number, page and sentence number; the last two are null for NOT ENOUGH INFO.
#[derive(Deserialize)]
struct Reference(IgnoredAny, IgnoredAny, Option<String>, Option<u32>);

impl Reference {
    fn place(&self) -> Option<(String, u32)> {
        Some((page_key(self.2.as_deref()?), self.3?))
    }
}

/// The set that the positive is made of: the first without gaps.
fn evidence_set(sets: &[Vec<Reference>]) -> Option<Vec<(String, u32)>> {
    sets.iter().find_map(|set| {
        let places: Option<Vec<_>> = set.iter().map(Reference::place).collect();
        places.filter(|places| !places.is_empty())
    })
}

/// Each claim with evidence makes one pair. Claims without (NOT ENOUGH INFO), and those whose pages are not in the
/// wiki-pages folder, are counted as without a positive.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let source = intake.source();
    let pages = match &source.evidence {
        Some(folder) => Pages::read(folder, &needed(&source.path, &source.labels)?)?,
        None => Pages::default(),
    };
    let wanted = "{\"claim\", \"label\", \"evidence\": [[[.., .., page, sentence]]] or text}";
    for_each_line(&source.path, wanted, intake, |claim: Claim, number, intake| {
        let positive = match &claim.evidence {
            Evidence::Text(text) => Some(text.clone()),
            Evidence::Texts(texts) => Some(texts.join(" ")),
            Evidence::Sentences(sentences) => {
                let texts: Vec<&str> = sentences.iter().map(|(_, _, text)| text.as_str()).collect();
                Some(texts.join(" "))
            }
            Evidence::Sets(sets) => match evidence_set(sets) {
                Some(_) if source.evidence.is_none() => {
                    let detail = "its evidence is page and sentence numbers; set the source's `evidence` to the \
                                  wiki-pages folder";
                    return intake.broken(&source.path, number, detail);
                }
                Some(places) if source.whole_pages => places.first().and_then(|(page, _)| pages.whole(page)),
                Some(places) => pages.sentences(&places),
                None => None,
            },
        };
        // Without evidence, or with evidence that the dump lacks, there is nothing to learn.
        intake.example(Example {
            query: claim.claim,
            positive: positive.map(|text| unescape(&text)).unwrap_or_default(),
            label: claim.label,
            negatives: Vec::new(),
        })
    })
}

/// The pages that the claims' evidence names. Broken lines are left to the second reading.
fn needed(path: &Path, labels: &[String]) -> Result<HashMap<String, Page>> {
    let mut needed = HashMap::new();
    let mut lines = Lines::open(path)?;
    while let Some((_, line)) = lines.next_line()? {
        let Ok(claim) = object::<Claim>(line.as_bytes()) else { continue };
        if !labels.is_empty() && !claim.label.is_some_and(|label| labels.contains(&label)) {
            continue;
        }
        if let Evidence::Sets(sets) = &claim.evidence {
            let pages = evidence_set(sets).into_iter().flatten().map(|(page, _)| (page, Page::default()));
            needed.extend(pages);
        }
    }
    Ok(needed)
}

/// The pages of the wiki dump that are needed.
#[derive(Default)]
struct Pages {
    by_id: HashMap<String, Page>,
}

#[derive(Clone, Default)]
struct Page {
    text: String,
    sentences: BTreeMap<u32, String>,
}

#[derive(Deserialize)]
struct WikiLine {
    id: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    lines: String,
}

impl Pages {
    /// Reads every `*.jsonl` of the folder and keeps the pages of `needed`.
    fn read(folder: &Path, needed: &HashMap<String, Page>) -> Result<Self> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                files.push(path);
            }
        }
        if files.is_empty() {
            let detail = "has no *.jsonl in it; give FEVER's wiki-pages folder (wiki-001.jsonl, …)";
            return Err(Error::Input(format!("{}: {detail}", folder.display())));
        }
        files.sort();
        let mut by_id = HashMap::new();
        for file in files {
            let mut lines = Lines::open(&file)?;
            while let Some((number, line)) = lines.next_line()? {
                let page: WikiLine = object(line.as_bytes()).map_err(|error| {
                    Error::line(&file, number, format!("{error}; want {{\"id\", \"text\", \"lines\"}}"))
                })?;
                let id = page_key(&page.id);
                if needed.contains_key(&id) {
                    by_id.insert(id, Page { sentences: sentences(&page.lines), text: page.text });
                }
            }
        }
        Ok(Self { by_id })
    }

    /// The page's title and text.
    fn whole(&self, page: &str) -> Option<String> {
        let found = self.by_id.get(page).filter(|found| !found.text.trim().is_empty())?;
        Some(joined(&page.replace('_', " "), &found.text))
    }

    /// The sentences in the order of the evidence, each page's behind its title; none when one is missing.
    fn sentences(&self, places: &[(String, u32)]) -> Option<String> {
        let mut parts: Vec<String> = Vec::new();
        let mut last_page = None;
        for (page, number) in places {
            let sentence = self.by_id.get(page)?.sentences.get(number)?;
            if last_page != Some(page) {
                parts.push(page.replace('_', " "));
                last_page = Some(page);
            }
            parts.push(sentence.clone());
        }
        Some(parts.join(" "))
    }
}

/// `lines` holds a sentence a line: number, tab, sentence, and further tabs before the names of links.
fn sentences(lines: &str) -> BTreeMap<u32, String> {
    let mut sentences = BTreeMap::new();
    for line in lines.lines() {
        let mut columns = line.split('\t');
        // A few sentences hold a line break; what follows it has no number and is left out.
        if let (Some(Ok(number)), Some(text)) = (columns.next().map(str::parse), columns.next())
            && !text.trim().is_empty()
        {
            sentences.insert(number, text.trim().to_owned());
        }
    }
    sentences
}

/// Claims and pages write accents in different normal forms.
fn page_key(id: &str) -> String {
    id.nfc().collect()
}

/// FEVER's tokens for brackets and colons back to the characters.
fn unescape(text: &str) -> String {
    let mut text = text.to_owned();
    for (token, character) in [
        ("-LRB-", "("),
        ("-RRB-", ")"),
        ("-LSB-", "["),
        ("-RSB-", "]"),
        ("-LCB-", "{"),
        ("-RCB-", "}"),
        ("-COLON-", ":"),
    ] {
        if text.contains(token) {
            text = text.replace(token, character);
        }
    }
    text
}
