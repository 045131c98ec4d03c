//! How fast an encoder is on this machine, through the same calls as the service's.
//!
//! ```text
//! cargo run --release -p expandr-models --example encode_bench -- <checkpoint> <texts> [--threads N] [--limit N]
//!     [--batches 1,8,32,64,0] [--budget TOKENS] [--seconds S] [--json]
//! ```
//!
//! `<texts>` has one text a line, or one JSON object a line with `title` and `text` (BEIR's corpus.jsonl). For each
//! batch size, requests of that many texts are sent one after the other (0: one request at a time with everything),
//! and documents a second are printed; at the end peak memory. With `--json`, one line of JSON.

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail};
use expandr_models::{
    Encoder, Priority, TextKind,
    device::DeviceChoice,
    encoder::{EncoderOptions, load},
};

struct Arguments {
    checkpoint: PathBuf,
    texts: PathBuf,
    limit: usize,
    batches: Vec<usize>,
    seconds: f64,
    json: bool,
    options: EncoderOptions,
}

fn arguments() -> Result<Arguments> {
    let mut plain = Vec::new();
    let mut parsed = Arguments {
        checkpoint: PathBuf::new(),
        texts: PathBuf::new(),
        limit: 512,
        batches: vec![1, 8, 32, 64, 0],
        seconds: 5.0,
        json: false,
        options: EncoderOptions {
            device: DeviceChoice::Cpu,
            queue_capacity: 1 << 20,
            ..EncoderOptions::default()
        },
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value"));
        match word.as_str() {
            "--threads" => parsed.options.threads = Some(value()?.parse()?),
            "--budget" => parsed.options.max_batch_tokens = Some(value()?.parse()?),
            "--device" => parsed.options.device = value()?.parse().map_err(anyhow::Error::msg)?,
            "--limit" => parsed.limit = value()?.parse()?,
            "--seconds" => parsed.seconds = value()?.parse()?,
            "--batches" => parsed.batches = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?,
            "--json" => parsed.json = true,
            _ => plain.push(PathBuf::from(word)),
        }
    }
    let Ok([checkpoint, texts]) = <[PathBuf; 2]>::try_from(plain) else {
        bail!("give a checkpoint and a file of texts")
    };
    Ok(Arguments { checkpoint, texts, ..parsed })
}

fn read_texts(arguments: &Arguments) -> Result<Vec<String>> {
    let content = fs_err::read_to_string(&arguments.texts)?;
    let text = |line: &str| -> Result<String> {
        if !line.starts_with('{') {
            return Ok(line.to_owned());
        }
        let document: serde_json::Value = serde_json::from_str(line)?;
        let field = |name: &str| document[name].as_str().unwrap_or_default();
        Ok(format!("{} {}", field("title"), field("text")).trim().to_owned())
    };
    content.lines().take(arguments.limit).map(text).collect()
}

/// Processor seconds of this process so far, where the system tells: what a busy machine disturbs less than time.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(f64::NAN);
    (ticks(11) + ticks(12)) / 100.0
}

/// Peak resident memory in MB, where the system tells.
fn peak_memory_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Documents a second, and documents a processor second.
async fn speeds(encoder: &dyn Encoder, texts: &[String], batch: usize, seconds: f64) -> Result<[f64; 2]> {
    let batch = if batch == 0 { texts.len() } else { batch };
    let (start, cpu_start, mut count) = (Instant::now(), cpu_seconds(), 0);
    loop {
        for request in texts.chunks(batch) {
            count += encoder.encode(TextKind::Document, Priority::Bulk, request.to_vec()).await?.len();
            if start.elapsed().as_secs_f64() > seconds {
                let times = [start.elapsed().as_secs_f64(), cpu_seconds() - cpu_start];
                return Ok(times.map(|time| count as f64 / time));
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = arguments()?;
    let texts = read_texts(&arguments)?;
    if texts.is_empty() {
        bail!("{} has no text", arguments.texts.display());
    }
    let start = Instant::now();
    let encoder = load(&arguments.checkpoint, &arguments.options)?;
    let load_seconds = start.elapsed().as_secs_f64();
    let warm_up = texts.iter().take(8).cloned().collect();
    encoder.encode(TextKind::Document, Priority::Bulk, warm_up).await?;
    let mut measured = serde_json::Map::new();
    for &batch in &arguments.batches {
        let [speed, cpu_speed] = speeds(&*encoder, &texts, batch, arguments.seconds).await?;
        let name = if batch == 0 { "all".to_owned() } else { batch.to_string() };
        if !arguments.json {
            println!("batch {name:>4}: {speed:7.1} documents/s, {cpu_speed:7.1} documents/CPU-s");
        }
        measured.insert(name, serde_json::json!([speed, cpu_speed]));
    }
    let memory = peak_memory_mb();
    if arguments.json {
        let report =
            serde_json::json!({"speeds": measured, "peak_memory_mb": memory, "load_seconds": load_seconds});
        println!("{report}");
    } else {
        println!("loaded in {load_seconds:.2} s; peak memory {:.0} MB", memory.unwrap_or(f64::NAN));
    }
    Ok(())
}
