//! Writing passages: for a search, and for `POST /expand`, which does nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::Instant as TokioInstant;
use tracing::{Instrument, debug_span};
use utoipa::ToSchema;

use super::{
    answer::{ExpansionReport, ExpansionStatus},
    check::CheckedExpansion,
    expansion::{Passages, Writing, passages},
    failure::failed_expansion,
    request::OnFailure,
    service::SearchService,
    timings::milliseconds,
    watch::Watcher,
};
use crate::{bundle::Bundle, http::problem::Problem};

/// The answer of `POST /expand`.
#[derive(Debug, Serialize, ToSchema)]
pub struct ExpandAnswer {
    /// Names this request in logs.
    pub request_id: String,
    /// What became of the expansion.
    #[serde(flatten)]
    pub expansion: ExpansionReport,
    /// The bundle that answered.
    pub bundle: String,
    /// Wall time in milliseconds.
    pub took_ms: f64,
}

impl SearchService {
    /// Writes the passages for a query with `bundle`, without searching.
    ///
    /// # Errors
    /// As [`SearchService::search`], when the request asked to fail with the expansion.
    pub async fn expand(
        &self,
        bundle: &Arc<Bundle>,
        query: &str,
        expansion: &CheckedExpansion,
        started: Instant,
        request_id: &str,
    ) -> Result<ExpandAnswer, Problem> {
        let deadline =
            TokioInstant::from_std(started) + Duration::from_millis(self.settings.limits.timeout_ms);
        let silent = Watcher::silent();
        let passages = self.write_passages(bundle, query, expansion, &silent, started, deadline).await;
        if expansion.on_failure == OnFailure::Fail && passages.report.status == ExpansionStatus::Degraded {
            return Err(failed_expansion(&passages.report));
        }
        Ok(ExpandAnswer {
            request_id: request_id.to_owned(),
            expansion: passages.report,
            bundle: bundle.id.to_string(),
            took_ms: milliseconds(started.elapsed()),
        })
    }

    /// Writes the passages; none later than the expansion's own deadline, nor than `deadline` less what is kept for embedding.
    pub(super) async fn write_passages(
        &self,
        bundle: &Bundle,
        query: &str,
        expansion: &CheckedExpansion,
        watcher: &Watcher,
        started: Instant,
        deadline: TokioInstant,
    ) -> Passages {
        let own = TokioInstant::from_std(started) + Duration::from_millis(expansion.timeout_ms);
        let latest = deadline.checked_sub(self.settings.reserve).unwrap_or(deadline);
        let writing = Writing {
            bundle,
            flights: &self.flights,
            metrics: &self.metrics,
            watcher,
            min_partial_words: self.settings.min_partial_words,
            deadline: own.min(latest),
        };
        passages(&writing, query, expansion).instrument(debug_span!("expansion")).await
    }
}
