//! `expandr train`: runs a training recipe.

mod bars;
mod steps;

use std::{io::Write, path::PathBuf};

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use expandr_training::{
    Options, PlannedStage, Recipe, Run, Stage, Status,
    progress::{JsonEvents, Observer},
};

use self::{bars::Bars, steps::LocalSteps};

/// Flags of `expandr train`.
#[derive(Args, Debug)]
pub(super) struct TrainArgs {
    /// The recipe, e.g. training/recipes/small.toml; docs/training.md explains every setting.
    recipe: PathBuf,

    /// Put a value over the recipe's, e.g. dpo.learning_rate=1e-5; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// The run folder, instead of the recipe's `output`.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Only these stages, separated by commas; those before them must be done.
    #[arg(long, value_delimiter = ',', value_parser = Stage::named)]
    stages: Vec<Stage>,

    /// All rows of the report: the paper's ablations and the controls.
    #[arg(long)]
    ablations: bool,

    /// Do stages again whose settings or inputs have changed, whatever they cost.
    #[arg(long)]
    redo: bool,

    /// Take the files of these stages as they are, for they were made elsewhere.
    #[arg(long, value_delimiter = ',', value_parser = Stage::named)]
    adopt: Vec<Stage>,

    /// Take stages from this run folder that have been done there with the same settings and inputs; may be repeated.
    #[arg(long, value_name = "DIR")]
    reuse: Vec<PathBuf>,

    /// How to tell what happens: bars, or events as lines of JSON on the standard output.
    #[arg(long, value_enum, default_value_t = Progress::Bar)]
    progress: Progress,

    /// As the child of a server's job: end when the standard input ends.
    #[arg(long, hide = true)]
    supervised: bool,

    /// Print what is done, what would be done, and why; do nothing.
    #[arg(long)]
    dry_run: bool,

    /// Folder of the checkpoints that `expandr models pull` fetches.
    #[arg(long, env = "EXPANDR_MODELS_DIR", default_value = "models/store")]
    models_dir: PathBuf,

    /// Bearer key for `machine.endpoint`.
    #[arg(long, env = "EXPANDR_EXPANDER_API_KEY", hide_env_values = true)]
    expander_api_key: Option<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Progress {
    Bar,
    Json,
}

pub(super) async fn run(args: TrainArgs) -> anyhow::Result<()> {
    if args.supervised {
        crate::jobs::end_with_parent();
    }
    let mut recipe = Recipe::load(&args.recipe, &args.set)?;
    if let Some(out) = args.out {
        recipe.output = out;
    }
    let options = Options {
        stages: (!args.stages.is_empty()).then_some(args.stages),
        ablations: args.ablations,
        redo: args.redo,
        adopt: args.adopt,
        reuse: args.reuse,
    };
    let device = recipe.machine.device.parse().map_err(|error| anyhow!("`machine.device`: {error}"))?;
    let steps = LocalSteps {
        models_dir: args.models_dir,
        machine: recipe.machine.clone(),
        expander: recipe.expander.model.clone(),
        run: recipe.output.clone(),
        device,
        api_key: args.expander_api_key,
    };
    let observer: Box<dyn Observer> = match args.progress {
        Progress::Bar => Box::new(Bars::new()?),
        Progress::Json => Box::new(JsonEvents::new(std::io::stdout())),
    };
    let mut run = Run::new(&recipe, options, &steps, observer.as_ref())?;
    if args.dry_run {
        return print_plan(&run.plan()?, args.progress);
    }
    Box::pin(run.run()).await?;
    Ok(())
}

fn print_plan(planned: &[PlannedStage], progress: Progress) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    for stage in planned {
        if matches!(progress, Progress::Json) {
            writeln!(output, "{}", serde_json::to_string(stage)?)?;
            continue;
        }
        let (what, why) = match &stage.status {
            Status::Done => ("done", String::new()),
            Status::Todo { why, .. } => ("to do", why.clone()),
            Status::Waits { needs } => ("waits", format!("for {needs}")),
            Status::Refused { why } => ("refused", why.clone()),
        };
        let what = if stage.selected { what } else { "not asked for" };
        writeln!(output, "{:<36} {what:<14} {why}", stage.name)?;
    }
    Ok(())
}
