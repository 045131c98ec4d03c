//! Hard negatives: passages that the untrained encoder finds for a query, and that are not known to answer it.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use expandr_models::TextKind;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Context,
    encode::{encode, normalize},
    search::search,
    vectors::{append_vectors, whole_vectors},
};
use crate::folder::{JsonLines, LineFile};
use crate::pairs::{Pair, Split};
use crate::plan::Work;
use crate::progress::Meter;
use crate::seed::{draw, fingerprint};
use crate::text::normalize as same;
use crate::{Error, Result};

/// A line of negatives.jsonl.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NegativesLine {
    /// The query's id.
    pub(crate) id: String,
    /// Passages that don't answer it, as far as is known.
    pub(crate) negatives: Vec<String>,
}

/// Queries that are searched for at a time.
const QUERIES_AT_A_TIME: usize = 4096;

/// What is searched: the positives of the training part, each once.
#[derive(Default)]
struct Passages {
    texts: Vec<String>,
    /// Positions as texts, which is what the search calls documents by.
    names: Vec<String>,
}

/// A training query with its own positives.
struct Query {
    id: String,
    text: String,
    positives: HashSet<u128>,
}

/// Searches the training part's positives for its queries, and draws negatives from the ranks that the recipe names.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Negatives { pairs, encoder } = &context.node.work else {
        return Err(Error::Input("not a stage of negatives".into()));
    };
    let (passages, queries) = read(&context.output(pairs.0, 0))?;
    let encoder = context.steps.encoder(&context.encoder(*encoder).0).await?;
    let batch = context.recipe.machine.encode_batch;
    let vectors = context.work().join("passages.f32");
    let done = whole_vectors(&vectors, encoder.info().dimension)?.min(passages.texts.len());
    let total = passages.texts.len() + queries.len();
    let mut meter = Meter::new(context.observer, context.name, "texts", total, done);
    let texts = passages.texts[done..].iter().cloned().map(Ok);
    append_vectors(encoder.as_ref(), &vectors, texts, batch, &mut meter).await?;

    let settings = &context.recipe.contrastive;
    let mut file = LineFile::create(&context.own(0))?;
    let mut found = 0;
    for queries in queries.chunks(QUERIES_AT_A_TIME) {
        let texts = queries.iter().map(|query| query.text.clone()).collect();
        let mut wanted = encode(encoder.as_ref(), TextKind::Query, texts, batch).await?;
        wanted.iter_mut().for_each(|vector| normalize(vector));
        let hits = search(&vectors, &passages.names, &wanted, settings.mined_to)?;
        for (query, hits) in queries.iter().zip(hits) {
            let ranked = hits.iter().filter_map(|hit| hit.id.parse::<usize>().ok());
            let others: Vec<&String> = ranked
                .map(|position| &passages.texts[position])
                .filter(|text| !query.positives.contains(&fingerprint(&[&same(text)])))
                .skip(settings.mined_from.saturating_sub(1))
                .collect();
            let negatives = draw_some(context.recipe.seed, &query.id, others, settings.mined_negatives);
            found += negatives.len();
            file.line(&NegativesLine { id: query.id.clone(), negatives })?;
        }
        meter.add(queries.len());
    }
    file.finish()?;
    Ok(json!({ "queries": queries.len(), "passages": passages.texts.len(), "negatives": found }))
}

fn read(pairs: &Path) -> Result<(Passages, Vec<Query>)> {
    let mut passages = Passages::default();
    let mut seen = HashSet::new();
    let mut queries: Vec<Query> = Vec::new();
    let mut by_id: HashMap<String, usize> = HashMap::new();
    for pair in JsonLines::<Pair>::open(pairs)? {
        let pair = pair?;
        if !pair.part.trains_retriever() || pair.split != Split::Train {
            continue;
        }
        let positive = fingerprint(&[&same(&pair.positive)]);
        if seen.insert(positive) {
            passages.names.push(passages.texts.len().to_string());
            passages.texts.push(pair.positive);
        }
        let position = *by_id.entry(pair.id.clone()).or_insert(queries.len());
        if position == queries.len() {
            queries.push(Query { id: pair.id, text: pair.query, positives: HashSet::new() });
        }
        queries[position].positives.insert(positive);
    }
    Ok((passages, queries))
}

/// Some of the candidates, drawn by the seed, in the order of their ranks.
fn draw_some(seed: u64, id: &str, candidates: Vec<&String>, count: usize) -> Vec<String> {
    let mut drawn: Vec<(u64, usize)> = candidates
        .iter()
        .enumerate()
        .map(|(rank, text)| (draw(seed, &["negative", id, text]), rank))
        .collect();
    drawn.sort_unstable();
    drawn.truncate(count);
    drawn.sort_unstable_by_key(|(_, rank)| *rank);
    drawn.into_iter().map(|(_, rank)| candidates[rank].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negatives_are_drawn_by_the_seed_and_keep_their_order() {
        let texts: Vec<String> = (0..20).map(|n| format!("passage {n:02}")).collect();
        let some = |seed| draw_some(seed, "id", texts.iter().collect(), 5);
        assert_eq!(some(1), some(1));
        assert_ne!(some(1), some(2));
        let drawn = some(1);
        assert!(drawn.len() == 5 && drawn.is_sorted());
        assert_eq!(draw_some(1, "id", texts[..3].iter().collect(), 5).len(), 3);
    }
}
