//! Everything that turns text into vectors and queries into passages.
//!
//! Two seams leave this crate: [`Encoder`] (texts in, vectors out) and [`Expander`] (prompt in, text streamed
//! out). The service above them knows neither tensors nor tokenizers; this crate knows neither documents nor
//! indexes. `&[f32]` and `String` are the only currency.
//!
//! - [`encoder`]: the seam, checkpoint layout, pooling, the packed BERT, the batching thread.
//! - [`expander`]: the seam, mistralrs in process, any OpenAI-compatible server, prompts and clean-up.
//! - [`bundle`]: encoder, expander and settings that belong together, as a folder with a manifest.
//! - [`gate`]: whether expanding a query would help, predicted before anything is generated. Plain arithmetic.
//! - [`trainable`]: the same architectures with gradients, for training; adapters.
//! - [`trace`]: whose trace a generation belongs to, for language models on other servers.
//! - [`weights`]: where checkpoints come from: pulling, verifying, converting, resolving names to folders.
//! - [`device`]: the choice between CPU, CUDA and Metal.
//! - `testing`: small deterministic doubles of both seams (feature `testing`).

pub mod bundle;
mod cpu;
pub mod decoder;
pub mod device;
pub mod encoder;
mod error;
pub mod expander;
mod folder;
pub mod gate;
mod pace;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trace;
pub mod trainable;
pub mod weights;

pub use device::DeviceChoice;
pub use encoder::{Encoder, EncoderInfo, Pooling, Priority, TextKind};
pub use error::{Error, Result};
pub use expander::{
    Expander, ExpanderInfo, FinishReason, Generation, GenerationRequest, GenerationStream, Sampling,
    StreamEvent,
};
pub use pace::{Mean, Pace};
pub use trace::TraceContext;
