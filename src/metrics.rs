//! What the service counts and times, in Prometheus' form. Names carry their units.

use std::time::Duration;

use prometheus::{
    Encoder as _, Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::bundle::Bundle;
use crate::jobs::{JobRecord, JobStatus};
use crate::search::{
    answer::{ExpansionReport, ExpansionStatus},
    flight::Boarding,
    request::Ranking,
    timings::Timings,
};

/// Upper bounds of latency buckets in seconds: from a cached search to a long generation.
const LATENCY_BUCKETS: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0, 10.0,
    20.0, 40.0, 80.0,
];

/// Upper bounds of a cosine's buckets.
const COSINE_BUCKETS: &[f64] =
    &[-0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0];

/// Upper bounds of the buckets of a share of ten hits: a bucket for each possible value.
const SHARE_BUCKETS: &[f64] = &[0.0, 0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95, 1.0];

/// All metrics of a service.
pub struct Metrics {
    registry: Registry,
    http_request_duration: HistogramVec,
    stage_duration: HistogramVec,
    searches: IntCounterVec,
    rankings: IntCounterVec,
    degraded: IntCounterVec,
    cut: IntCounter,
    gate_decisions: IntCounterVec,
    cache_requests: IntCounterVec,
    passage_vectors: IntCounterVec,
    tokens: IntCounter,
    first_token: prometheus::Histogram,
    query_cosine: prometheus::Histogram,
    raw_overlap: prometheus::Histogram,
    documents_written: IntCounterVec,
    build_info: IntGaugeVec,
    bundle_searches: IntCounterVec,
    activations: IntCounterVec,
    jobs: IntGaugeVec,
    /// Passages in the cache.
    pub cache_entries: IntGauge,
    /// Bytes in the cache, the passages' vectors included.
    pub cache_bytes: IntGauge,
    /// Texts or generations that wait or run, by `queue` and `state`.
    pub queue: IntGaugeVec,
    /// Seconds that the texts of searches will keep the encoder busy.
    pub encoder_wait: Gauge,
    /// Documents in the index.
    pub index_documents: IntGauge,
    /// Bytes of the index, by `part`.
    pub index_bytes: IntGaugeVec,
    /// Bodies accepted with 202 that are not yet in the index.
    pub ingest_queued: IntGauge,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// # Errors
    /// Never on a fresh registry; prometheus' own type.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let histogram =
            |name: &str, help: &str, labels: &[&str]| -> Result<HistogramVec, prometheus::Error> {
                let options = HistogramOpts::new(name, help).buckets(LATENCY_BUCKETS.to_vec());
                let metric = HistogramVec::new(options, labels)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        let counters =
            |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
                let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        let gauges = |name: &str, help: &str, labels: &[&str]| -> Result<IntGaugeVec, prometheus::Error> {
            let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let plain_histogram =
            |name: &str, help: &str, buckets: &[f64]| -> Result<prometheus::Histogram, prometheus::Error> {
                let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
                let metric = prometheus::Histogram::with_opts(options)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        #[cfg(target_os = "linux")]
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            http_request_duration: histogram(
                "http_request_duration_seconds",
                "Time from the head of a request to the head of its response.",
                &["method", "route", "status"],
            )?,
            stage_duration: histogram(
                "expandr_stage_duration_seconds",
                "Wall time of each stage of a search.",
                &["stage"],
            )?,
            searches: counters(
                "expandr_search_requests_total",
                "Answered searches by what became of the expansion.",
                &["expansion"],
            )?,
            rankings: counters(
                "expandr_search_rankings_total",
                "Answered searches by what ranked the documents.",
                &["ranking"],
            )?,
            degraded: counters(
                "expandr_search_degraded_total",
                "Searches whose expansion was wanted and did not happen, by reason.",
                &["reason"],
            )?,
            gate_decisions: counters(
                "expandr_gate_decisions_total",
                "Searches of mode auto by what the gate decided: expand, skip.",
                &["decision"],
            )?,
            cut: counter("expandr_expansion_cut_total", "Searches that used a passage cut by its budget.")?,
            cache_requests: counters(
                "expandr_expansion_cache_requests_total",
                "Passages by where they came from: hit (cache), joined (a generation under way), miss (a new one).",
                &["result"],
            )?,
            passage_vectors: counters(
                "expandr_passage_vectors_total",
                "Vectors of passages by where they came from: hit (cache), miss (the encoder).",
                &["result"],
            )?,
            tokens: counter(
                "expandr_expansion_output_tokens_total",
                "Tokens that the language model wrote.",
            )?,
            first_token: plain_histogram(
                "expandr_expansion_first_token_seconds",
                "Time from the request for a passage to its first token.",
                LATENCY_BUCKETS,
            )?,
            query_cosine: plain_histogram(
                "expandr_expansion_query_cosine",
                "Cosine of query and passages in expanded searches, the mean over the passages of a search.",
                COSINE_BUCKETS,
            )?,
            raw_overlap: plain_histogram(
                "expandr_expansion_raw_overlap_at_10",
                "Share of the ten best expanded hits that are among the ten best of the query alone.",
                SHARE_BUCKETS,
            )?,
            documents_written: counters(
                "expandr_documents_written_total",
                "Durable changes of documents by kind: created, updated, deleted.",
                &["change"],
            )?,
            build_info: gauges(
                "expandr_build_info",
                "What runs here, and the bundle that answers now; always 1.",
                &["version", "bundle", "engine"],
            )?,
            bundle_searches: counters(
                "expandr_bundle_search_requests_total",
                "Answered searches by the bundle that answered.",
                &["bundle"],
            )?,
            activations: {
                let metric = counters(
                    "expandr_activations_total",
                    "Activations of bundles by their outcome: done, failed.",
                    &["outcome"],
                )?;
                // There from the start: an increase from nothing is none for Prometheus.
                for outcome in ["done", "failed"] {
                    metric.with_label_values(&[outcome]);
                }
                metric
            },
            jobs: gauges(
                "expandr_jobs",
                "Admin jobs that are known, by status; none where there is no admin key.",
                &["status"],
            )?,
            cache_entries: gauge("expandr_expansion_cache_entries", "Passages in the cache.")?,
            cache_bytes: gauge(
                "expandr_expansion_cache_bytes",
                "Bytes in the cache, the passages' vectors included.",
            )?,
            queue: gauges(
                "expandr_queue_depth",
                "Texts or generations by queue and state.",
                &["queue", "state"],
            )?,
            encoder_wait: {
                let metric = Gauge::new(
                    "expandr_encoder_expected_wait_seconds",
                    "How long the texts of searches that wait will keep the encoder busy.",
                )?;
                registry.register(Box::new(metric.clone()))?;
                metric
            },
            index_documents: gauge("expandr_index_documents", "Documents in the index.")?,
            index_bytes: gauges("expandr_index_bytes", "Bytes of the index by part.", &["part"])?,
            ingest_queued: gauge(
                "expandr_ingest_queued_bodies",
                "Bodies accepted with 202 that are not yet in the index.",
            )?,
            registry,
        })
    }

    /// Says which bundle answers from now on.
    pub fn set_bundle(&self, bundle: &Bundle) {
        let engine = bundle.expander.as_ref().map_or("none", |expander| expander.info().engine);
        self.build_info.reset();
        self.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), &*bundle.id, engine]).set(1);
    }

    /// One activation that has ended.
    pub fn count_activation(&self, done: bool) {
        self.activations.with_label_values(&[if done { "done" } else { "failed" }]).inc();
    }

    /// How many jobs there are in each status.
    pub fn set_jobs(&self, jobs: &[JobRecord]) {
        use JobStatus::{Cancelled, Failed, Interrupted, Queued, Running, Succeeded};
        for status in [Queued, Running, Succeeded, Failed, Cancelled, Interrupted] {
            let count = jobs.iter().filter(|job| job.status == status).count();
            self.jobs.with_label_values(&[status.name()]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// One answered HTTP request.
    pub fn observe_http(&self, method: &str, route: &str, status: u16, took: Duration) {
        let status = status.to_string();
        // A client may invent methods, and each would be kept for good.
        let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
        let method = if known.contains(&method) { method } else { "other" };
        self.http_request_duration.with_label_values(&[method, route, &status]).observe(took.as_secs_f64());
    }

    /// One answered search.
    pub fn observe_search(
        &self,
        bundle: &str,
        ranking: Ranking,
        report: &ExpansionReport,
        timings: &Timings,
    ) {
        for (stage, ms) in timings.stages() {
            self.stage_duration.with_label_values(&[stage]).observe(ms / 1000.0);
        }
        self.searches.with_label_values(&[report.status.name()]).inc();
        if let (ExpansionStatus::Degraded, Some(reason)) = (report.status, report.reason) {
            self.degraded.with_label_values(&[reason.name()]).inc();
        }
        self.bundle_searches.with_label_values(&[bundle]).inc();
        self.rankings.with_label_values(&[ranking.name()]).inc();
        if report.cut {
            self.cut.inc();
        }
        if let Some(cosine) = report.query_cosine {
            self.query_cosine.observe(cosine.into());
        }
        if let Some(overlap) = report.raw_overlap_at_10 {
            self.raw_overlap.observe(overlap.into());
        }
    }

    /// One decision of the gate.
    pub fn count_gate_decision(&self, expand: bool) {
        let decision = if expand { "expand" } else { "skip" };
        self.gate_decisions.with_label_values(&[decision]).inc();
    }

    /// One passage by where it came from.
    pub fn count_boarding(&self, boarding: Boarding) {
        let result = match boarding {
            Boarding::Hit => "hit",
            Boarding::Joined => "joined",
            Boarding::Started | Boarding::Refused => "miss",
        };
        self.cache_requests.with_label_values(&[result]).inc();
    }

    /// Vectors of passages: so many out of the cache, so many of the encoder.
    pub fn count_passage_vectors(&self, kept: usize, made: usize) {
        self.passage_vectors.with_label_values(&["hit"]).inc_by(kept as u64);
        self.passage_vectors.with_label_values(&["miss"]).inc_by(made as u64);
    }

    /// Tokens of one generation, and when the first came.
    pub fn count_tokens(&self, tokens: usize, first_token: Option<Duration>) {
        self.tokens.inc_by(tokens as u64);
        if let Some(first_token) = first_token {
            self.first_token.observe(first_token.as_secs_f64());
        }
    }

    /// Durable changes of documents.
    pub fn count_documents(&self, change: &str, documents: usize) {
        self.documents_written.with_label_values(&[change]).inc_by(documents as u64);
    }

    /// Everything in Prometheus' text form.
    ///
    /// # Errors
    /// When a metric can't be encoded (prometheus' own type).
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_methods_are_one_label() {
        let metrics = Metrics::new().unwrap();
        for method in ["GET", "X1", "X2", "get"] {
            metrics.observe_http(method, "/livez", 405, Duration::ZERO);
        }
        let text = metrics.render().unwrap();
        let counts = text.lines().filter(|line| line.contains("_count{") && line.contains("/livez"));
        let mut counts: Vec<(bool, &str)> = counts
            .map(|line| (line.contains("method=\"other\""), line.rsplit(' ').next().unwrap()))
            .collect();
        counts.sort_unstable();
        assert_eq!(counts, [(false, "1"), (true, "3")], "{text}");
    }
}
