//! How fast an expander writes and how much memory it keeps.
//!
//!     cargo run --release -p expandr-models --example expand_bench -- <checkpoint> [batched|mistralrs] [--threads N]
//!         [--precision exact|bf16|q8] [--soak]
//!
//! Prints the time to the first token and tokens a second for 1, 8 and 32 requests at once, how fast prompts are read, and
//! with `--soak` the resident memory after 50 and after 500 short generations.

use std::{fmt::Write, path::Path, sync::Arc, time::Duration};

#[cfg(feature = "mistralrs")]
use expandr_models::expander::mistral;
use expandr_models::{
    Expander, Generation, GenerationRequest, Sampling,
    decoder::{DecoderOptions, Precision},
    expander::{PromptTemplate, batched},
};
use tokio::time::Instant;

const TOKENS: usize = 64;
const SOAK_TOKENS: usize = 8;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = take_value(&mut arguments, "--threads").map(|count| count.parse()).transpose()?;
    let precision = match take_value(&mut arguments, "--precision").as_deref() {
        None | Some("exact") => Precision::Exact,
        Some("bf16") => Precision::Bf16,
        Some("q8") => Precision::Q8,
        Some(other) => anyhow::bail!("`{other}` is no precision; use exact, bf16 or q8"),
    };
    let wants_soak = arguments.iter().any(|argument| argument == "--soak");
    arguments.retain(|argument| argument != "--soak");
    let (path, engine) = match &arguments[..] {
        [path] => (path, "batched"),
        [path, engine] => (path, engine.as_str()),
        _ => anyhow::bail!(
            "usage: expand_bench <checkpoint> [batched|mistralrs] [--threads N] [--precision exact|bf16|q8] [--soak]"
        ),
    };
    let start = Instant::now();
    let expander = load(Path::new(path), engine, threads, precision).await?;
    let info = expander.info();
    println!(
        "{} by {} on {}: loaded in {:.2?}, {} MB",
        info.id,
        info.engine,
        info.device,
        start.elapsed(),
        resident_mb()
    );
    run(&expander, 1, Sampling::greedy(SOAK_TOKENS)).await?;
    passages(&expander).await?;
    prompts(&expander).await?;
    if wants_soak {
        soak(&expander).await?;
    }
    Ok(())
}

fn take_value(arguments: &mut Vec<String>, name: &str) -> Option<String> {
    let place = arguments.iter().position(|argument| argument == name)?;
    arguments.remove(place);
    (place < arguments.len()).then(|| arguments.remove(place))
}

async fn passages(expander: &Arc<dyn Expander>) -> anyhow::Result<()> {
    println!(
        "| at once | first token p50 | last request's first token | tokens/s | tokens/CPU s | seconds |"
    );
    println!("|---|---|---|---|---|---|");
    let greedy = Sampling::greedy(TOKENS);
    let sampled = Sampling { max_tokens: TOKENS, temperature: 1.0, top_p: 0.9, seed: Some(1) };
    for (at_once, sampling) in [(1, greedy), (8, greedy), (32, greedy), (32, sampled)] {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let mut generations = run(expander, at_once, sampling).await?;
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        let tokens: usize = generations.iter().map(|(_, generation)| generation.output_tokens).sum();
        generations.sort_by_key(|(first, _)| *first);
        let (median, last) = (generations[at_once / 2].0, generations[at_once - 1].0);
        let (tokens, median, last) = (tokens as f64, median.as_secs_f64(), last.as_secs_f64());
        println!(
            "| {at_once}{} | {median:.2} s | {last:.2} s | {:.1} | {:.1} | {elapsed:.1} |",
            if sampling == sampled { ", temperature 1" } else { "" },
            tokens / elapsed,
            tokens / cpu
        );
    }
    Ok(())
}

async fn prompts(expander: &Arc<dyn Expander>) -> anyhow::Result<()> {
    println!("| at once | prompt tokens/s, about | tokens/CPU s | seconds |");
    println!("|---|---|---|---|");
    for at_once in [1, 8] {
        let (start, cpu) = (Instant::now(), cpu_seconds());
        let words = run_prompts(expander, at_once).await? as f64;
        let (elapsed, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
        println!("| {at_once} | {:.0} | {:.0} | {elapsed:.2} |", words / elapsed, words / cpu);
    }
    Ok(())
}

async fn soak(expander: &Arc<dyn Expander>) -> anyhow::Result<()> {
    println!("resident memory: {} MB", resident_mb());
    for count in 1..=500 {
        run(expander, 1, Sampling::greedy(SOAK_TOKENS)).await?;
        if [50, 100, 250, 500].contains(&count) {
            println!("after {count} generations of {SOAK_TOKENS} tokens: {} MB", resident_mb());
        }
    }
    Ok(())
}

async fn load(
    path: &Path,
    engine: &str,
    threads: Option<usize>,
    precision: Precision,
) -> anyhow::Result<Arc<dyn Expander>> {
    match engine {
        "batched" => {
            let mut options = DecoderOptions { queue_capacity: 1024, precision, ..Default::default() };
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

/// So many different prompts at once; with each generation the time from its request, the wait for a place
/// included, to its first token.
async fn run(
    expander: &Arc<dyn Expander>,
    at_once: usize,
    sampling: Sampling,
) -> anyhow::Result<Vec<(Duration, Generation)>> {
    let generations = (0..at_once).map(|index| {
        let expander = Arc::clone(expander);
        async move {
            let question =
                format!("what should somebody know about the number {} and its uses", index * 37 + 11);
            let prompt = PromptTemplate::q2d().render(&[&question])?;
            let start = Instant::now();
            let stream = expander.generate(GenerationRequest { prompt, sampling }).await?;
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
