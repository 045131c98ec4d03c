//! Jobs on disk: one redb file, a synced transaction a change.
//!
//! | table | key | value |
//! |---|---|---|
//! | `jobs` | number | the record as JSON |
//! | `keys` | idempotency key | job number, SHA-256 of the request |

use std::path::Path;

use anyhow::Context;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::record::JobRecord;

const JOBS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("jobs");
const KEYS: TableDefinition<'_, &str, (u64, &str)> = TableDefinition::new("keys");

/// Memory of the file's pages.
const CACHE_BYTES: usize = 4 << 20;

/// An idempotency key that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UsedKey {
    pub(super) key: String,
    pub(super) number: u64,
    pub(super) request_sha256: String,
}

/// The file.
pub(super) struct Store {
    database: Database,
}

impl Store {
    /// Opens or makes the file, with the records and keys that it holds.
    pub(super) fn open(path: &Path) -> anyhow::Result<(Self, Vec<JobRecord>, Vec<UsedKey>)> {
        expandr_index::clear_unfinished(path)?;
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).with_context(|| {
            format!("{}: the jobs can't be opened; is another server running on this folder?", path.display())
        })?;
        let transaction = database.begin_write()?;
        transaction.open_table(JOBS)?;
        transaction.open_table(KEYS)?;
        transaction.commit()?;
        let transaction = database.begin_read()?;
        let mut records = Vec::new();
        for entry in transaction.open_table(JOBS)?.iter()? {
            let (number, bytes) = entry?;
            let record: JobRecord = serde_json::from_slice(bytes.value()).with_context(|| {
                format!(
                    "{}: job {} is of another form; was it written by another version?",
                    path.display(),
                    number.value()
                )
            })?;
            records.push(record);
        }
        let mut keys = Vec::new();
        for entry in transaction.open_table(KEYS)?.iter()? {
            let (key, value) = entry?;
            let (number, sha256) = value.value();
            keys.push(UsedKey { key: key.value().to_owned(), number, request_sha256: sha256.to_owned() });
        }
        Ok((Self { database }, records, keys))
    }

    /// Writes a record, and the key that it was accepted under. Durable when this returns.
    pub(super) fn put(&self, record: &JobRecord, key: Option<&UsedKey>) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec(record)?;
        let transaction = self.database.begin_write()?;
        transaction.open_table(JOBS)?.insert(record.number, bytes.as_slice())?;
        if let Some(UsedKey { key, number, request_sha256 }) = key {
            transaction.open_table(KEYS)?.insert(key.as_str(), (*number, request_sha256.as_str()))?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Forgets jobs and their keys.
    pub(super) fn remove(&self, numbers: &[u64]) -> anyhow::Result<()> {
        let transaction = self.database.begin_write()?;
        {
            let mut jobs = transaction.open_table(JOBS)?;
            for number in numbers {
                jobs.remove(number)?;
            }
            transaction.open_table(KEYS)?.retain(|_, (number, _)| !numbers.contains(&number))?;
        }
        transaction.commit()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::request::{JobRequest, Snapshot};

    #[test]
    fn records_and_keys_come_back_and_go_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("jobs.redb");
        let record = |number: u64| {
            let request = JobRequest::Snapshot(Snapshot {});
            JobRecord::new(format!("job-{number}"), number, request, "2026-01-01T00:00:00Z".into())
        };
        let key = UsedKey { key: "k".into(), number: 1, request_sha256: "ab".into() };
        let (store, records, keys) = Store::open(&path).unwrap();
        assert!(records.is_empty() && keys.is_empty());
        store.put(&record(1), Some(&key)).unwrap();
        store.put(&record(2), None).unwrap();
        drop(store);
        let (store, records, keys) = Store::open(&path).unwrap();
        assert_eq!((records, keys), (vec![record(1), record(2)], vec![key]));
        assert!(Store::open(&path).is_err(), "a second server on the same folder is refused");
        store.remove(&[1]).unwrap();
        drop(store);
        let (_, records, keys) = Store::open(&path).unwrap();
        assert_eq!((records, keys), (vec![record(2)], vec![]));
    }
}
