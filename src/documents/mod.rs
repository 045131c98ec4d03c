//! The life of a document: check, embed, store durably. An acknowledged write is on disk and searchable.

mod input;
mod lines;
mod spool;

use std::sync::Arc;

use expandr_index::{Document, Index, UpsertOutcome};
use expandr_models::{Priority, TextKind};

pub use input::{DocumentInput, DocumentLimits};
pub use lines::{BulkReport, LineError, ingest_lines};
pub use spool::{Spool, SpoolProgress};

use crate::{
    bundle::Bundle,
    http::problem::{Code, Problem},
    metrics::Metrics,
    search::{SearchService, average::normalize},
};

/// Documents that are embedded and committed together.
pub const BATCH: usize = 64;

/// What the encoder reads of a document: title and text, as BEIR's evaluation does.
pub fn embedded_text(document: &Document) -> String {
    if document.title.is_empty() {
        return document.text.clone();
    }
    format!("{} {}", document.title, document.text).trim().to_owned()
}

/// Embeds and stores `documents` in batches; each batch is durable before the next begins.
///
/// # Errors
/// `overloaded` when the encoder has no place; documents of earlier batches are then stored.
pub async fn store(
    bundle: &Arc<Bundle>,
    metrics: &Metrics,
    documents: Vec<Document>,
) -> Result<UpsertOutcome, Problem> {
    let mut outcome = UpsertOutcome::default();
    let mut rest = documents;
    while !rest.is_empty() {
        let after = rest.split_off(rest.len().min(BATCH));
        let batch = std::mem::replace(&mut rest, after);
        let stored = store_batch(bundle, batch).await?;
        metrics.count_documents("created", stored.created);
        metrics.count_documents("updated", stored.updated);
        outcome.created += stored.created;
        outcome.updated += stored.updated;
    }
    Ok(outcome)
}

async fn store_batch(bundle: &Arc<Bundle>, batch: Vec<Document>) -> Result<UpsertOutcome, Problem> {
    let texts = batch.iter().map(embedded_text).collect();
    let vectors = bundle.encoder.encode(TextKind::Document, Priority::Bulk, texts).await?;
    let pairs = batch
        .into_iter()
        .zip(vectors)
        .map(|(document, mut vector)| {
            normalize(&mut vector);
            (document, vector)
        })
        .collect();
    let index = bundle.index.clone();
    crate::search::blocking(move || index.upsert(pairs)).await
}

/// Deletes one document; says whether it was there.
///
/// # Errors
/// When the store can't be written.
pub async fn delete(service: &SearchService, id: String) -> Result<bool, Problem> {
    let index: Arc<Index> = service.bundle().index.clone();
    let deleted = crate::search::blocking(move || index.delete(&[id])).await?;
    service.metrics().count_documents("deleted", deleted);
    Ok(deleted > 0)
}

impl From<expandr_index::Error> for Problem {
    fn from(error: expandr_index::Error) -> Self {
        if error.is_invalid_input() {
            return Self::field("", error.to_string());
        }
        if let expandr_index::Error::Lexical(_) = error {
            // It is being built anew; dense searches go on.
            return Self { retry_after_seconds: Some(5), ..Self::new(Code::Unavailable, error.to_string()) };
        }
        tracing::error!(%error, "the index failed");
        Self::new(Code::Internal, format!("the index failed: {error}"))
    }
}
