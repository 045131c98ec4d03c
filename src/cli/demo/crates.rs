//! Which crates this build used, and where cargo keeps their sources.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The lock file of this very build.
const LOCK: &str = include_str!("../../../Cargo.lock");

/// Crates that a Rust programmer is likely to ask about come first.
const FIRST: &[&str] = &[
    "tokio",
    "axum",
    "serde",
    "serde_json",
    "clap_builder",
    "reqwest",
    "futures-util",
    "rayon",
    "tracing",
    "tracing-subscriber",
    "tower",
    "tower-http",
    "hyper",
    "http",
    "bytes",
    "regex",
    "rand",
    "uuid",
    "anyhow",
    "thiserror",
    "tokio-util",
    "tokio-stream",
    "candle-core",
    "candle-nn",
    "tokenizers",
    "redb",
    "moka",
    "parking_lot",
    "indicatif",
    "memmap2",
    "itertools",
    "indexmap",
    "hashbrown",
    "crossbeam-channel",
    "crossbeam-utils",
    "once_cell",
    "chrono",
    "url",
    "mistralrs",
    "usearch",
    "prometheus",
    "safetensors",
    "half",
    "walkdir",
    "log",
    "either",
    "smallvec",
];

/// A crate whose sources are on this machine.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CrateSource {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) folder: PathBuf,
}

/// The crates of this build whose sources cargo keeps, the best known first, then by name.
pub(super) fn sources() -> anyhow::Result<Vec<CrateSource>> {
    let roots = registry_folders()?;
    let mut found: Vec<CrateSource> = locked()
        .into_iter()
        .filter_map(|(name, version)| {
            let folder = roots
                .iter()
                .map(|root| root.join(format!("{name}-{version}")))
                .find(|folder| folder.is_dir())?;
            Some(CrateSource { name, version, folder })
        })
        .collect();
    if found.is_empty() {
        bail!(
            "none of the crates of this build are in cargo's folder; build it here first, or set CARGO_HOME"
        );
    }
    let rank =
        |source: &CrateSource| FIRST.iter().position(|name| *name == source.name).unwrap_or(FIRST.len());
    found.sort_by(|a, b| {
        rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name)).then_with(|| b.version.cmp(&a.version))
    });
    Ok(found)
}

/// Name and version of every package in the lock file that came from a registry.
fn locked() -> Vec<(String, String)> {
    let value = |line: &str, key: &str| -> Option<String> {
        Some(line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"')?.to_owned())
    };
    LOCK.split("[[package]]")
        .filter(|package| package.contains("\nsource = \"registry"))
        .filter_map(|package| {
            let name = package.lines().find_map(|line| value(line, "name"))?;
            let version = package.lines().find_map(|line| value(line, "version"))?;
            Some((name, version))
        })
        .collect()
}

fn registry_folders() -> anyhow::Result<Vec<PathBuf>> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            let user = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
            Path::new(&user).join(".cargo")
        }
    };
    let sources = home.join("registry").join("src");
    let entries = fs_err::read_dir(&sources)
        .context("cargo's folder of downloaded sources can't be read; set CARGO_HOME, or `expandr ingest` another corpus")?;
    Ok(entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_file_names_our_dependencies() {
        let packages = locked();
        assert!(packages.iter().any(|(name, _)| name == "axum"));
        assert!(packages.iter().any(|(name, version)| name == "mistralrs" && version == "0.8.1"));
        assert!(!packages.iter().any(|(name, _)| name == "expandr"), "only what came from a registry");
    }

    #[test]
    fn the_sources_of_this_build_are_found() {
        let sources = sources().unwrap();
        assert_eq!(sources[0].name, "tokio");
        assert!(sources[0].folder.join("src/lib.rs").is_file());
    }
}
