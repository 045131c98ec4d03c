//! BLEU-4 as sacrebleu computes it.
//!
//! References: Papineni et al., "BLEU: a method for automatic evaluation of machine translation" (ACL 2002); Post, "A call
//! for clarity in reporting BLEU scores" (WMT 2018). The tokenisation is `13a`, the smoothing `exp` (of n-gram orders without
//! a match, the k-th counts as 1/2^k of a match), several references as in the original: an n-gram counts at most as
//! often as in the reference that has it most often, and the length is compared with the nearest reference's. In
//! sacrebleu's signature: `nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp` ([`corpus_bleu`]) and `eff:yes` ([`sentence_bleu`]).

use std::collections::HashMap;

use super::tokenize::tokenize_13a;

/// Longest n-grams.
const ORDER: usize = 4;

/// What one text has in common with its references; adds up over texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// n-grams that a reference has, by n − 1.
    correct: [usize; ORDER],
    /// n-grams of the text.
    total: [usize; ORDER],
    /// Tokens of the text.
    length: usize,
    /// Tokens of the reference that is nearest in length (the shorter of two).
    reference_length: usize,
}

impl Counts {
    fn of(text: &str, references: &[&str]) -> Self {
        let tokens = tokenize_13a(text);
        let mut counts = Self { length: tokens.len(), ..Self::default() };
        let mut allowed: HashMap<&[String], usize> = HashMap::new();
        let references: Vec<Vec<String>> =
            references.iter().map(|reference| tokenize_13a(reference)).collect();
        for reference in &references {
            for (ngram, count) in ngrams(reference) {
                let most = allowed.entry(ngram).or_default();
                *most = count.max(*most);
            }
        }
        let nearest =
            references.iter().map(Vec::len).min_by_key(|length| (length.abs_diff(tokens.len()), *length));
        counts.reference_length = nearest.unwrap_or(0);
        for (ngram, count) in ngrams(&tokens) {
            counts.total[ngram.len() - 1] += count;
            counts.correct[ngram.len() - 1] += count.min(allowed.get(ngram).copied().unwrap_or(0));
        }
        counts
    }

    fn add(&mut self, other: &Self) {
        for order in 0..ORDER {
            self.correct[order] += other.correct[order];
            self.total[order] += other.total[order];
        }
        self.length += other.length;
        self.reference_length += other.reference_length;
    }

    /// The score, 0 to 100. With `effective_order` only the orders that the text is long enough for count.
    fn score(&self, effective_order: bool) -> f64 {
        if self.correct.iter().all(|correct| *correct == 0) {
            return 0.0;
        }
        let mut log_sum = 0.0;
        let mut orders = ORDER;
        let mut smoothing = 1.0;
        for order in 0..ORDER {
            if self.total[order] == 0 {
                if !effective_order {
                    return 0.0; // an order without n-grams has a precision of 0
                }
                orders = order;
                break;
            }
            let correct = if self.correct[order] == 0 {
                smoothing *= 2.0;
                1.0 / smoothing
            } else {
                self.correct[order] as f64
            };
            log_sum += (correct / self.total[order] as f64).ln();
        }
        let brevity = if self.length < self.reference_length {
            (1.0 - self.reference_length as f64 / self.length as f64).exp()
        } else {
            1.0
        };
        100.0 * brevity * (log_sum / orders as f64).exp()
    }
}

fn ngrams(tokens: &[String]) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    for order in 1..=ORDER {
        for ngram in tokens.windows(order) {
            *counts.entry(ngram).or_default() += 1;
        }
    }
    counts
}

/// BLEU of many texts together, 0 to 100: the counts are summed before they are divided. 0 when there is no text.
pub fn corpus_bleu<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a [&'a str])>) -> f64 {
    let mut sum = Counts::default();
    for (text, references) in pairs {
        sum.add(&Counts::of(text, references));
    }
    sum.score(false)
}

/// BLEU of one text against its references, 0 to 100.
pub fn sentence_bleu(text: &str, references: &[&str]) -> f64 {
    Counts::of(text, references).score(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_score_full_and_foreign_ones_nothing() {
        let text = "the cat sat on the mat .";
        assert!((sentence_bleu(text, &["a dog", text]) - 100.0).abs() < 1e-9);
        assert!((corpus_bleu([(text, [text].as_slice())]) - 100.0).abs() < 1e-9);
        assert_eq!(sentence_bleu("x y z", &[text]), 0.0);
        assert_eq!(sentence_bleu("", &[text]), 0.0);
        assert_eq!(corpus_bleu([]), 0.0);
    }

    #[test]
    fn a_repeated_word_counts_as_often_as_in_one_reference() {
        // "the" 2 of 7 (Papineni's example), no longer n-gram matches: 1/2, 1/4, 1/8 of a match.
        let score = sentence_bleu("the the the the the the the", &["the cat is on the mat"]);
        let expected = (2.0 / 7.0 * (0.5 / 6.0) * (0.25 / 5.0) * (0.125 / 4.0_f64)).powf(0.25) * 100.0;
        assert!((score - expected).abs() < 1e-9, "{score} {expected}");
    }
}
