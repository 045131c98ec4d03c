//! Drawing tokens with a seed per request, inside mistralrs' own loop.
//!
//! mistralrs has one random generator for all requests, so that a sample can't be repeated. It lets a request bring a
//! processor of logits, though: ours draws the token itself and leaves the engine, which decodes greedily, that one to
//! choose. The processor lives exactly as long as the engine's sequence, so it also counts the tokens and holds the place.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use candle_core::Tensor;
use mistralrs::CustomLogitsProcessor;
use tokio::sync::oneshot;

use crate::expander::{Sampling, gate::Place, sampler::Draw};

/// Rides along with a sequence in the engine.
pub(super) struct Rider {
    draw: Option<Mutex<Draw>>,
    tokens: Arc<AtomicUsize>,
    // Dropped in this order: the place is free when the news arrives.
    _place: Place,
    _gone: oneshot::Sender<()>,
}

impl Rider {
    /// A rider, the tokens that it has seen, and what resolves (with an error) when the engine has dropped the sequence.
    pub(super) fn new(sampling: &Sampling, place: Place) -> (Self, Arc<AtomicUsize>, oneshot::Receiver<()>) {
        let tokens = Arc::new(AtomicUsize::new(0));
        let (gone, is_gone) = oneshot::channel();
        let is_greedy = sampling.temperature <= 0.0;
        let draw = (!is_greedy).then(|| Mutex::new(Draw::new(sampling)));
        (Self { draw, tokens: Arc::clone(&tokens), _place: place, _gone: gone }, tokens, is_gone)
    }
}

impl CustomLogitsProcessor for Rider {
    fn apply(&self, logits: &Tensor, _context: &[u32]) -> candle_core::Result<Tensor> {
        self.tokens.fetch_add(1, Ordering::SeqCst);
        let Some(draw) = &self.draw else { return Ok(logits.clone()) };
        let mut chances = logits.to_vec1::<f32>()?;
        let drawn = draw.lock().unwrap_or_else(PoisonError::into_inner).token(&chances);
        let Some(drawn) = drawn else { candle_core::bail!("the model's logits are not finite") };
        chances.fill(0.0);
        chances[drawn] = 1.0;
        Tensor::from_vec(chances, logits.shape(), logits.device())
    }
}
