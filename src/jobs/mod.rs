//! Admin jobs: work that takes minutes or hours, started over HTTP, watched, and gone on with after a restart.
//!
//! One job runs at a time. What computes runs in a child process of the server (the same binary, at the lowest priority, with a memory
//! limit), so that a crash of it is no outage, and to kill it is to cancel it. What a job must know to go on is durable before the
//! next step depends on it, and each step may be done twice.
//!
//! On disk, in the service's folder:
//!
//! ```text
//! jobs/jobs.redb           records and idempotency keys
//! jobs/<id>/               events.ndjson, child.log, and what the kind leaves:
//!   recipe.toml, data/     a retraining's recipe as it runs, and its pairs as they were when it was accepted
//!   run/                   the run folder of `expandr train`; bundle/: what is imported
//!   evaluation/            runs of both bundles, outcome.json
//! ```
//!
//! In reading order:
//!
//! - `request`: what a job is asked to do; `record`: what is known of it; `store`, `events`: both on disk.
//! - `accept`: everything that can be found out before a job waits an hour; `recipe`: recipe, overrides and pairs.
//! - `queue`: [`Jobs`]; `submit`: into the queue; `runner`: one after the other; `attempt`: what a running job tells and remembers.
//! - `child`: a process that computes. `retrain`, `evaluate`, `import`, `simple`: the kinds.
//! - `evaluation`: the evaluation's child; `outcome`: what it found; `promotion`: what follows from that.
//! - `host`: what jobs need of the service around them.

mod accept;
mod attempt;
mod child;
mod evaluate;
pub mod evaluation;
mod events;
mod host;
mod import;
mod options;
pub mod outcome;
pub mod promotion;
mod queue;
mod recipe;
mod record;
pub mod request;
mod retrain;
mod runner;
mod service;
mod simple;
mod store;
mod submit;
#[cfg(test)]
mod tests;

pub use self::{
    child::{API_KEY, ChildSettings, Secret, end_with_parent},
    events::{Follower, LoggedEvent},
    host::{Host, Tell},
    options::JobOptions,
    queue::{Jobs, JobsSettings},
    record::{JobRecord, JobStatus, JobView, Progress},
    service::ServiceHost,
};
