//! Rewards, the filter, and the pair of each query that DPO learns from (Eq. 11, 13, 14, 16).

use expandr_models::expander::{PromptTemplate, clean};
use serde_json::{Value, json};

use super::{Context, generate::WrittenLine, queries::queries, scores::ScoreLine};
use crate::folder::{LineFile, LineIndex};
use crate::pairs::{Pair, Part, Split};
use crate::plan::Work;
use crate::preference::{PreferenceLine, Turn};
use crate::reward::{Preference, RewardTerms, Similarities, Verdict, judge, rewards};
use crate::{Error, Result};

/// Width of a bin of the reward histogram. Rewards are at most 2.
const BIN: f32 = 0.25;

/// What became of the queries, and what the preferences look like.
#[derive(Default)]
struct Statistics {
    queries: usize,
    filtered: usize,
    too_few_candidates: usize,
    nothing_to_prefer: usize,
    kept: [usize; 2],
    histogram: [usize; 8],
    sums: Sums,
}

/// Sums over the preferences that were kept.
#[derive(Default)]
struct Sums {
    words: [usize; 2],
    complete: [usize; 2],
    reward: [f64; 2],
    gold: [f64; 2],
    answer: [f64; 2],
    mean_gold: f64,
    mean_answer: f64,
}

/// The candidates of a query that can be chosen, with where they stand among all.
struct Eligible {
    positions: Vec<usize>,
    texts: Vec<String>,
    answer: Vec<f32>,
    gold: Vec<f32>,
    query: Vec<f32>,
}

/// Writes preferences.jsonl and preferences.dev.jsonl.
pub(crate) fn run(context: &Context<'_>) -> Result<Value> {
    let Work::Preferences { pairs, candidates, scores, terms } = &context.node.work else {
        return Err(Error::Input("not a stage of preferences".into()));
    };
    let settings = &context.recipe.rewards;
    let template = PromptTemplate::for_query(&context.recipe.expander.prompt)?;
    let candidates = LineIndex::open(&context.output(candidates.0, 0))?;
    let scores = LineIndex::open(&context.output(scores.0, 0))?;
    let mut files = [LineFile::create(&context.own(0))?, LineFile::create(&context.own(1))?];
    let mut statistics = Statistics::default();
    for pair in queries(&context.output(pairs.0, 0), Part::trains_expander)? {
        let pair = pair?;
        statistics.queries += 1;
        let written: WrittenLine = candidates.get(&pair.id)?;
        let scored: ScoreLine = scores.get(&pair.id)?;
        let eligible = eligible(&written, &scored, settings.min_words)?;
        if eligible.texts.len() < 2 {
            statistics.too_few_candidates += 1;
            continue;
        }
        let similarities =
            Similarities { answer: &eligible.answer, gold: &eligible.gold, query: Some(&eligible.query) };
        match judge(&similarities, *terms, settings.filter())? {
            Verdict::Filtered => statistics.filtered += 1,
            Verdict::NothingToPrefer => statistics.nothing_to_prefer += 1,
            Verdict::Prefer(preference) => {
                statistics.count(&pair, &preference, &eligible, &written, *terms)?;
                let line = line(&pair, &preference, &eligible, &written, &template, settings.layout)?;
                files[usize::from(pair.split == Split::Dev)].line(&line)?;
            }
        }
    }
    let [train, dev] = files;
    train.finish()?;
    dev.finish()?;
    if statistics.kept[0] == 0 {
        return Err(Error::Stage {
            stage: context.name.to_owned(),
            detail: format!(
                "no preference is left of {} queries ({} by the filter, {} with equal rewards); lower \
                 `rewards.threshold`, or set `rewards.filter` to \"none\"",
                statistics.queries, statistics.filtered, statistics.nothing_to_prefer
            ),
        });
    }
    Ok(statistics.json())
}

fn eligible(written: &WrittenLine, scored: &ScoreLine, min_words: usize) -> Result<Eligible> {
    let count = written.texts.len();
    if [&scored.answer, &scored.gold, &scored.query].iter().any(|list| list.len() != count) {
        return Err(Error::Input(format!(
            "query {:?} has {count} candidates and {} scores; do stage scores again",
            written.id,
            scored.gold.len()
        )));
    }
    let texts: Vec<String> = written.texts.iter().map(|text| clean(&text.text)).collect();
    let positions: Vec<usize> =
        (0..count).filter(|index| texts[*index].split_whitespace().count() >= min_words.max(1)).collect();
    let of = |list: &[f32]| positions.iter().map(|index| list[*index]).collect();
    Ok(Eligible {
        texts: positions.iter().map(|index| texts[*index].clone()).collect(),
        answer: of(&scored.answer),
        gold: of(&scored.gold),
        query: of(&scored.query),
        positions,
    })
}

fn line(
    pair: &Pair,
    preference: &Preference,
    eligible: &Eligible,
    written: &WrittenLine,
    template: &PromptTemplate,
    layout: crate::recipe::Layout,
) -> Result<PreferenceLine> {
    let complete = |index: usize| written.texts[eligible.positions[index]].complete;
    Ok(PreferenceLine {
        prompt: Turn::user(&template.render(&[&pair.query])?, layout),
        chosen: Turn::assistant(&eligible.texts[preference.chosen], layout),
        rejected: Turn::assistant(&eligible.texts[preference.rejected], layout),
        id: pair.id.clone(),
        score_chosen: preference.chosen_reward,
        score_rejected: preference.rejected_reward,
        chosen_complete: complete(preference.chosen),
        rejected_complete: complete(preference.rejected),
    })
}

impl Statistics {
    fn count(
        &mut self,
        pair: &Pair,
        preference: &Preference,
        eligible: &Eligible,
        written: &WrittenLine,
        terms: RewardTerms,
    ) -> Result<()> {
        self.kept[usize::from(pair.split == Split::Dev)] += 1;
        let similarities = Similarities { answer: &eligible.answer, gold: &eligible.gold, query: None };
        for reward in rewards(&similarities, terms)? {
            let bin = ((reward / BIN) as usize).min(self.histogram.len() - 1);
            self.histogram[bin] += 1;
        }
        let sums = &mut self.sums;
        for (side, index, reward) in [
            (0, preference.chosen, preference.chosen_reward),
            (1, preference.rejected, preference.rejected_reward),
        ] {
            sums.words[side] += eligible.texts[index].split_whitespace().count();
            sums.complete[side] += usize::from(written.texts[eligible.positions[index]].complete);
            sums.reward[side] += f64::from(reward);
            sums.gold[side] += f64::from(eligible.gold[index]);
            sums.answer[side] += f64::from(eligible.answer[index]);
        }
        let mean = |list: &[f32]| f64::from(list.iter().sum::<f32>()) / list.len() as f64;
        sums.mean_gold += mean(&eligible.gold);
        sums.mean_answer += mean(&eligible.answer);
        Ok(())
    }

    fn json(&self) -> Value {
        let kept = (self.kept[0] + self.kept[1]) as f64;
        let sums = &self.sums;
        let side = |side: usize| {
            json!({
                "words": sums.words[side] as f64 / kept,
                "complete_share": sums.complete[side] as f64 / kept,
                "reward": sums.reward[side] / kept,
                "similarity_to_gold": sums.gold[side] / kept,
                "similarity_to_answer": sums.answer[side] / kept,
            })
        };
        let bins: Vec<Value> = self
            .histogram
            .iter()
            .enumerate()
            .map(|(bin, count)| json!({ "from": bin as f32 * BIN, "candidates": count }))
            .collect();
        json!({
            "queries": self.queries,
            "train": self.kept[0],
            "dev": self.kept[1],
            "filtered": self.filtered,
            "filtered_share": self.filtered as f64 / self.queries.max(1) as f64,
            "too_few_candidates": self.too_few_candidates,
            "nothing_to_prefer": self.nothing_to_prefer,
            "chosen": side(0),
            "rejected": side(1),
            "all_candidates": {
                "similarity_to_gold": sums.mean_gold / kept,
                "similarity_to_answer": sums.mean_answer / kept,
            },
            "reward_histogram": bins,
        })
    }
}
