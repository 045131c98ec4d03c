//! Threads that work on one thing at a time, each as much of it as it gets done.
//!
//! A step of a decoder is some hundred short pieces of work one after the other. A pool for everything lets a worker
//! sleep or give its processor away between them, which on a busy machine costs more than the work; these wait for
//! the next piece by looking, for some microseconds, before they sleep.
#![allow(unsafe_code)]

use std::{
    any::Any,
    hint,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

/// How often a worker looks for work before it sleeps: about 50 µs.
const LOOKS: usize = 2000;

/// The calling thread and some workers.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts tasks (and the end), so that a worker sees without a lock that there is something new. Changed under the lock.
    news: AtomicUsize,
    state: Mutex<State>,
    /// Workers sleep here until there is news.
    has_news: Condvar,
    /// The caller sleeps here until the last worker has left its task.
    all_left: Condvar,
}

struct State {
    task: Option<&'static Task<'static>>,
    sleeping: usize,
    ended: bool,
}

/// Pieces of work, numbered from 0.
struct Task<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    pieces: usize,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    /// Workers that may still use this task. Changed from 0 only under the lock, while the task is published.
    inside: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Task<'_> {
    fn work(&self) {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.pieces {
                return;
            }
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.work)(piece))) {
                self.next.store(self.pieces, Ordering::Relaxed);
                *lock(&self.panic) = Some(panic);
            }
        }
    }
}

impl Team {
    /// A team of `threads`, the caller included, that are called `name`.
    ///
    /// # Errors
    /// When the system starts no more threads.
    pub(crate) fn new(threads: usize, name: &str) -> std::io::Result<Self> {
        let state = State { task: None, sleeping: 0, ended: false };
        let shared = Arc::new(Shared {
            news: AtomicUsize::new(0),
            state: Mutex::new(state),
            has_news: Condvar::new(),
            all_left: Condvar::new(),
        });
        let mut team = Self { shared, workers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let worker = thread::Builder::new().name(format!("{name}-{index}"));
            team.workers.push(worker.spawn(move || shared.serve())?);
        }
        Ok(team)
    }

    /// Threads, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` with each number below `pieces`, on all threads, and returns when all calls have. To be called from
    /// one thread at a time (a team of one from any number), and not from within `work`.
    ///
    /// # Panics
    /// When `work` does.
    pub(crate) fn run(&self, pieces: usize, work: impl Fn(usize) + Sync) {
        if self.workers.is_empty() || pieces < 2 {
            return (0..pieces).for_each(work);
        }
        let task = Task {
            work: &work,
            pieces,
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            panic: Mutex::new(None),
        };
        // SAFETY: workers get at the task only while it is published, and count themselves in `inside` under the same
        // lock. `withdraw` takes it back under that lock and then waits until the last of them, which does nothing
        // with the task after counting itself out, is outside. So the reference is dead before `task` is, also when
        // this thread's share of the work panics, which `Task::work` catches.
        let published = unsafe { std::mem::transmute::<&Task<'_>, &'static Task<'static>>(&task) };
        self.shared.publish(published);
        task.work();
        self.shared.withdraw(&task);
        if let Some(panic) = lock(&task.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Calls `work` with each of `items`.
    pub(crate) fn each<T: Send>(&self, items: Vec<T>, work: impl Fn(T) + Sync) {
        if self.workers.is_empty() || items.len() < 2 {
            return items.into_iter().for_each(work);
        }
        let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        self.run(items.len(), |index| {
            let item = lock(&items[index]).take();
            if let Some(item) = item {
                work(item);
            }
        });
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        state.ended = true;
        self.shared.news.fetch_add(1, Ordering::Release);
        drop(state);
        self.shared.has_news.notify_all();
        for worker in self.workers.drain(..) {
            let _panicked = worker.join();
        }
    }
}

impl Shared {
    fn publish(&self, task: &'static Task<'static>) {
        let mut state = lock(&self.state);
        assert!(state.task.is_none(), "a team works on one thing at a time");
        state.task = Some(task);
        self.news.fetch_add(1, Ordering::Release);
        let someone_sleeps = state.sleeping > 0;
        drop(state);
        if someone_sleeps {
            self.has_news.notify_all();
        }
    }

    fn withdraw(&self, task: &Task<'_>) {
        lock(&self.state).task = None;
        for _ in 0..LOOKS {
            if task.inside.load(Ordering::Acquire) == 0 {
                return;
            }
            hint::spin_loop();
        }
        let mut state = lock(&self.state);
        while task.inside.load(Ordering::Acquire) > 0 {
            state = self.all_left.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        loop {
            self.wait_for_news(&mut seen);
            let state = lock(&self.state);
            if state.ended {
                return;
            }
            let Some(task) = state.task else { continue };
            task.inside.fetch_add(1, Ordering::Relaxed);
            drop(state);
            task.work();
            if task.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
                // The task may be gone by now; the lock makes sure that the caller waits or has seen the count.
                let _state = lock(&self.state);
                self.all_left.notify_one();
            }
        }
    }

    fn wait_for_news(&self, seen: &mut usize) {
        for _ in 0..LOOKS {
            let now = self.news.load(Ordering::Acquire);
            if now != *seen {
                *seen = now;
                return;
            }
            hint::spin_loop();
        }
        // News comes under the lock only, so that none is missed between the look and the sleep.
        let mut state = lock(&self.state);
        state.sleeping += 1;
        while self.news.load(Ordering::Acquire) == *seen {
            state = self.has_news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.sleeping -= 1;
        *seen = self.news.load(Ordering::Acquire);
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once() {
        for threads in [1, 2, 5] {
            let team = Team::new(threads, "test").unwrap();
            assert_eq!(team.threads(), threads);
            for pieces in [0, 1, 2, 3, 100] {
                for _ in 0..200 {
                    let counts: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                    team.run(pieces, |piece| {
                        counts[piece].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn items_are_handed_out_and_sleepers_wake() {
        let team = Team::new(3, "test").unwrap();
        for _ in 0..20 {
            let mut numbers = vec![0; 64];
            team.each(numbers.chunks_mut(5).enumerate().collect(), |(index, chunk)| chunk.fill(index));
            assert!(numbers.iter().enumerate().all(|(index, number)| *number == index / 5));
            thread::sleep(std::time::Duration::from_millis(2)); // longer than they look
        }
    }

    /// Ending is right at every moment of a worker's life: before it looks, while it looks, while it sleeps.
    #[test]
    fn teams_end_at_any_moment() {
        for pause in 0..300_u64 {
            let team = Team::new(3, "test").unwrap();
            team.run(pause as usize % 3, |_| ());
            let start = std::time::Instant::now();
            while start.elapsed() < std::time::Duration::from_micros(pause) {
                hint::spin_loop();
            }
            drop(team);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(3, "test").unwrap();
        for _ in 0..50 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                team.run(20, |piece| assert!(piece != 7, "piece 7 breaks"));
            }));
            assert!(outcome.is_err());
            let sum = AtomicUsize::new(0);
            team.run(20, |piece| {
                sum.fetch_add(piece, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 190);
        }
    }
}
