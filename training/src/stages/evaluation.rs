//! Ranked lists and their scores: query vectors, averaged with what stands beside them (Eq. 8), and exact search.

use std::collections::BTreeMap;
use std::path::Path;

use expandr_evaluation::metrics::Options;
use expandr_evaluation::{Collection, Metric, Run, evaluate};
use expandr_models::gate::{self, Features, Gate};
use expandr_models::{Encoder, TextKind};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Context,
    encode::{encode, encode_means, normalize},
    generate::WrittenLine,
    search::search,
    vectors::{Contents, ids},
    weight::query_weight,
};
use crate::example::{expansions, repetitions};
use crate::folder::{LineFile, LineIndex, replace_file, replace_folder};
use crate::pairs::query_id;
use crate::plan::{SearchText, Work};
use crate::progress::Meter;
use crate::report::CollectionScores;
use crate::{Error, Result, collections};

/// How deep the ranked lists go at least.
const DEPTH: usize = 100;

/// `scores.json` of a row: what it reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowScores {
    /// By collection, in the recipe's order.
    pub(crate) collections: Vec<CollectionScores>,
}

impl RowScores {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("scores.json");
        let text = fs_err::read(&path)?;
        serde_json::from_slice(&text).map_err(|error| {
            Error::Input(format!("{}: not readable ({error}); do stage evaluation again", path.display()))
        })
    }
}

struct Job<'a> {
    context: &'a Context<'a>,
    encoder: &'a dyn Encoder,
    text: SearchText,
    weight: f32,
    written: Option<LineIndex>,
    gate: Option<Gate>,
    metrics: Vec<Metric>,
}

/// Searches, scores, and writes runs in TREC form beside scores.json.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Evaluation { encoder, vectors, text, expansions, weight, gate } = &context.node.work else {
        return Err(Error::Input("not a stage of evaluation".into()));
    };
    let encoder = context.steps.encoder(&context.encoder(*encoder).0).await?;
    let metrics: std::result::Result<Vec<Metric>, _> =
        context.recipe.evaluation.metrics.iter().map(|name| name.parse()).collect();
    let written = match expansions {
        Some(node) => Some(LineIndex::open(&context.output(node.0, 0))?),
        None => None,
    };
    let gate = match gate {
        Some(node) => Some(Gate::read(&context.output(node.0, 0))?),
        None => None,
    };
    let weight = query_weight(context, *weight)?;
    let job = Job {
        weight: weight as f32,
        context,
        encoder: encoder.as_ref(),
        text: *text,
        written,
        gate,
        metrics: metrics?,
    };
    let folder = context.output(vectors.0, 0);
    let contents = Contents::read(&folder)?;
    let opened = collections::open(context.recipe)?;
    let out = context.work().join("runs");
    fs_err::create_dir_all(&out)?;
    let mut scores = RowScores::default();
    let mut meter = Meter::new(context.observer, context.name, "collections", opened.len(), 0);
    for (collection, settings) in opened.iter().zip(&context.recipe.evaluation.collections) {
        let vectors = contents.of(settings)?;
        let ids = ids(&folder, &vectors.file)?;
        let place = folder.join(format!("{}.f32", vectors.file));
        let (run, mut found) = job.search(collection, &place, &ids).await?;
        write_run(&run, &out.join(format!("{}.trec", vectors.file)))?;
        job.score(collection, &run, &mut found);
        scores.collections.push(found);
        meter.add(1);
    }
    let json = serde_json::to_vec(&scores).map_err(|error| Error::Input(error.to_string()))?;
    replace_file(&out.join("scores.json"), &json)?;
    replace_folder(&out, &context.own(0))?;
    let means: BTreeMap<&str, &BTreeMap<String, f64>> =
        scores.collections.iter().map(|scores| (scores.name.as_str(), &scores.mean)).collect();
    let skipped: usize = scores.collections.iter().map(|scores| scores.skipped).sum();
    Ok(json!({ "mean": means, "query_weight": weight, "skipped": skipped }))
}

impl Job<'_> {
    async fn search(
        &self,
        collection: &Collection,
        vectors: &Path,
        ids: &[String],
    ) -> Result<(Run, CollectionScores)> {
        let mut scores = CollectionScores { name: collection.name.clone(), ..CollectionScores::default() };
        let texts: Vec<String> = collection.queries.iter().map(|query| query.text.clone()).collect();
        let batch = self.context.recipe.machine.encode_batch;
        let mut queries = encode(self.encoder, TextKind::Query, texts.clone(), batch).await?;
        queries.iter_mut().for_each(|vector| normalize(vector));
        if self.text != SearchText::Query {
            let mut positions = Vec::new();
            let mut beside = Vec::new();
            let expand = self.ask_gate(&texts, &queries, vectors, ids)?;
            for (position, text) in texts.iter().enumerate() {
                if !expand[position] {
                    scores.skipped += 1;
                    continue;
                }
                let found = self.beside(text)?;
                if found.is_empty() {
                    scores.without_expansion += 1;
                    continue;
                }
                let words: usize = found.iter().map(|text| text.split_whitespace().count()).sum();
                scores.mean_words += words as f64 / texts.len() as f64;
                positions.push(position);
                beside.push(found);
            }
            let expansions = encode_means(self.encoder, beside, batch).await?;
            for (position, expansion) in positions.into_iter().zip(expansions.into_iter().flatten()) {
                for (query, expansion) in queries[position].iter_mut().zip(&expansion) {
                    *query = self.weight * *query + (1.0 - self.weight) * expansion;
                }
            }
        }
        let deepest = self.metrics.iter().filter_map(|metric| metric.cut).max().unwrap_or(0).max(DEPTH);
        // One more, for the query's own document is dropped.
        let hits = search(vectors, ids, &queries, deepest + 1)?;
        let mut run = Run::new();
        for (query, hits) in collection.queries.iter().zip(hits) {
            run.insert(&query.id, hits)?;
        }
        run.drop_own_documents();
        run.truncate(deepest);
        Ok((run, scores))
    }

    /// Which queries to expand: all without a gate. It sees what the service would see: the query's own document is among
    /// the hits, if it is one.
    fn ask_gate(
        &self,
        texts: &[String],
        queries: &[Vec<f32>],
        vectors: &Path,
        ids: &[String],
    ) -> Result<Vec<bool>> {
        let Some(gate) = &self.gate else { return Ok(vec![true; texts.len()]) };
        let hits = search(vectors, ids, queries, gate::DEPTH)?;
        let decide = |(text, hits): (&String, Vec<expandr_evaluation::Hit>)| {
            let cosines: Vec<f32> = hits.iter().map(|hit| hit.score).collect();
            gate.decide(&Features::new(text, &cosines)).expand
        };
        Ok(texts.iter().zip(hits).map(decide).collect())
    }

    /// What stands beside a query.
    fn beside(&self, query: &str) -> Result<Vec<String>> {
        let Some(written) = &self.written else { return Ok(Vec::new()) };
        // Whatever the line calls it: queries that differ in case or white space share one.
        let line = WrittenLine { query: query.to_owned(), ..written.get(&query_id(query))? };
        Ok(match self.text {
            SearchText::Query => Vec::new(),
            SearchText::Expansion | SearchText::Gated => expansions(&line, self.context.recipe),
            SearchText::Repetition => repetitions(&line, self.context.recipe),
        })
    }

    fn score(&self, collection: &Collection, run: &Run, scores: &mut CollectionScores) {
        // With fewer queries on purpose, those left out are not failures.
        let whole = self.context.recipe.evaluation.max_queries.is_none();
        let options = Options { missing_count_as_zero: whole, ..Options::default() };
        let found = evaluate(&collection.qrels, run, &self.metrics, &options);
        for (column, metric) in self.metrics.iter().enumerate() {
            let name = metric.to_string();
            scores.mean.insert(name.clone(), found.mean[column]);
            let values = found.per_query.iter().map(|(query, values)| (query.clone(), values[column]));
            scores.queries.insert(name, values.collect());
        }
    }
}

fn write_run(run: &Run, path: &Path) -> Result<()> {
    let mut bytes = Vec::new();
    run.write("expandr", &mut bytes)?;
    let mut file = LineFile::create(path)?;
    file.write_bytes(&bytes)?;
    file.finish()
}
