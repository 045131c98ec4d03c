//! Test collections, judgments, runs, metrics and significance: what is needed to say how well a retrieval
//! system does, in figures that others can check.
//!
//! The crate must not know how vectors come about: no tensor library, no model, no index, nothing of the
//! service but the wire form of its answers. A system under test is a ranked list a query, in TREC form.
//!
//! In reading order:
//! - [`collection`]: BEIR folders, TREC and TSV qrels and queries; broken lines named by file and line.
//! - [`lines`]: text files line by line, for errors that name file and line.
//! - [`run`]: ranked lists, and their TREC form on disk.
//! - [`metrics`]: nDCG, recall, MRR, MAP, precision and success as trec_eval computes them.
//! - [`significance`]: the paired permutation test, effect size, bootstrap interval, Holm's correction.
//! - [`quality`]: expansions as texts: BLEU, lengths.
//! - [`paper`]: the figures that the ExpandR paper prints.
//! - [`compare`]: runs beside each other, as tables, tests and plots.
//! - [`client`]: runs a collection against a search server over HTTP, and loads its corpus.

pub mod client;
pub mod collection;
pub mod compare;
mod error;
pub mod lines;
pub mod metrics;
pub mod paper;
pub mod quality;
pub mod run;
pub mod significance;

pub use collection::{Collection, Document, Qrels, Query};
pub use error::{Error, Result};
pub use metrics::{Metric, Scores, evaluate};
pub use run::{Hit, Run};
