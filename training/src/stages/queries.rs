//! The queries of pairs.jsonl, one after the other.

use std::collections::HashSet;
use std::path::Path;

use crate::Result;
use crate::folder::JsonLines;
use crate::pairs::{Pair, Part};

/// The first pair of each query of a part, in the order of the file.
pub(crate) fn queries(
    pairs: &Path,
    wanted: fn(Part) -> bool,
) -> Result<impl Iterator<Item = Result<Pair>> + Send + use<>> {
    let mut seen: HashSet<u64> = HashSet::new();
    Ok(JsonLines::<Pair>::open(pairs)?.filter(move |pair| match pair {
        Ok(pair) => wanted(pair.part) && seen.insert(short(&pair.id)),
        Err(_) => true,
    }))
}

/// An id of 16 hexadecimal digits as the number that it is.
fn short(id: &str) -> u64 {
    u64::from_str_radix(id, 16).unwrap_or_else(|_| crate::seed::draw(0, &[id]))
}
