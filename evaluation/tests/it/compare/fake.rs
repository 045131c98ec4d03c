//! Collections and run folders that are made up here.

use std::path::{Path, PathBuf};

use expandr_evaluation::compare::{CompareOptions, RunArgument};
use expandr_evaluation::{Collection, Metric, Qrels, Run, evaluate, metrics};
use serde_json::{Value, json};

pub(super) const QUERIES: usize = 40;

/// A collection of forty queries with one gold document each, `d{n}`.
pub(super) fn collection(root: &Path, name: &str) -> PathBuf {
    let folder = root.join(name);
    fs_err::create_dir_all(folder.join("qrels")).unwrap();
    let (mut corpus, mut queries) = (String::new(), String::new());
    let mut qrels = String::from("query-id\tcorpus-id\tscore\n");
    for number in 0..QUERIES {
        let title = if number == 10 { String::new() } else { format!("Title <{number}>") };
        let document = json!({"_id": format!("d{number}"), "title": title, "text": format!("gold passage number {number} tells it all")});
        corpus.push_str(&format!("{document}\n"));
        let query = json!({"_id": format!("q{number}"), "text": format!("what | is <b>{number}</b>"), "metadata": {"answer": format!("number {number}")}});
        queries.push_str(&format!("{query}\n"));
        qrels.push_str(&format!("q{number}\td{number}\t1\n"));
    }
    fs_err::write(folder.join("corpus.jsonl"), corpus).unwrap();
    fs_err::write(folder.join("queries.jsonl"), queries).unwrap();
    fs_err::write(folder.join("qrels/test.tsv"), qrels).unwrap();
    folder
}

/// A run folder to be, as `expandr eval` would write it.
pub(super) struct Fake<'a> {
    pub(super) collection: &'a str,
    /// The gold document's rank by query; none: not found.
    pub(super) ranks: Vec<Option<usize>>,
    pub(super) expanded: bool,
    pub(super) degraded: usize,
    pub(super) name: Option<&'a str>,
    /// Recorded cosine and overlap a query.
    pub(super) recorded: Option<(f64, f64)>,
    pub(super) metrics: Vec<Metric>,
}

impl<'a> Fake<'a> {
    pub(super) fn new(collection: &'a str, ranks: Vec<Option<usize>>) -> Self {
        let metrics = vec![Metric::NDCG_10, Metric::RECALL_100];
        Self { collection, ranks, expanded: false, degraded: 0, name: None, recorded: None, metrics }
    }

    /// Writes it; the judged queries are the first `ranks.len()` of the collection.
    pub(super) fn write(&self, root: &Path, name: &str) -> PathBuf {
        let folder = root.join("runs").join(name);
        fs_err::create_dir_all(&folder).unwrap();
        let mut run = Run::new();
        let mut qrels = Qrels::default();
        let mut expansions = String::new();
        for (number, rank) in self.ranks.iter().enumerate() {
            let query = format!("q{number}");
            let gold = format!("d{number}");
            qrels.insert(&query, &gold, 1).unwrap();
            let mut ids: Vec<String> = (0..12).map(|filler| format!("d{}", 1000 + filler)).collect();
            if let Some(rank) = rank {
                ids.insert(rank - 1, gold);
            }
            let hit = |(index, id): (usize, String)| expandr_evaluation::Hit {
                id,
                score: 1.0 - index as f32 / 100.0,
            };
            run.insert(&query, ids.into_iter().enumerate().map(hit).collect()).unwrap();
            let text = format!("what | is <b>{number}</b>");
            let mut line = json!({"query_id": query, "query": text, "status": "disabled", "texts": [], "output_tokens": 0, "cut": false, "query_weight": 1.0});
            if self.expanded && number < self.degraded {
                line["status"] = json!("degraded");
                line["reason"] = json!("timeout");
            } else if self.expanded {
                line["status"] = json!("applied");
                line["texts"] = json!([format!("Gold passage <script>{number}</script> number {number}")]);
                line["output_tokens"] = json!(9);
                line["query_weight"] = json!(0.5);
            }
            if let Some((cosine, overlap)) = self.recorded {
                line["query_cosine"] = json!([cosine]);
                line["raw_overlap_at_10"] = json!(overlap);
            }
            expansions.push_str(&format!("{line}\n"));
        }
        let scores = evaluate(&qrels, &run, &self.metrics, &metrics::Options::default());
        let row = |values: &[f64]| -> Value {
            scores
                .metrics
                .iter()
                .zip(values)
                .map(|(metric, value)| (metric.to_string(), json!(value)))
                .collect()
        };
        let per_query: Value =
            scores.per_query.iter().map(|(query, values)| (query.clone(), row(values))).collect();
        let path = root.join("collections").join(self.collection);
        let crc = Collection::open(&path, None).map(|collection| collection.queries_crc32());
        let expansion = if self.expanded {
            json!({"mode": "always", "max_tokens": 64, "query_weight": 0.5})
        } else {
            json!(false)
        };
        let mut settings = json!({"collection": self.collection, "split": "test", "queries": self.ranks.len(),
            "queries_crc32": crc.unwrap_or_default(), "top_k": 100, "search": {"search_mode": "auto", "top_k": 101, "expansion": expansion}});
        if let Some(name) = self.name {
            settings["name"] = json!(name);
        }
        let reasons = if self.degraded > 0 { json!({"timeout": self.degraded}) } else { json!({}) };
        let metrics = json!({"degraded": self.degraded > 0, "degraded_queries": self.degraded, "degraded_by_reason": reasons,
            "bundle": "bundle-1", "server": {"documents": QUERIES, "bundle": {"encoder": {"id": "encoder-1"}}}, "settings": settings,
            "relevance_level": 1, "missing_count_as_zero": true, "missing": [], "unjudged": [],
            "mean": row(&scores.mean), "per_query": per_query});
        fs_err::write(folder.join("settings.json"), settings.to_string()).unwrap();
        fs_err::write(folder.join("metrics.json"), metrics.to_string()).unwrap();
        fs_err::write(folder.join("expansions.jsonl"), expansions).unwrap();
        let mut trec = Vec::new();
        run.write("tag", &mut trec).unwrap();
        fs_err::write(folder.join("run.trec"), trec).unwrap();
        folder
    }
}

pub(super) fn ranks(rank: impl Fn(usize) -> usize) -> Vec<Option<usize>> {
    (0..QUERIES).map(|number| Some(rank(number))).collect()
}

pub(super) struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    /// A room with collections of these names.
    pub(super) fn new(collections: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in collections {
            collection(&folder.path().join("collections"), name);
        }
        Self { folder }
    }

    pub(super) fn root(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn run(&self, name: Option<&str>, folder: &str, fake: &Fake<'_>) -> RunArgument {
        RunArgument { name: name.map(str::to_owned), path: fake.write(self.root(), folder) }
    }

    pub(super) fn options(&self) -> CompareOptions {
        let mut options = CompareOptions {
            collections: Some(self.root().join("collections")),
            ..CompareOptions::default()
        };
        options.significance.rounds = 10_000;
        options.significance.bootstrap_rounds = 1_000;
        options
    }
}
