//! Ranges of settings. A message names the setting, its value, and what it must be.

use std::collections::HashSet;
use std::fmt::Display;

use expandr_models::expander::{MAX_EXPANSIONS, PromptTemplate};

use super::{QueryWeight, Recipe};
use crate::plan::{Arm, SearchText};
use crate::readers::Format;

type Check = Result<(), String>;

/// The first setting out of range.
pub(super) fn ranges(recipe: &Recipe) -> Check {
    models(recipe)?;
    data(recipe)?;
    generation(recipe)?;
    rewards(recipe)?;
    warm_up(recipe)?;
    dpo(recipe)?;
    contrastive(recipe)?;
    evaluation(recipe)
}

fn wrong(name: &str, value: impl Display, wanted: &str) -> Check {
    Err(format!("`{name}` is {value}; it must be {wanted}"))
}

fn positive(name: &str, value: f64) -> Check {
    if value > 0.0 && value.is_finite() { Ok(()) } else { wrong(name, value, "above 0") }
}

fn not_negative(name: &str, value: f64) -> Check {
    if value >= 0.0 && value.is_finite() { Ok(()) } else { wrong(name, value, "0 or more") }
}

fn at_least(name: &str, value: usize, least: usize) -> Check {
    if value >= least { Ok(()) } else { wrong(name, value, &format!("at least {least}")) }
}

/// 0 to 1, both included.
fn share(name: &str, value: f64) -> Check {
    if (0.0..=1.0).contains(&value) { Ok(()) } else { wrong(name, value, "between 0 and 1") }
}

/// 0 to 1, 0 excluded.
fn part(name: &str, value: f64) -> Check {
    if value > 0.0 && value <= 1.0 { Ok(()) } else { wrong(name, value, "above 0 and at most 1") }
}

fn below_one(name: &str, value: f64) -> Check {
    if (0.0..1.0).contains(&value) { Ok(()) } else { wrong(name, value, "at least 0 and below 1") }
}

fn models(recipe: &Recipe) -> Check {
    for (name, value) in
        [("expander.model", &recipe.expander.model), ("encoder.model", &recipe.encoder.model)]
    {
        if value.trim().is_empty() {
            return Err(format!("`{name}` is empty; give a name, a folder or a hub id"));
        }
    }
    let prompts = [
        ("expander.prompt", &recipe.expander.prompt, 1),
        ("expander.answer_prompt", &recipe.expander.answer_prompt, 2),
    ];
    for (name, text, slots) in prompts {
        PromptTemplate::with_slots(text, slots).map_err(|error| format!("`{name}`: {error}"))?;
    }
    recipe.encoder.layers.map_or(Ok(()), |layers| at_least("encoder.layers", layers, 1))
}

fn data(recipe: &Recipe) -> Check {
    let data = &recipe.data;
    if data.sources.is_empty() {
        return Err("`data.sources` is empty; add a [[data.sources]] with name, format and path".into());
    }
    let mut names = HashSet::new();
    for (index, source) in data.sources.iter().enumerate() {
        let of_source = |setting: &str| format!("data.sources.{index}.{setting}");
        if source.name.trim().is_empty() || !names.insert(source.name.as_str()) {
            return Err(format!(
                "`{}` is {:?}; every source needs a name of its own",
                of_source("name"),
                source.name
            ));
        }
        if source.path.as_os_str().is_empty() {
            return Err(format!("`{}` of {:?} is empty; name the file", of_source("path"), source.name));
        }
        part(&of_source("ratio"), source.ratio)?;
        if let Some(limit) = source.limit {
            at_least(&of_source("limit"), limit, 1)?;
        }
        let looked_up = source.documents.is_some() && source.queries.is_some();
        if source.format == Format::MsmarcoQrels && !looked_up {
            return Err(format!("source {:?} needs `documents` and `queries`", source.name));
        }
    }
    below_one("data.dpo_dev_share", data.dpo_dev_share)?;
    below_one("data.retriever_dev_share", data.retriever_dev_share)
}

fn generation(recipe: &Recipe) -> Check {
    let candidates = &recipe.candidates;
    if candidates.temperatures.is_empty() {
        return Err("`candidates.temperatures` is empty; give at least one".into());
    }
    for (index, temperature) in candidates.temperatures.iter().enumerate() {
        not_negative("candidates.temperatures", *temperature)?;
        if candidates.temperatures[..index].contains(temperature) {
            return Err(format!(
                "`candidates.temperatures` has {temperature} twice; use `candidates.samples` for more of one"
            ));
        }
    }
    at_least("candidates.samples", candidates.samples, 1)?;
    not_negative("answers.temperature", recipe.answers.temperature)?;
    not_negative("expansions.temperature", recipe.expansions.temperature)?;
    let count = recipe.expansions.count;
    if !(1..=MAX_EXPANSIONS).contains(&count) {
        return wrong("expansions.count", count, &format!("between 1 and {MAX_EXPANSIONS}, as in a search"));
    }
    if count > 1 && recipe.expansions.temperature == 0.0 {
        return Err(format!(
            "`expansions.count` is {count} and `expansions.temperature` 0, which writes the same passage {count} times; \
             set a temperature above 0"
        ));
    }
    for (section, top_p, max_tokens) in [
        ("candidates", candidates.top_p, candidates.max_tokens),
        ("answers", recipe.answers.top_p, recipe.answers.max_tokens),
        ("expansions", recipe.expansions.top_p, recipe.expansions.max_tokens),
    ] {
        part(&format!("{section}.top_p"), top_p)?;
        at_least(&format!("{section}.max_tokens"), max_tokens, 1)?;
    }
    at_least("machine.encode_batch", recipe.machine.encode_batch, 1)
}

fn rewards(recipe: &Recipe) -> Check {
    if recipe.rewards.terms().is_none() {
        return Err("`rewards.self_reward` and `rewards.retriever_reward` are both off; switch one on".into());
    }
    if !recipe.rewards.threshold.is_finite() {
        return wrong("rewards.threshold", recipe.rewards.threshold, "a number");
    }
    Ok(())
}

/// What the three trainers have in common.
struct Training<'a> {
    section: &'a str,
    learning_rate: f64,
    epochs: f64,
    batch_size: usize,
    warmup_ratio: f64,
    weight_decay: f64,
    clip: f64,
    lora_rank: usize,
    lora_alpha: f64,
    lora_dropout: f64,
}

fn training(settings: &Training<'_>) -> Check {
    let name = |setting: &str| format!("{}.{setting}", settings.section);
    positive(&name("learning_rate"), settings.learning_rate)?;
    positive(&name("epochs"), settings.epochs)?;
    at_least(&name("batch_size"), settings.batch_size, 1)?;
    share(&name("warmup_ratio"), settings.warmup_ratio)?;
    not_negative(&name("weight_decay"), settings.weight_decay)?;
    not_negative(&name("clip"), settings.clip)?;
    at_least(&name("lora_rank"), settings.lora_rank, 1)?;
    positive(&name("lora_alpha"), settings.lora_alpha)?;
    below_one(&name("lora_dropout"), settings.lora_dropout)
}

/// Batches of a language model, and its prompts.
fn language_model(
    section: &str,
    batch: (usize, usize),
    lengths: (usize, usize),
    modules: &[String],
) -> Check {
    let (batch_size, accumulation) = batch;
    at_least(&format!("{section}.accumulation"), accumulation, 1)?;
    if batch_size % accumulation != 0 {
        return Err(format!(
            "`{section}.accumulation` is {accumulation}; it must divide `{section}.batch_size` = {batch_size}"
        ));
    }
    let (max_length, max_prompt_length) = lengths;
    if max_prompt_length == 0 || max_prompt_length >= max_length {
        return wrong(
            &format!("{section}.max_prompt_length"),
            max_prompt_length,
            &format!("at least 1 and below `{section}.max_length` = {max_length}"),
        );
    }
    if modules.is_empty() {
        return Err(format!("`{section}.target_modules` is empty; name a projection, e.g. \"q_proj\""));
    }
    Ok(())
}

fn warm_up(recipe: &Recipe) -> Check {
    let settings = &recipe.warm_up;
    training(&Training {
        section: "warm_up",
        learning_rate: settings.learning_rate,
        epochs: settings.epochs,
        batch_size: settings.batch_size,
        warmup_ratio: settings.warmup_ratio,
        weight_decay: settings.weight_decay,
        clip: settings.clip,
        lora_rank: settings.lora_rank,
        lora_alpha: settings.lora_alpha,
        lora_dropout: settings.lora_dropout,
    })?;
    let batch = (settings.batch_size, settings.accumulation);
    language_model(
        "warm_up",
        batch,
        (settings.max_length, settings.max_prompt_length),
        &settings.target_modules,
    )
}

fn dpo(recipe: &Recipe) -> Check {
    let settings = &recipe.dpo;
    positive("dpo.beta", settings.beta)?;
    training(&Training {
        section: "dpo",
        learning_rate: settings.learning_rate,
        epochs: settings.epochs,
        batch_size: settings.batch_size,
        warmup_ratio: settings.warmup_ratio,
        weight_decay: settings.weight_decay,
        clip: settings.clip,
        lora_rank: settings.lora_rank,
        lora_alpha: settings.lora_alpha,
        lora_dropout: settings.lora_dropout,
    })?;
    let batch = (settings.batch_size, settings.accumulation);
    language_model(
        "dpo",
        batch,
        (settings.max_length, settings.max_prompt_length),
        &settings.target_modules,
    )?;
    settings.patience.map_or(Ok(()), |patience| at_least("dpo.patience", patience, 1))
}

fn contrastive(recipe: &Recipe) -> Check {
    let settings = &recipe.contrastive;
    training(&Training {
        section: "contrastive",
        learning_rate: settings.learning_rate,
        epochs: settings.epochs,
        batch_size: settings.batch_size,
        warmup_ratio: settings.warmup_ratio,
        weight_decay: settings.weight_decay,
        clip: settings.clip,
        lora_rank: settings.lora_rank,
        lora_alpha: settings.lora_alpha,
        lora_dropout: settings.lora_dropout,
    })?;
    at_least("contrastive.batch_size", settings.batch_size, 2)?;
    at_least("contrastive.chunk", settings.chunk, 1)?;
    positive("contrastive.temperature", settings.temperature)?;
    share("contrastive.query_weight", settings.query_weight)?;
    below_one("contrastive.expansion_dropout", settings.expansion_dropout)?;
    part("contrastive.interpolation", settings.interpolation)?;
    at_least("contrastive.soup", settings.soup, 1)?;
    at_least("contrastive.max_query_length", settings.max_query_length, 3)?;
    at_least("contrastive.max_document_length", settings.max_document_length, 3)?;
    if settings.negatives > recipe.data.max_negatives {
        let most = format!("at most `data.max_negatives` = {}", recipe.data.max_negatives);
        return wrong("contrastive.negatives", settings.negatives, &most);
    }
    at_least("contrastive.mined_from", settings.mined_from, 1)?;
    at_least("contrastive.mined_to", settings.mined_to, settings.mined_from + settings.mined_negatives)?;
    settings.patience.map_or(Ok(()), |patience| at_least("contrastive.patience", patience, 1))
}

fn evaluation(recipe: &Recipe) -> Check {
    let settings = &recipe.evaluation;
    if let QueryWeight::Fixed(weight) = settings.query_weight {
        share("evaluation.query_weight", weight)?;
    }
    if settings.metrics.is_empty() {
        return Err("`evaluation.metrics` is empty; give at least one, e.g. \"ndcg@10\"".into());
    }
    for arm in &settings.arms {
        let arm = Arm::named(arm)?;
        if arm.text == SearchText::Gated && !recipe.gate.enabled {
            return Err(format!("`evaluation.arms` names {:?}, which needs `gate.enabled` = true", arm.name));
        }
    }
    settings.max_queries.map_or(Ok(()), |queries| at_least("evaluation.max_queries", queries, 1))
}
