//! One generation: reading the engine's stream to its end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use mistralrs::{Model, RequestBuilder, Response, SamplingParams, TextMessageRole};
use tokio::sync::{mpsc, oneshot};

use super::{engine_error, rider::Rider};
use crate::{
    Error, Result,
    expander::{FinishReason, Sampling, StreamEvent, gate::Place},
};

/// How long the engine may take to drop a sequence that has ended.
const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// The task behind one generation.
pub(super) struct Run {
    pub(super) model: Arc<Model>,
    pub(super) alive: Arc<AtomicBool>,
    pub(super) events: mpsc::Sender<Result<StreamEvent>>,
    pub(super) sampling: Sampling,
}

impl Run {
    /// Generates and hands on what comes, until the end or until nobody listens any more.
    pub(super) async fn generate(self, prompt: String, place: Place) {
        let (rider, tokens, gone) = Rider::new(&self.sampling, place);
        let request = RequestBuilder::new()
            .add_message(TextMessageRole::User, prompt)
            .enable_thinking(false)
            .set_sampling(self.engine_sampling())
            .add_logits_processor(Arc::new(rider));
        let reading = self.read(request, &tokens);
        let last = tokio::select! {
            // Dropping the engine's stream makes the engine stop at the next token.
            () = self.events.closed() => return,
            outcome = reading => match outcome {
                Ok(Some(reason)) => Ok(StreamEvent::Finished(reason)),
                Ok(None) => return,
                Err(error) => Err(error),
            },
        };
        self.wait_until(gone).await;
        let _nobody_listens = self.events.send(last).await;
    }

    /// The engine decodes greedily; sampling is the rider's.
    fn engine_sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: Some(0.0),
            max_len: Some(self.sampling.max_tokens),
            ..SamplingParams::neutral()
        }
    }

    /// Why the model ended; none when nobody listens any more.
    async fn read(&self, request: RequestBuilder, tokens: &AtomicUsize) -> Result<Option<FinishReason>> {
        let started = self.model.stream_chat_request(request).await;
        let mut stream = started.map_err(|error| {
            self.alive.store(false, Ordering::Relaxed);
            engine_error(format!("it takes no request: {error}"))
        })?;
        let mut reported = 0;
        while let Some(response) = stream.next().await {
            let chunk = match response {
                Response::Chunk(chunk) => chunk,
                Response::ValidationError(error) => {
                    return Err(Error::Input(format!("the model refuses the prompt: {error}")));
                }
                Response::InternalError(error) => return Err(engine_error(error.to_string())),
                Response::ModelError(error, _) => return Err(engine_error(error)),
                _ => return Err(engine_error("it answers a chat with something else")),
            };
            self.alive.store(true, Ordering::Relaxed);
            let Some(choice) = chunk.choices.into_iter().next() else { continue };
            let seen = tokens.load(Ordering::SeqCst);
            let text = choice.delta.content.unwrap_or_default();
            let piece = StreamEvent::Text { text, tokens: seen - reported };
            reported = seen;
            if self.events.send(Ok(piece)).await.is_err() {
                return Ok(None);
            }
            match choice.finish_reason.as_deref() {
                None => {}
                Some("stop") => return Ok(Some(FinishReason::Stop)),
                Some("length") => return Ok(Some(FinishReason::Length)),
                Some(other) => return Err(engine_error(format!("it broke the generation off: {other}"))),
            }
        }
        self.ended_without_reason(tokens.load(Ordering::SeqCst))
    }

    /// When the last token allowed ends in the middle of a character, the engine sends no last piece and so no reason.
    fn ended_without_reason(&self, tokens: usize) -> Result<Option<FinishReason>> {
        if tokens >= self.sampling.max_tokens {
            return Ok(Some(FinishReason::Length));
        }
        self.alive.store(false, Ordering::Relaxed);
        Err(engine_error(format!(
            "the stream ended after {tokens} tokens without a finish reason; the engine may have died"
        )))
    }

    /// The reader learns of the end when the place is free, so that its next generation finds it so.
    async fn wait_until(&self, gone: oneshot::Receiver<()>) {
        if tokio::time::timeout(DROP_PATIENCE, gone).await.is_err() {
            tracing::warn!("mistralrs keeps a sequence that has ended for more than {DROP_PATIENCE:?}");
        }
    }
}
