//! The child of an evaluation: each bundle behind the real service, asked the same queries by the evaluation's client, then the paired
//! test. What is finished is kept, so that a child that was killed goes on where it was.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use expandr_evaluation::{
    Collection, Metric,
    client::{self, Endpoint, EndpointOptions, EvaluationOptions, EvaluationReport, IngestOptions},
    significance::{self, Stratum},
};
use expandr_training::{
    progress::{Event, Meter, Observer},
    seed::draw,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use super::outcome::{CollectionOutcome, Compared, EvaluationOutcome, SideOutcome};
use crate::{
    files::write_whole,
    server::{FeedbackSwitch, ServeOptions, serve},
};

/// What a child evaluates.
#[derive(Debug, Serialize, Deserialize)]
pub struct EvaluationSpec {
    /// How the server runs that this is for: engine, device, limits.
    pub serve: ServeOptions,
    /// The bundle.
    pub candidate: Side,
    /// What it is compared with.
    pub against: Option<Side>,
    /// On what.
    pub collections: Vec<PlannedCollection>,
    /// At most so many queries of each.
    pub max_queries: Option<usize>,
    /// The `expansion` member of every search.
    pub expansion: Option<Value>,
    /// What is compared.
    pub metric: String,
    /// Names of the collections whose average is tested; none: all.
    pub decide_on: Option<Vec<String>>,
    /// Where the work is done.
    pub folder: PathBuf,
}

/// One bundle.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Side {
    /// Its id.
    pub id: String,
    /// Where it lies.
    pub folder: PathBuf,
}

/// A collection that was found when the job was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedCollection {
    /// As the request names it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Which judgments.
    pub split: Option<String>,
}

/// The file of the outcome in the work folder.
pub const OUTCOME_FILE: &str = "outcome.json";
/// The folder of runs in the work folder.
pub const RUNS: &str = "runs";
/// A finished side of a collection.
const DONE_FILE: &str = "done.json";
/// Chooses queries where not all are asked.
const SEED: u64 = 42;
/// Nothing here is in a hurry, and a deadline would make a busy machine look like a bad model.
const PATIENCE_MS: u64 = 1_800_000;

/// A side's figures on one collection, with the metric's value a query in the collection's order.
#[derive(Serialize, Deserialize)]
struct Done {
    outcome: SideOutcome,
    values: Vec<f64>,
}

/// Does what `spec` says and writes the outcome.
///
/// # Errors
/// When a collection, a bundle or a disk fails.
pub async fn run(spec: &EvaluationSpec, observer: &dyn Observer) -> anyhow::Result<()> {
    let metric: Metric = spec.metric.parse()?;
    let mut outcome = EvaluationOutcome {
        metric: spec.metric.clone(),
        candidate: spec.candidate.id.clone(),
        against: spec.against.as_ref().map(|side| side.id.clone()),
        ..EvaluationOutcome::default()
    };
    let mut strata = Vec::new();
    for (place, planned) in spec.collections.iter().enumerate() {
        let mut collection = Collection::open(&planned.path, planned.split.as_deref())?;
        draw_queries(&mut collection, spec.max_queries);
        let task = Task { spec, planned, place, collection: &collection, metric, observer };
        let against = match &spec.against {
            Some(side) => Some(Box::pin(task.side(side, "against")).await?),
            None => None,
        };
        let candidate = Box::pin(task.side(&spec.candidate, "candidate")).await?;
        let mut compared = None;
        if let Some(against) = &against {
            let comparison = significance::compare_values(
                &candidate.values,
                &against.values,
                &significance::Options::default(),
            )?;
            compared = Some(Compared::from(comparison));
            if spec.decide_on.as_ref().is_none_or(|names| names.contains(&planned.name)) {
                outcome.decided_on.push(planned.name.clone());
                let (first, second) = (candidate.values.clone(), against.values.clone());
                strata.push(Stratum { first, second, weight: 1.0 });
            }
        }
        outcome.collections.push(CollectionOutcome {
            name: planned.name.clone(),
            split: collection.split.clone(),
            queries: collection.queries.len(),
            candidate: candidate.outcome,
            against: against.map(|done| done.outcome),
            compared,
        });
    }
    if !strata.is_empty() {
        let average = significance::compare_strata(&strata, &significance::Options::default())?;
        outcome.average = Some(average.into());
    }
    write_whole(&spec.folder.join(OUTCOME_FILE), &serde_json::to_vec_pretty(&outcome)?)?;
    // The runs stay to be looked at; the indexes were only for them.
    let indexes = spec.folder.join("indexes");
    if indexes.exists() {
        fs_err::remove_dir_all(indexes)?;
    }
    Ok(())
}

/// Keeps so many queries, always the same ones.
fn draw_queries(collection: &mut Collection, most: Option<usize>) {
    let Some(most) = most.filter(|most| *most < collection.queries.len()) else { return };
    let name = collection.name.clone();
    let drawn = |id: &str| draw(SEED, &["evaluated query", &name, id]);
    let mut numbers: Vec<u64> = collection.queries.iter().map(|query| drawn(&query.id)).collect();
    numbers.sort_unstable();
    let first_too_many = numbers[most];
    collection.queries.retain(|query| drawn(&query.id) < first_too_many);
}

/// One collection on its way.
struct Task<'a> {
    spec: &'a EvaluationSpec,
    planned: &'a PlannedCollection,
    place: usize,
    collection: &'a Collection,
    metric: Metric,
    observer: &'a dyn Observer,
}

impl Task<'_> {
    /// One bundle on the collection.
    async fn side(&self, side: &Side, role: &str) -> anyhow::Result<Done> {
        let run = self.spec.folder.join(RUNS).join(format!("{}-{}", self.place, side.id));
        let stage = format!("{role}/{}", self.planned.name);
        let done = run.join(DONE_FILE);
        if done.is_file() {
            self.observer.observe(&Event::StageSkipped { stage: &stage });
            return serde_json::from_slice(&fs_err::read(&done)?)
                .with_context(|| format!("{}", done.display()));
        }
        self.observer.observe(&Event::StageStarted { stage: &stage, why: &side.id });
        let started = std::time::Instant::now();
        fs_err::create_dir_all(&run)?;
        let index = self.spec.folder.join("indexes").join(format!("{}-{}", self.place, side.id));
        let options = options_for(&self.spec.serve, &side.folder, &index);
        let report = with_server(options, |endpoint| self.ask(endpoint, &run, &index, &stage)).await?;
        let done_now = self.figures(&report)?;
        write_whole(&done, &serde_json::to_vec(&done_now)?)?;
        let seconds = started.elapsed().as_secs_f64();
        let summary = serde_json::to_value(&done_now.outcome)?;
        self.observer.observe(&Event::StageFinished { stage: &stage, seconds, summary: &summary });
        Ok(done_now)
    }

    /// Loads the corpus, if that was not done, and asks every query.
    async fn ask(
        &self,
        endpoint: Endpoint,
        run: &Path,
        index: &Path,
        stage: &str,
    ) -> anyhow::Result<EvaluationReport> {
        let ingested = index.with_extension("ingested");
        if !ingested.exists() {
            let total = self.collection.check_corpus()?.documents;
            let mut meter = Meter::new(self.observer, stage, "documents", total, 0);
            let mut told = 0;
            let documents = self.collection.documents()?;
            let report = client::ingest(&endpoint, documents, IngestOptions::default(), |report| {
                let sent = report.sent + report.blank;
                meter.add(sent - told);
                told = sent;
            })
            .await?;
            if report.refused > 0 {
                let first = report.first_refused.first().map_or("", |refused| refused.detail.as_str());
                bail!(
                    "{}: {} documents were refused, the first because {first}",
                    self.planned.name,
                    report.refused
                );
            }
            write_whole(&ingested, b"")?;
        }
        let mut options = EvaluationOptions::new(run);
        options.expansion = self.spec.expansion.clone();
        options.concurrency = 2;
        if !options.metrics.contains(&self.metric) {
            options.metrics.push(self.metric);
        }
        options.top_k = options.top_k.max(self.metric.cut.unwrap_or_default());
        let mut meter: Option<Meter<'_>> = None;
        let mut told = 0;
        let report = client::evaluate(&endpoint, self.collection, &options, |progress| {
            let meter = meter.get_or_insert_with(|| {
                told = progress.answered;
                Meter::new(self.observer, stage, "queries", progress.queries, progress.answered)
            });
            let mut figures = Map::new();
            figures.insert("degraded".into(), progress.degraded.into());
            meter.add_with(progress.answered - told, figures);
            told = progress.answered;
        })
        .await?;
        Ok(report)
    }

    fn figures(&self, report: &EvaluationReport) -> anyhow::Result<Done> {
        let scores = &report.scores;
        let column = scores.metrics.iter().position(|metric| *metric == self.metric);
        let column = column.with_context(|| format!("{} was not computed", self.metric))?;
        // Over the queries that were asked: the judgments may be of more. One without hits has found nothing.
        let values_of = |column: usize| -> Vec<f64> {
            let queries = self.collection.queries.iter();
            queries.map(|query| scores.per_query.get(&query.id).map_or(0.0, |row| row[column])).collect()
        };
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let means: BTreeMap<String, f64> = (0..scores.metrics.len())
            .map(|column| (scores.metrics[column].to_string(), mean(&values_of(column))))
            .collect();
        let values = values_of(column);
        let outcome = SideOutcome {
            mean: mean(&values),
            means,
            degraded: report.degraded,
            reasons: report.reasons.clone(),
            expansions: report.expansions.clone(),
            cut: report.cut,
        };
        Ok(Done { outcome, values })
    }
}

/// The server's own options with another bundle, another folder, no keys and no hurry.
fn options_for(server: &ServeOptions, bundle: &Path, index: &Path) -> ServeOptions {
    let mut options = server.clone();
    options.places.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    options.places.index_dir = index.to_owned();
    options.models.bundle = Some(bundle.to_string_lossy().into_owned());
    options.models.encoder_adapter = None;
    options.models.expander_adapter = None;
    options.models.gate = None;
    options.search.timeout_ms = PATIENCE_MS;
    options.search.expansion_timeout_ms = PATIENCE_MS;
    options.limits.drain_delay_ms = 0;
    options.operations.feedback = FeedbackSwitch::Off;
    for keys in
        [&mut options.limits.read_keys, &mut options.limits.write_keys, &mut options.limits.admin_keys]
    {
        keys.clear();
    }
    options
}

/// Serves while `work` asks.
async fn with_server<T, F: Future<Output = anyhow::Result<T>>>(
    options: ServeOptions,
    work: impl FnOnce(Endpoint) -> F,
) -> anyhow::Result<T> {
    let stop = CancellationToken::new();
    let (sender, ready) = tokio::sync::oneshot::channel();
    let serving = Box::pin(serve(options, stop.clone(), move |address, _| {
        let _ = sender.send(address);
    }));
    let server = tokio::spawn(serving);
    // A server that fails drops its half of the channel, and says why.
    let Ok(address) = ready.await else {
        server.await??;
        bail!("the server ended before it listened");
    };
    let patience = Duration::from_millis(PATIENCE_MS);
    let endpoint = EndpointOptions { request_timeout: patience, patience };
    let result = work(Endpoint::new(&format!("http://{address}"), None, endpoint)?).await;
    stop.cancel();
    server.await??;
    result
}
