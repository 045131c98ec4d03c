//! The jobs of a server.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context;

use super::ServeOptions;
use crate::jobs::{ChildSettings, Host, Jobs, JobsSettings, Secret};

/// Opens the jobs in the service's folder. Where nobody can ask for one and none is left there are none.
///
/// # Errors
/// When they can't be opened.
pub(super) fn open(
    options: &ServeOptions,
    has_admin: bool,
    host: Arc<dyn Host>,
) -> anyhow::Result<Option<Arc<Jobs>>> {
    let folder = std::path::absolute(options.places.index_dir.join("jobs"))?;
    if !has_admin && !folder.exists() {
        return Ok(None);
    }
    let flags = &options.jobs;
    let settings = JobsSettings {
        folder,
        recipes_dir: flags.recipes_dir.clone(),
        data_dir: flags.data_dir.clone(),
        models_dir: options.places.models_dir.clone(),
        child: ChildSettings {
            program: own_program()?,
            memory_bytes: flags.memory_bytes(),
            niceness: flags.job_nice,
            api_key: options.models.expander_api_key.clone().map(Secret),
        },
        attempts: flags.job_attempts,
        queue: flags.jobs_queue,
        kept: flags.jobs_kept,
        serve: serde_json::to_value(options).context("the server's options can't be handed on to jobs")?,
    };
    Ok(Some(Arc::new(Jobs::open(settings, host).context("the jobs can't be opened")?)))
}

/// This very program, also when its file has been replaced meanwhile.
fn own_program() -> anyhow::Result<PathBuf> {
    let running = PathBuf::from(format!("/proc/{}/exe", std::process::id()));
    if running.exists() {
        return Ok(running);
    }
    std::env::current_exe().context("this program's own file is not known")
}
