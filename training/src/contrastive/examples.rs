//! The data of contrastive training.

use std::collections::{BTreeSet, HashMap};

use expandr_models::TextKind;
use expandr_models::trainable::TrainableEncoder;
use sha2::{Digest, Sha256};

use crate::Result;

/// A query with what belongs to it, as texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContrastiveText {
    /// What is asked.
    pub query: String,
    /// What a language model wrote for it; may be empty.
    pub expansions: Vec<String>,
    /// A passage that answers it.
    pub positive: String,
    /// Passages that don't; may be empty.
    pub negatives: Vec<String>,
}

/// The same as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContrastiveExample {
    /// What is asked.
    pub query: Vec<u32>,
    /// Expansions.
    pub expansions: Vec<Vec<u32>>,
    /// A passage that answers it.
    pub positive: Vec<u32>,
    /// Passages that don't.
    pub negatives: Vec<Vec<u32>>,
}

impl ContrastiveExample {
    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.texts().map(Vec::len).sum()
    }

    fn texts(&self) -> impl Iterator<Item = &Vec<u32>> {
        [&self.query, &self.positive].into_iter().chain(&self.expansions).chain(&self.negatives)
    }
}

/// Texts as the encoder reads them: queries as queries, everything else as documents.
///
/// # Errors
/// When the tokenizer refuses a text.
pub fn tokenize(encoder: &TrainableEncoder, texts: &[ContrastiveText]) -> Result<Vec<ContrastiveExample>> {
    let document = |text: &String| -> Result<Vec<u32>> { Ok(encoder.ids(TextKind::Document, text)?) };
    let example = |text: &ContrastiveText| {
        Ok(ContrastiveExample {
            query: encoder.ids(TextKind::Query, &text.query)?,
            expansions: text.expansions.iter().map(document).collect::<Result<_>>()?,
            positive: document(&text.positive)?,
            negatives: text.negatives.iter().map(document).collect::<Result<_>>()?,
        })
    };
    texts.iter().map(example).collect()
}

/// A batch's texts: queries, then expansions, then positives, then negatives.
pub(super) struct Layout<'a> {
    pub(super) texts: Vec<&'a [u32]>,
    pub(super) queries: usize,
    /// The query that each expansion belongs to, and how many expansions that query has.
    pub(super) expansions: Vec<(usize, usize)>,
    /// For each query, which passages (positives and negatives, counted together) are none of its negatives, besides its
    /// positive: those that equal it, and what stands in the batch as a positive of the same query.
    pub(super) duplicates: Vec<Vec<usize>>,
}

impl<'a> Layout<'a> {
    /// Of a batch in which only the queries that `expands` names, by their places, have their expansions.
    pub(super) fn of(examples: &[&'a ContrastiveExample], expands: impl Fn(usize) -> bool) -> Self {
        let mut texts: Vec<&[u32]> = examples.iter().map(|example| example.query.as_slice()).collect();
        let mut expansions = Vec::new();
        for (query, example) in examples.iter().enumerate().filter(|(query, _)| expands(*query)) {
            for expansion in &example.expansions {
                texts.push(expansion);
                expansions.push((query, example.expansions.len()));
            }
        }
        let first_passage = texts.len();
        texts.extend(examples.iter().map(|example| example.positive.as_slice()));
        texts.extend(examples.iter().flat_map(|example| &example.negatives).map(Vec::as_slice));
        let mut places: HashMap<&[u32], Vec<usize>> = HashMap::new();
        for (place, passage) in texts[first_passage..].iter().enumerate() {
            places.entry(passage).or_default().push(place);
        }
        let mut positives: HashMap<&[u32], BTreeSet<&[u32]>> = HashMap::new();
        for example in examples {
            positives.entry(&example.query).or_default().insert(&example.positive);
        }
        let others = |query: usize| {
            let same = positives[texts[query]].iter().flat_map(|positive| &places[positive]);
            same.copied().filter(|place| *place != query).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let duplicates = (0..examples.len()).map(others).collect();
        Self { texts, queries: examples.len(), expansions, duplicates }
    }

    /// Positives and negatives.
    pub(super) fn passages(&self) -> usize {
        self.texts.len() - self.queries - self.expansions.len()
    }

    /// The texts in parts of as many as `chunk` examples have on average, from long to short, so that the texts of a part
    /// are of similar length.
    pub(super) fn parts(&self, chunk: usize) -> Vec<Vec<u32>> {
        if chunk >= self.queries {
            return vec![(0..self.texts.len() as u32).collect()];
        }
        let size = (chunk * self.texts.len()).div_ceil(self.queries);
        let mut order: Vec<u32> = (0..self.texts.len() as u32).collect();
        order.sort_by_key(|&text| (std::cmp::Reverse(self.texts[text as usize].len()), text));
        order.chunks(size).map(<[u32]>::to_vec).collect()
    }
}

/// A hash of examples.
pub(super) fn fingerprint<'a>(examples: impl Iterator<Item = &'a ContrastiveExample>) -> String {
    let mut hash = Sha256::new();
    for example in examples {
        hash.update((example.expansions.len() as u64).to_le_bytes());
        hash.update((example.negatives.len() as u64).to_le_bytes());
        for text in example.texts() {
            hash.update((text.len() as u64).to_le_bytes());
            text.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(query: u32, expansions: usize, positive: u32, negatives: &[u32]) -> ContrastiveExample {
        ContrastiveExample {
            query: vec![query],
            expansions: (0..expansions).map(|i| vec![query, i as u32]).collect(),
            positive: vec![positive; 3],
            negatives: negatives.iter().map(|n| vec![*n; 3]).collect(),
        }
    }

    #[test]
    fn a_layout_knows_owners_and_duplicates() {
        let examples = [example(1, 2, 7, &[8]), example(2, 0, 9, &[7]), example(3, 1, 7, &[])];
        let examples: Vec<_> = examples.iter().collect();
        let layout = Layout::of(&examples, |query| query != 0);
        assert_eq!((layout.passages(), layout.texts.len()), (5, 9));
        assert_eq!(layout.expansions, [(2, 1)]);
        let layout = Layout::of(&examples, |_| true);
        assert_eq!((layout.queries, layout.passages(), layout.texts.len()), (3, 5, 11));
        assert_eq!(layout.expansions, [(0, 2), (0, 2), (2, 1)]);
        // Passages: 7, 9, 7 (positives), 8, 7 (negatives).
        assert_eq!(layout.duplicates, [vec![2, 4], vec![], vec![0, 4]]);
        // A query that stands twice has two positives, and what is one of them is no negative of the other.
        let examples = [example(1, 0, 7, &[8]), example(1, 0, 9, &[]), example(2, 0, 5, &[9])];
        let layout = Layout::of(&examples.iter().collect::<Vec<_>>(), |_| true);
        // Passages: 7, 9, 5 (positives), 8, 9 (negatives).
        assert_eq!(layout.duplicates, [vec![1, 4], vec![0, 4], vec![]]);
    }

    #[test]
    fn parts_hold_every_text_once_and_one_part_is_in_order() {
        let examples: Vec<_> = (0..10).map(|i| example(i, 1, i + 20, &[i + 40])).collect();
        let layout = Layout::of(&examples.iter().collect::<Vec<_>>(), |_| true);
        assert_eq!(layout.parts(10), [(0..40).collect::<Vec<u32>>()]);
        let parts = layout.parts(3);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [12, 12, 12, 4]);
        let mut all = parts.concat();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..40));
    }

    #[test]
    fn fingerprints_tell_examples_apart() {
        let of = |examples: &[ContrastiveExample]| fingerprint(examples.iter());
        let one = of(&[example(1, 1, 2, &[3])]);
        assert_eq!(one, of(&[example(1, 1, 2, &[3])]));
        assert_ne!(one, of(&[example(1, 1, 2, &[4])]));
        assert_ne!(one, of(&[example(1, 1, 2, &[])]));
    }
}
