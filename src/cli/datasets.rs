//! `expandr datasets`: training pairs on the server.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::Value;
use tokio_util::io::ReaderStream;

use super::{
    admin::{Admin, AdminServer, segment, table, text},
    client,
};

/// Flags of `expandr datasets`.
#[derive(Args, Debug)]
pub(super) struct DatasetsArgs {
    #[command(flatten)]
    server: AdminServer,

    #[command(subcommand)]
    command: DatasetsCommand,
}

#[derive(Debug, Subcommand)]
enum DatasetsCommand {
    /// Upload a file of JSON lines, {"query", "positive"[, "negatives"]} each, in place of a dataset of that name.
    Put {
        /// The dataset's name.
        name: String,
        /// The file.
        file: PathBuf,
    },
    /// List the datasets.
    List,
    /// Delete a dataset.
    Delete {
        /// Its name.
        name: String,
    },
}

pub(super) async fn run(args: DatasetsArgs) -> anyhow::Result<()> {
    let admin = args.server.connect()?;
    match args.command {
        DatasetsCommand::Put { name, file } => put(&admin, &name, file).await,
        DatasetsCommand::List => {
            admin.print(&admin.get("/admin/datasets").await?, listed);
            Ok(())
        }
        DatasetsCommand::Delete { name } => {
            let request = admin.request(Method::DELETE, &format!("/admin/datasets/{}", segment(&name)));
            let response = admin.server.send(request).await?;
            if !response.status().is_success() {
                client::json(response).await?;
            }
            Ok(())
        }
    }
}

async fn put(admin: &Admin, name: &str, file: PathBuf) -> anyhow::Result<()> {
    let file = tokio::fs::File::from_std(fs_err::File::open(file)?.into_parts().0);
    let request = admin
        .request(Method::PUT, &format!("/admin/datasets/{}", segment(name)))
        .header("content-type", "application/x-ndjson")
        .body(reqwest::Body::wrap_stream(ReaderStream::with_capacity(file, 1 << 18)));
    let answer = client::json(admin.server.send(request).await?).await?;
    admin.print(&answer, |answer| {
        format!(
            "{}: {} pairs, sha256 {}",
            text(&answer["name"]),
            text(&answer["pairs"]),
            text(&answer["sha256"])
        )
    });
    Ok(())
}

fn listed(answer: &Value) -> String {
    let members = ["name", "pairs", "bytes", "created_at"];
    let row = |dataset: &Value| members.iter().map(|member| text(&dataset[*member])).collect();
    let rows: Vec<Vec<String>> = answer["datasets"].as_array().into_iter().flatten().map(row).collect();
    if rows.is_empty() {
        return "no datasets; `expandr datasets put NAME FILE` makes one".to_owned();
    }
    table(&["name", "pairs", "bytes", "created"], &rows)
}
