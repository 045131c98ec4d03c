//! Flags of what operators work with beside searches and documents, and the opening of it.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::{
    audit::Audit,
    datasets::Datasets,
    feedback::{Feedback, FeedbackSettings},
    http::Operations,
};

const MIB: u64 = 1024 * 1024;

/// Feedback, datasets, audit.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Feedback, datasets, audit")]
pub struct OperationOptions {
    /// Whether POST /feedback keeps which documents users clicked or judged, with their queries. Off, nothing about queries is kept.
    #[arg(long, env = "EXPANDR_FEEDBACK", value_enum, default_value_t = FeedbackSwitch::Off)]
    pub feedback: FeedbackSwitch,

    /// Days that feedback is kept.
    #[arg(long, env = "EXPANDR_FEEDBACK_RETENTION_DAYS", default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub feedback_retention_days: u64,

    /// Minutes after a search within which feedback can be given; for so long its query is in memory.
    #[arg(long, env = "EXPANDR_FEEDBACK_WINDOW_MINUTES", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    pub feedback_window_minutes: u64,

    /// Memory in MiB for the searches of that window; the oldest leave first.
    #[arg(long, env = "EXPANDR_FEEDBACK_MEMORY_MIB", default_value_t = 32, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    pub feedback_memory_mib: u64,

    /// Disk in MiB for feedback; when it is full further feedback is refused.
    #[arg(long, env = "EXPANDR_FEEDBACK_MIB", default_value_t = 1024)]
    pub feedback_mib: u64,

    /// Largest dataset in MiB.
    #[arg(long, env = "EXPANDR_DATASET_MIB", default_value_t = 1024)]
    pub dataset_mib: u64,

    /// Size in MiB at which the audit's file is begun anew; eight full ones are kept.
    #[arg(long, env = "EXPANDR_AUDIT_MIB", default_value_t = 16)]
    pub audit_mib: u64,
}

/// Whether feedback is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FeedbackSwitch {
    /// It is kept.
    On,
    /// Nothing about queries is kept.
    Off,
}

impl OperationOptions {
    /// Opens feedback, datasets and audit in the service's folder.
    ///
    /// # Errors
    /// When one of them can't be opened.
    pub fn open(&self, folder: &Path) -> anyhow::Result<Operations> {
        let settings = FeedbackSettings {
            on: self.feedback == FeedbackSwitch::On,
            retention: Duration::from_secs(self.feedback_retention_days * 86_400),
            window: Duration::from_secs(self.feedback_window_minutes * 60),
            memory_bytes: usize::try_from(self.feedback_memory_mib * MIB).unwrap_or(usize::MAX),
            disk_bytes: self.feedback_mib.saturating_mul(MIB),
        };
        let feedback =
            Feedback::open(&folder.join("feedback"), settings).context("the feedback can't be opened")?;
        let datasets = Datasets::open(&folder.join("datasets"), self.dataset_mib.saturating_mul(MIB))
            .context("the datasets can't be opened")?;
        let audit = Audit::open(&folder.join("audit.ndjson"), self.audit_mib.saturating_mul(MIB))
            .context("the audit can't be opened")?;
        Ok(Operations { feedback: Arc::new(feedback), datasets: Arc::new(datasets), audit: Arc::new(audit) })
    }
}
