//! Permits: how much the service works on at once. They are counted per text, the same for single and batch, and
//! nobody waits for one: without a permit the answer is 429 with Retry-After, so that overload sheds early.

use std::sync::Arc;

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
    fn what_can_never_fit_is_an_invalid_request() {
        assert_eq!(Admission::new(4).admit(5).unwrap_err().code, Code::InvalidRequest);
    }
}
