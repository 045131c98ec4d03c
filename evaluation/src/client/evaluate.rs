//! One collection against one server: every judged query asked once, every answer kept at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use super::answers::{Answer, AnswerLog, Problem, Wire, WireBatch};
use super::endpoint::{Endpoint, is_temporary};
use super::report::{self, EvaluationReport, Measured};
use crate::run::check_trec_id;
use crate::{Collection, Error, Metric, Query, Result, metrics};

/// How a collection is evaluated.
#[derive(Clone, Debug)]
pub struct EvaluationOptions {
    /// The run folder: created if it is missing; gone on with if it holds a part of the same run.
    pub folder: PathBuf,
    /// The system's name in `run.trec`.
    pub tag: String,
    /// Depth of the ranked lists.
    pub top_k: usize,
    /// The `expansion` member of every search; none leaves it to the server.
    pub expansion: Option<Value>,
    /// Further members of every search, e.g. `{"search_mode": "exact"}`.
    pub search: Map<String, Value>,
    /// Searches a request. All of a request share its deadline, so where a language model writes passages one after the
    /// other this should be small, and their `timeout_ms` large.
    pub batch: usize,
    /// Requests under way at a time.
    pub concurrency: usize,
    /// Drop the document whose id is the query's own (BEIR's rule; ArguAna and Quora need it).
    pub drop_own_documents: bool,
    /// What to compute.
    pub metrics: Vec<Metric>,
    /// How to compute it.
    pub scoring: metrics::Options,
}

impl EvaluationOptions {
    /// The usual settings: depth 100, batches of 16, four at a time, the default metrics.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            tag: "expandr".into(),
            top_k: 100,
            expansion: None,
            search: Map::new(),
            batch: 16,
            concurrency: 4,
            drop_own_documents: true,
            metrics: Metric::defaults(),
            scoring: metrics::Options::default(),
        }
    }

    fn check(&self) -> Result<()> {
        if self.top_k == 0 || self.batch == 0 || self.concurrency == 0 {
            return Err(Error::Input("top_k, batch and concurrency must be at least 1".into()));
        }
        if self.metrics.is_empty() {
            return Err(Error::Input("no metric to compute; name at least one, e.g. ndcg@10".into()));
        }
        if let Some(metric) = self.metrics.iter().find(|metric| metric.cut > Some(self.top_k)) {
            return Err(Error::Input(format!(
                "{metric} looks deeper than the {} hits that are asked for; ask for more, or name a metric that doesn't",
                self.top_k
            )));
        }
        check_trec_id("run tag", &self.tag)
    }

    /// One search of a batch, without its query. Where own documents are dropped one hit more is asked for, within the
    /// server's limit.
    fn template(&self, server: &Value) -> Map<String, Value> {
        let limit = server["limits"]["top_k"].as_u64().map_or(usize::MAX, |limit| limit as usize);
        let spare = usize::from(self.drop_own_documents);
        let mut search = self.search.clone();
        search.insert("top_k".into(), json!((self.top_k + spare).min(limit.max(self.top_k))));
        if let Some(expansion) = &self.expansion {
            search.insert("expansion".into(), expansion.clone());
        }
        search
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Queries with an answer, those of an earlier part of the run included.
    pub answered: usize,
    /// Queries in all.
    pub queries: usize,
    /// Answers without the expansion that was asked for.
    pub degraded: usize,
}

/// Asks every judged query, scores the answers and writes the run folder. An interrupted run goes on where it stopped.
///
/// # Errors
/// When the folder holds a run of other settings, the server stays away, refuses a query or changes its bundle in the
/// middle, an id can't stand in a TREC file, or a file can't be written.
pub async fn evaluate(
    endpoint: &Endpoint,
    collection: &Collection,
    options: &EvaluationOptions,
    mut progress: impl FnMut(Progress),
) -> Result<EvaluationReport> {
    options.check()?;
    for query in &collection.queries {
        check_trec_id("query id", &query.id)?;
    }
    let server = endpoint.info().await?;
    let template = options.template(&server);
    fs_err::create_dir_all(&options.folder)?;
    let settings = settings(collection, options, &template, &server);
    report::keep_settings(&options.folder, &settings)?;
    let mut log = AnswerLog::open(&options.folder.join("answers.jsonl"))?;

    let open: Vec<&Query> = collection.queries.iter().filter(|query| !log.has(&query.id)).collect();
    let wanted = Wanted::of(options.expansion.as_ref());
    let mut seen = Progress {
        answered: log.answers().len(),
        queries: collection.queries.len(),
        degraded: log.answers().values().filter(|answer| is_degraded(answer, wanted)).count(),
    };
    progress(seen);
    let start = Instant::now();
    let searches = Arc::new(Searches::new(template));
    let mut waiting = open.chunks(options.batch);
    let mut asked = JoinSet::new(); // dropped with an error, it stops what is under way
    loop {
        while asked.len() < options.concurrency
            && let Some(queries) = waiting.next()
        {
            let queries = queries.iter().map(|query| (*query).clone()).collect();
            asked.spawn(ask(endpoint.clone(), Arc::clone(&searches), queries));
        }
        let Some(batch) = asked.join_next().await else { break };
        let batch = batch.map_err(|error| endpoint.failed(format!("a request broke off: {error}")))??;
        seen.answered += batch.len();
        seen.degraded += batch.iter().filter(|answer| is_degraded(answer, wanted)).count();
        log.append(batch)?;
        progress(seen);
    }
    let measured = Measured { queries: open.len(), elapsed: start.elapsed() };
    report::finish(
        endpoint,
        collection,
        options,
        &log,
        report::Context { server, settings, wanted, measured },
    )
}

/// What the searches of a run have in common.
struct Searches {
    /// A search without its query.
    template: Map<String, Value>,
    /// Whether to ask for hits without texts, which are most of an answer's bytes. Not part of the run's settings,
    /// because it changes nothing in them; given up for good once the server says that it does not know the field.
    without_texts: AtomicBool,
}

const INCLUDE_TEXT: &str = "include_text";

impl Searches {
    fn new(template: Map<String, Value>) -> Self {
        let without_texts = AtomicBool::new(!template.contains_key(INCLUDE_TEXT));
        Self { template, without_texts }
    }

    fn body(&self, queries: &[&Query], without_texts: bool) -> Vec<u8> {
        let searches: Vec<Value> = queries
            .iter()
            .map(|query| {
                let mut search = self.template.clone();
                search.insert("query".into(), json!(query.text));
                if without_texts {
                    search.insert(INCLUDE_TEXT.into(), json!(false));
                }
                Value::Object(search)
            })
            .collect();
        json!({ "searches": searches }).to_string().into_bytes()
    }
}

/// Asks one batch; what was refused for the moment is asked again.
async fn ask(endpoint: Endpoint, searches: Arc<Searches>, queries: Vec<Query>) -> Result<Vec<Answer>> {
    let start = Instant::now();
    let mut open: Vec<&Query> = queries.iter().collect();
    let mut answers = Vec::new();
    loop {
        let sent = Instant::now();
        let results = post(&endpoint, &searches, &open).await?;
        let request_ms = sent.elapsed().as_secs_f64() * 1e3;
        let mut again = Vec::new();
        for (query, result) in open.iter().zip(results) {
            match result.into_answer(&query.id, request_ms) {
                Ok(answer) => answers.push(answer),
                Err(problem) if is_refused_for_now(&problem) => again.push(*query),
                Err(Problem { description, .. }) => {
                    return Err(
                        endpoint.failed(format!("could not answer query {:?}: {description}", query.id))
                    );
                }
            }
        }
        if again.is_empty() {
            return Ok(answers);
        }
        if start.elapsed() > endpoint.patience() {
            return Err(endpoint.failed(format!(
                "refused {} queries of a batch for too long; ask less at a time",
                again.len()
            )));
        }
        open = again;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn post(endpoint: &Endpoint, searches: &Searches, queries: &[&Query]) -> Result<Vec<Wire>> {
    let without_texts = searches.without_texts.load(Ordering::Relaxed);
    let (mut status, mut body) = post_body(endpoint, searches.body(queries, without_texts)).await?;
    if without_texts && is_unknown_field(status, &body) {
        searches.without_texts.store(false, Ordering::Relaxed);
        (status, body) = post_body(endpoint, searches.body(queries, false)).await?;
    }
    if !status.is_success() {
        return Err(endpoint.refused(status, &body));
    }
    let batch: WireBatch = endpoint.parse(&body)?;
    if batch.results.len() != queries.len() {
        return Err(endpoint.failed(format!(
            "{} results for {} searches",
            batch.results.len(),
            queries.len()
        )));
    }
    Ok(batch.results)
}

async fn post_body(endpoint: &Endpoint, body: Vec<u8>) -> Result<(StatusCode, Vec<u8>)> {
    endpoint.post("/search/batch", "application/json", body).await
}

/// Whether a server refused a request because it does not know `include_text`.
fn is_unknown_field(status: StatusCode, body: &[u8]) -> bool {
    matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
        && String::from_utf8_lossy(body).contains(INCLUDE_TEXT)
}

fn is_refused_for_now(problem: &Problem) -> bool {
    let status = problem.status.and_then(|status| StatusCode::from_u16(status).ok());
    status.is_some_and(is_temporary)
}

/// What the searches ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What the server is configured to do.
    Any,
    /// The query alone.
    Raw,
    /// An expansion, or the gate's word that it would gain nothing: where no mode is named that is the server's choice.
    Gated,
    /// An expansion.
    Always,
}

impl Wanted {
    fn of(expansion: Option<&Value>) -> Self {
        let mode = match expansion {
            None => return Self::Any,
            Some(Value::Bool(false)) => return Self::Raw,
            Some(expansion) => expansion.as_str().or(expansion["mode"].as_str()),
        };
        match mode {
            Some("off") => Self::Raw,
            Some("always") => Self::Always,
            _ => Self::Gated,
        }
    }
}

/// Whether an answer lacks the expansion that was asked for.
pub(super) fn is_degraded(answer: &Answer, wanted: Wanted) -> bool {
    match answer.expansion.status.as_str() {
        "degraded" => true,
        "applied" | "cached" | "supplied" => false,
        "skipped" if is_skipped(answer) => wanted == Wanted::Always,
        _ => matches!(wanted, Wanted::Gated | Wanted::Always),
    }
}

/// Whether the server's gate kept the expansion back.
pub(super) fn is_skipped(answer: &Answer) -> bool {
    answer.expansion.status == "skipped" && answer.expansion.reason.as_deref() == Some("gate")
}

/// What must be equal for two parts of a run to belong together.
fn settings(
    collection: &Collection,
    options: &EvaluationOptions,
    template: &Map<String, Value>,
    server: &Value,
) -> Value {
    let mut settings = json!({
        "collection": collection.name,
        "split": collection.split,
        "queries": collection.queries.len(),
        "queries_crc32": collection.queries_crc32(),
        "top_k": options.top_k,
        "search": template,
    });
    // What a ranking by words depends on and a bundle does not name.
    let ranking = template.get("ranking").unwrap_or(&server["defaults"]["ranking"]);
    if matches!(ranking.as_str(), Some("lexical" | "hybrid")) {
        settings["server"] = json!({"ranking": ranking, "bm25": server["index"]["lexical"]["bm25"]});
    }
    settings
}
