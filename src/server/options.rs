//! How a server runs: every flag of `expandr serve`, each also an environment variable.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, ValueEnum};
use expandr_models::device::DeviceChoice;
use serde::{Deserialize, Serialize};

use super::operations::OperationOptions;
use crate::{jobs::JobOptions, search::request::Ranking};

/// Where things are.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Places")]
pub struct Places {
    /// Address and port to listen on. Anything but loopback needs keys.
    #[arg(long, env = "EXPANDR_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Folder of the service: bundles, documents, their vectors, the HNSW snapshot, the queue.
    #[arg(long, env = "EXPANDR_INDEX_DIR", default_value = "index/store/main")]
    pub index_dir: PathBuf,

    /// Folder of the checkpoints that `expandr models pull` fetches.
    #[arg(long, env = "EXPANDR_MODELS_DIR", default_value = "models/store")]
    pub models_dir: PathBuf,
}

/// Which models answer, and how they run.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Models")]
pub struct Models {
    /// A bundle that says which encoder, expander, adapters, gate and defaults to use: its folder, or the id of one that was
    /// imported. What was activated over HTTP meanwhile goes on serving until this flag changes.
    #[arg(long, env = "EXPANDR_BUNDLE", value_name = "DIR|ID",
          conflicts_with_all = ["encoder", "encoder_adapter", "expander", "expander_adapter", "expander_model", "gate"])]
    pub bundle: Option<String>,

    /// The retriever's encoder: a name in the models folder, a folder (sentence-transformers or Hugging Face
    /// layout), or a hub id where the network allows it.
    #[arg(long, env = "EXPANDR_ENCODER", default_value = expandr_models::weights::DEFAULT_ENCODER)]
    pub encoder: String,

    /// The language model that writes passages: a name in the models folder, a folder (Hugging Face layout), a .gguf file, a
    /// hub id, the base URL of an OpenAI-compatible server (http://host:port/v1), or `none`.
    #[arg(long, env = "EXPANDR_EXPANDER", default_value = expandr_models::weights::DEFAULT_EXPANDER)]
    pub expander: String,

    /// A LoRA adapter for the encoder (a folder in PEFT's layout). It is merged once, into a folder of the models folder.
    #[arg(long, env = "EXPANDR_ENCODER_ADAPTER", value_name = "DIR")]
    pub encoder_adapter: Option<PathBuf>,

    /// A LoRA adapter for the language model (a folder in PEFT's layout). The engine batched applies it beside the weights,
    /// which stay as small as they are; mistralrs gets a merged checkpoint, made once in the models folder.
    #[arg(long, env = "EXPANDR_EXPANDER_ADAPTER", value_name = "DIR")]
    pub expander_adapter: Option<PathBuf>,

    /// Model name to ask an OpenAI-compatible server for.
    #[arg(long, env = "EXPANDR_EXPANDER_MODEL", default_value = "default")]
    pub expander_model: String,

    /// Bearer key for an OpenAI-compatible server. It goes only to the URL that --expander, or the bundle of --bundle, names.
    #[arg(long, env = "EXPANDR_EXPANDER_API_KEY", hide_env_values = true)]
    #[serde(skip)]
    pub expander_api_key: Option<String>,

    /// The servers that get the key: those that the flags name. Filled at the start, and handed on to jobs.
    #[arg(skip)]
    #[serde(default)]
    pub key_urls: Option<Vec<String>>,

    /// Device of encoder and expander: auto, cpu, cuda[:N] or metal[:N].
    #[arg(long, env = "EXPANDR_DEVICE", default_value = "auto")]
    #[serde(with = "device_by_name")]
    pub device: DeviceChoice,

    /// Quantise the language model while loading (mistralrs' ISQ): e.g. Q4K, Q8_0.
    #[arg(long, env = "EXPANDR_EXPANDER_ISQ")]
    pub expander_isq: Option<String>,

    /// What runs the language model in this process: batched (our own decoder: a CPU, Hugging Face folders of type llama or
    /// qwen2), mistralrs (the rest; one passage at a time on a CPU), or auto, which takes batched wherever it can.
    #[arg(long, env = "EXPANDR_EXPANDER_ENGINE", value_enum, default_value_t = ExpanderEngine::Auto)]
    pub expander_engine: ExpanderEngine,

    /// How exactly the engine batched keeps weights: exact (every bit, in the smallest format that has it), bf16 (half of
    /// 32 bits) or q8 (a quarter). The latter two round, so that passages differ a little from the model's own.
    #[arg(long, env = "EXPANDR_EXPANDER_PRECISION", value_enum, default_value_t = ExpanderPrecision::Exact)]
    pub expander_precision: ExpanderPrecision,

    /// Tokens of a prompt and its passage together, at most, for the engine batched. Memory for keys and values is bounded
    /// by this times the passages written at once; what is not used is not allocated.
    #[arg(long, env = "EXPANDR_EXPANDER_CONTEXT", default_value_t = 4096)]
    pub expander_context: usize,

    /// Passages written at once: the batch of the language model, or for a remote server the connections. (mistralrs on
    /// a CPU always writes one at a time.)
    #[arg(long, env = "EXPANDR_EXPANDER_CONCURRENCY", default_value_t = 32)]
    pub expander_concurrency: usize,

    /// Passages that may wait for the language model; further ones are refused as overloaded.
    #[arg(long, env = "EXPANDR_EXPANDER_QUEUE", default_value_t = 64)]
    pub expander_queue: usize,

    /// The gate of searches with expansion `auto`: a file that stage gate of `expandr train` made, or `none`. Default:
    /// gate.json in the expander's folder, if it is there.
    #[arg(long, env = "EXPANDR_GATE", value_name = "FILE")]
    pub gate: Option<PathBuf>,

    /// Texts that may wait for the encoder; further ones are refused as overloaded.
    #[arg(long, env = "EXPANDR_ENCODER_QUEUE", default_value_t = 2048)]
    pub encoder_queue: usize,
}

#[cfg(test)]
impl Models {
    /// As a command line gives them.
    pub(super) fn of_flags(flags: &[&str]) -> Result<Self, clap::Error> {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            models: Models,
        }
        let line = ["expandr"].iter().chain(flags);
        Ok(<Flags as clap::Parser>::try_parse_from(line)?.models)
    }
}

/// What runs the language model in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum ExpanderEngine {
    /// `Batched` where it can run the checkpoint, else `Mistralrs`.
    Auto,
    /// Our own decoder.
    Batched,
    /// mistralrs.
    Mistralrs,
}

/// How exactly weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum ExpanderPrecision {
    /// Every bit.
    Exact,
    /// Rounded to bf16.
    Bf16,
    /// Rounded to 8 bits in blocks of 32.
    Q8,
}

/// How searches run.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Search")]
pub struct Search {
    /// What ranks the documents when a request doesn't say: vectors, words (BM25), or both, fused by their ranks.
    #[arg(long, env = "EXPANDR_RANKING", value_enum, default_value_t = Ranking::Dense)]
    pub ranking: Ranking,

    /// Whether documents can be searched by their words. Off saves the disk and the memory, and removes what is there for it.
    #[arg(long, env = "EXPANDR_LEXICAL", value_enum, default_value_t = Lexical::On)]
    pub lexical: Lexical,

    /// BM25's k1: how much further occurrences of a word add. Takes effect at once, nothing is built anew.
    #[arg(long, env = "EXPANDR_BM25_K1", default_value_t = 0.9)]
    pub bm25_k1: f32,

    /// BM25's b: how much long documents are held back, 0 to 1.
    #[arg(long, env = "EXPANDR_BM25_B", default_value_t = 0.4)]
    pub bm25_b: f32,

    /// Memory in MiB for documents on their way into the lexical index.
    #[arg(long, env = "EXPANDR_LEXICAL_MEMORY_MIB", default_value_t = 64)]
    pub lexical_memory_mib: usize,

    /// Whether to expand when a request doesn't say [default: what the bundle says, else always]
    #[arg(long, env = "EXPANDR_EXPANSION", value_enum)]
    pub expansion: Option<Expansion>,

    /// Passages to write and average when a request doesn't say, 1 to 8; more than one are sampled, at temperature 1 unless flag
    /// or bundle says another above 0 [default: what the bundle says, else 1]
    #[arg(long, env = "EXPANDR_EXPANSION_COUNT")]
    pub expansion_count: Option<usize>,

    /// Tokens of a passage when a request doesn't say [default: what the bundle says, else 64]
    #[arg(long, env = "EXPANDR_EXPANSION_TOKENS")]
    pub expansion_tokens: Option<usize>,

    /// Temperature of a passage when a request doesn't say [default: what the bundle says, else 0, which is greedy]
    #[arg(long, env = "EXPANDR_EXPANSION_TEMPERATURE")]
    pub expansion_temperature: Option<f32>,

    /// Nucleus of a sampled passage when a request doesn't say [default: what the bundle says, else 0.9]
    #[arg(long, env = "EXPANDR_EXPANSION_TOP_P")]
    pub expansion_top_p: Option<f32>,

    /// The query's share in the averaged vector when a request doesn't say [default: what the bundle says, else what its gate
    /// was fitted for, where that decides, else 0.5]
    #[arg(long, env = "EXPANDR_QUERY_WEIGHT")]
    pub query_weight: Option<f32>,

    /// Whether a passage is embedded behind its query, as one text, when a request doesn't say [default: what the bundle says,
    /// else what its gate was fitted for, where that decides, else false]
    #[arg(long, env = "EXPANDR_JOINT_ENCODING")]
    pub joint_encoding: Option<bool>,

    /// Most tokens of a passage that a request may ask for.
    #[arg(long, env = "EXPANDR_EXPANSION_MAX_TOKENS", default_value_t = 512)]
    pub expansion_max_tokens: usize,

    /// Budget of an expansion in milliseconds when a request doesn't say; what is written by then is used if it is enough.
    #[arg(long, env = "EXPANDR_EXPANSION_TIMEOUT_MS", default_value_t = 10_000)]
    pub expansion_timeout_ms: u64,

    /// A passage that its budget cut is used when it has at least this many words.
    #[arg(long, env = "EXPANDR_EXPANSION_MIN_WORDS", default_value_t = 8)]
    pub expansion_min_words: usize,

    /// Part of a request's deadline in milliseconds that is kept for embedding and searching with the expansion.
    #[arg(long, env = "EXPANDR_RESERVE_MS", default_value_t = 50)]
    pub reserve_ms: u64,

    /// Deadline of a search in milliseconds, and the most that a request may ask for.
    #[arg(long, env = "EXPANDR_TIMEOUT_MS", default_value_t = 30_000)]
    pub timeout_ms: u64,

    /// Size of the expansion cache in MiB, and of the cache of its passages' vectors; 0 switches both off.
    #[arg(long, env = "EXPANDR_CACHE_MIB", default_value_t = 64)]
    pub cache_mib: u64,

    /// Seconds that a passage, or its vector, stays in the cache.
    #[arg(long, env = "EXPANDR_CACHE_TTL_SECONDS", default_value_t = 86_400)]
    pub cache_ttl_seconds: u64,

    /// Up to this many documents a search compares with every vector instead of asking the HNSW graph.
    #[arg(long, env = "EXPANDR_EXACT_THRESHOLD", default_value_t = 10_000)]
    pub exact_threshold: usize,

    /// Candidates that the HNSW graph keeps while searching, when a request doesn't say.
    #[arg(long, env = "EXPANDR_EF", default_value_t = 64)]
    pub ef: usize,
}

/// Whether there is a lexical index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Lexical {
    /// Documents can be searched by their words.
    On,
    /// Only by vector.
    Off,
}

/// Whether to expand when a request doesn't say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Expansion {
    /// Expand.
    Always,
    /// Expand where the gate expects a gain.
    Auto,
    /// Search with the query alone.
    Off,
}

/// How the service changes from one bundle to another.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Bundles")]
pub struct Changeover {
    /// The share of the time that embedding documents for another bundle takes while searches are in flight, above 0 and at
    /// most 1. While nobody searches, it takes all of it.
    #[arg(long, env = "EXPANDR_REEMBED_SHARE", default_value_t = 0.5)]
    pub reembed_share: f64,
}

/// What clients may do and how much of it.
#[derive(Args, Clone, Serialize, Deserialize)]
#[command(next_help_heading = "Limits and keys")]
pub struct Limits {
    /// Texts (queries, passages, texts to embed) that are worked on at once; further requests get 429.
    #[arg(long, env = "EXPANDR_PERMITS", default_value_t = 256)]
    pub permits: usize,

    /// Longest wait for the encoder in milliseconds with which a request is let in, judging by what waits and how fast it was
    /// lately; further ones get 429. A search waits no longer than a tenth of its budget (or --reserve-ms, if that is more).
    #[arg(long, env = "EXPANDR_MAX_WAIT_MS", default_value_t = 500)]
    pub max_wait_ms: u64,

    /// Largest JSON body in MiB.
    #[arg(long, env = "EXPANDR_BODY_MIB", default_value_t = 8)]
    pub body_mib: usize,

    /// Largest body of /documents/bulk in MiB.
    #[arg(long, env = "EXPANDR_BULK_BODY_MIB", default_value_t = 4096)]
    pub bulk_body_mib: u64,

    /// Largest document in KiB.
    #[arg(long, env = "EXPANDR_DOCUMENT_KIB", default_value_t = 1024)]
    pub document_kib: usize,

    /// Most searches of one batch.
    #[arg(long, env = "EXPANDR_BATCH_SEARCHES", default_value_t = 128)]
    pub batch_searches: usize,

    /// Keys of role read, separated by commas (two at most, so that keys can be changed without an outage).
    #[arg(long, env = "EXPANDR_READ_KEYS", value_delimiter = ',', hide_env_values = true)]
    #[serde(skip)]
    pub read_keys: Vec<String>,

    /// Keys of role write; a write key may also read.
    #[arg(long, env = "EXPANDR_WRITE_KEYS", value_delimiter = ',', hide_env_values = true)]
    #[serde(skip)]
    pub write_keys: Vec<String>,

    /// Keys of role admin; an admin key may do everything. Without one there are no admin routes.
    #[arg(long, env = "EXPANDR_ADMIN_KEYS", value_delimiter = ',', hide_env_values = true)]
    #[serde(skip)]
    pub admin_keys: Vec<String>,

    /// Milliseconds between /readyz turning 503 and the end of accepting connections, so that a load balancer notices.
    #[arg(long, env = "EXPANDR_DRAIN_DELAY_MS", default_value_t = 0)]
    pub drain_delay_ms: u64,

    /// Milliseconds that requests in flight have to finish at shutdown.
    #[arg(long, env = "EXPANDR_DRAIN_TIMEOUT_MS", default_value_t = 20_000)]
    pub drain_timeout_ms: u64,
}

impl std::fmt::Debug for Limits {
    /// Keys are counted, never printed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limits")
            .field("permits", &self.permits)
            .field("max_wait_ms", &self.max_wait_ms)
            .field("body_mib", &self.body_mib)
            .field("bulk_body_mib", &self.bulk_body_mib)
            .field("document_kib", &self.document_kib)
            .field("batch_searches", &self.batch_searches)
            .field("read_keys", &self.read_keys.len())
            .field("write_keys", &self.write_keys.len())
            .field("admin_keys", &self.admin_keys.len())
            .field("drain_delay_ms", &self.drain_delay_ms)
            .field("drain_timeout_ms", &self.drain_timeout_ms)
            .finish()
    }
}

/// Where traces go.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Traces")]
pub struct Traces {
    /// Base URL of a collector that takes OTLP over HTTP, e.g. http://localhost:4318: the spans of requests go there, as JSON
    /// [default: nothing is exported; `traceparent` is passed on to a remote language model all the same]
    #[arg(long, env = "EXPANDR_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
}

/// Everything that `expandr serve` takes.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct ServeOptions {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub places: Places,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub models: Models,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub search: Search,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub changeover: Changeover,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub limits: Limits,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub jobs: JobOptions,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub operations: OperationOptions,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub traces: Traces,
}

/// A device as the flag writes it.
mod device_by_name {
    use expandr_models::device::DeviceChoice;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(device: &DeviceChoice, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(device)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeviceChoice, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
