//! Tests of the service as a whole.
//!
//! - `service`: the real router and pipeline over doubles of encoder and expander; no weights.
//! - `passages`: how passages are embedded, averaged, and how many are written, over the same doubles.
//! - `ranking`: its rankings and what it says about expansions, over the same doubles.
//! - `stream`: searches as server-sent events; `browser`: the web page in a real browser, by `webdriver`; over the same doubles.
//! - `gate`: expansion `auto`, over the same doubles.
//! - `changeover`: from one bundle to another, over the same doubles; what a crash leaves. `doubles`: their models.
//! - `bundles`: the same with the real binary and real weights, under load and killed at random moments.
//! - `feedback`, `administration`: feedback, datasets and audit, over the same doubles.
//! - `openapi`: the description of the HTTP interface, over the same doubles.
//! - `commands`: the commands of operators, against a mock of the admin routes.
//! - `dashboard`: what `deploy/` asks of the metrics, over the same doubles.
//! - `jobs`: jobs over the same doubles with a shell script for the work, and a retraining of the real binary, killed on its way.
//! - `end_to_end`: the real binary with the real default weights.
//! - `kill`, `kill_operations`: the real binary, killed in the middle of writes: documents; feedback and datasets.
//! - `docs`: every code block of the documentation, and what it says of backups. `reference`: docs/configuration.md is current.
//! - `traces`: the trace that a search belongs to, with a language model and a collector that note what they get.
//! - `train`: the smoke recipe from pairs to a served pair of models, killed on its way.

mod administration;
mod browser;
mod bundles;
mod changeover;
mod commands;
mod dashboard;
mod docs;
mod doubles;
mod end_to_end;
mod feedback;
mod gate;
mod jobs;
mod kill;
mod kill_operations;
mod openapi;
mod passages;
mod process;
mod ranking;
mod reference;
mod service;
mod shipped;
mod stream;
mod traces;
mod train;
mod webdriver;
