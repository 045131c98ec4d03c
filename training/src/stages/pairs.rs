//! Sources to pairs.jsonl, in two passes: what is admitted goes to a file beside, and when all numbers are drawn, each
//! pair to its part. Only fingerprints and numbers are held in memory.

use expandr_evaluation::Collection;
use serde::Serialize;
use serde_json::{Value, json};

use super::Context;
use crate::folder::{JsonLines, LineFile};
use crate::pairs::{Admission, HeldOut, Pair, PairRules, Part, Split};
use crate::readers::{Intake, SourceCounts, SourceSettings, read};
use crate::recipe::Recipe;
use crate::split::{Drawn, Parts, Place};
use crate::{Error, Result, collections};

/// Writes pairs.jsonl; the counts of every source come back.
pub(crate) fn run(context: &Context<'_>) -> Result<Value> {
    let recipe = context.recipe;
    let held_out = held_out(recipe)?;
    let held_out_count = held_out.len();
    let rules = PairRules { seed: recipe.seed, max_words: recipe.data.max_words };
    let mut admission = Admission::new(rules, held_out);
    let admitted = context.work().join("admitted.jsonl");
    let (mut counts, drawn) = admit(context, &mut admission, &admitted)?;

    let limits: Vec<Option<usize>> = recipe.data.sources.iter().map(|source| source.limit).collect();
    let parts = Parts::plan(&drawn, &limits, &recipe.data.parts());
    let mut file = LineFile::create(&context.own(0))?;
    let mut tally = Tally::default();
    for (pair, drawn) in JsonLines::<Pair>::open(&admitted)?.zip(&drawn) {
        let mut pair = pair?;
        let counts = &mut counts[drawn.source];
        match parts.place(drawn) {
            Place::OverLimit => counts.over_limit += 1,
            Place::Surplus => counts.surplus += 1,
            Place::In(part, split) => {
                (pair.part, pair.split) = (part, split);
                counts.false_negatives += admission.drop_false_negatives(&mut pair);
                counts.kept += 1;
                tally.count(&pair);
                file.line(&pair)?;
            }
        }
    }
    fs_err::remove_file(&admitted)?;
    for counts in &counts {
        context.note(&format!("source {}: {} of {} pairs taken", counts.source, counts.kept, counts.read));
        tracing::info!(counts = ?counts, "source read");
    }
    if tally.pairs == 0 {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: format!("no pair is left; what became of them: {}", json!(counts)),
        });
    }
    file.finish()?;
    Ok(json!({ "sources": counts, "held_out_queries": held_out_count, "parts": tally }))
}

/// The queries that nothing is trained on.
pub(super) fn held_out(recipe: &Recipe) -> Result<HeldOut> {
    let mut held_out = HeldOut::default();
    for settings in &recipe.data.held_out {
        held_out
            .add_collection(&Collection::open(&recipe.data_path(&settings.path), settings.split.as_deref())?);
    }
    // All queries of the evaluation, also those that `max_queries` leaves out.
    let whole = Recipe {
        evaluation: crate::recipe::EvaluationSettings { max_queries: None, ..recipe.evaluation.clone() },
        ..recipe.clone()
    };
    for collection in collections::open(&whole)? {
        held_out.add_collection(&collection);
    }
    Ok(held_out)
}

/// The first pass.
fn admit(
    context: &Context<'_>,
    admission: &mut Admission,
    path: &std::path::Path,
) -> Result<(Vec<SourceCounts>, Vec<Drawn>)> {
    let recipe = context.recipe;
    let mut file = LineFile::create(path)?;
    let mut drawn = Vec::new();
    let mut counts = Vec::new();
    for (position, source) in recipe.data.sources.iter().enumerate() {
        let source = with_places(source, recipe);
        let mut intake = Intake::new(&source, recipe.data.max_negatives, |example, counts| {
            if let Some(pair) = admission.admit(example, source.ratio, counts) {
                drawn.push(Drawn::new(recipe.seed, position, &pair.id, &pair.positive));
                file.line(&pair)?;
            }
            Ok(())
        });
        read(&mut intake)?;
        if let Some(broken) = intake.first_broken() {
            let text = format!("{} broken lines passed over, the first: {broken}", intake.counts().broken);
            context.note(&text);
        }
        counts.push(intake.counts().clone());
    }
    file.finish()?;
    Ok((counts, drawn))
}

/// The source with its paths below `data.folder`.
fn with_places(source: &SourceSettings, recipe: &Recipe) -> SourceSettings {
    let place = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| recipe.data_path(path));
    SourceSettings {
        path: recipe.data_path(&source.path),
        documents: place(&source.documents),
        queries: place(&source.queries),
        evidence: place(&source.evidence),
        ..source.clone()
    }
}

/// How many pairs and queries are in each part.
#[derive(Debug, Default, Serialize)]
struct Tally {
    pairs: usize,
    expander_train: usize,
    expander_dev: usize,
    retriever_train: usize,
    retriever_dev: usize,
}

impl Tally {
    fn count(&mut self, pair: &Pair) {
        self.pairs += 1;
        let train = pair.split == Split::Train;
        if pair.part.trains_expander() {
            *(if train { &mut self.expander_train } else { &mut self.expander_dev }) += 1;
        }
        if pair.part != Part::Dpo {
            *(if train { &mut self.retriever_train } else { &mut self.retriever_dev }) += 1;
        }
    }
}
