//! What a run showed, and the files that say so.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answers::{Answer, AnswerLog};
use super::endpoint::Endpoint;
use super::evaluate::{EvaluationOptions, Wanted, is_degraded, is_skipped};
use crate::run::check_trec_id;
use crate::{Collection, Error, Hit, Metric, Result, Run, Scores, metrics};

/// What a run showed.
#[derive(Clone, Debug)]
pub struct EvaluationReport {
    /// The collection's name.
    pub collection: String,
    /// The split.
    pub split: String,
    /// The bundle that answered; empty where the server names none.
    pub bundle: String,
    /// Queries answered.
    pub queries: usize,
    /// Answers without the expansion that was asked for. Unless it is 0, these are not the figures of expanded retrieval.
    pub degraded: usize,
    /// Degraded answers by reason.
    pub reasons: BTreeMap<String, usize>,
    /// Answers by expansion status.
    pub expansions: BTreeMap<String, usize>,
    /// Answers whose expansion the server's gate kept back (mode `auto`).
    pub skipped: usize,
    /// Answers with a passage that the budget cut.
    pub cut: usize,
    /// Mean over the queries whose answers state it: cosine of query and passages.
    pub query_cosine: Option<f64>,
    /// Mean over the queries whose answers state it: share of the ten best hits that the query alone has among its ten best.
    pub raw_overlap_at_10: Option<f64>,
    /// Documents dropped because they were the query itself.
    pub own_documents_dropped: usize,
    /// Documents that the server had; none where it doesn't say.
    pub documents: Option<u64>,
    /// Means and values by query.
    pub scores: Scores,
    /// The server's own time a query.
    pub took_ms: Option<Percentiles>,
    /// What each query waited for its request, which may hold several.
    pub request_ms: Option<Percentiles>,
    /// Queries a second in this part of the run; none when it had none to ask.
    pub queries_per_second: Option<f64>,
}

/// Of a set of times, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Half are at most this.
    pub p50: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// 99 % are at most this.
    pub p99: f64,
    /// All are at most this.
    pub max: f64,
    /// Arithmetic mean.
    pub mean: f64,
}

pub(super) struct Measured {
    pub(super) queries: usize,
    pub(super) elapsed: Duration,
}

pub(super) struct Context {
    pub(super) server: Value,
    pub(super) settings: Value,
    pub(super) wanted: Wanted,
    pub(super) measured: Measured,
}

impl EvaluationReport {
    /// Whether an answer lacks the expansion that was asked for. A program should then end with a status of its own.
    pub fn is_degraded(&self) -> bool {
        self.degraded > 0
    }

    /// For people: a warning first where one is due, then the figures.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        if self.is_degraded() {
            let reasons: Vec<String> =
                self.reasons.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
            let _ = writeln!(
                text,
                "DEGRADED: {} of {} queries were answered without the expansion that was asked for ({}).\n\
                 These are not the figures of expanded retrieval.\n",
                self.degraded,
                self.queries,
                reasons.join(", ")
            );
        }
        let bundle = if self.bundle.is_empty() { "unnamed" } else { &self.bundle };
        let _ =
            writeln!(text, "{} ({}), {} queries, bundle {bundle}", self.collection, self.split, self.queries);
        for (metric, mean) in self.scores.metrics.iter().zip(&self.scores.mean) {
            let _ = writeln!(text, "  {:12} {mean:.4}", metric.to_string());
        }
        let statuses: Vec<String> =
            self.expansions.iter().map(|(status, count)| format!("{status} {count}")).collect();
        let _ = writeln!(text, "  expansion    {} (cut: {})", statuses.join(", "), self.cut);
        if self.skipped > 0 {
            let share = 100.0 * self.skipped as f64 / self.queries.max(1) as f64;
            let _ = writeln!(
                text,
                "  gate         {} of {} not expanded ({share:.0} %)",
                self.skipped, self.queries
            );
        }
        for (name, mean) in [("cosine", self.query_cosine), ("overlap@10", self.raw_overlap_at_10)] {
            if let Some(mean) = mean {
                let _ = writeln!(text, "  {name:12} {mean:.4} (query and passages; mean)");
            }
        }
        for (name, times) in [("server ms", self.took_ms), ("request ms", self.request_ms)] {
            if let Some(times) = times {
                let Percentiles { p50, p95, p99, max, .. } = times;
                let _ = writeln!(text, "  {name:12} p50 {p50:.2}  p95 {p95:.2}  p99 {p99:.2}  max {max:.2}");
            }
        }
        if let Some(rate) = self.queries_per_second {
            let _ = writeln!(text, "  queries/s    {rate:.1}");
        }
        text
    }
}

/// Writes the settings of a new run; compares them with those of a run that is gone on with.
pub(super) fn keep_settings(folder: &Path, settings: &Value) -> Result<()> {
    let path = folder.join("settings.json");
    if !path.is_file() {
        return write_whole(&path, &serde_json::to_vec_pretty(settings).map_err(std::io::Error::from)?);
    }
    let earlier: Value = serde_json::from_slice(&fs_err::read(&path)?).map_err(|error| {
        Error::file(&path, format!("not the settings of a run ({error}); use an empty run folder"))
    })?;
    if earlier == *settings {
        return Ok(());
    }
    let names = ["collection", "split", "queries", "queries_crc32", "top_k", "search", "server"];
    let differing = names.into_iter().find(|name| earlier[*name] != settings[*name]).unwrap_or("form");
    Err(Error::file(
        &path,
        format!(
            "this folder holds a run of other settings ({differing}: {} there, {} now); use another run folder",
            earlier[differing], settings[differing]
        ),
    ))
}

/// Scores a complete run and writes its files.
pub(super) fn finish(
    endpoint: &Endpoint,
    collection: &Collection,
    options: &EvaluationOptions,
    log: &AnswerLog,
    context: Context,
) -> Result<EvaluationReport> {
    let (run, own_documents_dropped) = ranked_lists(log, options)?;
    let answers: Vec<&Answer> = log.answers().values().collect();
    let degraded: Vec<&&Answer> =
        answers.iter().filter(|answer| is_degraded(answer, context.wanted)).collect();
    let Measured { queries: asked, elapsed } = context.measured;
    let report = EvaluationReport {
        collection: collection.name.clone(),
        split: collection.split.clone(),
        bundle: log.bundle().unwrap_or_default().to_owned(),
        queries: answers.len(),
        degraded: degraded.len(),
        reasons: count(
            degraded
                .iter()
                .map(|answer| answer.expansion.reason.as_ref().unwrap_or(&answer.expansion.status)),
        ),
        expansions: count(answers.iter().map(|answer| &answer.expansion.status)),
        skipped: answers.iter().filter(|answer| is_skipped(answer)).count(),
        cut: answers.iter().filter(|answer| answer.expansion.cut).count(),
        query_cosine: mean(answers.iter().filter_map(|answer| answer.expansion.query_cosine)),
        raw_overlap_at_10: mean(answers.iter().filter_map(|answer| answer.expansion.raw_overlap_at_10)),
        own_documents_dropped,
        documents: context.server["documents"].as_u64(),
        scores: metrics::evaluate(&collection.qrels, &run, &options.metrics, &options.scoring),
        took_ms: percentiles(answers.iter().filter_map(|answer| answer.took_ms).collect()),
        request_ms: percentiles(answers.iter().map(|answer| answer.request_ms).collect()),
        queries_per_second: (asked > 0).then(|| asked as f64 / elapsed.as_secs_f64()),
    };
    let mut trec = Vec::new();
    run.write(&options.tag, &mut trec)?;
    write_whole(&options.folder.join("run.trec"), &trec)?;
    write_whole(&options.folder.join("expansions.jsonl"), &expansions(collection, log)?)?;
    let json = report_json(&report, endpoint, options, &context);
    write_whole(
        &options.folder.join("metrics.json"),
        &serde_json::to_vec_pretty(&json).map_err(std::io::Error::from)?,
    )?;
    Ok(report)
}

fn ranked_lists(log: &AnswerLog, options: &EvaluationOptions) -> Result<(Run, usize)> {
    let mut run = Run::new();
    for (query, answer) in log.answers() {
        let mut hits = Vec::with_capacity(answer.hits.len());
        for (id, score) in &answer.hits {
            check_trec_id("document id", id)?;
            hits.push(Hit { id: id.clone(), score: *score });
        }
        run.insert(query, hits)?;
    }
    let dropped = if options.drop_own_documents { run.drop_own_documents() } else { 0 };
    run.truncate(options.top_k);
    Ok((run, dropped))
}

fn expansions(collection: &Collection, log: &AnswerLog) -> Result<Vec<u8>> {
    let mut lines = Vec::new();
    for query in &collection.queries {
        let Some(answer) = log.answers().get(&query.id) else { continue };
        let mut line = json!({"query_id": query.id, "query": query.text});
        if let (Value::Object(line), Ok(Value::Object(expansion))) =
            (&mut line, serde_json::to_value(&answer.expansion))
        {
            line.extend(expansion);
        }
        serde_json::to_writer(&mut lines, &line).map_err(std::io::Error::from)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

fn report_json(
    report: &EvaluationReport,
    endpoint: &Endpoint,
    options: &EvaluationOptions,
    context: &Context,
) -> Value {
    let scores = &report.scores;
    let row = |values: &[f64]| -> Map<String, Value> {
        scores.metrics.iter().zip(values).map(|(metric, value)| (metric.to_string(), json!(value))).collect()
    };
    let per_query: Map<String, Value> =
        scores.per_query.iter().map(|(query, values)| (query.clone(), Value::Object(row(values)))).collect();
    json!({
        "degraded": report.is_degraded(),
        "degraded_queries": report.degraded,
        "degraded_by_reason": report.reasons,
        "expansion": report.expansions,
        "skipped_by_gate": report.skipped,
        "cut_expansions": report.cut,
        "query_cosine": report.query_cosine,
        "raw_overlap_at_10": report.raw_overlap_at_10,
        "tag": options.tag,
        "bundle": report.bundle,
        "endpoint": endpoint.url(),
        "server": context.server,
        "settings": context.settings,
        "queries": report.queries,
        "own_documents_dropped": report.own_documents_dropped,
        "relevance_level": options.scoring.relevance_level,
        "missing_count_as_zero": options.scoring.missing_count_as_zero,
        "missing": scores.missing,
        "unjudged": scores.unjudged,
        "took_ms": report.took_ms,
        "request_ms": report.request_ms,
        "queries_per_second": report.queries_per_second,
        "concurrency": options.concurrency,
        "batch": options.batch,
        "mean": row(&scores.mean),
        "per_query": per_query,
    })
}

/// The scores in a run folder's `metrics.json`, to compare runs with.
///
/// # Errors
/// When the file is missing or not of this form.
pub fn read_scores(folder: &Path) -> Result<Scores> {
    let path = folder.join("metrics.json");
    let json: Value = serde_json::from_slice(&fs_err::read(&path)?)
        .map_err(|error| Error::file(&path, format!("not JSON ({error}); evaluate the collection again")))?;
    let broken = |what: &str| {
        Error::file(&path, format!("{what} is missing or of another form; evaluate the collection again"))
    };
    let mean = json["mean"].as_object().ok_or_else(|| broken("`mean`"))?;
    let metrics: Vec<Metric> = mean.keys().map(|name| name.parse()).collect::<Result<_>>()?;
    let row = |values: &Value| -> Option<Vec<f64>> {
        metrics.iter().map(|metric| values[metric.to_string()].as_f64()).collect()
    };
    let mut per_query = BTreeMap::new();
    for (query, values) in json["per_query"].as_object().ok_or_else(|| broken("`per_query`"))? {
        per_query.insert(
            query.clone(),
            row(values).ok_or_else(|| broken(&format!("the row of query {query:?}")))?,
        );
    }
    let ids = |name: &str| -> Vec<String> {
        let ids = json[name].as_array().into_iter().flatten();
        ids.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mean = row(&json["mean"]).ok_or_else(|| broken("`mean`"))?;
    Ok(Scores { mean, per_query, missing: ids("missing"), unjudged: ids("unjudged"), metrics })
}

fn count<'a>(names: impl Iterator<Item = &'a String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.clone()).or_default() += 1;
    }
    counts
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

fn percentiles(mut values: Vec<f64>) -> Option<Percentiles> {
    values.sort_by(f64::total_cmp);
    let max = *values.last()?;
    // The smallest value that at least this share of all values does not exceed.
    let at = |share: f64| values[((values.len() as f64 * share).ceil() as usize).clamp(1, values.len()) - 1];
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    Some(Percentiles { p50: at(0.5), p95: at(0.95), p99: at(0.99), max, mean })
}

/// Writes a file so that nobody ever reads a half of it.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let mut file = fs_err::File::create(Path::new(&name))?;
    file.write_all(content)?;
    file.sync_all()?;
    fs_err::rename(Path::new(&name), path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_known_values() {
        let all = percentiles((1..=100).map(f64::from).collect()).unwrap();
        assert_eq!((all.p50, all.p95, all.p99, all.max, all.mean), (50.0, 95.0, 99.0, 100.0, 50.5));
        assert_eq!(percentiles(vec![3.0]).unwrap().p50, 3.0);
        assert_eq!(percentiles(Vec::new()), None);
    }
}
