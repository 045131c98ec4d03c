//! Where checkpoints come from.
//!
//! The *store* is one folder (by default `models/store`). [`pull`] fills it with the default weights, [`list`] says
//! what is there, and [`resolve`] turns what an operator wrote (`--encoder`, `--expander`) into a path that a loader
//! can open. Nothing half-written is ever visible under its final name: everything is made in a hidden temporary
//! folder of the store, verified, synced and renamed.

mod adapted;
mod convert;
mod gguf;
mod gguf_header;
mod hub;
mod list;
mod manifest;
mod pip;
mod pull;
mod registry;
mod resolve;
mod safetensors_file;
mod store;
mod stored_gguf;
mod tokenizer;
mod wheel;

pub use adapted::adapted;
#[cfg(feature = "mistralrs")]
pub(crate) use convert::write_gguf_tokenizer;
pub use convert::{ConvertedCheckpoint, convert_gguf};
pub use list::{StoredCheckpoint, Verification, list};
pub use manifest::{MANIFEST_FILE, Manifest, ManifestFile, Source, sha256_of_file};
pub use pull::{PullAction, PullOptions, PullProgress, PullReport, PulledCheckpoint, pull};
pub use registry::{
    DEFAULT_ENCODER, DEFAULT_EXPANDER, DEFAULT_EXPANDER_GGUF, DefaultWeights, default_weights,
};
pub use resolve::{CheckpointKind, Resolved, Role, adapted_id, resolve, weights_id};
pub use stored_gguf::convert_into_store;
