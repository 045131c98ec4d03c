//! From text to terms: the same for documents and queries.
//!
//! Words are runs of letters and digits, lower-cased, without Lucene's 33 English stop words, stemmed by Porter's second
//! English stemmer: what Anserini's BM25 baselines of BEIR do in all but details.

use std::collections::HashMap;

use tantivy::tokenizer::{
    Language, LowerCaser, RemoveLongFilter, SimpleTokenizer, Stemmer, StopWordFilter, TextAnalyzer,
};

/// Names the rules below; a lexical index that was made by others is built anew.
pub(crate) const RULES: &str = "words, lower case, 33 English stop words, English stems; 1";

/// Words of this many bytes or more are none (encoded data, for example) and are left out.
const TOO_LONG: usize = 256;

/// Lucene's list for English.
const STOP_WORDS: [&str; 33] = [
    "a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no",
    "not", "of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to",
    "was", "will", "with",
];

/// Makes terms of texts. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Analyzer(TextAnalyzer);

/// The terms of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Terms {
    /// Each distinct term, in the order of their first occurrences, and how often it occurs.
    pub(crate) counts: Vec<(Box<str>, u32)>,
    /// Occurrences of all of them.
    pub(crate) length: u32,
}

impl Analyzer {
    pub(crate) fn new() -> Self {
        let words = TextAnalyzer::builder(SimpleTokenizer::default())
            .filter(RemoveLongFilter::limit(TOO_LONG))
            .filter(LowerCaser)
            .filter(StopWordFilter::remove(STOP_WORDS.map(str::to_owned)))
            .filter(Stemmer::new(Language::English));
        Self(words.build())
    }

    /// The terms of some texts together, as if they were one with a gap in between. Any text will do, the empty one too.
    pub(crate) fn terms(&self, texts: &[&str]) -> Terms {
        let mut analyzer = self.0.clone();
        let mut places: HashMap<Box<str>, usize> = HashMap::new();
        let mut counts: Vec<u32> = Vec::new();
        let mut length = 0u32;
        for text in texts {
            let mut stream = analyzer.token_stream(text);
            while stream.advance() {
                let term = stream.token().text.as_str();
                length = length.saturating_add(1);
                match places.get(term) {
                    Some(&place) => counts[place] += 1,
                    None => {
                        places.insert(term.into(), counts.len());
                        counts.push(1);
                    }
                }
            }
        }
        let mut ordered: Vec<(Box<str>, usize)> = places.into_iter().collect();
        ordered.sort_unstable_by_key(|(_, place)| *place);
        let counts = ordered.into_iter().zip(counts).map(|((term, _), count)| (term, count)).collect();
        Terms { counts, length }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(texts: &[&str]) -> Vec<(String, u32)> {
        let terms = Analyzer::new().terms(texts);
        assert_eq!(terms.length, terms.counts.iter().map(|(_, count)| count).sum::<u32>());
        terms.counts.into_iter().map(|(term, count)| (term.into(), count)).collect()
    }

    #[test]
    fn words_are_folded_stemmed_and_counted() {
        let expected = [("run".to_owned(), 2), ("café".into(), 1), ("3d".into(), 1), ("cell".into(), 2)];
        assert_eq!(terms(&["The RUNNING of a café's 3D", "cells, cell; runs"])[..2], expected[..2]);
        assert_eq!(terms(&["running cells", "cell RUNS"]), [("run".to_owned(), 2), ("cell".into(), 2)]);
        assert_eq!(terms(&["of the", "", "!?"]), []);
        assert_eq!(terms(&[&"x".repeat(TOO_LONG), &"y".repeat(TOO_LONG - 1)]).len(), 1);
    }

    proptest! {
        #[test]
        fn any_text_has_terms_without_white_space(text in any::<String>()) {
            for (term, _) in terms(&[&text]) {
                prop_assert!(!term.is_empty() && !term.contains(char::is_whitespace), "{term:?}");
            }
        }
    }
}
