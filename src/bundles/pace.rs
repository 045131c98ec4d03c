//! How fast documents are embedded for another bundle: as fast as the machine can while nobody searches, else only for a
//! share of the time, in short pieces, so that searches find the processor free.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::search::SearchService;

/// The pace of one activation.
pub(super) struct Pace {
    /// None: nobody searches.
    service: Option<Arc<SearchService>>,
    share: f64,
}

impl Pace {
    /// Beside `service`, `share` of the time.
    pub(super) fn beside(service: &Arc<SearchService>, share: f64) -> Self {
        Self { service: Some(service.clone()), share: share.clamp(0.01, 1.0) }
    }

    /// As fast as the machine can.
    pub(super) fn alone() -> Self {
        Self { service: None, share: 1.0 }
    }

    /// Rests after a piece of work that began at `since`, if a search is in flight.
    pub(super) async fn rest(&self, since: Instant) {
        let searching = self.service.as_ref().is_some_and(|service| service.admission().in_use() > 0);
        let rest = rest_after(since.elapsed(), self.share);
        if searching && !rest.is_zero() {
            tokio::time::sleep(rest).await;
        }
    }
}

/// How long to rest after so much work, that work may be `share` of the time.
fn rest_after(worked: Duration, share: f64) -> Duration {
    worked.mul_f64((1.0 - share) / share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_its_share_of_the_time() {
        let worked = Duration::from_millis(100);
        assert_eq!(rest_after(worked, 0.5), worked);
        assert_eq!(rest_after(worked, 0.25), worked * 3);
        assert_eq!(rest_after(worked, 1.0), Duration::ZERO);
    }
}
