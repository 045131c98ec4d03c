//! Training pairs: a query, a passage that answers it, and passages that don't; which of them are admitted.

use std::collections::HashSet;

use expandr_evaluation::Collection;
use serde::{Deserialize, Serialize};

use crate::readers::{Example, SourceCounts};
use crate::seed::{draw_share, fingerprint};
use crate::text::{first_words, normalize};

/// A query and a passage that answers it: one line of pairs.jsonl. A query that several passages answer has a line
/// for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Names the query: the same words give the same id, whatever the source.
    pub id: String,
    /// What is asked.
    pub query: String,
    /// A passage that answers it (the paper's d*).
    pub positive: String,
    /// Passages that don't, possibly none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negatives: Vec<String>,
    /// How the positive relates to the query where the source says so (`SUPPORTS`, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The name of the source.
    pub source: String,
    /// What the pair trains.
    pub part: Part,
    /// To train on, or to choose by.
    pub split: Split,
}

/// What a pair trains. All pairs of a query have the same part and split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The expander, by DPO.
    Dpo,
    /// The retriever.
    #[default]
    Retriever,
    /// Both.
    Both,
}

impl Part {
    /// Whether the expander learns from it.
    pub fn trains_expander(self) -> bool {
        self != Self::Retriever
    }

    /// Whether the retriever learns from it.
    pub fn trains_retriever(self) -> bool {
        self != Self::Dpo
    }
}

/// What a pair is for within its part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To train on.
    #[default]
    Train,
    /// To choose settings by, and to stop early.
    Dev,
}

/// The id of a query: 16 hexadecimal digits, the same for queries that [`normalize`] makes the same.
pub fn query_id(query: &str) -> String {
    format!("{:016x}", (fingerprint(&["query", &normalize(query)]) >> 64) as u64)
}

/// Queries of evaluation sets, on which nothing may be trained.
#[derive(Clone, Debug, Default)]
pub struct HeldOut {
    queries: HashSet<String>,
}

impl HeldOut {
    /// Adds the judged queries of a collection's split.
    pub fn add_collection(&mut self, collection: &Collection) {
        self.add_queries(collection.queries.iter().map(|query| query.text.as_str()));
    }

    /// Adds queries.
    pub fn add_queries<'a>(&mut self, queries: impl IntoIterator<Item = &'a str>) {
        self.queries.extend(queries.into_iter().map(normalize));
    }

    /// Whether a query is one of them, up to case, white space and punctuation ([`normalize`]).
    pub fn contains(&self, query: &str) -> bool {
        self.queries.contains(&normalize(query))
    }

    /// How many different ones there are.
    pub fn len(&self) -> usize {
        self.queries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.queries.is_empty()
    }
}

/// What is done to every pair, whatever its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairRules {
    /// Decides which pairs a source's ratio takes.
    pub seed: u64,
    /// Positives and negatives are cut to so many words; 0 cuts nothing.
    pub max_words: usize,
}

/// Decides which examples are trained on. Duplicates are told across all sources.
#[derive(Debug)]
pub struct Admission {
    rules: PairRules,
    held_out: HeldOut,
    seen: HashSet<u128>,
}

impl Admission {
    /// An admission that drops the pairs whose query, or whose positive, is a `held_out` query.
    pub fn new(rules: PairRules, held_out: HeldOut) -> Self {
        Self { rules, held_out, seen: HashSet::new() }
    }

    /// The pair to train on, or none, with the reason counted. Its part and split are not decided yet.
    pub fn admit(&mut self, example: Example, ratio: f64, counts: &mut SourceCounts) -> Option<Pair> {
        let normal_query = normalize(&example.query);
        // Cut before they are compared, so that a cut positive is recognised among cut negatives.
        let (positive, cut) = first_words(example.positive.trim(), self.rules.max_words);
        let normal_positive = normalize(positive);
        let purpose = ["ratio", &counts.source, &normal_query, &normal_positive];
        if ratio < 1.0 && draw_share(self.rules.seed, &purpose) >= ratio {
            counts.not_drawn += 1;
            return None;
        }
        // Where both sides are of one kind (Quora's duplicates), a tested query may stand on the other.
        if [&normal_query, &normal_positive].iter().any(|text| self.held_out.queries.contains(*text)) {
            counts.held_out += 1;
            return None;
        }
        if !self.seen.insert(fingerprint(&[&normal_query, &normal_positive])) {
            counts.duplicates += 1;
            return None;
        }
        counts.cut += usize::from(cut);
        let negatives = example.negatives.iter();
        let negatives = negatives.map(|text| first_words(text.trim(), self.rules.max_words).0.to_owned());
        Some(Pair {
            id: query_id(&example.query),
            query: example.query.trim().to_owned(),
            positive: positive.to_owned(),
            negatives: negatives.collect(),
            label: example.label,
            source: counts.source.clone(),
            part: Part::default(),
            split: Split::default(),
        })
    }

    /// Takes the negatives out that were admitted as positives of the same query; how many. Call it when all
    /// sources are read.
    pub fn drop_false_negatives(&self, pair: &mut Pair) -> usize {
        if pair.negatives.is_empty() {
            return 0;
        }
        let before = pair.negatives.len();
        let query = normalize(&pair.query);
        let is_positive =
            |negative: &String| self.seen.contains(&fingerprint(&[&query, &normalize(negative)]));
        pair.negatives.retain(|negative| !is_positive(negative));
        before - pair.negatives.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(query: &str, positive: &str) -> Example {
        Example { query: query.into(), positive: positive.into(), ..Example::default() }
    }

    fn admission(max_words: usize) -> Admission {
        Admission::new(PairRules { seed: 1, max_words }, HeldOut::default())
    }

    #[test]
    fn held_out_queries_and_duplicates_are_dropped_and_counted() {
        let mut held_out = HeldOut::default();
        held_out.add_queries(["What  is Rust?"]);
        let mut admission = Admission::new(PairRules { seed: 1, max_words: 0 }, held_out);
        let mut counts = SourceCounts::default();
        let mut kept = Vec::new();
        let examples = [
            ("what is, rust", "p"),
            ("Rust, what is it?", "What is Rust"),
            ("who?", "one"),
            ("Who", "One "),
            ("who?", "two"),
        ];
        for (query, positive) in examples {
            kept.extend(admission.admit(example(query, positive), 1.0, &mut counts));
        }
        assert_eq!(kept.iter().map(|pair| pair.positive.as_str()).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!((counts.held_out, counts.duplicates), (2, 1));
        assert_eq!(kept[0].id, kept[1].id);
    }

    #[test]
    fn positives_are_cut_and_false_negatives_leave() {
        let mut admission = admission(2);
        let mut counts = SourceCounts::default();
        let negatives = vec!["One two; four".to_owned(), "five".to_owned(), "six six six".to_owned()];
        let mut pair = admission
            .admit(Example { negatives, ..example("q", "one two three") }, 1.0, &mut counts)
            .unwrap();
        assert_eq!((pair.positive.as_str(), counts.cut), ("one two", 1));
        assert!(admission.admit(example("Q", "five"), 1.0, &mut counts).is_some());
        assert_eq!(admission.drop_false_negatives(&mut pair), 2);
        assert_eq!(pair.negatives, ["six six"]);
    }

    #[test]
    fn a_ratio_takes_its_share_whatever_the_order() {
        let draw = |reversed: bool| {
            let mut admission = admission(0);
            let mut counts = SourceCounts { source: "s".into(), ..SourceCounts::default() };
            let mut numbers: Vec<usize> = (0..2000).collect();
            if reversed {
                numbers.reverse();
            }
            let kept = numbers.iter().filter_map(|number| {
                admission.admit(example(&format!("query {number}"), "p"), 0.1, &mut counts)
            });
            let mut kept: Vec<String> = kept.map(|pair| pair.query).collect();
            kept.sort();
            assert_eq!(counts.not_drawn + kept.len(), 2000);
            kept
        };
        let kept = draw(false);
        assert_eq!(kept, draw(true));
        assert!((150..250).contains(&kept.len()), "{}", kept.len());
    }

    #[test]
    fn a_collections_judged_queries_are_held_out() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("qrels")).unwrap();
        fs_err::write(folder.path().join("corpus.jsonl"), "{\"_id\":\"d\",\"text\":\"x\"}\n").unwrap();
        let queries = "{\"_id\":\"1\",\"text\":\"Tested\"}\n{\"_id\":\"2\",\"text\":\"Trained\"}\n";
        fs_err::write(folder.path().join("queries.jsonl"), queries).unwrap();
        fs_err::write(folder.path().join("qrels/test.tsv"), "1\td\t1\n").unwrap();
        let mut held_out = HeldOut::default();
        held_out.add_collection(&Collection::open(folder.path(), Some("test")).unwrap());
        assert!(held_out.contains("tested?") && !held_out.contains("trained"));
        assert_eq!(held_out.len(), 1);
    }
}
