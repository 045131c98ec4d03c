//! From pairs of query and passage to the preferences that train the expander.
//!
//! The crate reads training pairs, keeps them apart from the evaluation sets, and turns similarities into the
//! paper's rewards and preferences. It must not know the service, nor how documents are indexed.
//!
//! In reading order:
//! - [`pairs`]: reading pairs from several sources; what is dropped, and how much of it.
//! - [`split`]: a seeded split into training and development pairs by query.
//! - [`reward`]: the paper's reward and the choice of a preference pair (Eq. 11, 13, 14, 16).

mod error;
pub mod pairs;
pub mod reward;
pub mod split;

pub use error::{Error, Result};
pub use pairs::{HeldOut, Pair, PairReader, Source, SourceCounts};
pub use reward::{Filter, Preference, RewardTerms, prefer};
pub use split::{Split, split};
