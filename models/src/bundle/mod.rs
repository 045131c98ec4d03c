//! A bundle on disk: one version of (encoder, expander, prompt, gate, defaults) that belong together, as a folder with a
//! manifest, `bundle.json`, and the files that it owns. The index of a bundle is not part of its folder: it is made from
//! the documents by the bundle's encoder.
//!
//! A bundle names base weights (a name in the models folder, a path, a hub id, the URL of a server) or owns them (a folder
//! beside `bundle.json`). Everything that it owns is in [`Manifest::files`] with its hash and is proved before it is used.
//! So a bundle's folder can be moved or copied as a whole, and is valid wherever the weights that it names are.
//!
//! - `manifest`: what `bundle.json` says, and what it may say.
//! - `files`: the files that a bundle owns: listing, hashing, proving, writing.
//! - `parts`: from a manifest to the weights on this machine, and to the ids of what is there.

mod files;
mod manifest;
mod parts;

pub use self::{
    files::{copy_owned, prove, read, write},
    manifest::{Defaults, EncoderPart, ExpanderPart, ExpansionDefault, Ids, Manifest},
    parts::{ExpanderPlace, bundle_id, encoder_place, expander_place, identify, same_parts},
};

/// The manifest's name in a bundle's folder.
pub const BUNDLE_FILE: &str = "bundle.json";

/// The layout of the manifest; raised when its meaning changes.
pub const FORMAT: u32 = 1;
