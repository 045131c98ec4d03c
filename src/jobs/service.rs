//! The service as jobs see it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{
    host::{Host, Tell},
    queue::disk,
};
use crate::{
    audit::Audit,
    bundles::{ActivationProgress, Bundles, PackageFacts, package},
    datasets::Datasets,
    feedback::Feedback,
    http::{
        body::from_value,
        problem::{Code, Problem},
    },
    search::SearchService,
};

/// The service's parts.
pub struct ServiceHost {
    /// The bundles.
    pub bundles: Arc<Bundles>,
    /// The live bundle, with its index.
    pub service: Arc<SearchService>,
    /// Uploaded pairs.
    pub datasets: Arc<Datasets>,
    /// What users clicked and judged.
    pub feedback: Arc<Feedback>,
    /// Who did what.
    pub audit: Arc<Audit>,
}

#[async_trait]
impl Host for ServiceHost {
    fn active_bundle(&self) -> String {
        self.bundles.active()
    }

    fn bundle_folder(&self, id: &str) -> Option<PathBuf> {
        self.bundles.get(id).map(|record| self.bundles.manifest_folder(&record.id))
    }

    fn check_expansion(&self, expansion: &Value) -> Result<(), Problem> {
        let mut expansion = expansion.clone();
        // An evaluation is in no hurry, so that no deadline is too long for it.
        if let Some(members) = expansion.as_object_mut() {
            members.remove("timeout_ms");
        }
        let search = from_value(json!({"query": "is this a search", "expansion": expansion}))?;
        self.service.check(&self.service.bundle(), search).map(|_| ())
    }

    async fn package(&self, run: &Path, out: &Path, name: &str, parents: Vec<String>) -> Result<(), Problem> {
        let (run, out) = (run.to_owned(), out.to_owned());
        let facts = PackageFacts { name: Some(name.to_owned()), parents, ..PackageFacts::default() };
        let packaged = tokio::task::spawn_blocking(move || package(&run, &out, facts));
        packaged.await.map_err(|error| disk(&error))?.map_err(|error| {
            Problem::new(Code::Internal, format!("the training's run can't be made a bundle: {error:#}"))
        })?;
        Ok(())
    }

    async fn import(&self, folder: &Path, name: Option<&str>) -> Result<String, Problem> {
        self.bundles.import(folder, name).await
    }

    async fn activate(&self, id: &str, tell: Tell<'_>) -> Result<Value, Problem> {
        let hear = |progress: ActivationProgress| tell_stage(progress, tell);
        let done = self.bundles.activate(id, &hear).await?;
        Ok(serde_json::to_value(done).unwrap_or_default())
    }

    async fn reindex(&self, tell: Tell<'_>) -> Result<Value, Problem> {
        let hear = |progress: ActivationProgress| tell_stage(progress, tell);
        let done = self.bundles.reindex(&hear).await?;
        Ok(serde_json::to_value(done).unwrap_or_default())
    }

    async fn snapshot(&self) -> Result<Value, Problem> {
        let index = self.service.bundle().index.clone();
        crate::search::blocking(move || index.snapshot()).await?;
        let stats = self.service.bundle().index.stats();
        Ok(json!({"documents": stats.documents}))
    }

    fn copy_dataset(&self, name: &str, target: &Path) -> Result<(), Problem> {
        self.datasets.copy_to(name, target).map(|_| ())
    }

    fn datasets(&self) -> Vec<String> {
        self.datasets.list().into_iter().map(|dataset| dataset.name).collect()
    }

    async fn write_feedback(&self, out: &Path) -> Result<usize, Problem> {
        if !self.feedback.is_on() {
            let detail = "feedback is off, so there is none to train on; `--feedback on` switches it on";
            return Err(Problem::new(Code::NotFound, detail));
        }
        let (feedback, out) = (self.feedback.clone(), out.to_owned());
        let index = self.service.bundle().index.clone();
        let written = tokio::task::spawn_blocking(move || feedback.write_pairs(&index, &out));
        Ok(written.await.map_err(|error| disk(&error))??.pairs)
    }

    fn audit(&self, action: &str, arguments: Value, outcome: Result<(), &str>) {
        self.audit.record(action, arguments, outcome);
    }
}

fn tell_stage(progress: ActivationProgress, tell: Tell<'_>) {
    let stage = serde_json::to_value(progress.stage).unwrap_or_default();
    tell(stage.as_str().unwrap_or(""), progress.done, progress.total);
}
