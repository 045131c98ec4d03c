//! The durable truth: documents, their vectors, and which key each id has.
//!
//! redb, because it is one file with ACID transactions in safe Rust (no C++ to build, and no background compaction to
//! tune), a commit is one fsync, readers never wait for the writer, pages carry checksums, and a second process that
//! opens the file is refused. RocksDB writes bulk loads no faster at this size and costs minutes of compilation; SQLite
//! would do, at the price of C and of vectors as rows of an SQL engine; sled is unmaintained; LMDB needs unsafe and a
//! map size guessed ahead.
//!
//! | table | key | value |
//! |---|---|---|
//! | `ids` | id | key |
//! | `entries` | key | id, metadata (JSON) |
//! | `contents` | key | title, text |
//! | `vectors` | key | f32, little-endian |
//! | `meta` | name | format, store id, encoder id, dimension, next key |
//!
//! A key is a `u64` that grows and is never used twice: a changed document gets a new one. So two sets of keys say
//! everything about how a graph snapshot differs from the store.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
};
use serde_json::{Map, Value};

use crate::config::IndexConfig;
use crate::document::Document;
use crate::error::{Error, Result, shorten};
use crate::lexical::Terms;

const IDS: TableDefinition<'_, &str, u64> = TableDefinition::new("ids");
const ENTRIES: TableDefinition<'_, u64, (&str, &str)> = TableDefinition::new("entries");
const CONTENTS: TableDefinition<'_, u64, (&str, &str)> = TableDefinition::new("contents");
const VECTORS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("vectors");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");

/// Version of the tables above.
const FORMAT: u32 = 1;
const FILE_NAME: &str = "documents.redb";
/// Bytes of redb's mark at the beginning of its files.
const REDB_MARK_BYTES: u64 = 9;

/// A document that passed validation, ready to be written.
pub(crate) struct Prepared {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) text: String,
    pub(crate) metadata: String,
    pub(crate) vector: Vec<f32>,
    /// For the lexical index, where there is one.
    pub(crate) terms: Option<Terms>,
}

/// One effect of a transaction, to be repeated in memory once it is durable.
pub(crate) enum Change {
    Put { key: u64, metadata: Map<String, Value>, vector: Vec<f32>, terms: Option<Terms> },
    Remove { key: u64, metadata: Map<String, Value> },
}

/// A document with everything that the store knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredDocument {
    /// Its key.
    pub key: u64,
    /// The document as it was given.
    pub document: Document,
    /// Its vector as it was given.
    pub vector: Vec<f32>,
}

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreInfo {
    /// The encoder that its vectors come from.
    pub encoder_id: String,
    /// Components of a vector.
    pub dimension: usize,
    /// Documents in it.
    pub documents: u64,
}

/// What the store in an index's directory says of itself, without opening the index; `None` where there is no store.
///
/// # Errors
/// It is open elsewhere, can't be read, or contradicts itself.
pub fn inspect(dir: &Path) -> Result<Option<StoreInfo>> {
    let path = dir.join(FILE_NAME);
    if !path.exists() || is_unfinished(&fs_err::File::open(&path)?)? {
        return Ok(None);
    }
    let database = Database::builder().open(&path).map_err(|error| Error::open(error, dir))?;
    let transaction = database.begin_read().map_err(Error::store)?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        // Made and killed before anything was in it.
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(Error::store(error)),
    };
    let text = |name: &str| -> Result<Option<String>> {
        Ok(meta.get(name).map_err(Error::store)?.map(|value| value.value().to_owned()))
    };
    let Some(encoder_id) = text("encoder_id")? else { return Ok(None) };
    let dimension = text("dimension")?.and_then(|value| value.parse().ok());
    let dimension = dimension.ok_or_else(|| Error::Corrupt("it lacks its dimension".into()))?;
    let ids = transaction.open_table(IDS).map_err(Error::store)?;
    Ok(Some(StoreInfo { encoder_id, dimension, documents: ids.len().map_err(Error::store)? }))
}

/// Makes way for a new database where the making of one was cut off, by a kill or a full disk: redb writes the first bytes
/// of its file last, and refuses a file without them.
///
/// # Errors
/// When the file can't be read or emptied.
pub fn clear_unfinished(path: &Path) -> Result<()> {
    let Ok(file) = fs_err::OpenOptions::new().read(true).write(true).open(path) else { return Ok(()) };
    // Whoever has it open is making it.
    if file.file().try_lock().is_ok() && is_unfinished(&file)? {
        file.set_len(0)?;
    }
    Ok(())
}

/// Whether nothing but zeros stand where redb's mark belongs.
fn is_unfinished(file: &fs_err::File) -> Result<bool> {
    let mut start = Vec::new();
    file.take(REDB_MARK_BYTES).read_to_end(&mut start)?;
    Ok(start.iter().all(|byte| *byte == 0))
}

pub(crate) struct Store {
    database: Database,
    /// Whether the disk failed in a transaction.
    failed: AtomicBool,
    path: PathBuf,
    dimension: usize,
    id: String,
}

/// The tables of an open transaction.
pub(crate) struct Tables<'t> {
    ids: Table<'t, &'static str, u64>,
    entries: Table<'t, u64, (&'static str, &'static str)>,
    contents: Table<'t, u64, (&'static str, &'static str)>,
    vectors: Table<'t, u64, &'static [u8]>,
    next_key: u64,
    changes: Vec<Change>,
}

impl Store {
    /// Opens or creates the store in a directory and ties it to the configuration's encoder.
    pub(crate) fn open(dir: &Path, config: &IndexConfig) -> Result<Self> {
        fs_err::create_dir_all(dir)?;
        let path = dir.join(FILE_NAME);
        let is_new = !path.exists();
        clear_unfinished(&path)?;
        let mut builder = Database::builder();
        builder.set_cache_size(config.cache_bytes);
        let database = builder.create(&path).map_err(|error| Error::open(error, dir))?;
        if is_new {
            crate::snapshot::sync_directory(&path)?;
        }
        let id = tie(&database, dir, &path, config)?;
        Ok(Self { database, failed: AtomicBool::new(false), path, dimension: config.dimension, id })
    }

    /// Whether the disk failed, after which the store neither writes nor reads until it is opened anew.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Random name of this store; a snapshot carries it.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn file_bytes(&self) -> u64 {
        fs_err::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }

    /// The first key that was never given.
    pub(crate) fn next_key(&self) -> Result<u64> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let meta = transaction.open_table(META).map_err(Error::store)?;
        next_key(&meta)
    }

    pub(crate) fn key_of(&self, id: &str) -> Result<Option<u64>> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let ids = transaction.open_table(IDS).map_err(Error::store)?;
        Ok(ids.get(id).map_err(Error::store)?.map(|key| key.value()))
    }

    /// The documents under these keys, as of one moment; `None` where a key is no longer there.
    pub(crate) fn documents(&self, keys: &[u64]) -> Result<Vec<Option<Document>>> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let entries = transaction.open_table(ENTRIES).map_err(Error::store)?;
        let contents = transaction.open_table(CONTENTS).map_err(Error::store)?;
        keys.iter().map(|&key| read_document(&entries, &contents, key)).collect()
    }

    pub(crate) fn ids(&self, keys: &[u64]) -> Result<Vec<Option<String>>> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let entries = transaction.open_table(ENTRIES).map_err(Error::store)?;
        let id = |key: &u64| {
            let entry = entries.get(key).map_err(Error::store)?;
            Ok(entry.map(|entry| entry.value().0.to_owned()))
        };
        keys.iter().map(id).collect()
    }

    pub(crate) fn document(&self, id: &str) -> Result<Option<Document>> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let ids = transaction.open_table(IDS).map_err(Error::store)?;
        let Some(key) = ids.get(id).map_err(Error::store)?.map(|key| key.value()) else { return Ok(None) };
        let entries = transaction.open_table(ENTRIES).map_err(Error::store)?;
        let contents = transaction.open_table(CONTENTS).map_err(Error::store)?;
        read_document(&entries, &contents, key)
    }

    /// Up to `limit` documents whose keys are above `after`, by key.
    pub(crate) fn page(&self, after: Option<u64>, limit: usize) -> Result<Vec<StoredDocument>> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let entries = transaction.open_table(ENTRIES).map_err(Error::store)?;
        let contents = transaction.open_table(CONTENTS).map_err(Error::store)?;
        let vectors = transaction.open_table(VECTORS).map_err(Error::store)?;
        let first = after.map_or(0, |key| key.saturating_add(1));
        let mut page = Vec::new();
        for row in entries.range(first..).map_err(Error::store)?.take(limit) {
            let key = row.map_err(Error::store)?.0.value();
            let document = read_document(&entries, &contents, key)?.ok_or_else(|| lacks("text", key))?;
            let vector = vectors.get(key).map_err(Error::store)?.ok_or_else(|| lacks("vector", key))?;
            page.push(StoredDocument { key, document, vector: self.decode(vector.value(), key)? });
        }
        Ok(page)
    }

    /// Hands every (key, metadata, vector) to `visit`, by key, without reading the texts.
    pub(crate) fn scan(
        &self,
        mut visit: impl FnMut(u64, Map<String, Value>, Vec<f32>) -> Result<()>,
    ) -> Result<()> {
        let transaction = self.database.begin_read().map_err(Error::store)?;
        let entries = transaction.open_table(ENTRIES).map_err(Error::store)?;
        let vectors = transaction.open_table(VECTORS).map_err(Error::store)?;
        let counts = (entries.len().map_err(Error::store)?, vectors.len().map_err(Error::store)?);
        if counts.0 != counts.1 {
            return Err(Error::Corrupt(format!("it has {} documents but {} vectors", counts.0, counts.1)));
        }
        let rows = entries.iter().map_err(Error::store)?.zip(vectors.iter().map_err(Error::store)?);
        for (entry, vector) in rows {
            let (key, entry) = entry.map_err(Error::store)?;
            let (vector_key, vector) = vector.map_err(Error::store)?;
            let key = key.value();
            if vector_key.value() != key {
                return Err(lacks("vector", key));
            }
            visit(key, parse_metadata(entry.value().1, key)?, self.decode(vector.value(), key)?)?;
        }
        Ok(())
    }

    /// Runs `work` in a transaction of its own, after those of others. When this returns `Ok`, a power cut can't undo
    /// what `work` did; when it returns an error, nothing happened.
    pub(crate) fn transact<R>(
        &self,
        work: impl FnOnce(&mut Tables<'_>) -> Result<R>,
    ) -> Result<(R, Vec<Change>)> {
        let outcome = self.transaction(work);
        if outcome.as_ref().is_err_and(Error::is_of_the_disk) {
            self.failed.store(true, Ordering::Relaxed);
        }
        outcome
    }

    fn transaction<R>(&self, work: impl FnOnce(&mut Tables<'_>) -> Result<R>) -> Result<(R, Vec<Change>)> {
        let mut transaction = self.database.begin_write().map_err(Error::store)?;
        transaction.set_durability(Durability::Immediate).map_err(Error::store)?;
        let (outcome, changes) = {
            let mut meta = transaction.open_table(META).map_err(Error::store)?;
            let mut tables = Tables {
                ids: transaction.open_table(IDS).map_err(Error::store)?,
                entries: transaction.open_table(ENTRIES).map_err(Error::store)?,
                contents: transaction.open_table(CONTENTS).map_err(Error::store)?,
                vectors: transaction.open_table(VECTORS).map_err(Error::store)?,
                next_key: next_key(&meta)?,
                changes: Vec::new(),
            };
            let outcome = work(&mut tables)?;
            meta.insert("next_key", &*tables.next_key.to_string()).map_err(Error::store)?;
            (outcome, tables.changes)
        };
        if changes.is_empty() {
            transaction.abort().map_err(Error::store)?;
        } else {
            transaction.commit().map_err(Error::store)?;
        }
        Ok((outcome, changes))
    }

    fn decode(&self, bytes: &[u8], key: u64) -> Result<Vec<f32>> {
        let (components, rest) = bytes.as_chunks::<4>();
        if components.len() != self.dimension || !rest.is_empty() {
            return Err(Error::Corrupt(format!("the vector under key {key} has {} bytes", bytes.len())));
        }
        Ok(components.iter().map(|&component| f32::from_le_bytes(component)).collect())
    }
}

impl Tables<'_> {
    /// Writes a document, replacing one with the same id. Says whether it was new.
    pub(crate) fn upsert(&mut self, document: Prepared) -> Result<bool> {
        let created = !self.remove(&document.id)?;
        let key = self.next_key;
        self.next_key += 1;
        let bytes: Vec<u8> = document.vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.ids.insert(&*document.id, key).map_err(Error::store)?;
        self.entries.insert(key, (&*document.id, &*document.metadata)).map_err(Error::store)?;
        self.contents.insert(key, (&*document.title, &*document.text)).map_err(Error::store)?;
        self.vectors.insert(key, &*bytes).map_err(Error::store)?;
        // Parsed from what was stored, so that the same postings come out when it is removed or reopened.
        let metadata = parse_metadata(&document.metadata, key)?;
        self.changes.push(Change::Put { key, metadata, vector: document.vector, terms: document.terms });
        Ok(created)
    }

    /// Removes a document; says whether it was there.
    pub(crate) fn remove(&mut self, id: &str) -> Result<bool> {
        let Some(key) = self.ids.remove(id).map_err(Error::store)?.map(|key| key.value()) else {
            return Ok(false);
        };
        let metadata = {
            let entry = self.entries.remove(key).map_err(Error::store)?.ok_or_else(|| lacks("entry", key))?;
            parse_metadata(entry.value().1, key)?
        };
        self.contents.remove(key).map_err(Error::store)?;
        self.vectors.remove(key).map_err(Error::store)?;
        self.changes.push(Change::Remove { key, metadata });
        Ok(true)
    }
}

/// Creates the tables, compares the store with the configuration, and returns the store's id.
fn tie(database: &Database, dir: &Path, path: &Path, config: &IndexConfig) -> Result<String> {
    let transaction = database.begin_write().map_err(Error::store)?;
    let id;
    {
        let mut meta = transaction.open_table(META).map_err(Error::store)?;
        let text = |meta: &Table<'_, &'static str, &'static str>, name: &str| -> Result<Option<String>> {
            Ok(meta.get(name).map_err(Error::store)?.map(|value| value.value().to_owned()))
        };
        let documents = {
            for table in [ENTRIES, CONTENTS] {
                transaction.open_table(table).map_err(Error::store)?;
            }
            transaction.open_table(VECTORS).map_err(Error::store)?;
            transaction.open_table(IDS).map_err(Error::store)?.len().map_err(Error::store)?
        };
        if let Some(found) = text(&meta, "format")?
            && found != FORMAT.to_string()
        {
            return Err(Error::OtherFormat {
                path: path.to_owned(),
                found: shorten(&found),
                expected: FORMAT,
            });
        }
        let stored_encoder = text(&meta, "encoder_id")?;
        let stored_dimension = text(&meta, "dimension")?.and_then(|value| value.parse::<usize>().ok());
        let same = stored_encoder.as_deref() == Some(&config.encoder_id)
            && stored_dimension == Some(config.dimension);
        if documents > 0 && !same {
            return Err(Error::OtherEncoder {
                dir: dir.to_owned(),
                documents,
                stored_encoder: stored_encoder.unwrap_or_default(),
                stored_dimension: stored_dimension.unwrap_or_default(),
                encoder: config.encoder_id.clone(),
                dimension: config.dimension,
            });
        }
        // A store of another encoder that became empty is a new store: its old snapshots must not fit.
        id = match text(&meta, "store_id")? {
            Some(id) if same => id,
            _ => uuid::Uuid::new_v4().to_string(),
        };
        let next_key = text(&meta, "next_key")?.unwrap_or_else(|| "1".to_owned());
        let rows = [
            ("format", FORMAT.to_string()),
            ("store_id", id.clone()),
            ("encoder_id", config.encoder_id.clone()),
            ("dimension", config.dimension.to_string()),
            ("next_key", next_key),
        ];
        for (name, value) in &rows {
            if text(&meta, name)?.as_deref() != Some(value) {
                meta.insert(*name, &**value).map_err(Error::store)?;
            }
        }
    }
    transaction.commit().map_err(Error::store)?;
    Ok(id)
}

fn next_key(meta: &impl ReadableTable<&'static str, &'static str>) -> Result<u64> {
    let row = meta.get("next_key").map_err(Error::store)?;
    row.and_then(|value| value.value().parse().ok())
        .ok_or_else(|| Error::Corrupt("it lacks its next key".into()))
}

fn read_document(
    entries: &impl ReadableTable<u64, (&'static str, &'static str)>,
    contents: &impl ReadableTable<u64, (&'static str, &'static str)>,
    key: u64,
) -> Result<Option<Document>> {
    let Some(entry) = entries.get(key).map_err(Error::store)? else { return Ok(None) };
    let content = contents.get(key).map_err(Error::store)?.ok_or_else(|| lacks("text", key))?;
    let ((id, metadata), (title, text)) = (entry.value(), content.value());
    let metadata = parse_metadata(metadata, key)?;
    Ok(Some(Document { id: id.to_owned(), title: title.to_owned(), text: text.to_owned(), metadata }))
}

fn parse_metadata(json: &str, key: u64) -> Result<Map<String, Value>> {
    if json == "{}" {
        return Ok(Map::new());
    }
    serde_json::from_str(json)
        .map_err(|error| Error::Corrupt(format!("the metadata under key {key}: {error}")))
}

fn lacks(what: &str, key: u64) -> Error {
    Error::Corrupt(format!("the document under key {key} lacks its {what}"))
}
