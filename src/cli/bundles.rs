//! `expandr bundles`: which models are served.

use std::{path::PathBuf, time::Duration};

use anyhow::bail;
use clap::{Args, Subcommand};
use reqwest::Method;
use serde_json::{Value, json};

use super::admin::{Admin, AdminServer, segment, table, text};
use crate::bundles::{PackageFacts, package};
use expandr_models::bundle::ExpansionDefault;

/// Flags of `expandr bundles`.
#[derive(Args, Debug)]
pub(super) struct BundlesArgs {
    #[command(flatten)]
    server: AdminServer,

    #[command(subcommand)]
    command: BundlesCommand,
}

#[derive(Debug, Subcommand)]
enum BundlesCommand {
    /// List the bundles, which of them is served, and an activation that is under way.
    List,
    /// Serve another bundle; searches go on meanwhile.
    Activate {
        /// Its id.
        id: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Serve the bundle that was served before.
    Rollback {
        #[command(flatten)]
        wait: Wait,
    },
    /// Take a bundle's folder on the server's machine into the server's bundles, without serving it.
    Import {
        /// The folder.
        path: String,
        /// Its name there; default: that of its manifest.
        #[arg(long)]
        name: Option<String>,
    },
    /// Make a bundle's folder of a finished run of `expandr train`. Asks no server.
    Package {
        /// The run's folder.
        run: PathBuf,
        /// The bundle's folder; one that is there is replaced.
        out: PathBuf,
        /// Its name; default: that of the run's folder.
        #[arg(long)]
        name: Option<String>,
        /// The id of a bundle that it comes from; may be repeated.
        #[arg(long = "parent", value_name = "ID")]
        parents: Vec<String>,
        /// Whether it expands a search that doesn't say: always, off, or auto, which needs the run's gate.
        #[arg(long, value_parser = expansion)]
        expansion: Option<ExpansionDefault>,
    },
}

#[derive(Args, Debug)]
struct Wait {
    /// Don't wait until it is served.
    #[arg(long)]
    no_wait: bool,
}

/// A default as manifests write it.
fn expansion(text: &str) -> Result<ExpansionDefault, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| "give always, auto or off".to_owned())
}

/// Time between two looks at an activation.
const LOOK: Duration = Duration::from_millis(500);
/// Milliseconds that the server is asked to wait itself.
const SERVER_WAITS_MS: u64 = 2_000;

pub(super) async fn run(args: BundlesArgs) -> anyhow::Result<()> {
    let connect = || args.server.connect();
    match args.command {
        BundlesCommand::List => {
            let admin = connect()?;
            admin.print(&admin.get("/admin/bundles").await?, listed);
        }
        BundlesCommand::Activate { id, wait } => {
            let path = format!("/admin/bundles/{}/activate", segment(&id));
            change(&connect()?, &path, Some(&id), &wait).await?;
        }
        BundlesCommand::Rollback { wait } => {
            change(&connect()?, "/admin/bundles/rollback", None, &wait).await?;
        }
        BundlesCommand::Import { path, name } => {
            let admin = connect()?;
            let mut body = json!({ "path": path });
            if let Some(name) = name {
                body["name"] = name.into();
            }
            let answer = admin.ask(admin.request(Method::POST, "/admin/bundles/import").json(&body)).await?;
            admin.print(&answer, |answer| text(&answer["id"]));
        }
        BundlesCommand::Package { run, out, name, parents, expansion } => {
            let (from, to, facts) = (run, out.clone(), PackageFacts { name, parents, expansion });
            let manifest = tokio::task::spawn_blocking(move || package(&from, &to, facts)).await??;
            println!("{}: bundle `{}`, {} files", out.display(), manifest.name, manifest.files.len());
        }
    }
    Ok(())
}

/// Asks for another bundle (`wanted`, or the one before), and waits until it is served.
async fn change(admin: &Admin, path: &str, wanted: Option<&str>, wait: &Wait) -> anyhow::Result<()> {
    let wait_ms = if wait.no_wait { 0 } else { SERVER_WAITS_MS };
    let wanted = match wanted {
        Some(id) => Value::from(id),
        None => admin.get("/admin/bundles").await?["previous"].clone(),
    };
    let mut now = admin.ask(admin.request(Method::POST, path).json(&json!({ "wait_ms": wait_ms }))).await?;
    while now["active"] != wanted {
        if wait.no_wait {
            admin.print(&now, |_| "under way; `expandr bundles list` shows how far it is".to_owned());
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
        now = admin.get("/admin/bundles").await?;
        if now["activation"].is_null() && now["active"] != wanted {
            let why = now["last_activation"]["problem"].as_str().unwrap_or("the server's log says why");
            bail!("the activation failed, and {} is still active: {why}", text(&now["active"]));
        }
    }
    admin.print(&now, |now| {
        format!("{} is active, {} was before", text(&now["active"]), text(&now["previous"]))
    });
    Ok(())
}

fn listed(answer: &Value) -> String {
    let row = |bundle: &Value| {
        let id = text(&bundle["id"]);
        let state = if answer["active"] == bundle["id"] {
            "active"
        } else if answer["previous"] == bundle["id"] {
            "previous"
        } else {
            ""
        };
        vec![id, text(&bundle["name"]), state.to_owned(), text(&bundle["created_at"])]
    };
    let rows: Vec<Vec<String>> = answer["bundles"].as_array().into_iter().flatten().map(row).collect();
    let mut shown = table(&["id", "name", "", "created"], &rows);
    if !answer["activation"].is_null() {
        shown.push_str(&format!("under way: {}\n", answer["activation"]));
    }
    shown
}
