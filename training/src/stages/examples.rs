//! What the encoder is trained on: every pair of the retriever's part, with what stands beside its query.

use serde_json::{Value, json};

use super::{Context, generate::WrittenLine, negatives::NegativesLine};
use crate::example::{ExampleLine, expansions, repetitions};
use crate::folder::{JsonLines, LineFile, LineIndex};
use crate::pairs::{Pair, Split};
use crate::plan::{TrainingText, Work};
use crate::{Error, Result};

/// Writes examples.jsonl and examples.dev.jsonl.
pub(crate) fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Examples { pairs, text, negatives: mined } = &context.node.work else {
        return Err(Error::Input("not a stage of examples".into()));
    };
    let written = match text {
        TrainingText::Query => None,
        TrainingText::Expansion(node) | TrainingText::Repetition(node) => {
            Some(LineIndex::open(&context.output(node.0, 0))?)
        }
    };
    let mined = match mined {
        Some(node) => Some(LineIndex::open(&context.output(node.0, 0))?),
        None => None,
    };
    let mut files = [LineFile::create(&context.own(0))?, LineFile::create(&context.own(1))?];
    let mut counts = [0usize; 2];
    let mut without = 0usize;
    for pair in JsonLines::<Pair>::open(&context.output(pairs.0, 0))? {
        let pair = pair?;
        if !pair.part.trains_retriever() {
            continue;
        }
        let line = match &written {
            Some(written) => Some(WrittenLine { query: pair.query.clone(), ..written.get(&pair.id)? }),
            None => None,
        };
        let expansions = match (&line, text) {
            (None, _) | (_, TrainingText::Query) => Vec::new(),
            (Some(line), TrainingText::Expansion(_)) => expansions(line, context.recipe),
            (Some(line), TrainingText::Repetition(_)) => repetitions(line, context.recipe),
        };
        without += usize::from(expansions.is_empty() && line.is_some());
        let part = usize::from(pair.split == Split::Dev);
        counts[part] += 1;
        let mut negatives = pair.negatives;
        negatives.truncate(context.recipe.contrastive.negatives);
        if let (Some(mined), Split::Train) = (&mined, pair.split) {
            negatives.extend(mined.get::<NegativesLine>(&pair.id)?.negatives);
        }
        files[part].line(&ExampleLine {
            query: pair.query,
            expansions,
            positive: pair.positive,
            negatives,
        })?;
    }
    let [train, dev] = files;
    train.finish()?;
    dev.finish()?;
    if counts[0] == 0 {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: "no pair trains the retriever; lower `data.dpo_queries`, or set `data.share_queries`"
                .into(),
        });
    }
    Ok(json!({ "train": counts[0], "dev": counts[1], "without_expansion": without }))
}
