//! Training data as it is published: one reader a layout, each of which hands on examples one by one.
//!
//! - `pairs`: JSON lines {query, positive, negative} (E5, echo-embeddings, our own).
//! - `beir`: corpus.jsonl, queries.jsonl, qrels/train.tsv; `msmarco`: TSV triples and qrels.
//! - `squad`, `dpr`, `hotpotqa`, `triviaqa`: single JSON values, streamed by `elements`.
//! - `fever`, `eli5`: JSON lines of their own.
//! - `intake`: what a reader hands its examples to; it counts, and keeps to the number of broken lines allowed.

mod beir;
mod dpr;
mod elements;
mod eli5;
mod fever;
mod hotpotqa;
mod intake;
mod json_lines;
mod msmarco;
mod pairs;
mod squad;
mod triviaqa;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::intake::{Example, Intake, SourceCounts};
pub use self::pairs::parse_pair;
use crate::Result;

/// How a file of training data is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// JSON lines with `query`, `positive`, and optionally `negative` or `negatives` (each a text or a list of texts)
    /// and `label`: the layout of E5's and echo-embeddings' training data, and our own.
    #[default]
    Pairs,
    /// A BEIR folder; the split's relevant documents are the positives, those judged 0 the negatives.
    Beir,
    /// SQuAD v1.1 or v2.0; the paragraph is the positive.
    Squad,
    /// `biencoder-nq-train.json` and its sisters (DPR); the first positive passage, and hard negatives.
    Dpr,
    /// `hotpot_train_v1.1.json`; each supporting paragraph is a positive, the others are negatives.
    Hotpotqa,
    /// `train.jsonl` of FEVER, with evidence from the wiki-pages folder, or already resolved to text.
    Fever,
    /// `triples.train.small.tsv`: query, positive and negative text.
    MsmarcoTriples,
    /// `qrels.train.tsv` (or `qidpidtriples…tsv`) with collection and queries; passages or documents.
    MsmarcoQrels,
    /// `unfiltered-web-train.json`, `wikipedia-train.json`, `web-train.json` of TriviaQA; the passage of the evidence
    /// that holds the answer.
    Triviaqa,
    /// ELI5 as JSON lines (the original, KILT's); the answer with the best score.
    Eli5,
}

/// One source of training pairs, as a recipe describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceSettings {
    /// For counts and reports; the lines of pairs.jsonl carry it.
    pub name: String,
    /// How the file is laid out.
    pub format: Format,
    /// The file (a BEIR source's folder).
    pub path: PathBuf,
    /// The share of the pairs that is taken, drawn by the seed: 0.1 takes one in ten.
    pub ratio: f64,
    /// At most so many pairs, drawn by the seed.
    pub limit: Option<usize>,
    /// Only pairs with one of these labels (`SUPPORTS`, …); without any, all are taken.
    pub labels: Vec<String>,
    /// `beir`: which judgments.
    pub split: String,
    /// `msmarco_qrels`: collection.tsv (passages) or msmarco-docs.tsv (documents).
    pub documents: Option<PathBuf>,
    /// `msmarco_qrels`: queries.train.tsv.
    pub queries: Option<PathBuf>,
    /// `fever`: the wiki-pages folder; `triviaqa`: the evidence folder.
    pub evidence: Option<PathBuf>,
    /// `fever`: take the whole page of the evidence (BEIR's documents) instead of its sentences.
    pub whole_pages: bool,
    /// So many broken lines are passed over and counted; one more is an error.
    pub broken_lines: usize,
}

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            format: Format::default(),
            path: PathBuf::new(),
            ratio: 1.0,
            limit: None,
            labels: Vec::new(),
            split: "train".into(),
            documents: None,
            queries: None,
            evidence: None,
            whole_pages: false,
            broken_lines: 0,
        }
    }
}

impl SourceSettings {
    /// The files and folders that the source is read from.
    pub fn paths(&self) -> Vec<&PathBuf> {
        let further = [&self.documents, &self.queries, &self.evidence];
        std::iter::once(&self.path).chain(further.into_iter().flatten()).collect()
    }
}

/// Reads a source from beginning to end into `intake`.
///
/// # Errors
/// When a file can't be read or is not of the format, at a broken line (if more of them than allowed), when it
/// holds no example at all, and whatever `intake`'s receiver returns.
pub fn read(intake: &mut Intake<'_>) -> Result<()> {
    match intake.source().format {
        Format::Pairs => pairs::read(intake),
        Format::Beir => beir::read(intake),
        Format::Squad => squad::read(intake),
        Format::Dpr => dpr::read(intake),
        Format::Hotpotqa => hotpotqa::read(intake),
        Format::Fever => fever::read(intake),
        Format::MsmarcoTriples => msmarco::read_triples(intake),
        Format::MsmarcoQrels => msmarco::read_qrels(intake),
        Format::Triviaqa => triviaqa::read(intake),
        Format::Eli5 => eli5::read(intake),
    }?;
    intake.finish()
}

#[cfg(test)]
mod tests;
