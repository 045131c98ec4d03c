//! What a search tells before its answer, to whoever watches it: the raw hits as soon as they are there, and the passages as
//! they are written. A search that nobody watches does nothing of it.

use std::{sync::Arc, time::Instant};

use expandr_index::Hit;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;

use super::{
    answer::{SearchHit, Searched},
    check::CheckedSearch,
    check_ranking::CheckedRanking,
    lookup::{Found, VectorSide, fetch},
    ranking::{self, Ranked},
    request::Ranking,
    timings::milliseconds,
};
use crate::{bundle::Bundle, http::problem::Problem};

/// Something that a search tells before its answer.
#[derive(Debug)]
pub enum SearchEvent {
    /// What the query alone finds: once, before the answer.
    Raw(RawAnswer),
    /// The next piece of a passage.
    Piece(Piece),
}

/// What the query alone finds: the answer's hits if there were no expansion.
#[derive(Debug, Serialize)]
pub struct RawAnswer {
    /// Names this request in logs.
    pub request_id: String,
    /// The found documents, best first.
    pub hits: Vec<SearchHit>,
    /// The bundle that answers.
    pub bundle: String,
    /// What ranked the documents.
    pub ranking: Ranking,
    /// Which way the index searched.
    pub searched: Searched,
    /// Wall time from the request's arrival to these hits, in milliseconds.
    pub took_ms: f64,
}

/// A piece of a passage, as the language model wrote it: not cleaned, and perhaps beyond what the budget lets through.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Piece {
    /// Which of the passages, from 0.
    pub passage: usize,
    /// What comes behind the pieces so far.
    pub text: String,
}

/// Who hears of a search's events. What is told waits in memory for its reader, because a search must not wait for a client:
/// never more than the raw hits and the passages, whose sizes are limited.
#[derive(Debug)]
pub struct Watcher(Option<mpsc::UnboundedSender<SearchEvent>>);

impl Watcher {
    /// A watcher, and what it hears. The events end when the watcher is dropped.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<SearchEvent>) {
        let (sender, events) = mpsc::unbounded_channel();
        (Self(Some(sender)), events)
    }

    /// One that hears nothing, and costs nothing.
    pub fn silent() -> Self {
        Self(None)
    }

    fn is_silent(&self) -> bool {
        self.0.is_none()
    }

    fn tell(&self, event: impl FnOnce() -> SearchEvent) {
        if let Some(sender) = &self.0 {
            // Whoever listened has gone, and this search is about to be dropped.
            let _ = sender.send(event());
        }
    }

    /// The passage `passage` as it grows.
    pub fn passage(&self, passage: usize) -> Pieces<'_> {
        Pieces { watcher: self, passage, told: 0 }
    }
}

/// Tells what is new of one passage.
pub struct Pieces<'a> {
    watcher: &'a Watcher,
    passage: usize,
    /// Bytes that were told.
    told: usize,
}

impl Pieces<'_> {
    /// The passage is `text` by now, which begins with what was told before.
    pub fn tell(&mut self, text: &str) {
        if self.watcher.is_silent() {
            return;
        }
        let Some(fresh) = text.get(self.told..).filter(|fresh| !fresh.is_empty()) else { return };
        self.told = text.len();
        let piece = Piece { passage: self.passage, text: fresh.to_owned() };
        self.watcher.tell(|| SearchEvent::Piece(piece));
    }
}

/// One search and who watches it. Gathers what the query alone finds by vector and by words, and tells it once the ranking has
/// all that it is made of.
pub(super) struct Watched<'a> {
    watcher: &'a Watcher,
    bundle: &'a Arc<Bundle>,
    request: &'a CheckedSearch,
    started: Instant,
    request_id: &'a str,
    found: Mutex<RawFound>,
}

#[derive(Default)]
struct RawFound {
    by_vector: Option<(Found, Vec<f32>)>,
    by_words: Option<Vec<Hit>>,
}

/// A raw ranking, before the documents are read.
type RawRanking = (Vec<Ranked>, Searched, Option<VectorSide>);

impl<'a> Watched<'a> {
    pub(super) fn new(
        watcher: &'a Watcher,
        bundle: &'a Arc<Bundle>,
        request: &'a CheckedSearch,
        started: Instant,
        request_id: &'a str,
    ) -> Self {
        Self { watcher, bundle, request, started, request_id, found: Mutex::default() }
    }

    pub(super) fn watcher(&self) -> &'a Watcher {
        self.watcher
    }

    /// The query's vector found this.
    pub(super) async fn found_by_vector(&self, found: &Found, query_vector: &[f32]) -> Result<(), Problem> {
        if self.watcher.is_silent() {
            return Ok(());
        }
        self.found.lock().by_vector = Some((found.clone(), query_vector.to_vec()));
        self.tell_when_whole().await
    }

    /// The query's words found this.
    pub(super) async fn found_by_words(&self, hits: &[Hit]) -> Result<(), Problem> {
        if self.watcher.is_silent() {
            return Ok(());
        }
        self.found.lock().by_words = Some(hits.to_vec());
        self.tell_when_whole().await
    }

    async fn tell_when_whole(&self) -> Result<(), Problem> {
        let Some((ranked, searched, vectors)) = self.raw_ranking() else { return Ok(()) };
        let hits = fetch(self.bundle, self.request, ranked, vectors).await?;
        self.watcher.tell(|| {
            SearchEvent::Raw(RawAnswer {
                request_id: self.request_id.to_owned(),
                hits,
                bundle: self.bundle.id.to_string(),
                ranking: self.request.ranking.kind(),
                searched,
                took_ms: milliseconds(self.started.elapsed()),
            })
        });
        Ok(())
    }

    /// None while a part of it is still being searched.
    fn raw_ranking(&self) -> Option<RawRanking> {
        let mut found = self.found.lock();
        let RawFound { by_vector, by_words } = &mut *found;
        let top_k = self.request.top_k;
        let fusion = match self.request.ranking {
            CheckedRanking::Lexical => {
                let searched = Searched { dense: None, lexical: true };
                return Some((ranking::by_words(by_words.take()?), searched, None));
            }
            CheckedRanking::Dense => None,
            CheckedRanking::Hybrid(fusion) => {
                by_words.as_ref()?;
                Some(fusion)
            }
        };
        let (dense, query_vector) = by_vector.take()?;
        let raw_keys = dense.hits.iter().map(|hit| hit.key).collect();
        let vectors = VectorSide { query_vector, expansion_vectors: Vec::new(), raw_keys };
        let searched = Searched { dense: Some(dense.how), lexical: fusion.is_some() };
        let ranked = match fusion {
            None => ranking::by_vectors(dense.hits, top_k),
            Some(fusion) => ranking::fuse(&dense.hits, &by_words.take()?, fusion, top_k),
        };
        Some((ranked, searched, Some(vectors)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_what_is_new() {
        let (watcher, mut events) = Watcher::new();
        let mut pieces = watcher.passage(1);
        for text in ["", "Ein", "Ein", "Ein Fluß"] {
            pieces.tell(text);
        }
        drop(watcher);
        let mut told = Vec::new();
        while let Some(SearchEvent::Piece(piece)) = events.blocking_recv() {
            assert_eq!(piece.passage, 1);
            told.push(piece.text);
        }
        assert_eq!(told, ["Ein", " Fluß"]);
    }
}
