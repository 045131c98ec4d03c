//! `expandr ingest`: sends documents to a running server.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::bail;
use clap::Args;
use expandr_evaluation::{
    Document,
    client::{IngestOptions, ingest},
    collection::Documents,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, json};

use super::client::Server;

/// Documents as a source gives them, one after another.
pub(super) type Source = Box<dyn Iterator<Item = expandr_evaluation::Result<Document>>>;

/// Flags of `expandr ingest`.
#[derive(Args, Debug)]
pub(super) struct IngestArgs {
    /// A BEIR folder (with corpus.jsonl), an NDJSON file (with `id` or `_id`, `text`, optionally `title` and `metadata` a
    /// line), or a folder of .txt and .md files (cut into passages at blank lines and headings).
    source: PathBuf,

    #[command(flatten)]
    server: Server,
}

pub(super) async fn run(args: IngestArgs) -> anyhow::Result<()> {
    let (documents, count) = open(&args.source)?;
    send(&args.server, documents, count).await
}

/// Sends documents in requests of a few hundred, with a progress bar. What a request acknowledged is durable, so an
/// interrupted ingest is simply begun again.
///
/// # Errors
/// When the server can't be reached, or refuses some of the documents.
pub(super) async fn send(server: &Server, documents: Source, count: u64) -> anyhow::Result<()> {
    let endpoint = server.endpoint()?;
    let bar = ProgressBar::new(count);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} documents, {per_sec}, {eta} left",
    )?);
    let report = ingest(&endpoint, documents, IngestOptions::default(), |report| {
        bar.set_position((report.sent + report.blank) as u64);
    })
    .await?;
    bar.finish();
    let (created, updated, blank) = (report.created, report.updated, report.blank);
    eprintln!(
        "{created} documents created, {updated} updated, {} refused, {blank} blank ones left out",
        report.refused
    );
    for refused in &report.first_refused {
        eprintln!("refused {}: {}", refused.id, refused.detail);
    }
    if report.refused > 0 {
        bail!("{} documents were refused; the lines above say why", report.refused);
    }
    Ok(())
}

/// The documents of a source, and about how many there are.
fn open(source: &Path) -> anyhow::Result<(Source, u64)> {
    let corpus = source.join("corpus.jsonl");
    let file = if source.is_file() { source } else { corpus.as_path() };
    if file.is_file() {
        let count = BufReader::new(fs_err::File::open(file)?).split(b'\n').count() as u64;
        return Ok((Box::new(Documents::open(file)?), count));
    }
    if source.is_dir() {
        let documents = text_files(source)?;
        let count = documents.len() as u64;
        return Ok((Box::new(documents.into_iter().map(Ok)), count));
    }
    bail!("{}: no such file or folder", source.display())
}

/// Passages of every .txt and .md file below `folder`.
fn text_files(folder: &Path) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let mut entries: Vec<PathBuf> =
            fs_err::read_dir(&next)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        entries.sort();
        for path in entries {
            if path.is_dir() {
                folders.push(path);
            } else if matches!(path.extension().and_then(|e| e.to_str()), Some("txt" | "md" | "markdown")) {
                let text = fs_err::read_to_string(&path)?;
                let name = path.strip_prefix(folder).unwrap_or(&path).display().to_string();
                documents.extend(passages(&name, &text));
            }
        }
    }
    if documents.is_empty() {
        bail!("{}: neither a corpus.jsonl nor a .txt or .md file in it", folder.display());
    }
    Ok(documents)
}

/// Longest passage in characters: about what an encoder of 256 tokens reads.
const PASSAGE_CHARS: usize = 1000;

/// Cuts a text into passages at headings and blank lines, and puts short neighbours together.
fn passages(name: &str, text: &str) -> Vec<Document> {
    let mut found = Vec::new();
    let (mut heading, mut passage) = (String::new(), String::new());
    let mut flush = |heading: &str, passage: &mut String| {
        let body = passage.trim();
        if !body.is_empty() {
            let title = if heading.is_empty() { name.to_owned() } else { format!("{name}: {heading}") };
            let id = format!("{name}#{}", found.len() + 1);
            let metadata = Map::from_iter([("file".to_owned(), json!(name))]);
            found.push(Document { id, title, text: body.to_owned(), metadata });
        }
        passage.clear();
    };
    for block in text.split("\n\n") {
        let first = block.trim_start().lines().next().unwrap_or("");
        if first.starts_with('#') {
            flush(&heading, &mut passage);
            heading = first.trim_start_matches('#').trim().to_owned();
        }
        if !passage.is_empty() && passage.len() + block.len() > PASSAGE_CHARS {
            flush(&heading, &mut passage);
        }
        passage.push_str(block);
        passage.push_str("\n\n");
    }
    flush(&heading, &mut passage);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_is_cut_at_headings_and_length() {
        let text = format!("# One\n\nshort\n\n# Two\n\n{}\n\n{}", "a".repeat(700), "b".repeat(700));
        let documents = passages("guide.md", &text);
        assert_eq!(documents.len(), 3);
        assert_eq!(documents[0].title, "guide.md: One");
        assert_eq!(documents[2].id, "guide.md#3");
        assert_eq!(documents[2].title, "guide.md: Two");
    }

    #[test]
    fn a_folder_without_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(open(folder.path()).err().unwrap().to_string().contains("corpus.jsonl"));
        assert!(open(Path::new("no/such/place")).is_err());
    }
}
