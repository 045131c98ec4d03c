//! MS MARCO's TSV files: triples of texts, and ids to look up in collection and queries.

use std::collections::HashMap;
use std::path::Path;

use expandr_evaluation::lines::Lines;

use super::{Example, Intake};
use crate::{Error, Result, text::joined};

/// `triples.train.small.tsv`: query, positive text, negative text.
pub(super) fn read_triples(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    let mut lines = Lines::open(path)?;
    while let Some((number, line)) = lines.next_line()? {
        let columns: Vec<&str> = line.split('\t').collect();
        match columns.as_slice() {
            [query, positive, negative] => intake.example(Example {
                query: (*query).to_owned(),
                positive: (*positive).to_owned(),
                negatives: vec![(*negative).to_owned()],
                label: None,
            })?,
            columns => {
                let detail =
                    format!("{} columns; want query, positive text and negative text", columns.len());
                intake.broken(path, number, &detail)?;
            }
        }
    }
    Ok(())
}

type Texts = HashMap<String, String>;

/// One line that joins a query and a passage.
struct Judged<'a> {
    query: &'a str,
    positive: &'a str,
    negative: Option<&'a str>,
}

/// The layouts of judgments, tabs or spaces between their columns.
#[derive(Clone, Copy, PartialEq)]
enum Columns {
    /// `qrels.train.tsv`: `query 0 document grade`.
    Trec,
    /// BEIR's qrels: `query document grade` below a header.
    Beir,
    /// `qidpidtriples.train.full.2.tsv`: `query positive negative`.
    Triples,
}

impl Columns {
    /// What the first line says. Triples and BEIR's qrels have three columns alike; BEIR's have a header.
    fn of(path: &Path) -> Result<Self> {
        let mut lines = Lines::open(path)?;
        let Some((_, line)) = lines.next_line()? else { return Ok(Self::Trec) };
        Ok(match line.split_whitespace().collect::<Vec<&str>>().as_slice() {
            [BEIR_HEADER, _, _] => Self::Beir,
            [_, _, _] => Self::Triples,
            _ => Self::Trec,
        })
    }
}

/// The first column's name in the header of BEIR's qrels.
const BEIR_HEADER: &str = "query-id";

fn parse(line: &str, layout: Columns) -> std::result::Result<Option<Judged<'_>>, String> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    match (layout, columns.as_slice()) {
        (Columns::Triples, &[query, positive, negative]) => {
            Ok(Some(Judged { query, positive, negative: Some(negative) }))
        }
        (Columns::Beir, &[BEIR_HEADER, _, _]) => Ok(None),
        (Columns::Trec, &[query, _, positive, grade]) | (Columns::Beir, &[query, positive, grade]) => {
            match grade.parse::<i64>() {
                Ok(grade) => Ok((grade > 0).then_some(Judged { query, positive, negative: None })),
                Err(_) => Err(format!("grade {grade:?} is not a whole number")),
            }
        }
        (layout, columns) => {
            let wanted = match layout {
                Columns::Trec => "`query 0 document grade`",
                Columns::Beir => "query, document and grade",
                Columns::Triples => "query, positive and negative id",
            };
            Err(format!("{} columns; want {wanted}", columns.len()))
        }
    }
}

/// Looks up what the judgments name; only judged texts are held in memory.
pub(super) fn read_qrels(intake: &mut Intake<'_>) -> Result<()> {
    let source = intake.source();
    let (Some(documents), Some(queries)) = (&source.documents, &source.queries) else {
        let detail =
            "needs `documents` (collection.tsv or msmarco-docs.tsv) and `queries` (queries.train.tsv)";
        return Err(Error::Input(format!("source {:?} {detail}", source.name)));
    };
    let layout = Columns::of(&source.path)?;
    let mut query_texts = Texts::default();
    let mut document_texts = Texts::default();
    let mut lines = Lines::open(&source.path)?;
    while let Some((_, line)) = lines.next_line()? {
        // Broken lines are left to the second reading.
        let Ok(Some(judged)) = parse(line, layout) else { continue };
        query_texts.entry(judged.query.to_owned()).or_default();
        for id in std::iter::once(judged.positive).chain(judged.negative) {
            document_texts.entry(id.to_owned()).or_default();
        }
    }
    look_up(queries, &mut query_texts)?;
    look_up(documents, &mut document_texts)?;

    let known = |texts: &Texts, id: &str| texts.get(id).filter(|text| !text.trim().is_empty()).cloned();
    let mut lines = Lines::open(&source.path)?;
    while let Some((number, line)) = lines.next_line()? {
        let judged = match parse(line, layout) {
            Ok(Some(judged)) => judged,
            Ok(None) => continue,
            Err(detail) => {
                intake.broken(&source.path, number, &detail)?;
                continue;
            }
        };
        match (known(&query_texts, judged.query), known(&document_texts, judged.positive)) {
            (Some(query), Some(positive)) => {
                let negatives = judged.negative.and_then(|id| known(&document_texts, id));
                let negatives = negatives.into_iter().collect();
                intake.example(Example { query, positive, negatives, label: None })?;
            }
            _ => intake.without_positive(),
        }
    }
    Ok(())
}

/// Fills in the texts of the ids that are there: `id<tab>text`, or `id<tab>url<tab>title<tab>body`.
fn look_up(path: &Path, texts: &mut Texts) -> Result<()> {
    let mut lines = Lines::open(path)?;
    while let Some((number, line)) = lines.next_line()? {
        let columns: Vec<&str> = line.split('\t').collect();
        let (id, text) = match columns.as_slice() {
            [id, text] => (*id, (*text).to_owned()),
            [id, _url, title, body] => (*id, joined(title, body)),
            columns => {
                let detail =
                    format!("{} columns; want id and text, or id, url, title and body", columns.len());
                return Err(Error::line(path, number, detail));
            }
        };
        if let Some(place) = texts.get_mut(id) {
            *place = text;
        }
    }
    Ok(())
}
