//! Places for generations: so many at once, so many that wait, first come first served.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Error, Result};

/// Lets `concurrency` generations run and at most `queue_capacity` wait.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    places: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    concurrency: usize,
    queue_capacity: usize,
}

/// The right to run; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Gate {
    pub(crate) fn new(concurrency: usize, queue_capacity: usize) -> Self {
        let concurrency = concurrency.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            places: Arc::new(Semaphore::new(concurrency)),
            waiting: Arc::new(AtomicUsize::new(0)),
            concurrency,
            queue_capacity,
        }
    }

    /// Waits for a place; dropping the future gives up the wait.
    ///
    /// # Errors
    /// [`Error::Overloaded`] when as many wait as may.
    pub(crate) async fn enter(&self) -> Result<Place> {
        if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(Place { _permit: permit });
        }
        let _waiter = Waiter::join(&self.waiting, self.queue_capacity).ok_or_else(|| Error::Overloaded {
            what: "expander",
            detail: format!(
                "{} generations run and {} wait, which is the limit; try again later",
                self.concurrency, self.queue_capacity
            ),
        })?;
        let permit = Arc::clone(&self.places).acquire_owned().await;
        let permit =
            permit.map_err(|_| Error::Engine { what: "expander", detail: "it is shut down".into() })?;
        Ok(Place { _permit: permit })
    }

    pub(crate) fn concurrency(&self) -> usize {
        self.concurrency
    }

    pub(crate) fn running(&self) -> usize {
        self.concurrency - self.places.available_permits().min(self.concurrency)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Counts as waiting until dropped.
struct Waiter<'a>(&'a AtomicUsize);

impl<'a> Waiter<'a> {
    fn join(waiting: &'a AtomicUsize, capacity: usize) -> Option<Self> {
        let room = |waiting: usize| (waiting < capacity).then_some(waiting + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Self(waiting))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_is_bounded_and_giving_up_frees_its_place() {
        let gate = Gate::new(1, 1);
        let first = gate.enter().await.unwrap();
        assert_eq!((gate.running(), gate.waiting()), (1, 0));
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await }
        });
        while gate.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(gate.enter().await, Err(Error::Overloaded { .. })));
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert_eq!(gate.waiting(), 0);
        drop(first);
        drop(gate.enter().await.unwrap());
        assert_eq!((gate.running(), gate.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn places_are_given_in_order() {
        let gate = Gate::new(1, 8);
        let first = gate.enter().await.unwrap();
        let (order, mut arrived) = tokio::sync::mpsc::unbounded_channel();
        for index in 0..5 {
            let (gate, order) = (gate.clone(), order.clone());
            tokio::spawn({
                let gate = gate.clone();
                async move {
                    let _place = gate.enter().await.unwrap();
                    order.send(index).unwrap();
                }
            });
            while gate.waiting() <= index {
                tokio::task::yield_now().await;
            }
        }
        drop(first);
        for index in 0..5 {
            assert_eq!(arrived.recv().await, Some(index));
        }
    }
}
