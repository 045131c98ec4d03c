//! The searches that were answered a short while ago, so that feedback need only name the request. In memory only, for a
//! window of time, within a bound of bytes; the oldest leave first.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// What an answer costs beside its texts and hits: the entries of both maps, with their allocations.
const FIXED_BYTES: usize = 256;
/// Pieces of feedback that one answer takes.
const MOST_EVENTS: u32 = 1000;

/// The answers that feedback can be about.
pub(super) struct Recent {
    window: Duration,
    capacity_bytes: usize,
    /// Document ids are kept as keyed 64-bit hashes: all that is asked of them is whether and where the answer had one.
    hasher: RandomState,
    answers: Mutex<Answers>,
}

#[derive(Default)]
struct Answers {
    by_request: HashMap<Arc<str>, Answered>,
    /// By age.
    order: BTreeMap<u64, Arc<str>>,
    next: u64,
    bytes: usize,
}

struct Answered {
    place: u64,
    at: Instant,
    query: Box<str>,
    bundle: Box<str>,
    hits: Box<[u64]>,
    events: u32,
    bytes: usize,
}

/// What is known of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    pub(super) query: String,
    pub(super) bundle: String,
    /// Where the answer had the document, from 1.
    pub(super) rank: Option<usize>,
}

/// Why an answer takes no feedback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is not known, or no longer.
    Unknown,
    /// It has had as much as it takes.
    Exhausted,
}

impl Recent {
    pub(super) fn new(window: Duration, capacity_bytes: usize) -> Self {
        Self { window, capacity_bytes, hasher: RandomState::new(), answers: Mutex::default() }
    }

    /// Keeps what a search asked and found. A later answer to the same request id takes the place of an earlier one.
    pub(super) fn remember<'a>(
        &self,
        request_id: &str,
        query: &str,
        bundle: &str,
        document_ids: impl Iterator<Item = &'a str>,
        now: Instant,
    ) {
        let hits: Box<[u64]> = document_ids.map(|id| self.hasher.hash_one(id)).collect();
        let bytes = FIXED_BYTES + request_id.len() + query.len() + bundle.len() + 8 * hits.len();
        if bytes > self.capacity_bytes {
            return;
        }
        let request_id: Arc<str> = request_id.into();
        let mut answers = self.answers.lock();
        answers.remove(&request_id);
        while answers.bytes + bytes > self.capacity_bytes && answers.remove_oldest() {}
        let place = answers.next;
        answers.next += 1;
        answers.bytes += bytes;
        answers.order.insert(place, request_id.clone());
        let (query, bundle) = (query.into(), bundle.into());
        answers
            .by_request
            .insert(request_id, Answered { place, at: now, query, bundle, hits, events: 0, bytes });
    }

    /// What `request_id` asked, and where its answer had `document_id`; counts as one piece of feedback.
    pub(super) fn look_up(
        &self,
        request_id: &str,
        document_id: &str,
        now: Instant,
    ) -> Result<Remembered, Refusal> {
        let hash = self.hasher.hash_one(document_id);
        let mut answers = self.answers.lock();
        let answered = answers.by_request.get_mut(request_id).ok_or(Refusal::Unknown)?;
        if now.saturating_duration_since(answered.at) > self.window {
            return Err(Refusal::Unknown);
        }
        if answered.events >= MOST_EVENTS {
            return Err(Refusal::Exhausted);
        }
        answered.events += 1;
        Ok(Remembered {
            query: answered.query.to_string(),
            bundle: answered.bundle.to_string(),
            rank: answered.hits.iter().position(|hit| *hit == hash).map(|at| at + 1),
        })
    }

    /// Forgets the answers that are older than the window.
    pub(super) fn forget_old(&self, now: Instant) {
        let mut answers = self.answers.lock();
        while let Some(oldest) = answers.oldest()
            && now.saturating_duration_since(oldest) > self.window
        {
            answers.remove_oldest();
        }
        answers.by_request.shrink_to_fit();
    }

    /// Forgets the answers whose query is selected.
    pub(super) fn forget(&self, selects: impl Fn(&str) -> bool) {
        let mut answers = self.answers.lock();
        let selected: Vec<Arc<str>> = answers
            .by_request
            .iter()
            .filter(|(_, answered)| selects(&answered.query))
            .map(|(request_id, _)| request_id.clone())
            .collect();
        for request_id in selected {
            answers.remove(&request_id);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.answers.lock().by_request.len()
    }
}

impl Answers {
    fn oldest(&self) -> Option<Instant> {
        let (_, request_id) = self.order.first_key_value()?;
        self.by_request.get(request_id).map(|answered| answered.at)
    }

    fn remove_oldest(&mut self) -> bool {
        let Some((_, request_id)) = self.order.pop_first() else { return false };
        if let Some(answered) = self.by_request.remove(&request_id) {
            self.bytes -= answered.bytes;
        }
        true
    }

    fn remove(&mut self, request_id: &str) {
        if let Some(answered) = self.by_request.remove(request_id) {
            self.order.remove(&answered.place);
            self.bytes -= answered.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn remember(recent: &Recent, request_id: &str, query: &str, ids: &[&str], now: Instant) {
        recent.remember(request_id, query, "bundle-1", ids.iter().copied(), now);
    }

    #[test]
    fn answers_are_known_for_the_window_and_no_longer() {
        let (recent, now) = (Recent::new(MINUTE, 1 << 20), Instant::now());
        remember(&recent, "r", "q", &["a", "b"], now);
        let rank = |id: &str, at| recent.look_up("r", id, at).map(|remembered| remembered.rank);
        assert_eq!((rank("b", now), rank("c", now)), (Ok(Some(2)), Ok(None)));
        assert_eq!(recent.look_up("r", "a", now).unwrap().query, "q");
        assert_eq!(rank("a", now + MINUTE + MINUTE / 60), Err(Refusal::Unknown));
        recent.forget_old(now + MINUTE);
        assert_eq!(recent.len(), 1);
        recent.forget_old(now + MINUTE + MINUTE / 60);
        assert_eq!((recent.len(), recent.answers.lock().bytes), (0, 0), "its query is out of memory");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_leave() {
        let capacity = 100_000;
        let (recent, now) = (Recent::new(MINUTE, capacity), Instant::now());
        let ids: Vec<String> = (0..100).map(|i| format!("a rather long document id {i}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        for i in 0..2_000 {
            remember(&recent, &format!("request {i}"), &"query ".repeat(i % 50), &ids, now);
            let answers = recent.answers.lock();
            assert!(answers.bytes <= capacity, "{}", answers.bytes);
            assert_eq!(answers.order.len(), answers.by_request.len());
        }
        assert!(recent.len() > 50, "{}", recent.len());
        assert_eq!(recent.look_up("request 0", ids[0], now), Err(Refusal::Unknown));
        assert_eq!(recent.look_up("request 1999", ids[99], now).unwrap().rank, Some(100));
        // More than everything there is room for is not kept, and pushes nobody out.
        let before = recent.len();
        remember(&recent, "huge", &"x".repeat(capacity), &[], now);
        assert_eq!(recent.len(), before);
    }

    #[test]
    fn one_request_id_takes_one_place() {
        let (recent, now) = (Recent::new(MINUTE, 1 << 20), Instant::now());
        for i in 0..1_000 {
            remember(&recent, "same", &format!("query {}", i % 10), &["a"], now);
        }
        assert_eq!((recent.len(), recent.answers.lock().order.len()), (1, 1));
        assert_eq!(recent.look_up("same", "a", now).unwrap().query, "query 9");
        recent.forget(|query| query == "query 9");
        assert_eq!((recent.len(), recent.answers.lock().bytes), (0, 0));
    }

    #[test]
    fn an_answer_takes_so_much_feedback_and_no_more() {
        let (recent, now) = (Recent::new(MINUTE, 1 << 20), Instant::now());
        remember(&recent, "r", "q", &["a"], now);
        for _ in 0..MOST_EVENTS {
            assert!(recent.look_up("r", "a", now).is_ok());
        }
        assert_eq!(recent.look_up("r", "a", now), Err(Refusal::Exhausted));
    }
}
