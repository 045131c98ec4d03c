//! From pairs of query and passage to a tuned expander and a tuned encoder.
//!
//! A recipe says what is done; a run does it stage by stage, each reading files and writing files, so that each can be
//! resumed, inspected, or done elsewhere. The crate must not know the service, nor how documents are indexed.
//!
//! In reading order:
//! - [`recipe`]: every setting, with the paper's defaults; [`plan`]: the stages that follow from them, and the rows of
//!   the report that share them.
//! - [`runner`]: what is done, what is to be done, and doing it; `folder`: files, hashes and journals of a run.
//! - `stages`: what each stage does with its files; [`steps`] and [`writer`]: the seams to training and generation.
//! - [`readers`]: training data as it is published; [`pairs`]: which of it is admitted; [`split`]: what it trains.
//! - [`reward`]: the paper's reward and the choice of a preference pair (Eq. 11, 13, 14, 16); [`preference`],
//!   [`example`]: the lines that the two trainers read.
//! - [`trainer`]: the loop of every training, with its checkpoints; [`optim`] and [`schedule`]: how weights are moved.
//! - [`dpo`]: preferences and passages to a language model (Eq. 17); [`contrastive`]: averaged vectors to an encoder
//!   (Eq. 8, 9).
//! - [`report`]: what each row of a run reached, and what several runs with other seeds reached together.
//! - [`progress`]: what a run tells while it works; [`seed`], [`text`]: what everything random and every comparison of
//!   texts goes through.

mod checkpoint;
mod collections;
pub mod contrastive;
pub mod dpo;
mod error;
pub mod example;
mod folder;
pub mod optim;
pub mod pairs;
pub mod plan;
pub mod preference;
pub mod progress;
pub mod readers;
pub mod recipe;
pub mod report;
pub mod reward;
pub mod runner;
pub mod schedule;
pub mod seed;
pub mod split;
mod stages;
pub mod steps;
pub mod text;
pub mod trainer;
pub mod trainers;
pub mod writer;

pub use error::{Error, Result};
pub use folder::Manifest;
pub use pairs::{HeldOut, Pair, Part, Split};
pub use plan::Stage;
pub use recipe::{QueryWeight, Recipe};
pub use reward::{Filter, Preference, RewardTerms, Verdict};
pub use runner::{Options, PlannedStage, Run, Status, finished_stages};
pub use stages::{ScoreLine, WrittenLine, WrittenText};
pub use steps::{Model, Steps};
pub use writer::Writer;
