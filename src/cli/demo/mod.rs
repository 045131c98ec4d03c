//! `expandr demo`: from nothing to a running service over a corpus that every machine has which could build it: the
//! documentation comments of the crates that the build downloaded.

mod crates;
mod rustdoc;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::{Args, Parser};
use tokio::sync::oneshot;

use super::{client::Server, ingest, models};
use crate::server::{ServeOptions, serve, stop_on_signals};

/// Questions that the corpus answers.
const QUESTIONS: &[&str] = &[
    "how do I wait for several futures at the same time?",
    "limit how many tasks run concurrently",
    "share state between request handlers",
    "read a file line by line without blocking",
    "what happens when a channel's receiver is dropped?",
    "parse command line arguments into a struct",
    "turn a struct into JSON and back",
    "memory map a file",
    "stop a background task when the server shuts down",
];

/// What this repository has trained, from its root.
const SHIPPED_BUNDLE: &str = "models/bundles/expandr-small";

/// Flags of `expandr demo`.
#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Address and port to listen on.
    #[arg(long, env = "EXPANDR_LISTEN", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// Folder of the demo's documents and their vectors.
    #[arg(long, env = "EXPANDR_DEMO_INDEX_DIR", default_value = "index/store/demo")]
    index_dir: PathBuf,

    /// Folder of the checkpoints.
    #[arg(long, env = "EXPANDR_MODELS_DIR", default_value = "models/store")]
    models_dir: PathBuf,

    /// The bundle to serve: a folder, or `none` for the default models as they are [default: the one that the repository
    /// ships, if it is there].
    #[arg(long, env = "EXPANDR_DEMO_BUNDLE", value_name = "DIR|none")]
    bundle: Option<String>,

    /// Passages to index.
    #[arg(long, default_value_t = 4000)]
    passages: usize,
}

/// Lets clap fill in the defaults of every other flag.
#[derive(Debug, Parser)]
struct ServeDefaults {
    #[command(flatten)]
    options: ServeOptions,
}

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    models::pull(args.models_dir.clone(), false).await.context("the default weights can't be fetched")?;
    let mut options = ServeDefaults::try_parse_from(["expandr"])?.options;
    options.places.listen = args.listen;
    options.places.index_dir = args.index_dir.clone();
    options.places.models_dir = args.models_dir.clone();
    options.models.bundle = bundle(args.bundle.as_deref(), Path::new(SHIPPED_BUNDLE))?;

    let stop = stop_on_signals()?;
    let (ready_sender, ready) = oneshot::channel();
    let server = tokio::spawn(serve(options, stop.clone(), |address, state| {
        let documents = state.service.bundle().index.stats().documents;
        let _ = ready_sender.send((address, documents));
    }));
    let Ok((address, documents)) = ready.await else {
        return server.await?; // it ended before it was ready: the error says why
    };
    let result = tokio::select! {
        filled = fill(address, documents, args.passages) => filled,
        () = stop.cancelled() => Ok(()),
    };
    if let Err(error) = result {
        stop.cancel();
        let _ = server.await;
        return Err(error);
    }
    if !stop.is_cancelled() {
        print_invitation(address);
    }
    server.await?
}

/// The bundle to serve: the one that was asked for, else the shipped one; none: the default models as they are.
fn bundle(asked: Option<&str>, shipped: &Path) -> anyhow::Result<Option<String>> {
    match asked {
        Some("none") => Ok(None),
        Some(asked) => {
            anyhow::ensure!(
                Path::new(asked).is_dir(),
                "--bundle {asked}: there is no such folder; name a bundle's folder, or take the default models with --bundle none"
            );
            Ok(Some(asked.to_owned()))
        }
        None if shipped.is_dir() => Ok(Some(shipped.to_string_lossy().into_owned())),
        None => {
            eprintln!("{} is not here; serving the default models as they are", shipped.display());
            Ok(None)
        }
    }
}

/// Indexes the corpus unless it is there already.
async fn fill(address: SocketAddr, documents: usize, passages: usize) -> anyhow::Result<()> {
    eprintln!("reading the documentation of the crates of this build");
    let corpus = tokio::task::spawn_blocking(move || rustdoc::corpus(passages)).await??;
    if documents == corpus.len() {
        eprintln!("{documents} passages are indexed already");
        return Ok(());
    }
    eprintln!("indexing {} passages", corpus.len());
    let server = Server { endpoint: format!("http://{address}"), key: None };
    let count = corpus.len() as u64;
    ingest::send(&server, Box::new(corpus.into_iter().map(Ok)), count).await
}

fn print_invitation(address: SocketAddr) {
    println!("\nexpandr answers on http://{address}. In another terminal, try:\n");
    let on = if address.port() == 8080 { String::new() } else { format!(" --endpoint http://{address}") };
    for question in QUESTIONS {
        println!("  cargo run --release -- search{on} \"{question}\"");
    }
    println!("\nor, without the client:\n");
    println!(
        "  curl -s http://{address}/search -H 'content-type: application/json' \\\n       -d '{{\"query\": \"{}\", \"top_k\": 3, \"explain\": true}}'\n",
        QUESTIONS[1]
    );
    println!("Ctrl-C stops it.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_is_served_if_there_is_one_and_it_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().to_str().unwrap();
        let missing = folder.path().join("typo");
        assert_eq!(bundle(None, folder.path()).unwrap().as_deref(), Some(there));
        assert_eq!(bundle(None, &missing).unwrap(), None);
        assert_eq!(bundle(Some("none"), folder.path()).unwrap(), None);
        assert_eq!(bundle(Some(there), &missing).unwrap().as_deref(), Some(there));
        let error = bundle(missing.to_str(), folder.path()).unwrap_err().to_string();
        assert!(error.contains("typo") && error.contains("--bundle none"), "{error}");
    }

    #[test]
    fn what_the_repository_ships_is_whole() {
        // Tests run in the repository's root.
        let folder = Path::new(SHIPPED_BUNDLE);
        if folder.is_dir() {
            let manifest = expandr_models::bundle::read(folder).unwrap();
            expandr_models::bundle::prove(folder, &manifest).unwrap();
        }
    }
}
