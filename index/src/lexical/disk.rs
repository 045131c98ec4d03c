//! The lexical index on disk: tantivy's folder, proved before it is used.
//!
//! What a folder must be to be used: tantivy's own files whole (checksums of every file, see also `directory`), a commit
//! that is stamped with this store's id, these rules of analysis and a key that the store has given already, and no
//! document twice. Anything else is removed and built anew from the store. Keys say how a good folder differs from the
//! store, as with the graph: what it lacks is added, what it has too much is deleted.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tantivy::indexer::{IndexWriterOptions, LogMergePolicy};
use tantivy::schema::{
    FAST, Field, INDEXED, IndexRecordOption, NumericOptions, Schema, TextFieldIndexing, TextOptions,
};
use tantivy::{
    Directory, IndexReader, IndexSettings, IndexWriter, ReloadPolicy, SegmentReader, TantivyDocument, Term,
};

use super::analysis::{RULES, Terms};
use super::directory::SealedDirectory;
use crate::error::{Error, Result};

/// Version of the schema below.
const FORMAT: u32 = 1;
/// Share of removed documents in a segment from which it is written anew.
const TOLERATED_SHARE_GONE: f32 = 0.25;

/// Says what a commit holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    format: u32,
    store_id: String,
    rules: String,
    /// The first key that the store had not given when this was committed.
    next_key: u64,
}

/// tantivy's side of the lexical index. Used by one thread at a time.
pub(crate) struct Disk {
    folder: PathBuf,
    store_id: String,
    fields: Fields,
    writer: IndexWriter,
    reader: IndexReader,
    uncommitted: bool,
}

#[derive(Clone, Copy)]
struct Fields {
    key: Field,
    length: Field,
    text: Field,
}

/// What a folder is opened for.
pub(crate) struct Owner<'a> {
    pub(crate) store_id: &'a str,
    pub(crate) next_key: u64,
    /// For the writer's buffer.
    pub(crate) memory_bytes: usize,
}

/// Why a folder was not used. Told in logs and statistics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("there is no lexical index")]
    Missing,
    #[error("the lexical index is damaged: {0}")]
    Damaged(String),
    #[error("the lexical index belongs to something else: {0}")]
    Foreign(String),
}

fn schema() -> (Schema, Fields) {
    let mut schema = Schema::builder();
    let key = schema.add_u64_field(super::KEY, INDEXED | FAST);
    let length = schema.add_u64_field(super::LENGTH, NumericOptions::default().set_fast());
    // Terms are ready made: see `Disk::add`.
    let terms = TextFieldIndexing::default()
        .set_tokenizer("whitespace")
        .set_index_option(IndexRecordOption::WithFreqs)
        .set_fieldnorms(false);
    let text = schema.add_text_field("text", TextOptions::default().set_indexing_options(terms));
    (schema.build(), Fields { key, length, text })
}

impl Disk {
    /// Opens a folder that was proved to be whole and `owner`'s, or says why it can't be used.
    pub(crate) fn open(folder: &Path, owner: &Owner<'_>) -> Result<Self, Rejected> {
        if !folder.join("meta.json").exists() {
            return Err(Rejected::Missing);
        }
        // Checksums come first, but they can't prove what the library assumes beyond them.
        let opened = std::panic::catch_unwind(|| {
            prove(folder, owner).and_then(|index| Self::of(index, folder, owner).map_err(damaged))
        });
        opened.unwrap_or_else(|_| Err(Rejected::Damaged("reading it panicked".into())))
    }

    /// Makes an empty one, in place of whatever is there.
    pub(crate) fn create(folder: &Path, owner: &Owner<'_>) -> Result<Self> {
        remove(folder)?;
        fs_err::create_dir_all(folder)?;
        let directory = SealedDirectory::open(folder).map_err(Error::lexical)?;
        let index = tantivy::Index::create(directory, schema().0, IndexSettings::default());
        Self::of(index.map_err(Error::lexical)?, folder, owner)
    }

    fn of(index: tantivy::Index, folder: &Path, owner: &Owner<'_>) -> Result<Self> {
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(owner.memory_bytes)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let writer: IndexWriter = index.writer_with_options(options).map_err(Error::lexical)?;
        let mut policy = LogMergePolicy::default();
        policy.set_del_docs_ratio_before_merge(TOLERATED_SHARE_GONE);
        writer.set_merge_policy(Box::new(policy));
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual);
        Ok(Self {
            folder: folder.to_owned(),
            store_id: owner.store_id.to_owned(),
            fields: schema().1,
            writer,
            reader: reader.try_into().map_err(Error::lexical)?,
            uncommitted: false,
        })
    }

    /// Hands a document to tantivy's thread. It waits when that is ten thousand documents behind.
    pub(crate) fn add(&mut self, key: u64, terms: &Terms) -> Result<()> {
        // The order of terms matters to nobody here, so they are counted once, in `analysis`, and written out again.
        let mut text = String::with_capacity(terms.counts.len() * 8);
        for (term, count) in &terms.counts {
            for _ in 0..*count {
                text.push_str(term);
                text.push(' ');
            }
        }
        let mut document = TantivyDocument::default();
        document.add_u64(self.fields.key, key);
        document.add_u64(self.fields.length, u64::from(terms.length));
        document.add_text(self.fields.text, text);
        self.uncommitted = true;
        self.writer.add_document(document).map_err(Error::lexical)?;
        Ok(())
    }

    pub(crate) fn delete(&mut self, key: u64) {
        self.uncommitted = true;
        self.writer.delete_term(Term::from_field_u64(self.fields.key, key));
    }

    pub(crate) fn is_uncommitted(&self) -> bool {
        self.uncommitted
    }

    /// Writes what was added and deleted, stamped with the first key that the store has not given yet.
    pub(crate) fn commit(&mut self, next_key: u64) -> Result<()> {
        let stamp = Stamp { format: FORMAT, store_id: self.store_id.clone(), rules: RULES.into(), next_key };
        let stamp = serde_json::to_string(&stamp).map_err(std::io::Error::from)?;
        let mut commit = self.writer.prepare_commit().map_err(Error::lexical)?;
        commit.set_payload(&stamp);
        commit.commit().map_err(Error::lexical)?;
        self.uncommitted = false;
        Ok(())
    }

    /// The segments of the last commit, or of what background merges made of them.
    pub(crate) fn segments(&self) -> Result<Vec<SegmentReader>> {
        self.reader.reload().map_err(Error::lexical)?;
        Ok(self.reader.searcher().segment_readers().to_vec())
    }

    /// Waits for background merges, so that nobody writes to the folder any more.
    pub(crate) fn close(self) -> Result<()> {
        self.writer.wait_merging_threads().map_err(Error::lexical)
    }

    pub(crate) fn text_field(&self) -> Field {
        self.fields.text
    }

    /// Bytes of the folder's files.
    pub(crate) fn file_bytes(&self) -> u64 {
        let Ok(entries) = fs_err::read_dir(&self.folder) else { return 0 };
        entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
    }
}

/// Removes a folder, if it is there.
pub(crate) fn remove(folder: &Path) -> Result<()> {
    match fs_err::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn prove(folder: &Path, owner: &Owner<'_>) -> Result<tantivy::Index, Rejected> {
    let directory = SealedDirectory::open(folder).map_err(damaged)?;
    let index = tantivy::Index::open(directory).map_err(damaged)?;
    let metas = index.load_metas().map_err(damaged)?;
    let Some(stamp) = metas.payload.as_deref() else { return Err(Rejected::Missing) };
    let stamp: Stamp = serde_json::from_str(stamp).map_err(damaged)?;
    if stamp.format != FORMAT || index.schema() != schema().0 {
        return Err(Rejected::Foreign(format!("format {} instead of {FORMAT}", stamp.format)));
    }
    if stamp.store_id != owner.store_id {
        return Err(Rejected::Foreign(format!("store {} instead of {}", stamp.store_id, owner.store_id)));
    }
    if stamp.rules != RULES {
        return Err(Rejected::Foreign(format!("its terms were made by other rules ({})", stamp.rules)));
    }
    if stamp.next_key > owner.next_key {
        return Err(Rejected::Foreign(format!(
            "it was committed when the store had given keys up to {}, now up to {}: was the store restored from a backup?",
            stamp.next_key, owner.next_key
        )));
    }
    for meta in &metas.segments {
        for file in meta.list_files() {
            let is_there = index.directory().exists(&file).map_err(damaged)?;
            if is_there && !index.directory().validate_checksum(&file).map_err(damaged)? {
                return Err(damaged(format!("the checksum of {} differs", file.display())));
            }
        }
    }
    Ok(index)
}

fn damaged(error: impl ToString) -> Rejected {
    Rejected::Damaged(error.to_string())
}
