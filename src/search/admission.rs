//! How much the service takes on: permits, and how long a text would wait for the encoder.
//!
//! Permits bound what is worked on at once. They are counted per text, the same for single and batch, and nobody waits for
//! one: without a permit the answer is 429 with Retry-After. But how many texts are too many depends on the machine; so a
//! request is refused, too, when the encoder has more to do than the request can wait for. Overload then sheds at the
//! door, and what is let in is answered in time.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::http::problem::Problem;

/// The permits of a service.
#[derive(Clone)]
pub struct Admission {
    permits: Arc<Semaphore>,
    capacity: usize,
}

impl Admission {
    /// At most `capacity` texts at once.
    pub fn new(capacity: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(capacity)), capacity }
    }

    /// Permits there are.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Permits in use.
    pub fn in_use(&self) -> usize {
        self.capacity - self.permits.available_permits()
    }

    /// Takes `texts` permits, freed when the result is dropped.
    ///
    /// # Errors
    /// `invalid_request` when that is more than there are, `overloaded` when too few are free.
    pub fn admit(&self, texts: usize) -> Result<OwnedSemaphorePermit, Problem> {
        if texts > self.capacity {
            let detail = format!(
                "the request counts {texts} texts (queries and passages), the limit is {}; split it",
                self.capacity
            );
            return Err(Problem::field("", detail));
        }
        let count = u32::try_from(texts.max(1)).unwrap_or(u32::MAX);
        self.permits.clone().try_acquire_many_owned(count).map_err(|_| {
            let detail = format!("{} of {} places are taken; try again later", self.in_use(), self.capacity);
            Problem::overloaded(detail, 1)
        })
    }
}

/// Refuses a request that would wait `expected` for the encoder and can wait no longer than `patience`.
///
/// # Errors
/// `overloaded`, with the time after which the queue will have gone.
pub(super) fn refuse_long_wait(expected: Duration, patience: Duration) -> Result<(), Problem> {
    if expected <= patience {
        return Ok(());
    }
    let detail = format!(
        "the encoder has work for {} ms, and this request can wait {} ms; try again later",
        expected.as_millis(),
        patience.as_millis()
    );
    Err(Problem::overloaded(detail, expected.as_secs() + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Code;

    #[test]
    fn permits_are_counted_per_text_and_come_back() {
        let admission = Admission::new(4);
        let three = admission.admit(3).unwrap();
        assert_eq!(admission.in_use(), 3);
        let refused = admission.admit(2).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_seconds), (Code::Overloaded, Some(1)));
        drop(three);
        assert!(admission.admit(4).is_ok());
    }

    #[test]
    fn a_wait_longer_than_patience_is_refused_until_it_is_over() {
        let wait = |ms| refuse_long_wait(Duration::from_millis(ms), Duration::from_millis(500));
        assert_eq!(wait(500), Ok(()));
        let refused = wait(2_400).unwrap_err();
        assert_eq!((refused.code, refused.retry_after_seconds), (Code::Overloaded, Some(3)));
        assert!(
            refused.detail.contains("2400 ms") && refused.detail.contains("500 ms"),
            "{}",
            refused.detail
        );
    }

    #[test]
    fn what_can_never_fit_is_an_invalid_request() {
        assert_eq!(Admission::new(4).admit(5).unwrap_err().code, Code::InvalidRequest);
    }
}
