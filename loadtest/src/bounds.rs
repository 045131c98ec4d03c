//! What a run may not exceed: requests under way, requests in all, time. What a bound keeps from being sent is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::args::Args;

/// The bounds of a run, shared by all of its loads.
pub(crate) struct Bounds {
    in_flight: AtomicUsize,
    max_in_flight: usize,
    sent: AtomicU64,
    max_requests: u64,
    deadline: Instant,
    interrupted: AtomicBool,
}

/// The bound that kept a request from being sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    InFlight,
    Requests,
    Time,
    Interrupted,
}

/// A request under way.
pub(crate) struct Permit(Arc<Bounds>);

impl Bounds {
    /// The time begins now.
    pub(crate) fn new(args: &Args) -> Arc<Self> {
        Arc::new(Self {
            in_flight: AtomicUsize::new(0),
            max_in_flight: args.max_in_flight,
            sent: AtomicU64::new(0),
            max_requests: args.max_requests,
            deadline: Instant::now() + args.max_time.0,
            interrupted: AtomicBool::new(false),
        })
    }

    /// A place for one more request.
    ///
    /// # Errors
    ///
    /// The bound that is reached.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Permit, Bound> {
        if let Some(bound) = self.ended() {
            return Err(bound);
        }
        // Only one thread starts an open loop's requests, and a closed loop has fewer connections than places, so
        // looking first and counting afterwards can't overshoot by more than a closed loop's connections.
        if self.in_flight.load(Ordering::Relaxed) >= self.max_in_flight {
            return Err(Bound::InFlight);
        }
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add(1, Ordering::Relaxed);
        Ok(Permit(Arc::clone(self)))
    }

    /// The bound after which nothing more is sent, once it is reached.
    pub(crate) fn ended(&self) -> Option<Bound> {
        if self.interrupted.load(Ordering::Relaxed) {
            Some(Bound::Interrupted)
        } else if self.sent.load(Ordering::Relaxed) >= self.max_requests {
            Some(Bound::Requests)
        } else if Instant::now() >= self.deadline {
            Some(Bound::Time)
        } else {
            None
        }
    }

    /// Sleeps until `due`, or until nothing more is to be sent.
    pub(crate) fn sleep_until(&self, due: Instant) {
        const LOOK_UP: Duration = Duration::from_millis(50);
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() || self.ended().is_some() {
                return;
            }
            std::thread::sleep(wait.min(LOOK_UP));
        }
    }

    /// Ends the run: requests under way get their answers, no other is sent.
    pub(crate) fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Relaxed);
    }

    /// Requests under way.
    pub(crate) fn under_way(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Bound {
    /// Its word in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::InFlight => "max_in_flight",
            Self::Requests => "max_requests",
            Self::Time => "max_time",
            Self::Interrupted => "interrupted",
        }
    }

    /// What happened, for a message.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::InFlight => "--max-in-flight requests were under way: the server fell behind, or raise it",
            Self::Requests => "--max-requests were sent",
            Self::Time => "--max-time was over",
            Self::Interrupted => "the run was interrupted",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn bounds(flags: &str) -> Arc<Bounds> {
        let words = ["expandr-loadtest", "--query", "q", "--rate", "1"].into_iter();
        Bounds::new(&Args::try_parse_from(words.chain(flags.split(' '))).unwrap())
    }

    #[test]
    fn each_bound_says_its_name() {
        let places = bounds("--max-in-flight 2");
        let (first, second) = (places.admit(), places.admit());
        assert_eq!(places.admit().err(), Some(Bound::InFlight));
        drop(first);
        assert_eq!(places.under_way(), 1);
        assert!(places.admit().is_ok());
        drop(second);
        let requests = bounds("--max-requests 1");
        assert!(requests.admit().is_ok());
        assert_eq!(requests.admit().err(), Some(Bound::Requests));
        let time = bounds("--max-time 1us");
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(time.admit().err(), Some(Bound::Time));
        time.interrupt();
        assert_eq!(time.admit().err(), Some(Bound::Interrupted));
    }

    #[test]
    fn nobody_sleeps_beyond_the_end() {
        let bounds = bounds("--max-time 20ms");
        let start = Instant::now();
        bounds.sleep_until(start + Duration::from_secs(60));
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
