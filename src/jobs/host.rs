//! What jobs need of the service around them.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde_json::Value;

use crate::http::problem::Problem;

/// How far something is that the service does for a job: what it is at, and how many of how many are done.
pub type Tell<'a> = &'a (dyn Fn(&str, usize, usize) + Send + Sync);

/// Bundles, index, datasets and feedback, as far as jobs use them. Tests put a double in its place.
#[async_trait]
pub trait Host: Send + Sync {
    /// The id of the bundle that answers.
    fn active_bundle(&self) -> String;

    /// The folder of a registered bundle.
    fn bundle_folder(&self, id: &str) -> Option<PathBuf>;

    /// Checks the `expansion` member of a search as the service does; pointers begin with `/expansion`.
    ///
    /// # Errors
    /// `invalid_request` for what a search could not have.
    fn check_expansion(&self, expansion: &Value) -> Result<(), Problem>;

    /// Makes a bundle's folder `out` from a finished training run.
    ///
    /// # Errors
    /// When the run has not left what a bundle needs.
    async fn package(&self, run: &Path, out: &Path, name: &str, parents: Vec<String>) -> Result<(), Problem>;

    /// Registers a bundle's folder and gives its id.
    ///
    /// # Errors
    /// When it is no whole bundle.
    async fn import(&self, folder: &Path, name: Option<&str>) -> Result<String, Problem>;

    /// Makes a bundle active; says what that did.
    ///
    /// # Errors
    /// `conflict` while another activation is under way; when the bundle can't be used.
    async fn activate(&self, id: &str, tell: Tell<'_>) -> Result<Value, Problem>;

    /// Embeds the active bundle's documents anew.
    ///
    /// # Errors
    /// As [`Host::activate`].
    async fn reindex(&self, tell: Tell<'_>) -> Result<Value, Problem>;

    /// Writes the index's snapshot.
    ///
    /// # Errors
    /// When the disk fails.
    async fn snapshot(&self) -> Result<Value, Problem>;

    /// Puts a dataset's lines at `target`, where they stay whatever becomes of it. Blocking.
    ///
    /// # Errors
    /// `not_found`, or when the disk fails.
    fn copy_dataset(&self, name: &str, target: &Path) -> Result<(), Problem>;

    /// The names of all datasets, for suggestions.
    fn datasets(&self) -> Vec<String>;

    /// Writes what users clicked and judged as training pairs; gives how many they are.
    ///
    /// # Errors
    /// When feedback is switched off, or the disk fails.
    async fn write_feedback(&self, out: &Path) -> Result<usize, Problem>;

    /// Writes down something that the service did by itself. Blocking.
    fn audit(&self, action: &str, arguments: Value, outcome: Result<(), &str>);
}
