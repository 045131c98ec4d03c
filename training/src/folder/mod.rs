//! The run folder: what is on disk, what made it, and what is still good.
//!
//! - `files`: nothing half-written under a final name; JSON lines; only one run at a time.
//! - `hashes`: contents by their SHA-256, computed once for every file.
//! - `manifest`: what made a stage's files; what a stage in the middle of its work has begun with.
//! - `journal`: lines that are finished one by one, and survive a kill.

mod files;
mod hashes;
mod journal;
mod manifest;

pub(crate) use self::files::{JsonLines, LineFile, Lock, replace_file, replace_folder};
pub(crate) use self::hashes::Hashes;
pub(crate) use self::journal::{Journal, JournalLine, LineIndex};
pub use self::manifest::Manifest;
pub(crate) use self::manifest::{Begun, difference, manifest_path, work_folder};
