//! Bulk ingestion: one document a line (NDJSON), read as a stream so that memory does not grow with the body.

use expandr_index::Document;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use utoipa::ToSchema;

use super::{BATCH, DocumentInput, DocumentLimits, store};
use crate::{
    http::{
        body::parse,
        problem::{Code, Problem},
    },
    search::SearchService,
};

/// Line errors that a report lists; further ones are only counted.
const LISTED_ERRORS: usize = 100;

/// A line that could not be stored.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LineError {
    /// Its number, from 1.
    pub line: usize,
    /// JSON pointer of the value in question; empty for the whole line.
    pub pointer: String,
    /// What is wrong and the remedy.
    pub detail: String,
}

/// What became of a bulk request.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct BulkReport {
    /// Lines read, blank ones not counted.
    pub received: usize,
    /// Documents that are new.
    pub created: usize,
    /// Documents that replaced one of the same id.
    pub updated: usize,
    /// Lines that could not be stored.
    pub failed: usize,
    /// The first hundred of them.
    pub errors: Vec<LineError>,
}

impl BulkReport {
    fn fail(&mut self, line: usize, pointer: String, detail: String) {
        self.failed += 1;
        if self.errors.len() < LISTED_ERRORS {
            self.errors.push(LineError { line, pointer, detail });
        }
    }
}

/// Stores every line of `reader`, batch after batch; `progress` hears the report after each.
///
/// # Errors
/// When reading, embedding or storing fails: the problem's detail says how many documents are durable by then.
pub async fn ingest_lines(
    service: &SearchService,
    limits: &DocumentLimits,
    reader: impl AsyncRead + Unpin,
    mut progress: impl FnMut(&BulkReport),
) -> Result<BulkReport, Problem> {
    // JSON may escape every character to six bytes; id and punctuation come on top.
    let longest_line = limits.document_bytes * 6 + 8192;
    let mut lines = FramedRead::new(reader, LinesCodec::new_with_max_length(longest_line));
    let mut report = BulkReport::default();
    let mut line_number = 0;
    loop {
        let batch = next_batch(&mut lines, limits, &mut report, &mut line_number).await;
        let (documents, end) = match batch {
            Ok(batch) => batch,
            Err(problem) => return Err(with_progress(problem, &report)),
        };
        if !documents.is_empty() {
            let stored = store(service, documents).await;
            let stored = stored.map_err(|problem| with_progress(problem, &report))?;
            report.created += stored.created;
            report.updated += stored.updated;
            progress(&report);
        }
        if end {
            return Ok(report);
        }
    }
}

/// Reads up to [`BATCH`] good documents; says whether the stream has ended.
async fn next_batch(
    lines: &mut (impl Stream<Item = Result<String, LinesCodecError>> + Unpin),
    limits: &DocumentLimits,
    report: &mut BulkReport,
    line_number: &mut usize,
) -> Result<(Vec<Document>, bool), Problem> {
    let mut documents = Vec::with_capacity(BATCH);
    while documents.len() < BATCH {
        let Some(line) = lines.next().await else { return Ok((documents, true)) };
        *line_number += 1;
        let line = match line {
            Ok(line) => line,
            Err(LinesCodecError::MaxLineLengthExceeded) => {
                report.received += 1;
                report.fail(
                    *line_number,
                    String::new(),
                    "the line is too long; split the document".to_owned(),
                );
                continue;
            }
            Err(LinesCodecError::Io(error)) => {
                let detail = format!("line {line_number} could not be read: {error}");
                return Err(Problem::new(Code::MalformedJson, detail));
            }
        };
        if line.trim().is_empty() {
            continue;
        }
        report.received += 1;
        let checked = parse::<DocumentInput>(line.as_bytes())
            .map_err(|problem| match problem.errors.first() {
                Some(error) => (error.pointer.clone(), error.detail.clone()),
                None => (String::new(), problem.detail),
            })
            .and_then(|input| input.check(limits, "").map_err(|error| (error.pointer, error.detail)));
        match checked {
            Ok(document) => documents.push(document),
            Err((pointer, detail)) => report.fail(*line_number, pointer, detail),
        }
    }
    Ok((documents, false))
}

fn with_progress(mut problem: Problem, report: &BulkReport) -> Problem {
    let durable = report.created + report.updated;
    problem.detail = format!("{}; {durable} documents before that are durable", problem.detail);
    problem
}
