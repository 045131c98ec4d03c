//! Makes one index hold what another holds, with the vectors of an encoder of its own.
//!
//! A document that the target has with the same content is kept: its vector is that encoder's, because an index never holds
//! another's. Where only metadata differ, the vector is kept.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use expandr_index::{Document, Index};
use expandr_models::{Encoder, Error, Priority, TextKind};

use super::pace::Pace;
use crate::{
    documents::{BATCH, embedded_text},
    http::problem::Problem,
    search::{average::normalize, blocking},
};

/// Texts that are embedded in one piece: few enough that a search beside them does not wait long.
const PIECE: usize = 16;
/// Documents that are looked up in one piece.
const PAGE: usize = 256;

/// Where documents come from, where they go, and what embeds them.
pub(super) struct CatchUp {
    pub(super) source: Arc<Index>,
    pub(super) target: Arc<Index>,
    pub(super) encoder: Arc<dyn Encoder>,
}

/// How many documents were embedded, kept and deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) embedded: usize,
    pub(super) kept: usize,
    pub(super) deleted: usize,
}

/// What has to be done about some documents of the source.
#[derive(Default)]
struct Work {
    /// With their vectors, where only metadata have changed.
    known: Vec<(Document, Vec<f32>)>,
    to_embed: Vec<Document>,
    to_delete: Vec<String>,
    kept: usize,
}

impl Work {
    /// Adds one document of the source.
    fn add(&mut self, document: Document, target: &Index) -> Result<(), expandr_index::Error> {
        let there = target.get(&document.id)?;
        match there {
            Some(there) if there == document => self.kept += 1,
            Some(there) if (&there.title, &there.text) == (&document.title, &document.text) => {
                match target.vector(&document.id)? {
                    Some(vector) => self.known.push((document, vector)),
                    None => self.to_embed.push(document),
                }
            }
            _ => self.to_embed.push(document),
        }
        Ok(())
    }
}

impl CatchUp {
    /// Goes through every document of the source, and through those of the target that the source may lack. Documents that
    /// change meanwhile must be repeated with [`CatchUp::these`]. `progress` hears how many of how many are done.
    ///
    /// # Errors
    /// When an index or the encoder fails; the target then holds a part, and going on later is cheap.
    pub(super) async fn all(
        &self,
        pace: &Pace,
        progress: &(dyn Fn(usize, usize) + Send + Sync),
    ) -> Result<Counts, Problem> {
        let mut counts = Counts::default();
        let target_was_empty = self.target.is_empty();
        let mut after = None;
        progress(0, self.source.len());
        loop {
            let (source, target) = (self.source.clone(), self.target.clone());
            let (work, last) = blocking(move || {
                let page = source.iterate(after, PAGE)?;
                let last = page.last().map(|stored| stored.key);
                let mut work = Work::default();
                for stored in page {
                    work.add(stored.document, &target)?;
                }
                Ok((work, last))
            })
            .await?;
            let Some(last) = last else { break };
            after = Some(last);
            let done = counts.embedded + counts.kept;
            let report = |more: usize| progress(done + more, self.source.len());
            self.apply(work, pace, &mut counts, &report).await?;
        }
        if !target_was_empty {
            self.delete_surplus(&mut counts).await?;
        }
        Ok(counts)
    }

    /// Repeats what has become of these documents in the source.
    ///
    /// # Errors
    /// As [`CatchUp::all`].
    pub(super) async fn these(&self, ids: Vec<String>, pace: &Pace) -> Result<Counts, Problem> {
        let mut counts = Counts::default();
        let mut rest = ids;
        while !rest.is_empty() {
            let after = rest.split_off(rest.len().min(PAGE));
            let some = std::mem::replace(&mut rest, after);
            let (source, target) = (self.source.clone(), self.target.clone());
            let work = blocking(move || {
                let mut work = Work::default();
                for id in some {
                    match source.get(&id)? {
                        Some(document) => work.add(document, &target)?,
                        None => work.to_delete.push(id),
                    }
                }
                Ok(work)
            })
            .await?;
            self.apply(work, pace, &mut counts, &|_| ()).await?;
        }
        Ok(counts)
    }

    async fn apply(
        &self,
        work: Work,
        pace: &Pace,
        counts: &mut Counts,
        progress: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<(), Problem> {
        let Work { known, mut to_embed, to_delete, kept } = work;
        counts.kept += kept + known.len();
        let mut done = kept + known.len();
        progress(done);
        self.write(known).await?;
        while !to_embed.is_empty() {
            let after = to_embed.split_off(to_embed.len().min(BATCH));
            let batch = std::mem::replace(&mut to_embed, after);
            let size = batch.len();
            let mut vectors = Vec::with_capacity(size);
            for piece in batch.chunks(PIECE) {
                let start = Instant::now();
                vectors.extend(self.embed(piece).await?);
                pace.rest(start).await;
            }
            self.write(batch.into_iter().zip(vectors).collect()).await?;
            counts.embedded += size;
            done += size;
            progress(done);
        }
        if !to_delete.is_empty() {
            let target = self.target.clone();
            counts.deleted += blocking(move || target.delete(&to_delete)).await?;
        }
        Ok(())
    }

    async fn embed(&self, documents: &[Document]) -> Result<Vec<Vec<f32>>, Problem> {
        loop {
            let texts = documents.iter().map(embedded_text).collect();
            match self.encoder.encode(TextKind::Document, Priority::Bulk, texts).await {
                Ok(mut vectors) => {
                    vectors.iter_mut().for_each(|vector| normalize(vector));
                    return Ok(vectors);
                }
                // Those who wait for an answer go first.
                Err(Error::Overloaded { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn write(&self, pairs: Vec<(Document, Vec<f32>)>) -> Result<(), Problem> {
        if pairs.is_empty() {
            return Ok(());
        }
        let target = self.target.clone();
        blocking(move || target.upsert(pairs)).await.map(drop)
    }

    /// Deletes what the target has and the source has not.
    async fn delete_surplus(&self, counts: &mut Counts) -> Result<(), Problem> {
        let mut after = None;
        loop {
            let (source, target) = (self.source.clone(), self.target.clone());
            let (deleted, last) = blocking(move || {
                let page = target.iterate(after, PAGE)?;
                let last = page.last().map(|stored| stored.key);
                let mut surplus = Vec::new();
                for stored in page {
                    if source.get(&stored.document.id)?.is_none() {
                        surplus.push(stored.document.id);
                    }
                }
                let deleted = if surplus.is_empty() { 0 } else { target.delete(&surplus)? };
                Ok((deleted, last))
            })
            .await?;
            counts.deleted += deleted;
            let Some(last) = last else { return Ok(()) };
            after = Some(last);
        }
    }
}

#[cfg(test)]
mod tests {
    use expandr_index::{IndexConfig, testing::document};
    use expandr_models::testing::HashEncoder;

    use super::*;

    struct Bench {
        catch_up: CatchUp,
        encoder: Arc<HashEncoder>,
        _folder: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let encoder = Arc::new(HashEncoder::new(16).with_id("other@1"));
        let open = |name: &str, id: &str, dimension| {
            Arc::new(Index::open(folder.path().join(name), IndexConfig::new(id, dimension)).unwrap())
        };
        let (source, target) = (open("source", "one@1", 8), open("target", "other@1", 16));
        Bench { catch_up: CatchUp { source, target, encoder: encoder.clone() }, encoder, _folder: folder }
    }

    fn put(index: &Index, documents: impl IntoIterator<Item = Document>) {
        let vector = vec![1.0 / 8f32.sqrt(); 8];
        index.upsert(documents.into_iter().map(|document| (document, vector.clone())).collect()).unwrap();
    }

    fn contents(index: &Index) -> Vec<Document> {
        let mut all: Vec<Document> =
            index.iterate(None, 10_000).unwrap().into_iter().map(|stored| stored.document).collect();
        all.sort_by(|one, other| one.id.cmp(&other.id));
        all
    }

    /// That a document has this vector, but for the last digits that normalising changes.
    fn assert_near(index: &Index, id: &str, expected: &[f32]) {
        let vector = index.vector(id).unwrap().unwrap();
        assert!(vector.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{id}: {vector:?}");
    }

    #[tokio::test]
    async fn a_second_pass_keeps_what_is_the_same_and_mends_the_rest() {
        let Bench { catch_up, encoder, .. } = bench();
        let pace = Pace::alone();
        put(&catch_up.source, (0..300).map(|n| document(format!("d{n}"), format!("text number {n}"))));
        let counts = catch_up.all(&pace, &|_, _| ()).await.unwrap();
        assert_eq!(counts, Counts { embedded: 300, kept: 0, deleted: 0 });
        assert_eq!(contents(&catch_up.source), contents(&catch_up.target));
        assert_near(&catch_up.target, "d7", &encoder.vector("text number 7"));

        let mut labelled = document("d1", "text number 1");
        labelled.metadata.insert("year".into(), 2001.into());
        put(&catch_up.source, [document("d0", "another text"), labelled, document("new", "a new one")]);
        catch_up.source.delete(&["d2".to_owned()]).unwrap();
        let counts = catch_up.all(&pace, &|_, _| ()).await.unwrap();
        assert_eq!(counts, Counts { embedded: 2, kept: 298, deleted: 1 });
        assert_eq!(contents(&catch_up.source), contents(&catch_up.target));
        assert_near(&catch_up.target, "d0", &encoder.vector("another text"));
        assert_near(&catch_up.target, "d1", &encoder.vector("text number 1"));
    }

    #[tokio::test]
    async fn single_documents_are_repeated_whatever_became_of_them() {
        let Bench { catch_up, .. } = bench();
        let pace = Pace::alone();
        put(&catch_up.source, [document("a", "one"), document("b", "two")]);
        catch_up.all(&pace, &|_, _| ()).await.unwrap();
        put(&catch_up.source, [document("a", "changed"), document("c", "three")]);
        catch_up.source.delete(&["b".to_owned()]).unwrap();
        let ids = ["a", "b", "c", "never there"].map(str::to_owned).to_vec();
        let counts = catch_up.these(ids, &pace).await.unwrap();
        assert_eq!(counts, Counts { embedded: 2, kept: 0, deleted: 1 });
        assert_eq!(contents(&catch_up.source), contents(&catch_up.target));
    }

    #[tokio::test]
    async fn a_failing_encoder_ends_it() {
        let Bench { catch_up, encoder, .. } = bench();
        put(&catch_up.source, [document("a", "one")]);
        encoder.set_failing(true);
        assert!(catch_up.all(&Pace::alone(), &|_, _| ()).await.is_err());
    }
}
