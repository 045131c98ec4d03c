//! Which way a search goes, and what it returns.

use std::sync::atomic::Ordering;

use roaring::RoaringBitmap;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::hnsw::MAX_CANDIDATES;
use crate::index::{Core, State};
use crate::vector::{self, Hit, TopHits, dot};
use crate::vector_index::VectorIndex;

/// Most hits that one search returns.
pub const MAX_TOP_K: usize = 1000;

/// What a filtered walk through the graph costs, in vectors scanned exactly: about this, times ef, divided by the share
/// of documents that match. Measured: 1.9 ms at one half and ef 64, with 3,200 vectors scanned in a millisecond.
const FILTERED_WALK_COST: f64 = 48.0;

/// Which way to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SearchMode {
    /// Exact for small corpora and selective filters, the graph otherwise.
    #[default]
    Auto,
    /// Score every matching document.
    Exact,
    /// Walk the graph even where a scan would be faster.
    Hnsw,
}

/// A search.
#[derive(Debug, Clone, Copy)]
pub struct SearchRequest<'a> {
    /// The query's vector; need not be normalised.
    pub vector: &'a [f32],
    /// Hits wanted, 1 to [`MAX_TOP_K`].
    pub top_k: usize,
    /// Only documents that it selects.
    pub filter: Option<&'a Filter>,
    /// Which way to search.
    pub mode: SearchMode,
    /// Candidates that the graph search considers, 1 to [`MAX_CANDIDATES`]; `None` = the index's setting, or twice
    /// `top_k` if that is more.
    pub ef: Option<usize>,
}

impl<'a> SearchRequest<'a> {
    /// A plain search.
    pub fn new(vector: &'a [f32], top_k: usize) -> Self {
        Self { vector, top_k, filter: None, mode: SearchMode::Auto, ef: None }
    }
}

/// Which way a search went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Every document was scored.
    Exact,
    /// The graph gave candidates, which were scored in f32.
    Hnsw,
    /// Every document that the filter selects was scored.
    FilteredExact,
    /// The graph gave candidates that the filter selects, which were scored in f32.
    FilteredHnsw,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SearchOutcome {
    /// Best first; equal scores by key.
    pub hits: Vec<Hit>,
    /// Which way the search went.
    pub how: How,
    /// How many documents there were to choose from, after the filter.
    pub matching: usize,
}

/// A search by words.
#[derive(Debug, Clone, Copy)]
pub struct LexicalRequest<'a> {
    /// Plain text: a question, a passage, anything. It has no syntax.
    pub text: &'a str,
    /// Hits wanted, 1 to [`MAX_TOP_K`].
    pub top_k: usize,
    /// Only documents that it selects.
    pub filter: Option<&'a Filter>,
}

impl<'a> LexicalRequest<'a> {
    /// A plain search.
    pub fn new(text: &'a str, top_k: usize) -> Self {
        Self { text, top_k, filter: None }
    }
}

/// What was found by words.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LexicalOutcome {
    /// Best first; equal scores by key. Scores are BM25's. A document without a word of the query is none.
    pub hits: Vec<Hit>,
    /// Distinct words of the query that count.
    pub terms: usize,
    /// How many documents there were to choose from, after the filter.
    pub matching: usize,
}

impl Core {
    pub(crate) fn search_lexical(&self, request: &LexicalRequest<'_>) -> Result<LexicalOutcome> {
        check_top_k(request.top_k)?;
        let lexical = self.lexical.as_ref().ok_or(Error::LexicalOff)?;
        if lexical.has_failed() {
            return Err(Error::Lexical("it failed".into()));
        }
        let query = lexical.analyzer.terms(&[request.text]);
        let _permit = lexical.permits.acquire();
        let mut scratch = lexical.scratch.lock().pop().unwrap_or_default();
        let state = self.state.read();
        let among = request.filter.map(|filter| state.fields.select(filter, state.slab.live()));
        let matching = among.as_ref().map_or(state.slab.len(), |slots| slots.len() as usize);
        let view = state.lexical.as_ref().ok_or(Error::LexicalOff)?;
        let hits = view.search(
            &query,
            self.config.bm25,
            request.top_k.min(matching),
            among.as_ref(),
            &state.slab,
            &mut scratch,
        )?;
        lexical.scratch.lock().push(scratch);
        Ok(LexicalOutcome { hits, terms: query.counts.len(), matching })
    }

    pub(crate) fn search(&self, request: &SearchRequest<'_>) -> Result<SearchOutcome> {
        check_top_k(request.top_k)?;
        if let Some(ef) = request.ef
            && !(1..=MAX_CANDIDATES).contains(&ef)
        {
            return Err(Error::InvalidSearch(format!("ef is {ef}; choose 1 to {MAX_CANDIDATES}")));
        }
        vector::validate(request.vector, self.config.dimension, || "query vector".into())?;

        let state = self.state.read();
        let among = request.filter.map(|filter| state.fields.select(filter, state.slab.live()));
        let matching = among.as_ref().map_or(state.slab.len(), |slots| slots.len() as usize);
        let top_k = request.top_k.min(matching);
        let ef = request.ef.unwrap_or_else(|| self.config.ef_search.max(2 * top_k));
        if !self.scans(request.mode, &state, among.is_some(), matching, ef)
            && let Some(hits) = self.walk(request.vector, top_k, ef.min(matching), &state, among.as_ref())?
        {
            let how = if among.is_some() { How::FilteredHnsw } else { How::Hnsw };
            return Ok(SearchOutcome { hits, how, matching });
        }
        let how = if among.is_some() { How::FilteredExact } else { How::Exact };
        let hits = state.slab.search(request.vector, top_k, among.as_ref());
        Ok(SearchOutcome { hits, how, matching })
    }

    /// Whether to score everything rather than walk the graph.
    fn scans(&self, mode: SearchMode, state: &State, filtered: bool, matching: usize, ef: usize) -> bool {
        if matching == 0 || !self.graph_is_complete.load(Ordering::Acquire) {
            return true;
        }
        match mode {
            SearchMode::Exact => true,
            SearchMode::Hnsw => false,
            SearchMode::Auto if matching < self.config.exact_threshold => true,
            SearchMode::Auto if !filtered => false,
            SearchMode::Auto => {
                let share = matching as f64 / state.slab.len() as f64;
                (matching as f64) < FILTERED_WALK_COST * ef as f64 / share
            }
        }
    }

    /// The best of `ef` candidates from the graph, scored in f32. `None` when it found fewer candidates: then the walk
    /// ended too early, as it can beside an addition, and what it did find may not be the best.
    fn walk(
        &self,
        query: &[f32],
        top_k: usize,
        ef: usize,
        state: &State,
        among: Option<&RoaringBitmap>,
    ) -> Result<Option<Vec<Hit>>> {
        let candidates = ef.max(top_k).min(MAX_CANDIDATES);
        let graph = self.current_graph();
        let found = match among {
            None => graph.search(query, candidates, candidates, None)?,
            Some(slots) => {
                let allow = |key| state.slab.slot(key).is_some_and(|slot| slots.contains(slot));
                graph.search(query, candidates, candidates, Some(&allow))?
            }
        };
        let mut top = TopHits::new(top_k);
        if found.len() < candidates {
            tracing::debug!(
                found = found.len(),
                candidates,
                "the graph found too few candidates; scanning instead"
            );
            return Ok(None);
        }
        for hit in found {
            // A key that is being added or was just removed is in the graph but not among the documents.
            if let Some(vector) = state.slab.get(hit.key) {
                top.push(Hit { key: hit.key, score: dot(query, vector) });
            }
        }
        let hits = top.into_sorted();
        Ok((hits.len() == top_k).then_some(hits))
    }
}

fn check_top_k(top_k: usize) -> Result<()> {
    if (1..=MAX_TOP_K).contains(&top_k) {
        return Ok(());
    }
    Err(Error::InvalidSearch(format!("top_k is {top_k}; ask for 1 to {MAX_TOP_K}")))
}
