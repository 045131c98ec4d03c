//! How good expansions are as texts: how long, how near to the query, and how much they share with the passages that answer
//! it and with the answers themselves (the paper's Figures 3 and 5).
//!
//! BLEU here is BLEU-4 of an expansion against **all** gold passages of its query as references (their texts without
//! titles), or against all answers, lower-cased (several collections are in lower case), as sacrebleu computes it: see
//! [`corpus_bleu`] and [`sentence_bleu`]. In sacrebleu's signature: `nrefs:var|case:lc|eff:no|tok:13a|smooth:exp` for the corpus,
//! `eff:yes` for the mean over texts. Against an answer of a few words it is small for any passage: compare systems, not
//! collections.

mod bleu;
mod tokenize;

pub use bleu::{corpus_bleu, sentence_bleu};

use serde::Serialize;

/// The expansion of one query and what it is measured against.
#[derive(Clone, Debug, Default)]
pub struct Item<'a> {
    /// The passages that were embedded.
    pub texts: Vec<&'a str>,
    /// Tokens of all of them together; none where the server doesn't say.
    pub tokens: Option<u64>,
    /// Cosine of query and expansion; none where it was not recorded.
    pub query_cosine: Option<f64>,
    /// The texts of the relevant documents; empty where they are not at hand.
    pub passages: Vec<&'a str>,
    /// The answers; empty where the collection has none.
    pub answers: Vec<&'a str>,
}

/// How good the expansions of a run are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Quality {
    /// Queries with at least one passage.
    pub queries: usize,
    /// Passages.
    pub expansions: usize,
    /// Words (between white space) a passage.
    pub words: Summary,
    /// Tokens a query; none where no server said.
    pub tokens: Option<Summary>,
    /// Cosine of query and expansion a query; none where it was not recorded.
    pub query_cosine: Option<Summary>,
    /// Against the gold passages; none where they are not at hand.
    pub bleu_passages: Option<Bleu>,
    /// Against the answers; none where the collection has none.
    pub bleu_answers: Option<Bleu>,
    /// Words of every passage, in the order of the queries' ids.
    pub lengths_in_words: Vec<usize>,
}

/// BLEU of a set of passages, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bleu {
    /// Passages that had a reference.
    pub texts: usize,
    /// Over all of them together.
    pub corpus: f64,
    /// Mean over the passages.
    pub sentence_mean: f64,
}

/// Of a set of values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// Smallest.
    pub min: f64,
    /// Half are at most this (of an even number of values the lower one of the middle).
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// None of no value.
    pub fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let median = values[(values.len() - 1) / 2];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Self { count: values.len(), mean, min, median, max })
    }
}

/// Measures the expansions of a run; none when no query has one.
pub fn measure(items: &[Item<'_>]) -> Option<Quality> {
    let expanded: Vec<&Item<'_>> = items.iter().filter(|item| !item.texts.is_empty()).collect();
    let texts = expanded.iter().flat_map(|item| &item.texts);
    let lengths_in_words: Vec<usize> = texts.map(|text| text.split_whitespace().count()).collect();
    let tokens = expanded.iter().filter_map(|item| item.tokens).map(|tokens| tokens as f64);
    Some(Quality {
        queries: expanded.len(),
        expansions: lengths_in_words.len(),
        words: Summary::of(lengths_in_words.iter().map(|length| *length as f64).collect())?,
        tokens: Summary::of(tokens.collect()),
        query_cosine: Summary::of(expanded.iter().filter_map(|item| item.query_cosine).collect()),
        bleu_passages: bleu_against(&expanded, |item| &item.passages),
        bleu_answers: bleu_against(&expanded, |item| &item.answers),
        lengths_in_words,
    })
}

fn bleu_against<'a>(
    items: &[&'a Item<'a>],
    references: impl Fn(&'a Item<'a>) -> &'a Vec<&'a str>,
) -> Option<Bleu> {
    let mut pairs: Vec<(String, Vec<String>)> = Vec::new();
    for item in items {
        let references: Vec<String> =
            references(item).iter().map(|reference| reference.to_lowercase()).collect();
        if references.is_empty() {
            continue;
        }
        for text in &item.texts {
            pairs.push((text.to_lowercase(), references.clone()));
        }
    }
    if pairs.is_empty() {
        return None;
    }
    let borrowed: Vec<(&str, Vec<&str>)> = pairs
        .iter()
        .map(|(text, references)| (text.as_str(), references.iter().map(String::as_str).collect()))
        .collect();
    let sentences: f64 = borrowed.iter().map(|(text, references)| sentence_bleu(text, references)).sum();
    Some(Bleu {
        texts: borrowed.len(),
        corpus: corpus_bleu(borrowed.iter().map(|(text, references)| (*text, references.as_slice()))),
        sentence_mean: sentences / borrowed.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_without_a_passage_or_a_reference_do_not_count() {
        let passage = "The cat sat on the mat today.";
        let items = [
            Item {
                texts: vec!["the cat sat on the mat today."],
                tokens: Some(8),
                passages: vec!["no", passage],
                ..Item::default()
            },
            Item {
                texts: vec!["one two three"],
                tokens: Some(3),
                query_cosine: Some(0.5),
                ..Item::default()
            },
            Item { passages: vec![passage], ..Item::default() },
        ];
        let quality = measure(&items).unwrap();
        assert_eq!((quality.queries, quality.expansions), (2, 2));
        assert_eq!(quality.lengths_in_words, [7, 3]);
        assert_eq!(quality.tokens.unwrap().mean, 5.5);
        assert_eq!(quality.query_cosine.unwrap().count, 1);
        let bleu = quality.bleu_passages.unwrap();
        assert_eq!(bleu.texts, 1);
        assert!((bleu.corpus - 100.0).abs() < 1e-9 && (bleu.sentence_mean - 100.0).abs() < 1e-9);
        assert_eq!(quality.bleu_answers, None);
        assert_eq!(measure(&items[2..]), None);
    }
}
