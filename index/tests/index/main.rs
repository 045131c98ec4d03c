//! Tests of the crate through its public interface.

mod concurrency;
mod facade;
mod kill;
mod lexical;
mod lexical_recovery;
mod model;
mod recovery;
mod vector_indexes;

use expandr_index::testing::unit_vector;
use expandr_index::{Document, Index, IndexConfig};
use serde_json::Value;

const DIMENSION: usize = 16;

/// Small corpora go through the graph too: nothing is below the threshold.
/// One build thread: equal calls build equal graphs, so that a test of approximate search gives the same result every time.
fn config() -> IndexConfig {
    IndexConfig {
        exact_threshold: 0,
        snapshot_every: 0,
        build_threads: 1,
        ..IndexConfig::new("encoder-a", DIMENSION)
    }
}

fn document(id: &str, metadata: Value) -> Document {
    let metadata = metadata.as_object().cloned().unwrap_or_default();
    Document { id: id.into(), title: format!("title of {id}"), text: format!("text of {id}"), metadata }
}

/// Documents `first..last` named by their number, with vectors seeded by it.
fn numbered(range: std::ops::Range<u64>) -> Vec<(Document, Vec<f32>)> {
    range
        .map(|n| {
            (
                document(&n.to_string(), serde_json::json!({"n": n, "parity": n % 2})),
                unit_vector(n, DIMENSION),
            )
        })
        .collect()
}

fn ids(index: &Index, keys: impl IntoIterator<Item = u64>) -> Vec<String> {
    let keys: Vec<u64> = keys.into_iter().collect();
    index.documents(&keys).unwrap().into_iter().map(|document| document.unwrap().id).collect()
}
