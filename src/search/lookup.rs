//! What the pipeline asks of the index: nearest vectors, documents, explanations. Index calls block, so they run on the
//! runtime's blocking pool.

use std::{sync::Arc, time::Instant};

use expandr_index::{Document, Filter, Hit, How, Index, LexicalRequest};

use super::{
    answer::{HitDocument, HitExplanation, SearchHit, VectorExplanation},
    average::dot,
    check::CheckedSearch,
    ranking::Ranked,
    timings::milliseconds,
};
use crate::{
    bundle::Bundle,
    http::problem::{Code, Problem},
};

/// What the index found, and which way it searched.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) hits: Vec<Hit>,
    pub(super) how: How,
}

/// Searches on a blocking thread; the milliseconds are those of the search itself.
pub(super) async fn search_index(
    bundle: &Arc<Bundle>,
    vector: Vec<f32>,
    top_k: usize,
    request: &CheckedSearch,
) -> Result<(Found, f64), Problem> {
    let index = bundle.index.clone();
    let filter: Option<Filter> = request.filter.clone();
    let mode = request.search_mode;
    let ef = request.ef;
    blocking(move || {
        let start = Instant::now();
        let search =
            expandr_index::SearchRequest { vector: &vector, top_k, filter: filter.as_ref(), mode, ef };
        let outcome = index.search(&search)?;
        Ok((Found { hits: outcome.hits, how: outcome.how }, milliseconds(start.elapsed())))
    })
    .await
}

/// Searches by the query's words on a blocking thread; the milliseconds are those of the search itself.
pub(super) async fn search_words(
    bundle: &Arc<Bundle>,
    top_k: usize,
    request: &CheckedSearch,
) -> Result<(Vec<Hit>, f64), Problem> {
    let index = bundle.index.clone();
    let filter: Option<Filter> = request.filter.clone();
    let query = request.query.clone();
    blocking(move || {
        let start = Instant::now();
        let search = LexicalRequest { text: &query, top_k, filter: filter.as_ref() };
        Ok((index.search_lexical(&search)?.hits, milliseconds(start.elapsed())))
    })
    .await
}

/// What explanations compare with: the vectors that were searched with, and the keys of the raw hits, best first.
pub(super) struct VectorSide {
    pub(super) query_vector: Vec<f32>,
    pub(super) expansion_vectors: Vec<Vec<f32>>,
    pub(super) raw_keys: Vec<u64>,
}

impl VectorSide {
    fn explain(&self, vector: &[f32], key: u64) -> VectorExplanation {
        VectorExplanation {
            query_cosine: dot(vector, &self.query_vector),
            expansion_cosines: self.expansion_vectors.iter().map(|e| dot(vector, e)).collect(),
            rank_without_expansion: self.raw_keys.iter().position(|raw| *raw == key).map(|at| at + 1),
        }
    }
}

/// Reads the documents of `ranked`, or their ids alone, and explains them where asked for. A document deleted meanwhile is left out.
pub(super) async fn fetch(
    bundle: &Arc<Bundle>,
    request: &CheckedSearch,
    ranked: Vec<Ranked>,
    vector_side: Option<VectorSide>,
) -> Result<Vec<SearchHit>, Problem> {
    let index = bundle.index.clone();
    let explain = request.explain;
    let include_text = request.include_text;
    blocking(move || {
        let keys: Vec<u64> = ranked.iter().map(|ranked| ranked.hit.key).collect();
        let documents =
            if include_text { whole_documents(&index, &keys)? } else { ids_alone(&index, &keys)? };
        let wants_vectors = explain && vector_side.is_some();
        let vectors = if wants_vectors { index.vectors(&keys) } else { vec![None; keys.len()] };
        let mut found = Vec::with_capacity(ranked.len());
        for ((ranked, document), vector) in ranked.iter().zip(documents).zip(vectors) {
            let Some((id, document)) = document else { continue };
            let side = vector_side.as_ref().zip(vector);
            let explain = explain.then(|| HitExplanation {
                vectors: side.map(|(side, vector)| side.explain(&vector, ranked.hit.key)),
                dense: ranked.dense,
                lexical: ranked.lexical,
            });
            found.push(SearchHit { rank: found.len() + 1, id, score: ranked.hit.score, document, explain });
        }
        Ok(found)
    })
    .await
}

/// By key: a document's id and what a hit says of it; none for one that is gone.
type Fetched = Vec<Option<(String, Option<HitDocument>)>>;

fn whole_documents(index: &Index, keys: &[u64]) -> Result<Fetched, expandr_index::Error> {
    let whole = |document: Document| {
        let Document { id, title, text, metadata } = document;
        (id, Some(HitDocument { title, text, metadata }))
    };
    Ok(index.documents(keys)?.into_iter().map(|document| document.map(whole)).collect())
}

fn ids_alone(index: &Index, keys: &[u64]) -> Result<Fetched, expandr_index::Error> {
    Ok(index.ids(keys)?.into_iter().map(|id| id.map(|id| (id, None))).collect())
}

/// Runs index work on a blocking thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, expandr_index::Error> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => {
            tracing::error!(%error, "index work ended early");
            Err(Problem::new(Code::Internal, "the index failed; see the log under this request's id"))
        }
    }
}
