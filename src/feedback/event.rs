//! What is kept of a piece of feedback.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One line of the store and of the export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = FeedbackEvent)]
pub struct Event {
    /// When it was given.
    #[serde(with = "crate::clock::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub at: DateTime<Utc>,
    /// The search that it is about.
    pub request_id: String,
    /// What was asked.
    pub query: String,
    /// The document.
    pub document_id: String,
    /// What the user did.
    pub kind: Kind,
    /// What the user said of the document; none for a click.
    pub relevant: Option<bool>,
    /// Where the answer had the document, from 1; none when it did not have it.
    pub rank: Option<usize>,
    /// The bundle that had answered.
    pub bundle: String,
}

/// What a user did with a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = FeedbackKind)]
pub enum Kind {
    /// Opened it.
    Clicked,
    /// Said whether it answers the query.
    Judged,
}

/// Which events to delete: those to which everything given here applies; nothing given, all of them.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Given before this time.
    pub before: Option<DateTime<Utc>>,
    /// About this document.
    pub document_id: Option<String>,
    /// Of this query, up to white space at its ends.
    pub query: Option<String>,
}

impl Selection {
    /// Whether it selects `event`.
    pub fn selects(&self, event: &Event) -> bool {
        self.before.is_none_or(|before| event.at < before)
            && self.document_id.as_ref().is_none_or(|id| *id == event.document_id)
            && self.selects_query(&event.query)
    }

    /// Whether it selects events by their time alone (or all of them).
    pub fn is_by_time(&self) -> bool {
        self.document_id.is_none() && self.query.is_none()
    }

    /// Whether it leaves `query` among those that it selects.
    pub fn selects_query(&self, query: &str) -> bool {
        self.query.as_ref().is_none_or(|wanted| wanted.trim() == query.trim())
    }
}
