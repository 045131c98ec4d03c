//! The life of a document: check, embed, store durably. An acknowledged write is on disk and searchable.

mod input;
mod lines;
mod spool;

use expandr_index::{Document, UpsertOutcome};
use expandr_models::{Priority, TextKind};

pub use input::{DocumentInput, DocumentLimits};
pub use lines::{BulkLines, BulkReport, LineError, Reached, ingest_lines};
pub use spool::{Spool, SpoolProgress};

use crate::{
    http::problem::{Code, Problem},
    search::{SearchService, average::normalize, blocking},
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

/// Embeds and stores `documents` in batches; each batch is durable before the next begins. A batch goes to the bundle that is
/// live when it is written.
///
/// # Errors
/// `overloaded` when the encoder has no place; documents of earlier batches are then stored.
pub async fn store(service: &SearchService, documents: Vec<Document>) -> Result<UpsertOutcome, Problem> {
    let mut outcome = UpsertOutcome::default();
    let mut rest = documents;
    while !rest.is_empty() {
        let after = rest.split_off(rest.len().min(BATCH));
        let batch = std::mem::replace(&mut rest, after);
        let stored = store_batch(service, batch).await?;
        service.metrics().count_documents("created", stored.created);
        service.metrics().count_documents("updated", stored.updated);
        outcome.created += stored.created;
        outcome.updated += stored.updated;
    }
    Ok(outcome)
}

/// Vectors are made before the gate of writes is passed, so that nobody waits for an encoder there. Where another encoder has
/// become live meanwhile, they are made again.
async fn store_batch(service: &SearchService, batch: Vec<Document>) -> Result<UpsertOutcome, Problem> {
    let mut bundle = service.bundle();
    loop {
        let texts = batch.iter().map(embedded_text).collect();
        let vectors = bundle.encoder.encode(TextKind::Document, Priority::Bulk, texts).await?;
        let write = service.live().begin_write().await;
        let live = write.bundle();
        if live.encoder.info().id != bundle.encoder.info().id {
            bundle = live;
            continue;
        }
        drop(bundle); // an old one, perhaps, whose end is waited for
        let ids: Vec<String> = batch.iter().map(|document| document.id.clone()).collect();
        let normalized = vectors.into_iter().map(|mut vector| {
            normalize(&mut vector);
            vector
        });
        let pairs = batch.into_iter().zip(normalized).collect();
        // The write goes on when its request is dropped, and so must what notes it.
        return blocking(move || {
            let outcome = live.index.upsert(pairs)?;
            write.note(ids.iter().map(String::as_str));
            Ok(outcome)
        })
        .await;
    }
}

/// Deletes one document; says whether it was there.
///
/// # Errors
/// When the store can't be written.
pub async fn delete(service: &SearchService, id: String) -> Result<bool, Problem> {
    let write = service.live().begin_write().await;
    let deleted = blocking(move || {
        let deleted = write.bundle().index.delete(std::slice::from_ref(&id))?;
        write.note([id.as_str()]);
        Ok(deleted)
    })
    .await?;
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
