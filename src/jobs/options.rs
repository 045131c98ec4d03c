//! Flags of jobs.

use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};

/// How admin jobs run.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Jobs")]
pub struct JobOptions {
    /// Folder of the recipes that a retrain job may name.
    #[arg(long, env = "EXPANDR_RECIPES_DIR", default_value = "training/recipes")]
    pub recipes_dir: PathBuf,

    /// Folder of the collections and training data that jobs may name; what they name can't lie elsewhere.
    #[arg(long, env = "EXPANDR_DATA_DIR", default_value = "data")]
    pub data_dir: PathBuf,

    /// Memory in MiB that a job's process may hold before it is ended; 0: three quarters of the machine's.
    #[arg(long, env = "EXPANDR_JOB_MEMORY_MIB", default_value_t = 0)]
    pub job_memory_mib: u64,

    /// Niceness of a job's process: 19 takes what nobody else wants.
    #[arg(long, env = "EXPANDR_JOB_NICE", default_value_t = 19, value_parser = clap::value_parser!(u8).range(0..=19))]
    pub job_nice: u8,

    /// How often a job may be broken off (a crash, kill -9, an end of the server without a goodbye) before it is called
    /// interrupted.
    #[arg(long, env = "EXPANDR_JOB_ATTEMPTS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub job_attempts: u32,

    /// Jobs that may wait; further ones get 429.
    #[arg(long, env = "EXPANDR_JOBS_QUEUE", default_value_t = 16)]
    pub jobs_queue: usize,

    /// Ended jobs that are kept, with their files; older ones are removed.
    #[arg(long, env = "EXPANDR_JOBS_KEPT", default_value_t = 20)]
    pub jobs_kept: usize,
}

impl JobOptions {
    /// The limit of a child's memory in bytes; none where the machine doesn't say what it has.
    pub fn memory_bytes(&self) -> Option<u64> {
        if self.job_memory_mib > 0 {
            return Some(self.job_memory_mib << 20);
        }
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kibibytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some((kibibytes << 10) / 4 * 3)
    }
}
