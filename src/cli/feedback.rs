//! `expandr feedback`: what users found useful, out of the server and off its disk.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use futures::StreamExt;
use reqwest::Method;
use tokio::io::AsyncWriteExt;

use super::{
    admin::{Admin, AdminServer, text, with_parameters},
    client,
};

/// Flags of `expandr feedback`.
#[derive(Args, Debug)]
pub(super) struct FeedbackArgs {
    #[command(flatten)]
    server: AdminServer,

    #[command(subcommand)]
    command: FeedbackCommand,
}

#[derive(Debug, Subcommand)]
enum FeedbackCommand {
    /// Write all feedback as JSON lines.
    Export {
        /// The file, which must not be there yet; default: the standard output.
        out: Option<PathBuf>,
    },
    /// Delete the feedback to which everything given applies.
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
struct DeleteArgs {
    /// Given before this time: 2026-11-26 or 2026-11-26T15:00:00Z.
    #[arg(long)]
    before: Option<String>,
    /// About this document.
    #[arg(long, value_name = "ID")]
    document: Option<String>,
    /// Of this query.
    #[arg(long)]
    query: Option<String>,
    /// All of it.
    #[arg(long, conflicts_with_all = ["before", "document", "query"])]
    all: bool,
}

pub(super) async fn run(args: FeedbackArgs) -> anyhow::Result<()> {
    let admin = args.server.connect()?;
    match args.command {
        FeedbackCommand::Export { out } => export(&admin, out).await,
        FeedbackCommand::Delete(args) => delete(&admin, args).await,
    }
}

async fn export(admin: &Admin, out: Option<PathBuf>) -> anyhow::Result<()> {
    let response = admin.server.send(admin.request(Method::GET, "/admin/feedback")).await?;
    if !response.status().is_success() {
        client::json(response).await?;
        bail!("the server answered no feedback");
    }
    let mut bytes = response.bytes_stream();
    let mut output: Box<dyn tokio::io::AsyncWrite + Unpin> = match &out {
        Some(path) => {
            let file = crate::files::create(path)?.into_parts().0;
            Box::new(tokio::fs::File::from_std(file))
        }
        None => Box::new(tokio::io::stdout()),
    };
    while let Some(piece) = bytes.next().await {
        let piece = piece.context("the connection ended in the middle; what was written is not whole")?;
        output.write_all(&piece).await?;
    }
    output.flush().await?;
    Ok(())
}

async fn delete(admin: &Admin, args: DeleteArgs) -> anyhow::Result<()> {
    let given = [("before", args.before), ("document_id", args.document), ("query", args.query)];
    if given.iter().all(|(_, value)| value.is_none()) && !args.all {
        bail!("say what to delete (--before, --document, --query), or --all");
    }
    let path = with_parameters("/admin/feedback", &given);
    let answer = admin.ask(admin.request(Method::DELETE, &path)).await?;
    admin.print(&answer, |answer| {
        format!("{} deleted, {} left", text(&answer["deleted"]), text(&answer["left"]))
    });
    Ok(())
}
