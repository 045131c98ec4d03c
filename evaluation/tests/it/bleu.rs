//! BLEU equals sacrebleu's.

use expandr_evaluation::quality::{corpus_bleu, sentence_bleu};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    sentences: Vec<Sentence>,
    corpora: Vec<Corpus>,
}

#[derive(Deserialize)]
struct Sentence {
    hypothesis: String,
    references: Vec<String>,
    score: f64,
}

#[derive(Deserialize)]
struct Corpus {
    first: usize,
    last: usize,
    score: f64,
}

impl Sentence {
    fn references(&self) -> Vec<&str> {
        self.references.iter().map(String::as_str).collect()
    }
}

#[test]
fn bleu_equals_sacrebleu() {
    let fixture: Fixture = serde_json::from_value(super::fixture("bleu.json")).unwrap();
    for (index, sentence) in fixture.sentences.iter().enumerate() {
        let ours = sentence_bleu(&sentence.hypothesis, &sentence.references());
        assert!(
            (ours - sentence.score).abs() < 1e-9,
            "sentence {index}: {ours}, sacrebleu {}",
            sentence.score
        );
    }
    for corpus in &fixture.corpora {
        let part = &fixture.sentences[corpus.first..corpus.last];
        let references: Vec<Vec<&str>> = part.iter().map(Sentence::references).collect();
        let pairs = part.iter().zip(&references);
        let ours = corpus_bleu(
            pairs.map(|(sentence, references)| (sentence.hypothesis.as_str(), references.as_slice())),
        );
        assert!((ours - corpus.score).abs() < 1e-9, "{}..{}: {ours}", corpus.first, corpus.last);
    }
    assert!(fixture.sentences.len() >= 100 && fixture.corpora.len() >= 4);
}
