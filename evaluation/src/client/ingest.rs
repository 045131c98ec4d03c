//! Loading a corpus into a server.

use futures::StreamExt;
use serde_json::Value;

use super::endpoint::Endpoint;
use crate::{Document, Result};

/// How a corpus is sent.
#[derive(Clone, Copy, Debug)]
pub struct IngestOptions {
    /// Documents a request.
    pub documents_per_request: usize,
    /// Requests under way at a time; two keep the server's encoder busy while a request travels.
    pub concurrency: usize,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self { documents_per_request: 256, concurrency: 2 }
    }
}

/// A document that the server did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedDocument {
    /// Its id.
    pub id: String,
    /// What the server said.
    pub detail: String,
}

/// What became of a corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestReport {
    /// Documents that were sent and answered.
    pub sent: usize,
    /// Documents with neither title nor text. They are not sent: there is nothing in them to find.
    pub blank: usize,
    /// New ones.
    pub created: usize,
    /// Those that replaced one of the same id.
    pub updated: usize,
    /// Those that the server did not take. An evaluation over a corpus that lacks documents is not the collection's.
    pub refused: usize,
    /// The first hundred of them.
    pub first_refused: Vec<RefusedDocument>,
}

const LISTED: usize = 100;

/// Sends documents to `POST /documents/bulk`, waiting while the server is overloaded; `progress` hears the report
/// after each request. Documents that are there already are replaced, so an interrupted ingest is simply begun again.
///
/// # Errors
/// When a line of the corpus is broken, and when the server stays away or refuses a whole request.
pub async fn ingest(
    endpoint: &Endpoint,
    documents: impl Iterator<Item = Result<Document>>,
    options: IngestOptions,
    mut progress: impl FnMut(&IngestReport),
) -> Result<IngestReport> {
    let chunks = Chunks { documents, size: options.documents_per_request.max(1) };
    let requests = futures::stream::iter(chunks).map(|chunk| async { send(endpoint, chunk?).await });
    let mut requests = requests.buffer_unordered(options.concurrency.max(1));
    let mut report = IngestReport::default();
    while let Some(part) = requests.next().await {
        let part = part?;
        report.sent += part.sent;
        report.blank += part.blank;
        report.created += part.created;
        report.updated += part.updated;
        report.refused += part.refused;
        let room = LISTED.saturating_sub(report.first_refused.len());
        report.first_refused.extend(part.first_refused.into_iter().take(room));
        progress(&report);
    }
    Ok(report)
}

/// Documents in chunks. Ends after the first error.
struct Chunks<I> {
    documents: I,
    size: usize,
}

impl<I: Iterator<Item = Result<Document>>> Iterator for Chunks<I> {
    type Item = Result<Vec<Document>>;

    fn next(&mut self) -> Option<Self::Item> {
        let chunk: Result<Vec<Document>> = self.documents.by_ref().take(self.size).collect();
        match chunk {
            Ok(chunk) if chunk.is_empty() => None,
            other => Some(other),
        }
    }
}

async fn send(endpoint: &Endpoint, mut documents: Vec<Document>) -> Result<IngestReport> {
    let all = documents.len();
    documents.retain(|document| !document.is_blank());
    let blank = all - documents.len();
    if documents.is_empty() {
        return Ok(IngestReport { blank, ..IngestReport::default() });
    }
    let mut body = Vec::new();
    for document in &documents {
        serde_json::to_writer(&mut body, document).map_err(std::io::Error::from)?;
        body.push(b'\n');
    }
    let (status, body) = endpoint.post("/documents/bulk", "application/x-ndjson", body).await?;
    // 422 with a report means that every line was refused; without one, that the request was.
    let answer: Value = if status.is_success() {
        endpoint.parse(&body)?
    } else {
        serde_json::from_slice(&body).unwrap_or_default()
    };
    if answer["received"].is_null() {
        return Err(endpoint.refused(status, &body));
    }
    let number =
        |name: &str| answer[name].as_u64().and_then(|number| usize::try_from(number).ok()).unwrap_or(0);
    let refused = |error: &Value| {
        let line = error["line"].as_u64().and_then(|line| usize::try_from(line).ok()).unwrap_or(0);
        let document = documents.get(line.wrapping_sub(1))?;
        let detail =
            format!("{} {}", error["pointer"].as_str().unwrap_or(""), error["detail"].as_str().unwrap_or(""));
        Some(RefusedDocument { id: document.id.clone(), detail: detail.trim().to_owned() })
    };
    Ok(IngestReport {
        sent: documents.len(),
        blank,
        created: number("created"),
        updated: number("updated"),
        refused: number("failed"),
        first_refused: answer["errors"].as_array().into_iter().flatten().filter_map(refused).collect(),
    })
}
