//! From pairs of query and passage to the preferences that train the expander.
//!
//! The crate reads training pairs, keeps them apart from the evaluation sets, and turns similarities into the
//! paper's rewards and preferences. It must not know the service, nor how documents are indexed.
//!
//! In reading order:
//! - [`pairs`]: reading pairs from several sources; what is dropped, and how much of it.
//! - [`split`]: a seeded split into training and development pairs by query.
//! - [`reward`]: the paper's reward and the choice of a preference pair (Eq. 11, 13, 14, 16).
//! - [`trainer`]: the loop of every training, with its checkpoints; [`optim`] and [`schedule`]: how weights are moved.
//! - [`dpo`]: preferences and passages to a language model (Eq. 17); [`contrastive`]: averaged vectors to an encoder
//!   (Eq. 8, 9).

mod checkpoint;
pub mod contrastive;
pub mod dpo;
mod error;
pub mod optim;
pub mod pairs;
pub mod reward;
pub mod schedule;
pub mod split;
pub mod trainer;

pub use error::{Error, Result};
pub use pairs::{HeldOut, Pair, PairReader, Source, SourceCounts};
pub use reward::{Filter, Preference, RewardTerms, prefer};
pub use split::{Split, split};
