//! The seam to what generates text: several samples of one prompt.
//!
//! Any [`Expander`] serves by way of [`OneByOne`], which asks for every sample on its own. [`Batched`] reads a prompt
//! once and continues it several times.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use expandr_models::expander::batched::BatchedExpander;
use expandr_models::{Error as ModelError, Expander, Generation, GenerationRequest, Sampling};
use futures::future::try_join_all;
use tokio::sync::Semaphore;

use crate::Result;

/// Writes samples.
#[async_trait]
pub trait Writer: Send + Sync {
    /// Names the weights ([`expandr_models::ExpanderInfo::id`]).
    fn id(&self) -> &str;

    /// Whether the same seed gives the same sample.
    fn honours_seed(&self) -> bool;

    /// Generations at once that keep it busy.
    fn concurrency(&self) -> usize;

    /// Writes one sample for each of `samplings`, in their order.
    ///
    /// # Errors
    /// When a generation fails. Nothing is kept of the others then.
    async fn write(&self, prompt: &str, samplings: &[Sampling]) -> Result<Vec<Generation>>;
}

/// Longest pause before a failed generation is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A [`Writer`] over any expander: one request a sample, so many at once.
pub struct OneByOne {
    expander: Arc<dyn Expander>,
    permits: Semaphore,
    concurrency: usize,
    retries: usize,
    /// Before the first attempt after a failure; it doubles with every further one.
    first_pause: Duration,
}

impl OneByOne {
    /// So many generations at once (0: as many as the expander runs), each tried again up to `retries` times when the
    /// engine fails.
    pub fn new(expander: Arc<dyn Expander>, concurrency: usize, retries: usize) -> Self {
        let concurrency = if concurrency == 0 { expander.info().concurrency } else { concurrency }.max(1);
        let first_pause = Duration::from_millis(500);
        Self { expander, permits: Semaphore::new(concurrency), concurrency, retries, first_pause }
    }

    async fn one(&self, prompt: &str, sampling: Sampling) -> Result<Generation> {
        let mut pause = self.first_pause;
        let mut attempts = 0;
        loop {
            let failure = match self.attempt(prompt, sampling).await {
                Ok(generation) => return Ok(generation),
                Err(failure) => failure,
            };
            let transient = matches!(failure, ModelError::Engine { .. } | ModelError::Overloaded { .. });
            if attempts >= self.retries || !transient {
                return Err(failure.into());
            }
            attempts += 1;
            tracing::warn!(%failure, attempts, "a generation failed and is tried again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, prompt: &str, sampling: Sampling) -> expandr_models::Result<Generation> {
        // The semaphore is never closed.
        let _permit = self.permits.acquire().await.ok();
        let request = GenerationRequest { prompt: prompt.to_owned(), sampling };
        self.expander.generate(request).await?.collect_until(None).await
    }
}

#[async_trait]
impl Writer for OneByOne {
    fn id(&self) -> &str {
        &self.expander.info().id
    }

    fn honours_seed(&self) -> bool {
        self.expander.info().honours_seed
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    async fn write(&self, prompt: &str, samplings: &[Sampling]) -> Result<Vec<Generation>> {
        try_join_all(samplings.iter().map(|sampling| self.one(prompt, *sampling))).await
    }
}

/// A [`Writer`] over our own decoder: one reading of a prompt for all its samples.
pub struct Batched(Arc<BatchedExpander>);

impl Batched {
    /// Its queue must have room for two prompts' samples more than it has places.
    pub fn new(expander: Arc<BatchedExpander>) -> Self {
        Self(expander)
    }
}

#[async_trait]
impl Writer for Batched {
    fn id(&self) -> &str {
        &self.0.info().id
    }

    fn honours_seed(&self) -> bool {
        true
    }

    fn concurrency(&self) -> usize {
        self.0.info().concurrency
    }

    async fn write(&self, prompt: &str, samplings: &[Sampling]) -> Result<Vec<Generation>> {
        let streams = self.0.decoder().sample(prompt, samplings)?;
        Ok(try_join_all(streams.into_iter().map(|stream| stream.collect_until(None))).await?)
    }
}

#[cfg(test)]
mod tests {
    use expandr_models::testing::{Script, ScriptedExpander, ScriptedFailure};

    use super::*;

    fn samplings() -> Vec<Sampling> {
        let sampling = |seed| Sampling { max_tokens: 8, temperature: 1.0, top_p: 0.9, seed: Some(seed) };
        (0..5).map(sampling).collect()
    }

    #[tokio::test]
    async fn samples_come_in_order_and_no_more_at_once_than_allowed() {
        let script = Script { queue_capacity: 0, concurrency: 2, ..Script::default() };
        let expander = Arc::new(ScriptedExpander::new(script));
        let writer = OneByOne::new(expander.clone(), 0, 0);
        // The double refuses a third one at once; several prompts share the limit.
        let samplings = samplings();
        let (first, second) =
            tokio::join!(writer.write("one prompt", &samplings), writer.write("another", &samplings));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!((first.len(), second.len(), expander.counts().finished), (5, 5, 10));
        let again = writer.write("one prompt", &samplings[3..4]).await.unwrap();
        assert_eq!(again[0].text, first[3].text);
        assert_ne!(first[3].text, first[4].text);
    }

    #[tokio::test]
    async fn failures_are_tried_again_and_then_told() {
        let expander = Arc::new(ScriptedExpander::new(Script {
            failure: ScriptedFailure::After(2),
            ..Script::default()
        }));
        let mut writer = OneByOne::new(expander.clone(), 1, 2);
        writer.first_pause = Duration::from_millis(1);
        let error = writer.write("p", &samplings()[..1]).await.unwrap_err().to_string();
        assert!(error.contains("it breaks"), "{error}");
        assert_eq!(expander.counts().failed, 3);
    }
}
