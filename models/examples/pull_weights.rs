//! Fills a store with the default weights: `cargo run --release -p expandr-models --example pull_weights [store]`.

use std::path::PathBuf;

use expandr_models::weights::{PullOptions, PullProgress, pull};

fn main() -> expandr_models::Result<()> {
    let store = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("models/store"), PathBuf::from);
    pull(&store, &PullOptions::default(), &mut |progress| {
        if !matches!(progress, PullProgress::Converting { done, total, .. } if done < total) {
            eprintln!("{progress}");
        }
    })?;
    Ok(())
}
