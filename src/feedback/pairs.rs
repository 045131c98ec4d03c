//! From feedback to training pairs: the layout `pairs` of training's sources.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    path::Path,
};

use expandr_index::Index;
use serde::Serialize;

use super::{
    event::{Event, Kind},
    store::Store,
};
use crate::{documents::embedded_text, files, http::problem::Problem};

/// What became of the feedback.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PairCounts {
    /// Pieces of feedback that were read.
    pub events: usize,
    /// Lines that could not be read; the log names the first.
    pub broken: usize,
    /// Different queries.
    pub queries: usize,
    /// Pairs that were written, one for each positive document of a query.
    pub pairs: usize,
    /// Negative documents beside these.
    pub negatives: usize,
    /// Queries of which nothing was written, for no document that answers them is known (any more).
    pub queries_without_positive: usize,
    /// (query, document) pairs that were left out because the index no longer has the document.
    pub missing_documents: usize,
}

/// What is known of the documents of a query, in the order in which they came up.
#[derive(Default)]
struct Verdicts {
    documents: Vec<(String, Verdict)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Clicked,
    Relevant,
    NotRelevant,
}

impl Verdicts {
    /// A judgment outweighs clicks, a later judgment an earlier one.
    fn add(&mut self, event: &Event) {
        let verdict = match (event.kind, event.relevant) {
            (Kind::Judged, Some(true)) => Verdict::Relevant,
            (Kind::Judged, Some(false)) => Verdict::NotRelevant,
            (Kind::Judged, None) | (Kind::Clicked, _) => Verdict::Clicked,
        };
        match self.documents.iter_mut().find(|(id, _)| *id == event.document_id) {
            Some((_, known)) if verdict != Verdict::Clicked => *known = verdict,
            Some(_) => {}
            None => self.documents.push((event.document_id.clone(), verdict)),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    query: &'a str,
    positive: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    negatives: &'a [String],
}

/// Writes the pairs of everything in `store` to `out`, whole or not at all.
pub(super) fn write(store: &Store, index: &Index, out: &Path) -> Result<PairCounts, Problem> {
    let mut counts = PairCounts::default();
    let verdicts = read(store, &mut counts).map_err(super::disk)?;
    counts.queries = verdicts.len();
    let partial = files::partial(out);
    let written = write_lines(&verdicts, index, &partial, &mut counts)
        .and_then(|()| files::install(&partial, out).map_err(super::disk));
    if let Err(problem) = written {
        let _ = fs_err::remove_file(&partial);
        return Err(problem);
    }
    Ok(counts)
}

/// The verdicts by query, in the order in which the queries came up.
fn read(store: &Store, counts: &mut PairCounts) -> std::io::Result<Vec<(String, Verdicts)>> {
    let mut found: Vec<(String, Verdicts)> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for day in store.days() {
        let Some((file, bytes)) = store.open_day(day)? else { continue };
        for line in BufReader::new(file.take(bytes)).split(b'\n') {
            let event: Event = match serde_json::from_slice(&line?) {
                Ok(event) => event,
                Err(error) => {
                    if counts.broken == 0 {
                        tracing::error!(%day, %error, "a line of feedback can't be read and is left out");
                    }
                    counts.broken += 1;
                    continue;
                }
            };
            counts.events += 1;
            let query = event.query.trim();
            let place = *places.entry(query.to_owned()).or_insert_with(|| {
                found.push((query.to_owned(), Verdicts::default()));
                found.len() - 1
            });
            found[place].1.add(&event);
        }
    }
    Ok(found)
}

fn write_lines(
    verdicts: &[(String, Verdicts)],
    index: &Index,
    path: &Path,
    counts: &mut PairCounts,
) -> Result<(), Problem> {
    let mut file = BufWriter::new(files::create(path).map_err(super::disk)?);
    for (query, verdicts) in verdicts {
        let (mut positives, mut negatives) = (Vec::new(), Vec::new());
        for (id, verdict) in &verdicts.documents {
            match index.get(id)? {
                None => counts.missing_documents += 1,
                Some(document) if *verdict == Verdict::NotRelevant => {
                    negatives.push(embedded_text(&document))
                }
                Some(document) => positives.push(embedded_text(&document)),
            }
        }
        if positives.is_empty() {
            counts.queries_without_positive += 1;
            continue;
        }
        for positive in &positives {
            let line = Line { query, positive, negatives: &negatives };
            serde_json::to_writer(&mut file, &line).map_err(|error| super::disk(error.into()))?;
            file.write_all(b"\n").map_err(super::disk)?;
        }
        counts.pairs += positives.len();
        counts.negatives += negatives.len();
    }
    let file = file.into_inner().map_err(|error| super::disk(error.into_error()))?;
    file.sync_all().map_err(super::disk)
}
