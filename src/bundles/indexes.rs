//! The indexes' folders: one for each encoder, below `indexes/`.
//!
//! A folder's name is made of the encoder's id; one that was embedded anew has `~` and a number behind it. Which folder
//! counts is in `active.json`.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use expandr_index::{Index, IndexConfig, StoreInfo, inspect};
use expandr_models::EncoderInfo;
use parking_lot::Mutex;

use super::apart;

/// The store's file in an index's folder. Until an index's folder had a name of its own, it was the service's folder.
const STORE: &str = "documents.redb";
/// So long an index may take to close before opening it again fails.
const CLOSING: Duration = Duration::from_secs(30);

/// The folder `indexes/`, and what is open in it.
pub(super) struct Indexes {
    folder: PathBuf,
    /// How an index is opened, whatever its encoder.
    template: IndexConfig,
    open: Mutex<HashMap<String, Weak<Index>>>,
}

impl Indexes {
    /// Prepares `root/indexes`. An index that lies in `root` itself is moved there first.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn open(root: &Path, template: IndexConfig) -> anyhow::Result<Self> {
        let folder = root.join("indexes");
        fs_err::create_dir_all(&folder)?;
        move_old(root, &folder)?;
        Ok(Self { folder, template, open: Mutex::default() })
    }

    /// The usual name for the index of an encoder.
    pub(super) fn usual_name(encoder: &str) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
        let name: String = encoder.chars().map(plain).collect();
        format!("of-{name}")
    }

    /// A name for another index of the same encoder.
    pub(super) fn next_name(name: &str) -> String {
        let (base, generation) = name.rsplit_once('~').unwrap_or((name, "1"));
        format!("{base}~{}", generation.parse::<u64>().unwrap_or(1) + 1)
    }

    /// Every index that is there, by its folder. None may be open.
    ///
    /// # Errors
    /// When one can't be read.
    pub(super) fn found(&self) -> anyhow::Result<Vec<(String, StoreInfo)>> {
        let mut found = Vec::new();
        for name in self.names()? {
            if let Some(info) = self.inspect(&name)? {
                found.push((name, info));
            }
        }
        Ok(found)
    }

    /// What an index that is not open says of itself; none when it isn't there.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn inspect(&self, name: &str) -> anyhow::Result<Option<StoreInfo>> {
        Ok(inspect(&self.folder.join(name))?)
    }

    fn names(&self) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs_err::read_dir(&self.folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort(); // so that the last generation counts
        Ok(names)
    }

    /// Opens the index `name` for an encoder, or hands out the one that is open. Blocks.
    ///
    /// # Errors
    /// When it belongs to another encoder, is open elsewhere, or can't be read.
    pub(super) fn get(&self, name: &str, encoder: &str, dimension: usize) -> anyhow::Result<Arc<Index>> {
        let give_up = Instant::now() + CLOSING;
        loop {
            match self.try_get(name, encoder, dimension) {
                Err(expandr_index::Error::InUse(_)) if self.closes(name) && Instant::now() < give_up => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                result => return Ok(result?),
            }
        }
    }

    fn try_get(&self, name: &str, encoder: &str, dimension: usize) -> expandr_index::Result<Arc<Index>> {
        let mut open = self.open.lock();
        if let Some(index) = open.get(name).and_then(Weak::upgrade) {
            return Ok(index);
        }
        let config = IndexConfig { encoder_id: encoder.to_owned(), dimension, ..self.template.clone() };
        let index = Arc::new(Index::open(self.folder.join(name), config)?);
        open.insert(name.to_owned(), Arc::downgrade(&index));
        Ok(index)
    }

    /// Whether this process had the index open and its last owner has let it go. Its files are in use until it is closed,
    /// which another thread may be about to do.
    fn closes(&self, name: &str) -> bool {
        self.open.lock().get(name).is_some_and(|index| index.strong_count() == 0)
    }

    /// As [`Indexes::get`], without blocking.
    ///
    /// # Errors
    /// As [`Indexes::get`].
    pub(super) async fn get_for(
        self: &Arc<Self>,
        name: &str,
        encoder: &EncoderInfo,
    ) -> anyhow::Result<Arc<Index>> {
        let (indexes, name) = (self.clone(), name.to_owned());
        let (encoder, dimension) = (encoder.id.clone(), encoder.dimension);
        apart("open-index", move || indexes.get(&name, &encoder, dimension)).await?
    }

    /// Removes an index from the disk, unless it is open. Failing is no harm: it is only logged.
    pub(super) fn remove(&self, name: &str) {
        let mut open = self.open.lock();
        if open.get(name).is_some_and(|index| index.strong_count() > 0) {
            tracing::warn!(name, "an index that nobody needs is still open; it stays on the disk");
            return;
        }
        open.remove(name);
        match fs_err::remove_dir_all(self.folder.join(name)) {
            Ok(()) => tracing::info!(name, "index removed"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(%error, "an index that nobody needs could not be removed"),
        }
    }

    /// Removes what a reindexing left that did not come to its end: a folder that doesn't count beside one of the same encoder
    /// that does.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub(super) fn tidy(&self, counted: &BTreeMap<String, String>) -> std::io::Result<()> {
        let base = |name: &str| name.rsplit_once('~').map_or(name, |(base, _)| base).to_owned();
        for name in self.names()? {
            let counts = counted.values().any(|folder| *folder == name);
            if !counts && counted.values().any(|folder| base(folder) == base(&name)) {
                self.remove(&name);
            }
        }
        Ok(())
    }
}

/// Moves an index that lies in `root` itself into a folder of its own. What a killed process began is finished.
fn move_old(root: &Path, folder: &Path) -> anyhow::Result<()> {
    let moving = folder.join("moving");
    let is_there = |path: &Path| fs_err::symlink_metadata(path).is_ok();
    if is_there(&root.join(STORE)) {
        fs_err::create_dir_all(&moving)?;
        // The store last: while it is in `root`, there is something to move.
        for part in ["graph.hnsw", "lexical", STORE] {
            if is_there(&root.join(part)) {
                fs_err::rename(root.join(part), moving.join(part))?;
            }
        }
    }
    if is_there(&moving.join(STORE)) {
        let encoder = inspect(&moving)?.map_or_else(|| "unknown".into(), |info| info.encoder_id);
        let name = Indexes::usual_name(&encoder);
        anyhow::ensure!(
            !is_there(&folder.join(&name)),
            "{}: there is an index of the same encoder beside it; take one of the two away",
            moving.display()
        );
        fs_err::rename(&moving, folder.join(&name))?;
        tracing::info!(name, "the index has a folder of its own now");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expandr_index::testing::{document, unit_vector};

    use super::*;

    fn template() -> IndexConfig {
        IndexConfig::new("none", 8)
    }

    fn fill(folder: &Path, encoder: &str) {
        let index = Index::open(folder, IndexConfig::new(encoder, 8)).unwrap();
        index.upsert(vec![(document("a", "some text"), unit_vector(1, 8))]).unwrap();
        index.close().unwrap();
    }

    #[test]
    fn an_index_in_the_root_is_moved_once_wherever_a_crash_stopped_it() {
        for stopped in 0..3 {
            let root = tempfile::tempdir().unwrap();
            fill(root.path(), "model@1");
            let moving = root.path().join("indexes/moving");
            if stopped > 0 {
                fs_err::create_dir_all(&moving).unwrap();
                fs_err::rename(root.path().join("graph.hnsw"), moving.join("graph.hnsw")).unwrap();
            }
            if stopped > 1 {
                fs_err::rename(root.path().join("lexical"), moving.join("lexical")).unwrap();
                fs_err::rename(root.path().join(STORE), moving.join(STORE)).unwrap();
            }
            let indexes = Indexes::open(root.path(), template()).unwrap();
            let found = indexes.found().unwrap();
            assert_eq!((found[0].0.as_str(), found[0].1.documents), ("of-model-1", 1), "stopped {stopped}");
            let index = indexes.get("of-model-1", "model@1", 8).unwrap();
            assert_eq!(index.len(), 1);
            assert_eq!(index.get("a").unwrap().unwrap().text, "some text");
            drop((index, indexes));
            Indexes::open(root.path(), template()).unwrap();
        }
    }

    #[test]
    fn an_open_index_is_shared_and_never_removed() {
        let root = tempfile::tempdir().unwrap();
        let indexes = Indexes::open(root.path(), template()).unwrap();
        let one = indexes.get("of-a", "a", 8).unwrap();
        assert!(Arc::ptr_eq(&one, &indexes.get("of-a", "a", 8).unwrap()));
        indexes.remove("of-a");
        assert!(root.path().join("indexes/of-a").join(STORE).exists());
        drop(one);
        indexes.remove("of-a");
        assert!(!root.path().join("indexes/of-a").exists());
    }

    #[test]
    fn an_index_that_is_being_closed_is_waited_for() {
        let root = tempfile::tempdir().unwrap();
        let indexes = Indexes::open(root.path(), template()).unwrap();
        let folder = root.path().join("indexes/of-a");
        let elsewhere = Index::open(&folder, IndexConfig::new("a", 8)).unwrap();
        let refused = indexes.get("of-a", "a", 8).map(drop).unwrap_err();
        assert!(refused.to_string().contains("open elsewhere"), "nobody here had it: {refused}");
        drop(elsewhere);
        drop(indexes.get("of-a", "a", 8).unwrap());
        // As if the last owner's thread had not come to its end.
        let closing = Index::open(&folder, IndexConfig::new("a", 8)).unwrap();
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(closing);
        });
        indexes.get("of-a", "a", 8).unwrap();
        closer.join().unwrap();
    }

    #[test]
    fn only_what_a_reindexing_left_is_tidied_away() {
        let root = tempfile::tempdir().unwrap();
        let indexes = Indexes::open(root.path(), template()).unwrap();
        for name in ["of-a", "of-a~2", "of-b"] {
            fill(&root.path().join("indexes").join(name), &name[3..4]);
        }
        let counted = BTreeMap::from([("a".to_owned(), "of-a".to_owned())]);
        indexes.tidy(&counted).unwrap();
        assert_eq!(indexes.names().unwrap(), ["of-a", "of-b"], "of-b is nobody's, but no double");
        assert_eq!(Indexes::next_name("of-a"), "of-a~2");
        assert_eq!(Indexes::next_name("of-a~2"), "of-a~3");
    }
}
