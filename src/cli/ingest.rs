//! `expandr ingest`: sends documents to a running server.

use std::{
    io::BufRead,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::client::{self, Endpoint};

/// Documents of one request: an interrupted ingest loses at most this many unacknowledged ones.
const LINES_PER_REQUEST: usize = 256;

/// Flags of `expandr ingest`.
#[derive(Args, Debug)]
pub(super) struct IngestArgs {
    /// A BEIR folder (with corpus.jsonl), an NDJSON file (with `id` or `_id`, `text`, optionally `title` and `metadata` a line), or a
    /// folder of .txt and .md files (cut into passages at blank lines and headings).
    source: PathBuf,

    #[command(flatten)]
    endpoint: Endpoint,
}

pub(super) async fn run(args: IngestArgs) -> anyhow::Result<()> {
    let lines = lines_of(&args.source)?;
    send(&args.endpoint, lines).await
}

/// Sends NDJSON lines in requests of a few hundred, with a progress bar.
///
/// # Errors
/// When the server can't be reached or refuses; a line that it refuses is printed and counted.
pub(super) async fn send(endpoint: &Endpoint, lines: Vec<String>) -> anyhow::Result<()> {
    let client = reqwest::Client::new();
    let bar = ProgressBar::new(lines.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {human_pos}/{human_len} documents, {per_sec}, {eta} left",
    )?);
    let (mut created, mut updated, mut failed) = (0, 0, 0);
    for (i, chunk) in lines.chunks(LINES_PER_REQUEST).enumerate() {
        let answer = send_chunk(endpoint, &client, chunk).await?;
        created += answer["created"].as_u64().unwrap_or(0);
        updated += answer["updated"].as_u64().unwrap_or(0);
        failed += answer["failed"].as_u64().unwrap_or(0);
        for error in answer["errors"].as_array().into_iter().flatten() {
            let line = i as u64 * LINES_PER_REQUEST as u64 + error["line"].as_u64().unwrap_or(0);
            bar.println(format!("document {line}: {} {}", error["pointer"], error["detail"]));
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish();
    eprintln!("{created} documents created, {updated} updated, {failed} refused");
    if failed > 0 {
        bail!("{failed} documents were refused; the lines above say why");
    }
    Ok(())
}

/// Sends one chunk; waits and tries again while the server is overloaded.
async fn send_chunk(
    endpoint: &Endpoint,
    client: &reqwest::Client,
    chunk: &[String],
) -> anyhow::Result<Value> {
    let body = chunk.join("\n");
    loop {
        let request = endpoint
            .request(client, reqwest::Method::POST, "/documents/bulk")
            .header(CONTENT_TYPE, "application/x-ndjson")
            .body(body.clone());
        let response = endpoint.send(request).await?;
        let status = response.status();
        if status == 429 || status == 503 {
            let wait = response.headers().get("retry-after").and_then(|v| v.to_str().ok()?.parse().ok());
            tokio::time::sleep(Duration::from_secs(wait.unwrap_or(1))).await;
            continue;
        }
        if status == 422 {
            // Every line was refused: the report says why.
            return response.json().await.context("the server refused the documents without saying why");
        }
        return client::json(response).await;
    }
}

fn lines_of(source: &Path) -> anyhow::Result<Vec<String>> {
    if source.is_file() {
        return read_lines(source);
    }
    let corpus = source.join("corpus.jsonl");
    if corpus.is_file() {
        return read_lines(&corpus);
    }
    if source.is_dir() {
        return text_files(source);
    }
    bail!("{}: no such file or folder", source.display())
}

fn read_lines(path: &Path) -> anyhow::Result<Vec<String>> {
    let file = std::io::BufReader::new(fs_err::File::open(path)?);
    let mut lines = Vec::new();
    for line in file.lines() {
        let line = line.with_context(|| format!("{} is not UTF-8 text", path.display()))?;
        if !line.trim().is_empty() {
            lines.push(line);
        }
    }
    Ok(lines)
}

/// Passages of every .txt and .md file below `folder`.
fn text_files(folder: &Path) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
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
                lines.extend(passages(&name, &text));
            }
        }
    }
    if lines.is_empty() {
        bail!("{}: neither a corpus.jsonl nor a .txt or .md file in it", folder.display());
    }
    Ok(lines)
}

/// Longest passage in characters: about what an encoder of 256 tokens reads.
const PASSAGE_CHARS: usize = 1000;

/// Cuts a text into passages at headings and blank lines, and puts short neighbours together.
fn passages(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut heading, mut passage) = (String::new(), String::new());
    let mut flush = |heading: &str, passage: &mut String| {
        let body = passage.trim();
        if !body.is_empty() {
            let title = if heading.is_empty() { name.to_owned() } else { format!("{name}: {heading}") };
            let id = format!("{name}#{}", found.len() + 1);
            found.push(
                json!({"id": id, "title": title, "text": body, "metadata": {"file": name}}).to_string(),
            );
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
        let lines = passages("guide.md", &text);
        let titles: Vec<Value> = lines.iter().map(|l| serde_json::from_str::<Value>(l).unwrap()).collect();
        assert_eq!(titles.len(), 3);
        assert_eq!(titles[0]["title"], "guide.md: One");
        assert_eq!(titles[2]["id"], "guide.md#3");
        assert_eq!(titles[2]["title"], "guide.md: Two");
    }

    #[test]
    fn a_folder_without_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(lines_of(folder.path()).unwrap_err().to_string().contains("corpus.jsonl"));
        assert!(lines_of(Path::new("no/such/place")).is_err());
    }
}
