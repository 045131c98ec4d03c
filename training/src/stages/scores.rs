//! How close each candidate is to answer, gold document and query.

use std::path::PathBuf;
use std::sync::Arc;

use expandr_models::{Encoder, TextKind, expander::clean};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Context,
    encode::{dot, encode, normalize},
    generate::WrittenLine,
    queries::queries,
};
use crate::folder::{Journal, JournalLine, LineFile, LineIndex};
use crate::pairs::{Pair, Part};
use crate::plan::{Work, canonical};
use crate::progress::Meter;
use crate::recipe::Similarity;
use crate::seed::sha256;
use crate::steps::Model;
use crate::{Error, Result};

/// A line of scores.jsonl: similarities of the candidates, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoreLine {
    /// The query's id.
    pub id: String,
    /// A fingerprint of everything that the similarities follow from.
    #[serde(default)]
    pub of: String,
    /// sim(y, d_i): with the answer (Eq. 13).
    pub answer: Vec<f32>,
    /// sim(d*, d_i): with the gold document (Eq. 14).
    pub gold: Vec<f32>,
    /// sim(q, d_i): with the query, for the filter of the paper's text.
    pub query: Vec<f32>,
}

impl JournalLine for ScoreLine {
    fn id(&self) -> &str {
        &self.id
    }
    fn of(&self) -> &str {
        &self.of
    }
}

/// Queries that are encoded at once, so that the encoder has something to batch.
const QUERIES_AT_ONCE: usize = 4;

struct Job<'a> {
    context: &'a Context<'a>,
    model: Model,
    pairs: PathBuf,
    candidates: LineIndex,
    answers: LineIndex,
    similarity: Similarity,
    basis: String,
}

/// One query with its texts, cleaned.
struct Item {
    id: String,
    of: String,
    query: String,
    gold: String,
    answer: String,
    candidates: Vec<String>,
}

/// Scores what is missing and puts the lines into the order of the queries.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let job = Job::new(context)?;
    let mut journal = Journal::open(&context.work().join("journal.jsonl"))?;
    let finished = context.own(0);
    if finished.is_file() {
        journal.import(&finished)?;
    }
    let (mut total, mut done) = (0, 0);
    for item in job.items()? {
        let item = item?;
        total += 1;
        done += usize::from(journal.has(&item.id, &item.of));
    }
    if done < total {
        let encoder = context.steps.encoder(&job.model).await?;
        job.score_missing(&encoder, &mut journal, total, done).await?;
    }
    let mut file = LineFile::create(&finished)?;
    for item in job.items()? {
        let item = item?;
        journal.copy(&item.id, &item.of, &mut file)?;
    }
    file.finish()?;
    Ok(json!({ "queries": total, "kept_from_before": done }))
}

/// Takes scores that were made elsewhere as they are.
pub(crate) fn adopt(context: &Context<'_>) -> Result<usize> {
    let job = Job::new(context)?;
    let given = context.own(0);
    let lines = LineIndex::open(&given)?;
    let mut journal = Journal::open(&context.work().join("journal.jsonl"))?;
    let mut adopted = 0;
    for item in job.items()? {
        let item = item?;
        if let Some(line) = lines.find::<ScoreLine>(&item.id)? {
            adopted += 1;
            journal.append(&ScoreLine { of: item.of, ..line })?;
        }
    }
    if adopted == 0 {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: format!("{} has no line for any query of this run", given.display()),
        });
    }
    Ok(adopted)
}

impl<'a> Job<'a> {
    fn new(context: &'a Context<'a>) -> Result<Self> {
        let Work::Scores { pairs, candidates, answers, encoder } = &context.node.work else {
            return Err(Error::Input("not a stage of scores".into()));
        };
        let (model, weights) = context.encoder(*encoder);
        Ok(Self {
            context,
            model,
            pairs: context.output(pairs.0, 0),
            candidates: LineIndex::open(&context.output(candidates.0, 0))?,
            answers: LineIndex::open(&context.output(answers.0, 0))?,
            similarity: context.recipe.rewards.similarity,
            basis: format!("{}\0{weights}", canonical(&context.node.settings)),
        })
    }

    fn items(&self) -> Result<impl Iterator<Item = Result<Item>>> {
        let pairs = queries(&self.pairs, Part::trains_expander)?;
        Ok(pairs.map(|pair| self.item(pair?)))
    }

    fn item(&self, pair: Pair) -> Result<Item> {
        let candidates: WrittenLine = self.candidates.get(&pair.id)?;
        let answer: WrittenLine = self.answers.get(&pair.id)?;
        let candidates: Vec<String> = candidates.texts.iter().map(|text| clean(&text.text)).collect();
        let answer = answer.texts.first().map(|text| clean(&text.text)).unwrap_or_default();
        let mut all = vec![self.basis.as_str(), &pair.query, &pair.positive, &answer];
        all.extend(candidates.iter().map(String::as_str));
        let of = sha256(all.join("\0").as_bytes())[..16].to_owned();
        Ok(Item { id: pair.id, of, query: pair.query, gold: pair.positive, answer, candidates })
    }

    async fn score_missing(
        &self,
        encoder: &Arc<dyn Encoder>,
        journal: &mut Journal,
        total: usize,
        done: usize,
    ) -> Result<()> {
        let mut missing = std::collections::HashSet::new();
        for item in self.items()? {
            let item = item?;
            if !journal.has(&item.id, &item.of) {
                missing.insert(item.id);
            }
        }
        let items = self.items()?.filter(|item| match item {
            Ok(item) => missing.contains(&item.id),
            Err(_) => true,
        });
        let mut meter = Meter::new(self.context.observer, self.context.name, "queries", total, done);
        let mut lines = futures::stream::iter(items)
            .map(|item| async move { self.score(encoder.as_ref(), item?).await })
            .buffer_unordered(QUERIES_AT_ONCE);
        while let Some(line) = lines.next().await {
            journal.append(&line?)?;
            meter.add(1);
        }
        Ok(())
    }

    /// The answer is encoded as the query that it stands for (Eq. 13), the gold document as a document.
    async fn score(&self, encoder: &dyn Encoder, item: Item) -> Result<ScoreLine> {
        let batch = self.context.recipe.machine.encode_batch;
        let mut documents = item.candidates;
        documents.push(item.gold);
        let (documents, queries) = tokio::try_join!(
            encode(encoder, TextKind::Document, documents, batch),
            encode(encoder, TextKind::Query, vec![item.answer, item.query], batch),
        )?;
        let mut vectors = [documents, queries];
        if self.similarity == Similarity::Cosine {
            vectors.iter_mut().flatten().for_each(|vector| normalize(vector));
        }
        let [mut candidates, queries] = vectors;
        let (Some(gold), [answer, query]) = (candidates.pop(), queries.as_slice()) else {
            return Err(Error::Input(format!(
                "encoder {} gave fewer vectors than it got texts",
                encoder.info().id
            )));
        };
        let to = |vector: &[f32]| candidates.iter().map(|candidate| dot(vector, candidate)).collect();
        Ok(ScoreLine { answer: to(answer), gold: to(&gold), query: to(query), id: item.id, of: item.of })
    }
}
