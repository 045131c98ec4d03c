//! Scores a run against judgments, in the manner of `trec_eval -q`: a line a metric and query, then the means.
//!
//! ```text
//! cargo run -p expandr-evaluation --example score -- qrels.tsv run.trec ndcg@10 recall@100
//! ```

use std::path::Path;

use expandr_evaluation::{Metric, Qrels, Run, evaluate, metrics::Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [qrels, run, names @ ..] = arguments.as_slice() else {
        return Err("usage: score <qrels> <run> [metric…]".into());
    };
    let mut metrics = Metric::defaults();
    if !names.is_empty() {
        metrics = names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?;
    }
    let scores =
        evaluate(&Qrels::read(Path::new(qrels))?, &Run::read(Path::new(run))?, &metrics, &Options::default());
    for (query, values) in &scores.per_query {
        for (metric, value) in metrics.iter().zip(values) {
            println!("{metric}\t{query}\t{value:.9}");
        }
    }
    for (metric, mean) in metrics.iter().zip(&scores.mean) {
        println!("{metric}\tall\t{mean:.9}");
    }
    Ok(())
}
