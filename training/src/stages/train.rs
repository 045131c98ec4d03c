//! The jobs that need tensors, each in a folder that takes its name when it is whole.

use std::path::{Path, PathBuf};

use expandr_models::expander::PromptTemplate;
use expandr_models::trainable::ADAPTER_FILES;
use expandr_models::weights::Role;
use serde_json::{Value, json};

use super::{Context, queries::queries};
use crate::folder::{LineFile, replace_folder};
use crate::pairs::{Part, Split};
use crate::plan::{ExpanderRef, Work};
use crate::preference::{CompletionLine, Turn};
use crate::progress::StepProgress;
use crate::recipe::Layout;
use crate::steps::{ContrastiveJob, DpoJob, MergeJob, Model, Places, WarmUpJob};
use crate::{Error, Result};

/// What a training stage must leave, for what was made elsewhere as well.
fn wanted_files(work: &Work) -> &'static [&'static str] {
    match work {
        Work::WarmUp { .. } | Work::Dpo { .. } => &ADAPTER_FILES,
        Work::WarmExpander { .. } | Work::Merge { .. } => &["config.json", "tokenizer.json"],
        Work::Contrastive { .. } | Work::BaseEncoder { .. } => &["config.json", "tokenizer.json"],
        _ => &[],
    }
}

/// Does the stage's job.
pub(crate) async fn run(context: &Context<'_>) -> Result<Value> {
    let work = context.work();
    let out = work.join("out");
    if out.exists() {
        fs_err::remove_dir_all(&out)?;
    }
    fs_err::create_dir_all(&out)?;
    let summary = job(context, &work, &out).await?;
    check(context, &out)?;
    replace_folder(&out, &context.own(0))?;
    Ok(summary)
}

/// Whether a folder holds what the stage should leave.
///
/// # Errors
/// When something is missing.
pub(crate) fn check(context: &Context<'_>, folder: &Path) -> Result<()> {
    for name in wanted_files(&context.node.work) {
        if !folder.join(name).is_file() {
            return Err(Error::Stage {
                stage: context.name.to_owned(),
                detail: format!("{} has no {name}; it is not what this stage leaves", folder.display()),
            });
        }
    }
    Ok(())
}

async fn job(context: &Context<'_>, work: &Path, out: &Path) -> Result<Value> {
    let recipe = context.recipe;
    let progress = StepProgress::new(context.observer, context.name);
    let places = Places { work, out, log: &context.log()? };
    match &context.node.work {
        Work::WarmUp { pairs } => {
            let (train, dev) = (work.join("train.jsonl"), work.join("dev.jsonl"));
            let counts = completions(context, &context.output(pairs.0, 0), [&train, &dev])?;
            let job = WarmUpJob {
                base: &base(context, ExpanderRef::Base)?,
                train: &train,
                dev: &dev,
                settings: &recipe.warm_up,
                seed: recipe.warm_up.seed.unwrap_or(recipe.seed),
                places,
                progress,
            };
            let summary = context.steps.warm_up(&job).await?;
            Ok(json!({ "train": counts[0], "dev": counts[1], "training": summary }))
        }
        Work::Dpo { preferences, base: model } => {
            let job = DpoJob {
                base: &base(context, *model)?,
                train: &context.output(preferences.0, 0),
                dev: &context.output(preferences.0, 1),
                settings: &recipe.dpo,
                seed: recipe.dpo.seed.unwrap_or(recipe.seed),
                places,
                progress,
            };
            context.steps.dpo(&job).await
        }
        Work::WarmExpander { adapter } => merge(context, ExpanderRef::Base, adapter.0, out).await,
        Work::Merge { base, adapter } => merge(context, *base, adapter.0, out).await,
        Work::Contrastive { examples, base: model, .. } => {
            let base = match context.encoder(*model).0 {
                Model::Named(name) => context.steps.locate(&name, Role::Encoder)?,
                Model::Made(folder) | Model::Adapted { merged: folder, .. } => folder,
            };
            let job = ContrastiveJob {
                base: &base,
                train: &context.output(examples.0, 0),
                dev: &context.output(examples.0, 1),
                settings: &recipe.contrastive,
                seed: recipe.contrastive.seed.unwrap_or(recipe.seed),
                places,
                progress,
            };
            context.steps.contrastive(&job).await
        }
        Work::BaseEncoder { layers } => {
            let base = context.steps.locate(&recipe.encoder.model, Role::Encoder)?;
            super::base_encoder::keep_first_layers(&base, *layers, out)
        }
        other => Err(Error::Input(format!("stage {} trains nothing", other.stage().name()))),
    }
}

async fn merge(context: &Context<'_>, model: ExpanderRef, adapter: usize, out: &Path) -> Result<Value> {
    let base = base(context, model)?;
    let job = MergeJob { base: &base, adapter: &context.output(adapter, 0), out };
    context.steps.merge(&job).await
}

fn base(context: &Context<'_>, model: ExpanderRef) -> Result<PathBuf> {
    match context.expander(model).0 {
        Model::Named(name) => context.steps.locate(&name, Role::Expander),
        Model::Made(folder) | Model::Adapted { merged: folder, .. } => Ok(folder),
    }
}

/// The warm-up's examples: the gold passage as the completion of the prompt.
fn completions(context: &Context<'_>, pairs: &Path, paths: [&Path; 2]) -> Result<[usize; 2]> {
    let template = PromptTemplate::for_query(&context.recipe.expander.prompt)?;
    let mut files = [LineFile::create(paths[0])?, LineFile::create(paths[1])?];
    let mut counts = [0; 2];
    for pair in queries(pairs, Part::trains_expander)? {
        let pair = pair?;
        let part = usize::from(pair.split == Split::Dev);
        counts[part] += 1;
        files[part].line(&CompletionLine {
            prompt: Turn::user(&template.render(&[&pair.query])?, Layout::Conversational),
            completion: Turn::assistant(&pair.positive, Layout::Conversational),
        })?;
    }
    let [train, dev] = files;
    train.finish()?;
    dev.finish()?;
    Ok(counts)
}
