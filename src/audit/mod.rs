//! Who administered the service, when, how, and what came of it: one JSON line each in `audit.ndjson`, synced before the
//! answer goes out, and to the log target `audit`. Keys are never written, only the start of their hash.
//!
//! - `arguments`: what of a request's arguments is written; `rotating`: the files.
//! - `refusals`: why refused requests can't fill the files.

mod arguments;
mod refusals;
mod rotating;

use std::{path::Path, sync::Arc, time::Instant};

use chrono::{DateTime, Utc};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

pub use arguments::fingerprint;

use self::{refusals::Refusals, rotating::Rotating};
use crate::{bundles::Activation, clock, http::problem::Problem};

/// Longest detail of an outcome in bytes.
const DETAIL_BYTES: usize = 500;

/// One line of the audit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = AuditEntry)]
pub struct Entry {
    /// When it began.
    #[serde(with = "crate::clock::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub time: DateTime<Utc>,
    /// Who: a client, or the server itself.
    pub actor: Actor,
    /// The first 8 hexadecimal digits of the SHA-256 of the key that the client gave; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// What: a method and a path, or the server's own name of it, such as `job.finished`.
    pub action: String,
    /// With which arguments, bounded, without secrets.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    #[schema(value_type = Value)]
    pub arguments: Value,
    /// What came of it.
    pub outcome: Outcome,
    /// The HTTP status of the answer, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it was refused or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// How long it took, in milliseconds; of a streamed answer, until it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<f64>,
    /// Refused requests before this one that were not written, because there were too many of them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refusals_left_out: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who did something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = AuditActor)]
pub enum Actor {
    /// A client of the HTTP interface.
    Client,
    /// The server itself: a job that ended, an activation that a job wanted.
    Server,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = AuditOutcome)]
pub enum Outcome {
    /// It was done, or accepted.
    Done,
    /// The client may not do that, or asked for something that can't be.
    Refused,
    /// The server failed.
    Failed,
    /// The request ended without an answer: the client went away, or the time limit passed. What it began may go on.
    Dropped,
}

/// The audit's files.
pub struct Audit {
    file: Arc<Mutex<Rotating>>,
    refusals: Mutex<Refusals>,
}

impl Audit {
    /// Opens the file `path`, or makes it; when it has `limit_bytes` it is begun anew, and eight full ones are kept.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(path: &Path, limit_bytes: u64) -> std::io::Result<Self> {
        let file = Arc::new(Mutex::new(Rotating::open(path, limit_bytes)?));
        Ok(Self { file, refusals: Mutex::default() })
    }

    /// Writes down something that the server did itself, for example `record("job.finished", json!({"job": id}), Ok(()))`.
    /// Blocks for one sync of the disk. A failure to write is logged.
    pub fn record(&self, action: &str, arguments: Value, outcome: Result<(), &str>) {
        let (outcome, detail) = match outcome {
            Ok(()) => (Outcome::Done, None),
            Err(detail) => (Outcome::Failed, Some(detail.to_owned())),
        };
        let entry = Entry {
            time: clock::now(),
            actor: Actor::Server,
            key_id: None,
            action: action.to_owned(),
            arguments,
            outcome,
            status: None,
            detail,
            request_id: None,
            took_ms: None,
            refusals_left_out: 0,
        };
        write(&self.file, entry);
    }

    /// Writes down how an activation ended, whose request may have been answered before, or which had none; `active` is the
    /// bundle that answers now.
    pub(crate) async fn record_activation(
        self: &Arc<Self>,
        ended: &Result<Activation, Problem>,
        active: String,
    ) {
        let (arguments, outcome) = match ended {
            Ok(activation) => (json!({ "active": activation.active, "previous": activation.previous }), None),
            Err(problem) => (json!({ "active": active }), Some(problem.detail.clone())),
        };
        let audit = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            audit.record("bundle.activation_ended", arguments, outcome.as_deref().map_or(Ok(()), Err));
        });
        if let Err(error) = written.await {
            tracing::error!(%error, "the audit of an activation ended early");
        }
    }

    /// Writes down what a client did; `key` is what it gave as its key, which is taken out wherever it occurs. When this
    /// returns the line is durable. It is written also when the caller does not wait for the end.
    pub(crate) async fn record_request(&self, entry: Entry, key: Option<&str>) {
        let mut entry = match key {
            Some(key) => without(entry, key),
            None => entry,
        };
        if entry.status.is_some_and(|status| matches!(status, 401 | 403)) {
            match self.refusals.lock().admit(Instant::now()) {
                Some(left_out) => entry.refusals_left_out = left_out,
                None => return log(&entry),
            }
        }
        let file = self.file.clone();
        let written = tokio::task::spawn_blocking(move || write(&file, entry)).await;
        if let Err(error) = written {
            tracing::error!(%error, "writing the audit ended early");
        }
    }

    /// The last entries, newest first. Lines that are not whole are left out. Blocking.
    ///
    /// # Errors
    /// When the files can't be read.
    pub fn last(&self, limit: usize) -> std::io::Result<Vec<Entry>> {
        let lines = self.file.lock().last(limit)?;
        Ok(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

fn write(file: &Mutex<Rotating>, mut entry: Entry) {
    entry.arguments = arguments::bounded(&entry.arguments);
    entry.action = arguments::cut(&entry.action, DETAIL_BYTES);
    entry.detail = entry.detail.map(|detail| arguments::cut(&detail, DETAIL_BYTES));
    log(&entry);
    let written =
        serde_json::to_string(&entry).map_err(std::io::Error::from).and_then(|line| file.lock().write(&line));
    if let Err(error) = written {
        tracing::error!(%error, "the audit can't be written; what is missing there is in this log, target `audit`");
    }
}

/// The entry without a key that a client also wrote where it does not belong: in the path, the parameters or the body.
fn without(entry: Entry, key: &str) -> Entry {
    let Ok(text) = serde_json::to_string(&entry) else { return entry };
    let percent_decoded = percent_decode(&text);
    let escaped = serde_json::to_string(key).unwrap_or_default();
    let escaped = escaped.trim_matches('"');
    let is_in = |text: &str| !key.is_empty() && (text.contains(key) || text.contains(escaped));
    if !is_in(&text) && !is_in(&percent_decoded) {
        return entry;
    }
    let method = entry.action.split(' ').next().unwrap_or("").to_owned();
    Entry {
        action: format!("{method} [the request repeats its key]"),
        arguments: Value::Null,
        detail: None,
        request_id: entry.request_id.filter(|id| !is_in(id)),
        ..entry
    }
}

/// `%41` to `A`; what isn't UTF-8 afterwards is replaced.
fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut left = text.as_bytes();
    while let [byte, rest @ ..] = left {
        let hexadecimal = rest.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = hexadecimal.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (byte, value) {
            (b'%', Some(value)) => {
                decoded.push(value);
                left = &rest[2..];
            }
            _ => {
                decoded.push(*byte);
                left = rest;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn log(entry: &Entry) {
    let arguments = match &entry.arguments {
        Value::Null => String::new(),
        arguments => arguments.to_string(),
    };
    tracing::info!(
        target: "audit",
        actor = ?entry.actor,
        key_id = entry.key_id.as_deref(),
        action = entry.action,
        arguments,
        outcome = ?entry.outcome,
        status = entry.status,
        detail = entry.detail.as_deref(),
        request_id = entry.request_id.as_deref(),
        took_ms = entry.took_ms,
        "audit"
    );
}

#[cfg(test)]
mod tests;
