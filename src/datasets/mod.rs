//! Named sets of training pairs that an operator uploads: JSON lines of {query, positive[, negatives]}, checked line by
//! line as training reads them, and whole or not there.
//!
//! `<name>.json` describes a set and names the file of its lines, `<name>.<start of its sha256>.ndjson`. The description
//! is replaced last, in one step; so whoever reads it finds the lines that belong to it.

mod upload;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::body::Bytes;
use chrono::{DateTime, Utc};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, BufWriter};
use utoipa::ToSchema;

use self::upload::{Checked, Checker};
use crate::{
    clock,
    files::{self, Partial},
    http::problem::{Code, Problem},
};

/// Longest name.
const NAME_BYTES: usize = 64;

/// What is known of a dataset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Dataset {
    /// Its name.
    pub name: String,
    /// Lines that hold a pair.
    pub pairs: usize,
    /// Bytes of its lines.
    pub bytes: u64,
    /// Their sha256 in hexadecimal digits.
    pub sha256: String,
    /// When it was uploaded.
    #[serde(with = "crate::clock::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: DateTime<Utc>,
}

impl Dataset {
    fn file_name(&self) -> String {
        format!("{}.{}.ndjson", self.name, self.sha256.get(..16).unwrap_or(&self.sha256))
    }
}

/// The folder of datasets.
pub struct Datasets {
    folder: PathBuf,
    /// Most bytes of one dataset.
    limit_bytes: u64,
    known: Mutex<BTreeMap<String, Dataset>>,
}

impl Datasets {
    /// Opens the folder, or makes it. What an upload left that a kill ended is removed.
    ///
    /// # Errors
    /// When the folder can't be made or read, or a description isn't one.
    pub fn open(folder: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        files::remove_partials(folder)?;
        let mut known = BTreeMap::new();
        let mut lines = Vec::new();
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {
                    let dataset = described(&path)?;
                    known.insert(dataset.name.clone(), dataset);
                }
                Some("ndjson") => lines.push(path),
                _ => {}
            }
        }
        for path in lines {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !known.values().any(|dataset| dataset.file_name() == name) {
                fs_err::remove_file(&path)?; // replaced, deleted, or never described
            }
        }
        Ok(Self { folder: folder.to_owned(), limit_bytes, known: Mutex::new(known) })
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Dataset> {
        self.known.lock().values().cloned().collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// `not_found`.
    pub fn get(&self, name: &str) -> Result<Dataset, Problem> {
        self.known.lock().get(name).cloned().ok_or_else(|| unknown(name))
    }

    /// The file of a dataset's lines, in training's source format `pairs`. It is there until the dataset is replaced or
    /// deleted: link or copy ([`Datasets::copy_to`]) what must outlive that.
    ///
    /// # Errors
    /// `not_found`.
    pub fn path(&self, name: &str) -> Result<PathBuf, Problem> {
        Ok(self.folder.join(self.get(name)?.file_name()))
    }

    /// Puts the lines of a dataset at `target`, in place of what is there, and gives what is known of them: a hard link
    /// where the disk allows it, else a copy. They stay there whatever becomes of the dataset. Blocking.
    ///
    /// # Errors
    /// `not_found`, or when the disk fails.
    pub fn copy_to(&self, name: &str, target: &Path) -> Result<Dataset, Problem> {
        let known = self.known.lock(); // held, so that the file is not replaced meanwhile
        let dataset = known.get(name).cloned().ok_or_else(|| unknown(name))?;
        place(&self.folder.join(dataset.file_name()), target).map_err(|error| disk(&error))?;
        Ok(dataset)
    }

    /// Writes a body as the dataset `name`, in place of one that is there; says whether there was one. When this returns it
    /// is durable. Of several uploads of one name at a time the one that ends last stays.
    ///
    /// # Errors
    /// `invalid_request` that names the bad lines; `body_too_large`; when the disk fails. Nothing is kept then.
    pub async fn put<E: std::fmt::Display>(
        self: &Arc<Self>,
        name: &str,
        body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<(Dataset, bool), Problem> {
        check_name(name)?;
        let partial = Partial(files::partial(&self.folder.join(name)));
        let checked = self.receive(&partial.0, body).await?;
        let dataset = Dataset {
            name: name.to_owned(),
            pairs: checked.pairs,
            bytes: checked.bytes,
            sha256: checked.sha256,
            created_at: clock::now(),
        };
        let (datasets, described) = (self.clone(), dataset.clone());
        // Goes to its end also when the request ends before.
        let installed = tokio::task::spawn_blocking(move || datasets.install(&partial.0, &described)).await;
        let replaced =
            installed.map_err(std::io::Error::other).and_then(|done| done).map_err(|error| disk(&error))?;
        Ok((dataset, replaced))
    }

    /// Deletes a dataset. Blocking.
    ///
    /// # Errors
    /// `not_found`, or when the disk fails.
    pub fn delete(&self, name: &str) -> Result<(), Problem> {
        let mut known = self.known.lock();
        let Some(dataset) = known.get(name) else { return Err(unknown(name)) };
        let (description, lines) = (self.description(name), self.folder.join(dataset.file_name()));
        fs_err::remove_file(&description).map_err(|error| disk(&error))?;
        known.remove(name);
        // Lines without a description are removed at the next start, should this fail.
        let removed = fs_err::remove_file(&lines).and_then(|()| files::sync_folder_of(&description));
        removed.map_err(|error| disk(&error))
    }

    /// Writes a body to `path` while checking it; what comes after a bad line is checked and not written.
    async fn receive<E: std::fmt::Display>(
        &self,
        path: &Path,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<Checked, Problem> {
        let file = files::create(path).map_err(|error| disk(&error))?.into_parts().0;
        let mut file = BufWriter::with_capacity(1 << 18, tokio::fs::File::from_std(file));
        let mut checker = Checker::default();
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| {
                let detail = format!("the body could not be read: {error}; nothing was kept");
                Problem::new(Code::MalformedJson, detail)
            })?;
            if checker.bytes() + chunk.len() as u64 > self.limit_bytes {
                let mib = self.limit_bytes >> 20;
                let detail = format!(
                    "the body exceeds {mib} MiB; send it as several datasets, or raise --dataset-mib; nothing was kept"
                );
                return Err(Problem::new(Code::BodyTooLarge, detail));
            }
            checker.chunk(&chunk);
            if !checker.has_failed() {
                file.write_all(&chunk).await.map_err(|error| disk(&error))?;
            }
        }
        let checked = checker.finish()?;
        file.flush().await.map_err(|error| disk(&error))?;
        file.get_ref().sync_all().await.map_err(|error| disk(&error))?;
        Ok(checked)
    }

    /// Puts received lines and their description in place; says whether there was a dataset of that name.
    fn install(&self, partial: &Path, dataset: &Dataset) -> std::io::Result<bool> {
        let mut known = self.known.lock();
        files::install(partial, &self.folder.join(dataset.file_name()))?;
        files::write_whole(&self.description(&dataset.name), &serde_json::to_vec_pretty(dataset)?)?;
        let before = known.insert(dataset.name.clone(), dataset.clone());
        if let Some(before) = &before
            && before.file_name() != dataset.file_name()
            && let Err(error) = fs_err::remove_file(self.folder.join(before.file_name()))
        {
            tracing::warn!(%error, "the lines of a replaced dataset are left until the next start");
        }
        Ok(before.is_some())
    }

    fn description(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}

/// Links or copies a file to `target`, as a whole. What is at `target` may be a link to a dataset's lines itself, so it is
/// replaced and never written to.
fn place(lines: &Path, target: &Path) -> std::io::Result<()> {
    let partial = Partial(files::partial(target));
    if std::fs::hard_link(lines, &partial.0).is_err() {
        fs_err::copy(lines, &partial.0)?;
        fs_err::File::open(&partial.0)?.sync_all()?;
    }
    files::install(&partial.0, target)
}

/// Lets a name pass that is one everywhere: as a file, in a URL, on a command line.
fn check_name(name: &str) -> Result<(), Problem> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= NAME_BYTES && name.bytes().all(good) {
        return Ok(());
    }
    let detail = format!(
        "`{}` is no name for a dataset; use up to {NAME_BYTES} letters (a-z, A-Z), digits, `-` and `_`, the first a letter or digit",
        printable(name)
    );
    Err(Problem::field("", detail))
}

fn unknown(name: &str) -> Problem {
    let detail = format!("there is no dataset `{}`; GET /admin/datasets lists them", printable(name));
    Problem::new(Code::NotFound, detail)
}

fn printable(name: &str) -> String {
    name.chars().take(80).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn described(path: &Path) -> std::io::Result<Dataset> {
    let dataset: Dataset = serde_json::from_slice(&fs_err::read(path)?).map_err(|error| {
        std::io::Error::other(format!("{}: not a dataset's description: {error}", path.display()))
    })?;
    if path.file_stem().and_then(|stem| stem.to_str()) != Some(&dataset.name)
        || check_name(&dataset.name).is_err()
    {
        let detail = format!("{}: describes `{}`; remove it", path.display(), printable(&dataset.name));
        return Err(std::io::Error::other(detail));
    }
    Ok(dataset)
}

fn disk(error: &std::io::Error) -> Problem {
    tracing::error!(%error, "datasets can't be written or read");
    Problem::new(Code::Internal, format!("datasets can't be written or read: {error}"))
}

#[cfg(test)]
mod tests;
