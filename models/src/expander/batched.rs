//! Our own decoder as an expander: many passages at once on a CPU.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;

use super::{Expander, ExpanderInfo, GenerationRequest, GenerationStream};
use crate::{
    Error, Result,
    decoder::{self, Decoder, DecoderOptions},
    weights::{adapted_id, weights_id},
};

/// A [`Decoder`] behind the seam.
pub struct BatchedExpander {
    decoder: Arc<Decoder>,
    info: ExpanderInfo,
}

/// Whether the checkpoint at `path` is one that this engine runs: a Hugging Face folder of a known architecture.
pub fn supports(path: &Path) -> bool {
    path.is_dir() && decoder::is_supported(path)
}

/// Loads the Hugging Face folder at `path`. Nothing is downloaded.
///
/// # Errors
/// As [`Decoder::load`].
pub async fn load(path: &Path, options: DecoderOptions) -> Result<Arc<BatchedExpander>> {
    let path = fs_err::canonicalize(path)?;
    // A thread of its own, which ends: the allocator would leave a part of the memory with a thread that lives on, when the
    // decoder is dropped elsewhere.
    let (sender, loading) = tokio::sync::oneshot::channel();
    let load = move || {
        let decoder = Decoder::load(&path, &options)?;
        let id = match &options.adapter {
            Some(adapter) => adapted_id(&path, adapter)?,
            None => weights_id(&path)?,
        };
        Ok::<_, Error>((decoder, id))
    };
    std::thread::Builder::new().name("load-decoder".into()).spawn(move || drop(sender.send(load())))?;
    let broke = |_| Error::Engine { what: "batched", detail: "loading broke: its thread panicked".into() };
    let (decoder, id) = loading.await.map_err(broke)??;
    let info = ExpanderInfo {
        engine: "batched",
        id,
        honours_seed: true,
        concurrency: decoder.places(),
        device: "cpu".into(),
    };
    Ok(Arc::new(BatchedExpander { decoder: Arc::new(decoder), info }))
}

impl BatchedExpander {
    /// The decoder itself, for many samples of one prompt.
    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }
}

#[async_trait]
impl Expander for BatchedExpander {
    fn info(&self) -> &ExpanderInfo {
        &self.info
    }

    async fn generate(&self, request: GenerationRequest) -> Result<GenerationStream> {
        self.decoder.generate(&request.prompt, request.sampling).await
    }

    fn running(&self) -> usize {
        self.decoder.running()
    }

    fn waiting(&self) -> usize {
        self.decoder.waiting()
    }
}
