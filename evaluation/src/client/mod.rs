//! Runs a test collection against a search server over HTTP.
//!
//! Any server will do that answers `POST /search/batch` in this wire form (and, for [`ingest`], takes NDJSON at
//! `POST /documents/bulk`):
//!
//! ```text
//! {"searches": [{"query": "…", "top_k": 100, "expansion": …, "include_text": false}, …]}
//! {"results": [{"hits": [{"id": "…", "score": 0.5}, …], "expansion": {"status": "applied", …}, "bundle": "…", "took_ms": 1.0}, …]}
//! ```
//!
//! A server that does not know `include_text` says so once, with a 400 or 422 that names it, and is asked without.
//!
//! A run lives in a folder: `settings.json` says what was asked, `answers.jsonl` grows by a line with every answer, so
//! that an interrupted run goes on where it stopped; at the end come `run.trec`, `expansions.jsonl` and `metrics.json`.

mod answers;
mod embed;
mod endpoint;
mod evaluate;
mod ingest;
mod report;

pub use answers::{Answer, Expansion};
pub use embed::embed;
pub use endpoint::{Endpoint, EndpointOptions};
pub use evaluate::{EvaluationOptions, Progress, evaluate};
pub use ingest::{IngestOptions, IngestReport, RefusedDocument, ingest};
pub use report::{EvaluationReport, Percentiles, read_scores};
