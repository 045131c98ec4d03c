//! expandr: online query-expansion retrieval.
//!
//! The service and the command line. In reading order:
//!
//! - [`search`]: the life of a query: request, expansion, average, search, answer.
//! - [`documents`]: the life of a document: check, embed, store; bulk and queued ingestion.
//! - [`bundle`]: the (expander, encoder, index) that answer together.
//! - [`bundles`]: the life of a bundle: registered, activated while another serves, rolled back to.
//! - [`jobs`]: work of minutes or hours in a process of its own: retraining, evaluation, import.
//! - [`feedback`]: what users found useful, where the operator wants that; [`datasets`]: training pairs that were uploaded.
//! - [`audit`]: who administered the service.
//! - [`http`]: routes, keys, problems, layers around them.
//! - [`metrics`]: what is counted and timed.
//! - [`traces`]: the trace that a request belongs to, across servers.
//! - [`server`]: loading, listening, shutting down.
//! - [`cli`]: the commands.
//! - [`clock`], [`files`]: times as they are written; files that are whole or not there.
//!
//! Tensors live in `expandr-models`, vectors and documents in `expandr-index`; this crate joins the two.

pub mod audit;
pub mod bundle;
pub mod bundles;
pub mod cli;
pub mod clock;
pub mod datasets;
pub mod documents;
pub mod feedback;
pub mod files;
pub mod http;
pub mod jobs;
pub mod metrics;
pub mod search;
pub mod server;
pub mod traces;
