//! How fast an expander writes and how much memory it keeps.
//!
//!     cargo run --release --example expand_bench -- <checkpoint> [batched|mistralrs] [--threads N] [--soak]
//!
//! Prints the time to the first token and tokens a second for 1, 8 and 32 requests at once, how fast prompts are read, and
//! with `--soak` the resident memory after 50 and after 500 short generations.

use std::{fmt::Write, path::Path, sync::Arc, time::Duration};

#[cfg(feature = "mistralrs")]
use expandr_models::expander::mistral;
use expandr_models::{
    Expander, Generation, GenerationRequest, Sampling,
    decoder::DecoderOptions,
    expander::{PromptTemplate, batched},
};
use tokio::time::Instant;

const TOKENS: usize = 64;
const SOAK_TOKENS: usize = 8;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "usage: expand_bench <checkpoint> [batched|mistralrs] [--threads N] [--soak]";
    let path = arguments.first().ok_or_else(|| anyhow::anyhow!(usage))?;
    let soak = arguments.iter().any(|argument| argument == "--soak");
    let engine = arguments.get(1).filter(|argument| !argument.starts_with("--"));
    let threads = arguments.iter().position(|argument| argument == "--threads");
    let threads =
        threads.and_then(|index| arguments.get(index + 1)).map(|count| count.parse()).transpose()?;
    let start = Instant::now();
    let expander = load(Path::new(path), engine.map_or("batched", String::as_str), threads).await?;
    println!(
        "{} by {} on {}: loaded in {:.2?}, {} MB",
        expander.info().id,
        expander.info().engine,
        expander.info().device,
        start.elapsed(),
        resident_mb()
    );

    run(&expander, 1, SOAK_TOKENS).await?;
    println!(
        "| at once | first token p50 | last request's first token | tokens/s | tokens/CPU s | seconds |"
    );
    println!("|---|---|---|---|---|---|");
    for at_once in [1, 8, 32] {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut generations = run(&expander, at_once, TOKENS).await?;
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let tokens: usize = generations.iter().map(|(_, generation)| generation.output_tokens).sum();
        generations.sort_by_key(|(first, _)| *first);
        let (median, last) = (generations[at_once / 2].0, generations[at_once - 1].0);
        let (tokens, median, last) = (tokens as f64, median.as_secs_f64(), last.as_secs_f64());
        println!(
            "| {at_once} | {median:.2} s | {last:.2} s | {:.1} | {:.1} | {elapsed:.1} |",
            tokens / elapsed,
            tokens / cpu
        );
    }
    println!("| at once | prompt tokens/s, about | tokens/CPU s | seconds |");
    println!("|---|---|---|---|");
    for at_once in [1, 8, 32] {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let words = run_prompts(&expander, at_once).await? as f64;
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!("| {at_once} | {:.0} | {:.0} | {elapsed:.2} |", words / elapsed, words / cpu);
    }
    if soak {
        println!("resident memory: {} MB", resident_mb());
        for count in 1..=500 {
            run(&expander, 1, SOAK_TOKENS).await?;
            if [50, 100, 250, 500].contains(&count) {
                println!("after {count} generations of {SOAK_TOKENS} tokens: {} MB", resident_mb());
            }
        }
    }
    Ok(())
}

async fn load(path: &Path, engine: &str, threads: Option<usize>) -> anyhow::Result<Arc<dyn Expander>> {
    match engine {
        "batched" => {
            let mut options = DecoderOptions { queue_capacity: 1024, ..Default::default() };
            options.threads = threads.unwrap_or(options.threads);
            Ok(batched::load(path, options).await?)
        }
        #[cfg(feature = "mistralrs")]
        "mistralrs" => {
            let options = mistral::MistralOptions { queue_capacity: 1024, ..Default::default() };
            Ok(mistral::load(path, options).await?)
        }
        other => anyhow::bail!("`{other}` is no engine of this build; use batched or mistralrs"),
    }
}

/// So many prompts of 200 common words, each of which is a token, and one token written for each.
async fn run_prompts(expander: &Arc<dyn Expander>, at_once: usize) -> anyhow::Result<usize> {
    const WORDS: usize = 200;
    let generations = (0..at_once).map(|index| {
        let expander = Arc::clone(expander);
        async move {
            let mut prompt = String::new();
            for word in 0..WORDS {
                let words = ["time", "water", "people", "house", "world", "music", "food"];
                write!(prompt, " {}", words[(word * (index + 3) + word / 7) % words.len()])?;
            }
            let request = GenerationRequest { prompt, sampling: Sampling::greedy(1) };
            expander.generate(request).await?.collect_until(None).await?;
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(generations).await?;
    Ok(at_once * WORDS)
}

/// So many different prompts at once, greedy; with each generation the time from its request, the wait for a place
/// included, to its first token.
async fn run(
    expander: &Arc<dyn Expander>,
    at_once: usize,
    max_tokens: usize,
) -> anyhow::Result<Vec<(Duration, Generation)>> {
    let generations = (0..at_once).map(|index| {
        let expander = Arc::clone(expander);
        async move {
            let question =
                format!("what should somebody know about the number {} and its uses", index * 37 + 11);
            let prompt = PromptTemplate::q2d().render(&[&question])?;
            let start = Instant::now();
            let stream = expander
                .generate(GenerationRequest { prompt, sampling: Sampling::greedy(max_tokens) })
                .await?;
            let waited = start.elapsed();
            let generation = stream.collect_until(None).await?;
            anyhow::Ok((waited + generation.time_to_first_token.unwrap_or_default(), generation))
        }
    });
    futures::future::try_join_all(generations).await
}

/// Processor time of the process so far, at the usual hundred ticks a second; 0 where the system doesn't tell.
fn cpu_seconds() -> f64 {
    let status = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = status.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The process's resident memory; 0 where the system doesn't tell.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).unwrap_or_default()
        / 1000
}
