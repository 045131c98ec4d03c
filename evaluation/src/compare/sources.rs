//! What the collections' own files say: judgments, gold documents, titles, answers.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::grid::Member;
use crate::collection::read_answers;
use crate::{Collection, Document, Result};

/// Longest label made from a text, in characters.
const LABEL: usize = 90;

/// A collection at hand, with the documents that the report needs.
pub(super) struct Source {
    pub(super) collection: Collection,
    /// Lowest relevant grade, as the runs were scored.
    pub(super) relevance_level: i32,
    documents: HashMap<String, Document>,
    answers: HashMap<String, Vec<String>>,
}

impl Source {
    /// Opens the collection of a member in the folder of all collections; none where it is not there or is another one,
    /// which a note or a warning says.
    pub(super) fn open(
        folder: Option<&Path>,
        member: &Member,
        notes: &mut Vec<String>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Self>> {
        let Some(run) = member.runs.iter().flatten().next() else { return Ok(None) };
        let Some(folder) = folder else { return Ok(None) };
        let path = folder.join(&member.collection);
        if !path.is_dir() {
            notes.push(format!(
                "{}: no such folder in {}; without it there are no titles, gold documents and BLEU",
                member.collection,
                folder.display()
            ));
            return Ok(None);
        }
        let collection = Collection::open(&path, Some(&member.split))?;
        if collection.queries_crc32() != run.queries_crc32 {
            warnings.push(format!(
                "{}: the queries in {} are not those of the runs; the collection is not used for titles, gold documents and BLEU",
                member.collection,
                path.display()
            ));
            return Ok(None);
        }
        let answers = read_answers(&path.join("queries.jsonl"))?;
        let relevance_level = run.metrics["relevance_level"].as_i64().map_or(1, |level| level as i32);
        Ok(Some(Self { collection, relevance_level, documents: HashMap::new(), answers }))
    }

    /// Reads the wanted documents, and all relevant ones, in one pass over the corpus.
    pub(super) fn load_documents(&mut self, mut wanted: HashSet<String>) -> Result<()> {
        wanted.extend(self.collection.qrels.relevant_documents().map(str::to_owned));
        for document in self.collection.documents()? {
            let document = document?;
            if wanted.contains(&document.id) {
                self.documents.insert(document.id.clone(), document);
            }
        }
        Ok(())
    }

    /// A document's title, or the first words of its text; none when it was not loaded.
    pub(super) fn title(&self, id: &str) -> Option<String> {
        let document = self.documents.get(id)?;
        let title = document.title.trim();
        let label = if title.is_empty() { document.text.trim() } else { title };
        Some(match label.char_indices().nth(LABEL) {
            Some((end, _)) => format!("{}…", &label[..end]),
            None => label.to_owned(),
        })
    }

    /// The grade of a document, 0 where it is not judged.
    pub(super) fn grade(&self, query: &str, document: &str) -> i32 {
        let judgments = self.collection.qrels.judgments(query);
        judgments.and_then(|judgments| judgments.get(document)).copied().unwrap_or(0)
    }

    /// The relevant documents of a query, best grade first, then by id.
    pub(super) fn gold(&self, query: &str) -> Vec<(&str, i32)> {
        let judgments = self.collection.qrels.judgments(query).into_iter().flatten();
        let mut gold: Vec<(&str, i32)> = judgments
            .filter(|(_, grade)| **grade >= self.relevance_level)
            .map(|(id, grade)| (id.as_str(), *grade))
            .collect();
        gold.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        gold
    }

    /// The texts (without titles) of the relevant documents of a query, where the corpus has them.
    pub(super) fn passages(&self, query: &str) -> Vec<&str> {
        let gold = self.gold(query).into_iter();
        let texts = gold.filter_map(|(id, _)| Some(self.documents.get(id)?.text.trim()));
        texts.filter(|text| !text.is_empty()).collect()
    }

    /// What the encoder reads of a query's first relevant document: title and text.
    pub(super) fn gold_text(&self, query: &str) -> Option<String> {
        let mut documents = self.gold(query).into_iter().filter_map(|(id, _)| self.documents.get(id));
        let document = documents.find(|document| !document.is_blank())?;
        Some(format!("{} {}", document.title, document.text).trim().to_owned())
    }

    /// The answers of a query; empty where the collection has none.
    pub(super) fn answers(&self, query: &str) -> Vec<&str> {
        self.answers.get(query).into_iter().flatten().map(String::as_str).collect()
    }
}
