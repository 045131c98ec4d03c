//! Work on a thread of its own, which ends with it.
//!
//! Models and indexes are loaded and dropped that way. The allocator gives memory that one thread has allocated and another has
//! freed back only when the first allocates again or has ended; the runtime's blocking threads do neither for long, and
//! each that had loaded a model once would keep a part of it.

use anyhow::Context;
use tokio::sync::oneshot;

/// Runs blocking `work` on a thread called `name` that ends afterwards.
///
/// # Errors
/// When the thread can't be started or panics.
pub(crate) async fn apart<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<T> {
    let (sender, result) = oneshot::channel();
    let thread = std::thread::Builder::new().name(name.to_owned());
    // Nobody may wait for the result any more; then it is dropped here.
    thread.spawn(move || drop(sender.send(work()))).context("a thread can't be started")?;
    result.await.with_context(|| format!("the thread `{name}` panicked"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_gives_the_result_or_says_that_the_thread_panicked() {
        assert_eq!(apart("test", || 3).await.unwrap(), 3);
        let error = apart("test", || panic!("on purpose")).await.map(|(): ()| ()).unwrap_err();
        assert!(error.to_string().contains("panicked"), "{error}");
    }
}
