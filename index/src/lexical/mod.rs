//! Lexical search: BM25 over the terms of titles and texts.
//!
//! Like the graph it is derived: the store is the truth, and what is on disk here can always be built anew from it.
//!
//! | file | what |
//! |---|---|
//! | `analysis` | from text to terms |
//! | `bm25` | the formula |
//! | `recent` | documents since the last commit, inverted in memory |
//! | `view` | what searches see: tantivy's segments and the recent documents, and the search itself |
//! | `disk`, `directory` | tantivy's folder: writing, committing, proving |
//! | `upkeep` | writes, commits and recovery, in the order of the index's locks |
//!
//! A write goes to the recent documents, where it is found at once, and to tantivy's writer, whose thread inverts it
//! meanwhile for the disk. When the recent documents have filled their half of the memory, and when the graph is saved, the
//! writer commits; then searches see its segments, and nothing is recent. So no search waits for a commit, a bulk load
//! pays one every some ten thousand documents, and a single write pays none.

mod analysis;
mod bm25;
mod directory;
mod disk;
mod recent;
mod upkeep;
mod view;

pub(crate) use analysis::Terms;
pub use bm25::Bm25;
pub(crate) use upkeep::{Lexical, open, remove};
pub(crate) use view::View;

/// Names of tantivy's columns.
const KEY: &str = "key";
const LENGTH: &str = "length";
