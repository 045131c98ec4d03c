//! What every expander must do, whichever engine is behind it.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::expander::{
    Expander, FinishReason, Generation, GenerationRequest, GenerationStream, PromptTemplate, Sampling,
    SpecialTokens, StreamEvent,
};

/// How hard an engine is tried.
#[derive(Clone, Debug)]
pub struct Conformance {
    /// Different prompts that are generated alone and concurrently.
    pub prompts: usize,
    /// Tokens for each of them.
    pub max_tokens: usize,
    /// Strings in user text that must not steer the model.
    pub special_tokens: Vec<&'static str>,
    /// Longer than any step may take.
    pub patience: Duration,
}

impl Default for Conformance {
    fn default() -> Self {
        Self {
            prompts: 8,
            max_tokens: 24,
            special_tokens: vec!["<|im_end|>", "<|endoftext|>", "</s>"],
            patience: Duration::from_secs(120),
        }
    }
}

const QUESTIONS: &[&str] = &[
    "why is the sky blue",
    "what is the capital of France",
    "how do vaccines work",
    "who wrote the origin of species",
    "what does a compiler do",
    "how far away is the moon",
    "what causes inflation",
    "why do cats purr",
    "how is cheese made",
    "what is a black hole",
    "how do birds navigate",
    "what is the boiling point of water at high altitude",
];

/// Checks the promises of [`Expander`] on a real engine or a double.
///
/// # Panics
/// When one is broken; the message says which.
pub async fn check_expander(expander: Arc<dyn Expander>, options: &Conformance) {
    let check = Check { expander, options };
    check.concurrent_equals_alone().await;
    check.token_limit_holds().await;
    check.special_tokens_are_text().await;
    check.a_dropped_stream_frees_its_place().await;
    check.a_dropped_wait_frees_its_place().await;
    check.a_deadline_keeps_the_part().await;
}

struct Check<'a> {
    expander: Arc<dyn Expander>,
    options: &'a Conformance,
}

impl Check<'_> {
    fn request(&self, question: &str, max_tokens: usize) -> GenerationRequest {
        let prompt = PromptTemplate::q2d().render(&[question]).expect("the prompt has one slot");
        GenerationRequest { prompt, sampling: Sampling::greedy(max_tokens) }
    }

    async fn start(&self, request: GenerationRequest) -> GenerationStream {
        let started = timeout(self.options.patience, self.expander.generate(request)).await;
        started.expect("a generation starts in time").expect("a generation starts")
    }

    async fn text(&self, request: GenerationRequest) -> Generation {
        let stream = self.start(request).await;
        let generation = timeout(self.options.patience, stream.collect_until(None)).await;
        let generation = generation.expect("a generation ends in time").expect("a generation ends well");
        assert!(generation.finish_reason.is_some(), "a whole generation has a finish reason");
        generation
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + self.options.patience;
        while !condition() {
            assert!(Instant::now() < end, "{what}: not in time");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// N different prompts generated concurrently equal the same prompts generated alone.
    async fn concurrent_equals_alone(&self) {
        let questions: Vec<&str> = QUESTIONS.iter().copied().cycle().take(self.options.prompts).collect();
        let requests: Vec<_> =
            questions.iter().map(|question| self.request(question, self.options.max_tokens)).collect();
        let mut alone = Vec::new();
        for request in &requests {
            alone.push(self.text(request.clone()).await.text);
        }
        assert!(alone.iter().all(|text| !text.trim().is_empty()), "greedy generations have text: {alone:?}");
        let together =
            futures::future::join_all(requests.into_iter().map(|request| self.text(request))).await;
        for ((question, alone), together) in questions.iter().zip(&alone).zip(together) {
            assert_eq!(
                &together.text, alone,
                "`{question}` generated concurrently differs from generated alone"
            );
        }
        self.until("all places are free", || self.expander.running() == 0 && self.expander.waiting() == 0)
            .await;
    }

    async fn token_limit_holds(&self) {
        for limit in [1, 5] {
            let generation = self.text(self.request("how do bridges carry weight", limit)).await;
            assert!(
                generation.output_tokens <= limit,
                "{} tokens where {limit} are allowed",
                generation.output_tokens
            );
            assert_eq!(generation.finish_reason, Some(FinishReason::Length), "cut at {limit} tokens");
        }
    }

    /// A query with `<|im_end|>` in it is read to its end: the model sees what it sees for the neutralised text, and a
    /// different text after the token makes a different passage.
    async fn special_tokens_are_text(&self) {
        for token in &self.options.special_tokens {
            let question = |tail: &str| format!("what is {token} and {tail}");
            let text = |question: String| async move {
                self.text(self.request(&question, self.options.max_tokens)).await.text
            };
            let raw = text(question("a mitochondrion")).await;
            let neutral = SpecialTokens::common().neutralise(&question("a mitochondrion")).into_owned();
            assert_eq!(raw, text(neutral).await, "{token} is neutralised");
            assert_ne!(
                raw,
                text(question("the price of wheat in Rome")).await,
                "{token} does not end the prompt"
            );
            assert!(!raw.contains(token), "{token} does not come back: {raw:?}");
        }
    }

    async fn a_dropped_stream_frees_its_place(&self) {
        let places = self.expander.info().concurrency.min(4);
        let mut streams = Vec::new();
        for _ in 0..places {
            let mut stream = self.start(self.request("how do rivers form", 4096)).await;
            let first =
                timeout(self.options.patience, stream.next()).await.expect("a first piece comes in time");
            assert!(matches!(first, Some(Ok(StreamEvent::Text { .. }))), "a first piece comes: {first:?}");
            streams.push(stream);
        }
        drop(streams);
        self.until("dropped streams free their places", || self.expander.running() == 0).await;
        self.text(self.request("how do rivers form", 3)).await;
    }

    async fn a_dropped_wait_frees_its_place(&self) {
        let places = self.expander.info().concurrency;
        if places > 4 {
            return;
        }
        let mut running = Vec::new();
        for _ in 0..places {
            running.push(self.start(self.request("how do mountains form", 4096)).await);
        }
        let expander = Arc::clone(&self.expander);
        let request = self.request("who waits", 3);
        let waiting = tokio::spawn(async move { expander.generate(request).await.map(|_| ()) });
        self.until("a further generation waits", || self.expander.waiting() == 1 || waiting.is_finished())
            .await;
        waiting.abort();
        let _ = waiting.await;
        assert_eq!(self.expander.waiting(), 0, "a wait that was given up is forgotten");
        drop(running);
        self.until("everything is free", || self.expander.running() == 0).await;
    }

    /// The part that is there when the deadline passes is kept, and the rest is not generated.
    async fn a_deadline_keeps_the_part(&self) {
        let mut stream = self.start(self.request("what is the history of printing", 4096)).await;
        let first = timeout(self.options.patience, stream.next()).await.expect("a first piece comes in time");
        assert!(matches!(first, Some(Ok(_))), "a first piece comes: {first:?}");
        let part = stream.collect_until(Some(Instant::now() + Duration::from_millis(100))).await;
        let part = part.expect("a deadline is no failure");
        if part.finish_reason.is_none() {
            self.until("the rest is not generated", || self.expander.running() == 0).await;
        }
        let nothing = self.start(self.request("what is the history of paper", 4096)).await;
        let nothing = nothing
            .collect_until(Some(Instant::now()))
            .await
            .expect("a deadline that has passed is no failure");
        assert_eq!(nothing.finish_reason, None);
        self.until("the rest is not generated", || self.expander.running() == 0).await;
    }
}
