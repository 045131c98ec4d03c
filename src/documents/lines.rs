//! Bulk ingestion: one document a line (NDJSON), read as a stream so that memory does not grow with the body.

use expandr_index::{Document, UpsertOutcome};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;
use tokio_util::{
    bytes::BytesMut,
    codec::{Decoder, FramedRead, LinesCodec, LinesCodecError},
};
use utoipa::ToSchema;

use super::{BATCH, DocumentInput, DocumentLimits, store};
use crate::{
    http::{
        body::{bulk_too_large, parse},
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

/// How far a body is: what a later attempt needs to go on from there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reached {
    /// Lines that are dealt with.
    pub line: usize,
    /// What became of them.
    pub report: BulkReport,
}

/// A body on its way into the index, read batch by batch.
pub struct BulkLines<'a, R> {
    lines: FramedRead<R, Lines>,
    limits: &'a DocumentLimits,
    /// Lines at the beginning that an earlier attempt has dealt with.
    skip: usize,
    reached: Reached,
}

impl<'a, R: AsyncRead + Unpin> BulkLines<'a, R> {
    /// The lines of `reader` after those that an earlier attempt has `reached`.
    pub fn new(reader: R, limits: &'a DocumentLimits, reached: Reached) -> Self {
        // JSON may escape every character to six bytes; id and punctuation come on top.
        let longest = limits.document_bytes * 6 + 8192;
        let lines = FramedRead::new(reader, Lines(LinesCodec::new_with_max_length(longest)));
        Self { lines, limits, skip: reached.line, reached }
    }

    /// How far it is: the documents that were given out are counted when [`Self::stored`] says what became of them.
    pub fn reached(&self) -> &Reached {
        &self.reached
    }

    /// Up to [`BATCH`] good documents; none at the end.
    ///
    /// # Errors
    /// When reading fails.
    pub async fn next(&mut self) -> Result<Option<Vec<Document>>, Problem> {
        let mut documents = Vec::with_capacity(BATCH);
        while documents.len() < BATCH {
            let Some(line) = self.lines.next().await else { break };
            let line = line.map_err(|error| unreadable(self.reached.line, &error))?;
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.reached.line += 1;
            match line.map_err(|detail| (String::new(), detail.to_owned())) {
                Ok(line) if line.trim().is_empty() => {}
                line => {
                    self.reached.report.received += 1;
                    match line.and_then(|line| document(&line, self.limits)) {
                        Ok(document) => documents.push(document),
                        Err((pointer, detail)) => {
                            self.reached.report.fail(self.reached.line, pointer, detail);
                        }
                    }
                }
            }
        }
        Ok((!documents.is_empty()).then_some(documents))
    }

    /// Counts what was stored.
    pub fn stored(&mut self, outcome: UpsertOutcome) {
        self.reached.report.created += outcome.created;
        self.reached.report.updated += outcome.updated;
    }
}

/// Stores every line of `reader`, batch after batch.
///
/// # Errors
/// When reading, embedding or storing fails: the problem's detail says how many documents are durable by then.
pub async fn ingest_lines(
    service: &SearchService,
    limits: &DocumentLimits,
    reader: impl AsyncRead + Unpin,
) -> Result<BulkReport, Problem> {
    let mut lines = BulkLines::new(reader, limits, Reached::default());
    loop {
        let stored = match lines.next().await {
            Ok(Some(documents)) => store(service, documents).await,
            Ok(None) => return Ok(lines.reached.report),
            Err(problem) => Err(problem),
        };
        match stored {
            Ok(outcome) => lines.stored(outcome),
            Err(problem) => return Err(with_progress(problem, &lines.reached.report)),
        }
    }
}

/// The document of a line, or a JSON pointer and what is wrong there.
fn document(line: &str, limits: &DocumentLimits) -> Result<Document, (String, String)> {
    let input = parse::<DocumentInput>(line.as_bytes()).map_err(|problem| match problem.errors.first() {
        Some(error) => (error.pointer.clone(), error.detail.clone()),
        None => (String::new(), problem.detail),
    })?;
    input.check(limits, "").map_err(|error| (error.pointer, error.detail))
}

fn unreadable(lines: usize, error: &std::io::Error) -> Problem {
    match error.kind() {
        std::io::ErrorKind::FileTooLarge => bulk_too_large(),
        _ => Problem::new(Code::MalformedJson, format!("after line {lines} nothing could be read: {error}")),
    }
}

/// Lines, of which a bad one is no end of the stream: [`FramedRead`] reads nothing after an error.
struct Lines(LinesCodec);

impl Decoder for Lines {
    /// A line, or what is wrong with it.
    type Item = Result<String, &'static str>;
    type Error = std::io::Error;

    fn decode(&mut self, bytes: &mut BytesMut) -> std::io::Result<Option<Self::Item>> {
        Ok(line_or_fault(self.0.decode(bytes)))
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> std::io::Result<Option<Self::Item>> {
        Ok(line_or_fault(self.0.decode_eof(bytes)))
    }
}

fn line_or_fault(decoded: Result<Option<String>, LinesCodecError>) -> Option<Result<String, &'static str>> {
    match decoded {
        Ok(line) => line.map(Ok),
        Err(LinesCodecError::MaxLineLengthExceeded) => Some(Err("the line is too long; split the document")),
        // The codec itself reads nothing.
        Err(LinesCodecError::Io(_)) => Some(Err("the line is not UTF-8; encode it so")),
    }
}

/// The problem with how many documents are durable all the same.
pub(super) fn with_progress(mut problem: Problem, report: &BulkReport) -> Problem {
    let durable = report.created + report.updated;
    problem.detail = format!("{}; {durable} documents before that are durable", problem.detail);
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: DocumentLimits = DocumentLimits { document_bytes: 100, documents_per_request: 1 };

    /// Ids batch by batch, and how far it came.
    async fn read(body: &[u8], reached: Reached) -> (Vec<Vec<String>>, Reached) {
        let mut lines = BulkLines::new(body, &LIMITS, reached);
        let mut batches = Vec::new();
        while let Some(documents) = lines.next().await.unwrap() {
            lines.stored(UpsertOutcome { created: documents.len(), updated: 0 });
            batches.push(documents.into_iter().map(|document| document.id).collect());
        }
        (batches, lines.reached)
    }

    fn line(id: usize) -> String {
        format!("{{\"id\": \"{id}\", \"text\": \"t\"}}\n")
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_or_not_utf8_is_no_end() {
        let mut body = line(1).into_bytes();
        body.extend([b'x'; 20_000]);
        body.extend(b"\n\n");
        body.extend(line(2).bytes());
        body.extend(b"\xff\xfe\n");
        body.extend(line(3).bytes());
        body.extend(b"\xff");
        let (batches, reached) = read(&body, Reached::default()).await;
        assert_eq!(batches, [["1", "2", "3"]]);
        let report = reached.report;
        assert_eq!((report.received, report.created, report.failed, reached.line), (6, 3, 3, 7));
        let faults: Vec<(usize, &str)> =
            report.errors.iter().map(|error| (error.line, error.detail.as_str())).collect();
        assert!(faults[0].0 == 2 && faults[0].1.contains("too long"), "{faults:?}");
        assert!(faults[1].0 == 5 && faults[2].0 == 7 && faults[2].1.contains("not UTF-8"), "{faults:?}");
    }

    #[tokio::test]
    async fn a_later_attempt_goes_on_where_the_first_stood() {
        let body: String = (0..150).map(line).collect();
        let mut first = BulkLines::new(body.as_bytes(), &LIMITS, Reached::default());
        let documents = first.next().await.unwrap().unwrap();
        first.stored(UpsertOutcome { created: documents.len(), updated: 0 });
        let (batches, reached) = read(body.as_bytes(), first.reached().clone()).await;
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [64, 22]);
        assert_eq!((batches[0][0].as_str(), reached.line, reached.report.created), ("64", 150, 150));
    }
}
