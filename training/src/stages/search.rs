//! Exact search over a file of vectors that need not fit in memory.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::io::{BufReader, Read};
use std::path::Path;

use expandr_evaluation::Hit;
use rayon::prelude::*;

use super::encode::dot;
use crate::{Error, Result};

/// Documents that are compared at a time.
const BLOCK: usize = 2048;

/// The `depth` documents with the largest inner products for each query, best first. Of equal ones the greater id
/// comes first, as trec_eval ranks.
///
/// # Errors
/// When the file is not as long as there are ids.
pub(crate) fn search(
    path: &Path,
    ids: &[String],
    queries: &[Vec<f32>],
    depth: usize,
) -> Result<Vec<Vec<Hit>>> {
    let Some(dimension) = queries.first().map(Vec::len) else { return Ok(Vec::new()) };
    let size = dimension * size_of::<f32>();
    let length = fs_err::metadata(path)?.len();
    if length != (ids.len() * size) as u64 {
        return Err(Error::Input(format!(
            "{}: {length} bytes for {} documents of {dimension} components; do stage vectors again",
            path.display(),
            ids.len()
        )));
    }
    let mut reader = BufReader::new(fs_err::File::open(path)?);
    let mut best: Vec<BinaryHeap<Reverse<Found<'_>>>> = queries.iter().map(|_| BinaryHeap::new()).collect();
    let mut bytes = vec![0; BLOCK * size];
    for (block, ids) in ids.chunks(BLOCK).enumerate() {
        let bytes = &mut bytes[..ids.len() * size];
        reader.read_exact(bytes)?;
        let numbers: Vec<f32> = bytes
            .chunks_exact(size_of::<f32>())
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        if numbers.iter().any(|number| !number.is_finite()) {
            let detail = "holds a number that is not finite; do stage vectors again";
            return Err(Error::Input(format!("{}: block {block} {detail}", path.display())));
        }
        best.par_iter_mut().zip(queries).for_each(|(best, query)| {
            for (id, vector) in ids.iter().zip(numbers.chunks_exact(dimension)) {
                let found = Found { score: dot(query, vector), id };
                if best.len() < depth {
                    best.push(Reverse(found));
                } else if best.peek().is_some_and(|Reverse(worst)| found > *worst) {
                    best.pop();
                    best.push(Reverse(found));
                }
            }
        });
    }
    let hits = |best: BinaryHeap<Reverse<Found<'_>>>| {
        let sorted = best.into_sorted_vec();
        sorted.into_iter().map(|Reverse(found)| Hit { id: found.id.to_owned(), score: found.score }).collect()
    };
    Ok(best.into_iter().map(hits).collect())
}

#[derive(Clone, Copy, PartialEq)]
struct Found<'a> {
    score: f32,
    id: &'a str,
}

impl Eq for Found<'_> {}

impl Ord for Found<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| self.id.cmp(other.id))
    }
}

impl PartialOrd for Found<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_depth_change_nothing() {
        let count = BLOCK + 500;
        let vectors: Vec<Vec<f32>> =
            (0..count).map(|n| vec![((n * 37) % 1000) as f32, ((n * 91) % 500) as f32, 1.0]).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|c| c.to_le_bytes()).collect();
        fs_err::write(file.path(), bytes).unwrap();
        let ids: Vec<String> = (0..count).map(|n| format!("d{n}")).collect();
        let queries = vec![vec![1.0, 0.0, 0.0], vec![-1.0, 2.0, 0.5]];
        let found = search(file.path(), &ids, &queries, 20).unwrap();
        for (query, found) in queries.iter().zip(&found) {
            let mut all: Vec<(f32, &str)> =
                vectors.iter().zip(&ids).map(|(vector, id)| (dot(query, vector), id.as_str())).collect();
            all.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| b.1.cmp(a.1)));
            let expected: Vec<&str> = all[..20].iter().map(|(_, id)| *id).collect();
            assert_eq!(found.iter().map(|hit| hit.id.as_str()).collect::<Vec<_>>(), expected);
        }
        assert!(search(file.path(), &ids[1..], &queries, 20).unwrap_err().to_string().contains("bytes for"));
    }
}
