//! The retriever's development part as a small collection: its queries with their expansions, searched among all its
//! positives and negatives and those of the training part. The more passages there are, the more a choice made here is
//! like one that is made on a real collection, where more stand before the right one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use expandr_models::TextKind;

use super::{
    Context,
    encode::{dot, encode, encode_means, normalize},
};
use crate::example::ExampleLine;
use crate::folder::JsonLines;
use crate::plan::{EncoderRef, ExamplesNode};
use crate::seed::draw;
use crate::{Error, Result};

/// At most so many queries are searched for; more make no choice better.
const MOST: usize = 2000;
/// At most so many passages of the training part stand beside the development part's own.
const MOST_OTHERS: usize = 10_000;
/// A query's value is 1 / log2(1 + rank) of its positive down to this rank (nDCG with one relevant document).
const DEPTH: usize = 10;

/// The development part with its vectors, which have length 1 (a mean of several less).
pub(super) struct Development {
    /// The queries, in the vectors' order. All have an expansion.
    pub(super) lines: Vec<ExampleLine>,
    /// Of the queries.
    pub(super) queries: Vec<Vec<f32>>,
    /// Of their expansions; the mean where a query has several.
    pub(super) expansions: Vec<Vec<f32>>,
    /// Of all passages.
    pub(super) documents: Vec<Vec<f32>>,
    /// The positions of the queries' positives among the passages.
    pub(super) positives: Vec<usize>,
    /// The id of the encoder that made the vectors.
    pub(super) encoder: String,
}

/// How near all passages are to one query and to its expansion.
pub(super) struct Similarities {
    pub(super) by_query: Vec<f32>,
    by_expansion: Vec<f32>,
    positive: usize,
}

impl Development {
    /// Reads and embeds it.
    ///
    /// # Errors
    /// When it has no query with an expansion; `otherwise` is how to do without it.
    pub(super) async fn load(
        context: &Context<'_>,
        examples: ExamplesNode,
        encoder: EncoderRef,
        otherwise: &str,
    ) -> Result<Self> {
        let lines = read(context, examples)?;
        if lines.is_empty() {
            return Err(Error::Stage {
                stage: context.name.to_owned(),
                detail: format!(
                    "the retriever's development part has no query with an expansion; raise \
                     `data.retriever_dev_share`, or {otherwise}"
                ),
            });
        }
        let others = others(context, examples)?;
        let own = lines.iter().flat_map(|line| std::iter::once(&line.positive).chain(&line.negatives));
        let passages: BTreeSet<&str> = own.chain(&others).map(String::as_str).collect();
        let positions: HashMap<&str, usize> =
            passages.iter().enumerate().map(|(position, passage)| (*passage, position)).collect();
        let positives: Vec<usize> = lines.iter().map(|line| positions[line.positive.as_str()]).collect();
        let encoder = context.steps.encoder(&context.encoder(encoder).0).await?;
        let batch = context.recipe.machine.encode_batch;
        let queries = lines.iter().map(|line| line.query.clone()).collect();
        let expansions = lines.iter().map(|line| line.expansions.clone()).collect();
        let documents = passages.iter().map(|passage| (*passage).to_owned()).collect();
        let mut queries = encode(encoder.as_ref(), TextKind::Query, queries, batch).await?;
        let expansions = encode_means(encoder.as_ref(), expansions, batch).await?;
        let mut documents = encode(encoder.as_ref(), TextKind::Document, documents, batch).await?;
        queries.iter_mut().chain(&mut documents).for_each(|vector| normalize(vector));
        let expansions = expansions.into_iter().flatten().collect();
        let encoder = encoder.info().id.clone();
        Ok(Self { lines, queries, expansions, documents, positives, encoder })
    }

    /// How near all passages are to the query at `index` and to its expansion.
    pub(super) fn similarities(&self, index: usize) -> Similarities {
        let to = |vector: &[f32]| self.documents.iter().map(|document| dot(vector, document)).collect();
        Similarities {
            by_query: to(&self.queries[index]),
            by_expansion: to(&self.expansions[index]),
            positive: self.positives[index],
        }
    }
}

impl Similarities {
    /// nDCG@10 of the search with the query's weight; 1 is the query alone. Ties count for the positive.
    pub(super) fn value(&self, weight: f32) -> f64 {
        // The inner product is linear, so the average need not be made.
        let score =
            |document: usize| weight * self.by_query[document] + (1.0 - weight) * self.by_expansion[document];
        let own = score(self.positive);
        let before = (0..self.by_query.len()).filter(|document| score(*document) > own).count();
        if before < DEPTH { 1.0 / ((before + 2) as f64).log2() } else { 0.0 }
    }
}

/// The lines with an expansion, or as many as are searched for, drawn by the seed.
fn read(context: &Context<'_>, examples: ExamplesNode) -> Result<Vec<ExampleLine>> {
    let seed = context.recipe.seed;
    let mut lines: Vec<(u64, ExampleLine)> = Vec::new();
    for line in JsonLines::<ExampleLine>::open(&context.output(examples.0, 1))? {
        let line = line?;
        if !line.expansions.is_empty() {
            lines.push((draw(seed, &["weight", &line.query, &line.positive]), line));
        }
    }
    lines.sort_by_key(|(drawn, _)| *drawn);
    lines.truncate(MOST);
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

/// Passages of the training part, or as many as are wanted, drawn by the seed. No more are ever in memory.
fn others(context: &Context<'_>, examples: ExamplesNode) -> Result<Vec<String>> {
    let mut drawn = BTreeMap::new();
    for line in JsonLines::<ExampleLine>::open(&context.output(examples.0, 0))? {
        let ExampleLine { positive, negatives, .. } = line?;
        for passage in std::iter::once(positive).chain(negatives) {
            drawn.insert(draw(context.recipe.seed, &["others", &passage]), passage);
            if drawn.len() > MOST_OTHERS {
                drawn.pop_last();
            }
        }
    }
    Ok(drawn.into_values().collect())
}
