//! Which settings the outcome of a stage depends on.

use serde::Serialize;
use serde_json::{Value, json};

use super::{TrainingText, Work, documents_label};
use crate::plan::SearchText;
use crate::readers::SourceSettings;
use crate::recipe::{Method, Recipe};

/// The settings of a stage as JSON. What the work is done with (`machine`) and where files are is not among them:
/// files count by their content.
pub(super) fn of(work: &Work, recipe: &Recipe) -> Value {
    match work {
        Work::Pairs => pairs(recipe),
        Work::WarmUp { .. } => with(
            &recipe.warm_up,
            [
                ("seed", json!(recipe.warm_up.seed.unwrap_or(recipe.seed))),
                ("prompt", json!(recipe.expander.prompt)),
            ],
        ),
        Work::WarmExpander { .. } | Work::Merge { .. } => json!({}),
        Work::BaseEncoder { layers } => json!({ "layers": layers }),
        Work::Candidates { .. } => with(
            &recipe.candidates,
            [("seed", json!(recipe.seed)), ("prompt", json!(recipe.expander.prompt))],
        ),
        Work::Answers { .. } => with(
            &recipe.answers,
            [("seed", json!(recipe.seed)), ("prompt", json!(recipe.expander.answer_prompt))],
        ),
        Work::Scores { .. } => json!({ "similarity": recipe.rewards.similarity }),
        Work::Preferences { terms, .. } => json!({
            "terms": terms,
            "filter": recipe.rewards.filter,
            "threshold": recipe.rewards.threshold,
            "min_words": recipe.rewards.min_words,
            "layout": recipe.rewards.layout,
            "prompt": recipe.expander.prompt,
        }),
        Work::Dpo { .. } => without(
            with(&recipe.dpo, [("seed", json!(recipe.dpo.seed.unwrap_or(recipe.seed)))]),
            &["checkpoint_every", "checkpoint_activations"],
        ),
        // What is written is the same wherever it is embedded.
        Work::Expansions { .. } | Work::TestExpansions { .. } => {
            let one: &[&str] = if recipe.expansions.count == 1 { &["count"] } else { &[] };
            let of = [("seed", json!(recipe.seed)), ("prompt", json!(recipe.expander.prompt))];
            without(with(&recipe.expansions, of), &[&["joint_encoding"], one].concat())
        }
        Work::Examples { text, .. } => json!({
            "text": match text {
                TrainingText::Query => "query",
                TrainingText::Expansion(_) if recipe.expansions.joint_encoding => "expansion behind query",
                TrainingText::Expansion(_) => "expansion",
                TrainingText::Repetition(_) => "repetition",
            },
            "negatives": recipe.contrastive.negatives,
        }),
        Work::Negatives { .. } => json!({
            "seed": recipe.seed,
            "count": recipe.contrastive.mined_negatives,
            "from": recipe.contrastive.mined_from,
            "to": recipe.contrastive.mined_to,
        }),
        Work::Contrastive { averages, .. } => contrastive(recipe, *averages),
        Work::Vectors { .. } => json!({}),
        Work::Weight { .. } => json!({ "seed": recipe.seed }),
        Work::Gate { .. } => json!({ "seed": recipe.seed, "query_weight": recipe.evaluation.query_weight }),
        Work::Evaluation { text, .. } => json!({
            "text": match text {
                SearchText::Expansion | SearchText::Gated if recipe.expansions.joint_encoding => {
                    json!([text, "behind query"])
                }
                _ => json!(text),
            },
            "query_weight": match text {
                SearchText::Query => json!(1.0),
                _ => json!(recipe.evaluation.query_weight),
            },
            "metrics": recipe.evaluation.metrics,
        }),
        Work::Report { rows } => json!({
            "rows": rows.iter().map(|(arm, _)| arm.name).collect::<Vec<_>>(),
            // Their order is the table's.
            "collections": recipe.evaluation.collections.iter().map(documents_label).collect::<Vec<_>>(),
            "metrics": recipe.evaluation.metrics,
            "seed": recipe.seed,
        }),
    }
}

/// A section as JSON, with what it takes from elsewhere. A model's name is no setting: models count by their weights.
fn with<'a>(section: &impl Serialize, further: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let mut settings = serde_json::to_value(section).unwrap_or_default();
    if let Some(members) = settings.as_object_mut() {
        members.remove("model");
        members.remove("enabled");
        for (name, value) in further {
            members.insert(name.to_owned(), value);
        }
    }
    settings
}

fn pairs(recipe: &Recipe) -> Value {
    let data = &recipe.data;
    let sources: Vec<Value> = data
        .sources
        .iter()
        .map(|source: &SourceSettings| {
            json!({
                "name": source.name,
                "format": source.format,
                "ratio": source.ratio,
                "limit": source.limit,
                "labels": source.labels,
                "split": source.split,
                "whole_pages": source.whole_pages,
                "broken_lines": source.broken_lines,
            })
        })
        .collect();
    json!({
        "seed": recipe.seed,
        "sources": sources,
        "max_words": data.max_words,
        "max_negatives": data.max_negatives,
        "dpo_queries": data.dpo_queries,
        "dpo_dev_share": data.dpo_dev_share,
        "retriever_queries": data.retriever_queries,
        "retriever_dev_share": data.retriever_dev_share,
        "share_queries": data.share_queries,
    })
}

/// Takes out what doesn't matter.
fn without(mut settings: Value, names: &[&str]) -> Value {
    if let Some(members) = settings.as_object_mut() {
        members.retain(|name, _| !names.contains(&name.as_str()));
    }
    settings
}

/// How the gradient is computed doesn't count (`chunk`), nor what can't matter: the weight of an expansion that is not
/// there, adapters in full training, dropout of nothing, an interpolation that goes all the way,
/// the mean of one.
fn contrastive(recipe: &Recipe, averages: bool) -> Value {
    let settings = &recipe.contrastive;
    let mut further = vec![("seed", json!(settings.seed.unwrap_or(recipe.seed)))];
    let mut left_out =
        vec!["chunk", "checkpoint_every", "negatives", "mined_negatives", "mined_from", "mined_to"];
    if !averages {
        further.push(("query_weight", json!(1.0)));
    }
    if settings.method == Method::Full {
        left_out.extend(["lora_rank", "lora_alpha", "lora_dropout"]);
    }
    if !averages || settings.expansion_dropout == 0.0 {
        left_out.push("expansion_dropout");
    }
    if settings.interpolation == 1.0 {
        left_out.push("interpolation");
    }
    if settings.soup == 1 {
        left_out.push("soup");
    }
    without(with(settings, further), &left_out)
}
