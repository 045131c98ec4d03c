//! Texts on their way through the encoder: who asked, what waits, and which texts form the next micro-batch.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::oneshot;

use super::{Priority, model::BatchSize};
use crate::{Error, Result};

/// Locks, also after a thread panicked while it held the lock: the states here are valid after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts the texts that are admitted and not yet answered.
pub(super) struct Admission {
    admitted: AtomicUsize,
    /// Those of [`Priority::Interactive`] among them.
    interactive: AtomicUsize,
    capacity: usize,
}

/// Places of admitted texts, given back on drop.
pub(super) struct Places {
    admission: Arc<Admission>,
    priority: Priority,
    count: usize,
}

impl Admission {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { admitted: AtomicUsize::new(0), interactive: AtomicUsize::new(0), capacity })
    }

    /// Texts of searches that wait or are being encoded.
    pub(super) fn interactive(&self) -> usize {
        self.interactive.load(Ordering::Relaxed)
    }

    /// Texts that wait or are being encoded.
    pub(super) fn admitted(&self) -> usize {
        self.admitted.load(Ordering::Relaxed)
    }

    /// Places for `count` texts.
    ///
    /// # Errors
    /// [`Error::Input`] when so many never fit, [`Error::Overloaded`] when they don't fit now.
    pub(super) fn admit(self: &Arc<Self>, priority: Priority, count: usize) -> Result<Places> {
        if count > self.capacity {
            let detail = format!(
                "{count} texts in one request, and the queue holds {}; send fewer at a time",
                self.capacity
            );
            return Err(Error::Input(detail));
        }
        let room = |admitted: usize| Some(admitted + count).filter(|sum| *sum <= self.capacity);
        match self.admitted.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => {
                if priority == Priority::Interactive {
                    self.interactive.fetch_add(count, Ordering::Relaxed);
                }
                Ok(Places { admission: self.clone(), priority, count })
            }
            Err(admitted) => Err(Error::Overloaded {
                what: "encoder",
                detail: format!(
                    "{admitted} texts wait, {count} more would exceed the limit of {}",
                    self.capacity
                ),
            }),
        }
    }
}

impl Places {
    /// Splits one place off.
    fn split_one(&mut self) -> Self {
        self.count -= 1;
        Self { admission: self.admission.clone(), priority: self.priority, count: 1 }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.admission.admitted.fetch_sub(self.count, Ordering::Relaxed);
        if self.priority == Priority::Interactive {
            self.admission.interactive.fetch_sub(self.count, Ordering::Relaxed);
        }
    }
}

/// One call of `encode`: collects its vectors and answers when the last is there.
pub(super) struct Request {
    state: Mutex<RequestState>,
}

struct RequestState {
    vectors: Vec<Vec<f32>>,
    missing: usize,
    places: Places,
    reply: Option<oneshot::Sender<Result<Vec<Vec<f32>>>>>,
}

impl Request {
    pub(super) fn new(
        count: usize,
        places: Places,
        reply: oneshot::Sender<Result<Vec<Vec<f32>>>>,
    ) -> Arc<Self> {
        let state =
            RequestState { vectors: vec![Vec::new(); count], missing: count, places, reply: Some(reply) };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Whether nobody waits for the answer any more: the caller has gone, or has got an error.
    pub(super) fn abandoned(&self) -> bool {
        lock(&self.state).reply.as_ref().is_none_or(|reply| reply.is_closed())
    }

    /// Takes the vector of text `index`; the last one sends the answer.
    fn fulfil(&self, index: usize, vector: Vec<f32>) {
        let mut state = lock(&self.state);
        state.vectors[index] = vector;
        state.missing -= 1;
        if state.missing == 0 {
            let vectors = std::mem::take(&mut state.vectors);
            Self::answer(state, Ok(vectors));
        }
    }

    /// Answers with an error; texts of this request that are still queued will be skipped.
    pub(super) fn fail(&self, error: Error) {
        Self::answer(lock(&self.state), Err(error));
    }

    fn answer(mut state: MutexGuard<'_, RequestState>, answer: Result<Vec<Vec<f32>>>) {
        if let Some(reply) = state.reply.take() {
            drop(state);
            // The caller may have gone; then nobody misses the answer.
            let _ = reply.send(answer);
        }
    }
}

/// One tokenised text that waits for its vector.
pub(super) struct Work {
    pub(super) request: Arc<Request>,
    pub(super) index: usize,
    pub(super) ids: Vec<u32>,
    place: Places,
}

impl Work {
    pub(super) fn new(request: Arc<Request>, index: usize, ids: Vec<u32>) -> Self {
        let place = lock(&request.state).places.split_one();
        Self { request, index, ids, place }
    }

    /// Gives the text's place back, then hands its vector over.
    pub(super) fn fulfil(self, vector: Vec<f32>) {
        drop(self.place);
        self.request.fulfil(self.index, vector);
    }

    /// Gives the text's place back, then fails the whole request.
    pub(super) fn fail(self, error: Error) {
        drop(self.place);
        self.request.fail(error);
    }
}

/// Tokenised texts, by priority, in order of arrival. How many there can be is bounded by [`Admission`].
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    interactive: VecDeque<Work>,
    bulk: VecDeque<Work>,
    closed: bool,
}

impl Queue {
    /// Adds texts.
    pub(super) fn push(&self, priority: Priority, work: impl IntoIterator<Item = Work>) {
        let mut state = lock(&self.state);
        match priority {
            Priority::Interactive => state.interactive.extend(work),
            Priority::Bulk => state.bulk.extend(work),
        }
        self.changed.notify_one();
    }

    /// Ends the wait of [`Queue::next_batch`] for good.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }

    /// Waits for work and takes the next micro-batch: interactive texts if there are any, else bulk ones, in order of
    /// arrival, as many as cost no more than `budget` (and at least one), and says which of the two. Texts that nobody
    /// waits for are dropped. None when the queue is closed.
    pub(super) fn next_batch(
        &self,
        budget: usize,
        cost: impl Fn(BatchSize) -> usize,
    ) -> Option<(Priority, Vec<Work>)> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            let QueueState { interactive, bulk, .. } = &mut *state;
            for (priority, waiting) in [(Priority::Interactive, interactive), (Priority::Bulk, bulk)] {
                let batch = take(waiting, budget, &cost);
                if !batch.is_empty() {
                    return Some((priority, batch));
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn take(queue: &mut VecDeque<Work>, budget: usize, cost: impl Fn(BatchSize) -> usize) -> Vec<Work> {
    let (mut batch, mut size) = (Vec::new(), BatchSize::default());
    while let Some(work) = queue.pop_front() {
        if work.request.abandoned() {
            continue;
        }
        size = size.with(work.ids.len());
        if !batch.is_empty() && cost(size) > budget {
            queue.push_front(work);
            break;
        }
        batch.push(work);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reply = oneshot::Receiver<Result<Vec<Vec<f32>>>>;

    fn works(admission: &Arc<Admission>, lengths: &[usize]) -> (Vec<Work>, Reply) {
        let (sender, receiver) = oneshot::channel();
        let request = Request::new(
            lengths.len(),
            admission.admit(Priority::Interactive, lengths.len()).unwrap(),
            sender,
        );
        let work = |(index, &length)| Work::new(request.clone(), index, vec![0; length]);
        (lengths.iter().enumerate().map(work).collect(), receiver)
    }

    fn lengths(batch: &[Work]) -> Vec<usize> {
        batch.iter().map(|work| work.ids.len()).collect()
    }

    fn sum(batch: BatchSize) -> usize {
        batch.tokens
    }

    #[test]
    fn interactive_texts_go_first_and_batches_keep_the_budget() {
        let (admission, queue) = (Admission::new(100), Queue::default());
        let (bulk, _bulk_reply) = works(&admission, &[60, 30, 20, 500, 1]);
        let (interactive, _reply) = works(&admission, &[5, 6]);
        queue.push(Priority::Bulk, bulk);
        assert_eq!(lengths(&queue.next_batch(100, sum).unwrap().1), [60, 30]);
        queue.push(Priority::Interactive, interactive);
        let (priority, batch) = queue.next_batch(100, sum).unwrap();
        assert_eq!((priority, lengths(&batch)), (Priority::Interactive, vec![5, 6]));
        assert_eq!(lengths(&queue.next_batch(100, sum).unwrap().1), [20]);
        assert_eq!(
            lengths(&queue.next_batch(100, sum).unwrap().1),
            [500],
            "a text over the budget goes alone"
        );
        assert_eq!(lengths(&queue.next_batch(100, sum).unwrap().1), [1]);
        queue.close();
        assert!(queue.next_batch(100, sum).is_none());
    }

    #[test]
    fn texts_of_a_caller_that_left_are_skipped_and_their_places_free() {
        let (admission, queue) = (Admission::new(10), Queue::default());
        let (gone, reply) = works(&admission, &[1, 2, 3]);
        let (other, _other_reply) = works(&admission, &[4]);
        queue.push(Priority::Bulk, gone);
        queue.push(Priority::Bulk, other);
        assert_eq!(admission.admitted(), 4);
        drop(reply);
        let (_, batch) = queue.next_batch(100, sum).unwrap();
        assert_eq!((lengths(&batch), admission.admitted()), (vec![4], 1));
    }

    #[test]
    fn the_last_vector_sends_the_answer_in_order() {
        let admission = Admission::new(10);
        let (work, mut reply) = works(&admission, &[1, 1, 1]);
        for work in work.into_iter().rev() {
            assert!(reply.try_recv().is_err());
            let vector = vec![work.index as f32];
            work.fulfil(vector);
        }
        assert_eq!(reply.try_recv().unwrap().unwrap(), [[0.0], [1.0], [2.0]]);
        assert_eq!(admission.admitted(), 0);
    }

    #[test]
    fn a_failed_text_fails_its_request_once() {
        let admission = Admission::new(10);
        let (mut work, mut reply) = works(&admission, &[1, 1]);
        work.pop().unwrap().fail(Error::Input("bad".into()));
        assert!(work[0].request.abandoned());
        work.pop().unwrap().fail(Error::Input("worse".into()));
        assert_eq!(reply.try_recv().unwrap().unwrap_err().to_string(), "bad");
        assert_eq!(admission.admitted(), 0);
    }

    #[test]
    fn admission_tells_full_from_never() {
        let admission = Admission::new(3);
        let places = admission.admit(Priority::Interactive, 2).unwrap();
        let more = |count| admission.admit(Priority::Bulk, count);
        assert!(matches!(more(2), Err(Error::Overloaded { what: "encoder", .. })));
        assert!(matches!(more(4), Err(Error::Input(_))));
        let bulk = more(1).unwrap();
        assert_eq!(
            (admission.admitted(), admission.interactive()),
            (3, 2),
            "bulk texts are not counted twice"
        );
        drop((places, bulk));
        assert_eq!((admission.admitted(), admission.interactive()), (0, 0));
        assert!(more(3).is_ok());
    }
}
