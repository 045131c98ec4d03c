//! The life of a query, from the checked request to the answer. Knows no HTTP beyond the problem that an answer may be.

pub mod admission;
pub mod answer;
pub mod average;
pub mod check;
pub mod check_ranking;
pub mod defaults;
mod expand;
pub mod expansion;
mod failure;
pub mod flight;
mod forecast;
mod lookup;
mod passage_vectors;
mod pipeline;
mod ranking;
pub mod request;
mod service;
pub mod timings;
pub mod watch;

pub use expand::ExpandAnswer;
pub(crate) use lookup::blocking;
pub use service::{SearchService, SearchSettings};
pub(crate) use timings::milliseconds;
