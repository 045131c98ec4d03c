//! From a checked request to the passages that stand for its query.

use std::sync::Arc;

use expandr_models::{
    Sampling,
    expander::{behind_query, clean},
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{
    answer::{ExpansionReport, ExpansionStatus, RawReason},
    check::CheckedExpansion,
    flight::{Boarding, FlightKey, Flights, Landing},
    watch::Watcher,
};
use crate::{bundle::Bundle, metrics::Metrics};

/// Tokens of English words, as a fraction.
const TOKENS_A_WORD: (usize, usize) = (3, 2);

/// The passages for one query, and what to say about them. Without passages `report` is a degraded or a skipped one.
#[derive(Debug)]
pub struct Passages {
    /// What became of the expansion.
    pub report: ExpansionReport,
    /// From the start of the generation to its first token, in milliseconds; 0 when none was generated.
    pub first_token_ms: f64,
}

impl Passages {
    /// None, by the gate's decision.
    pub fn skipped() -> Self {
        let report = ExpansionReport {
            reason: Some(RawReason::Gate),
            ..ExpansionReport::without(ExpansionStatus::Skipped)
        };
        Self { report, first_token_ms: 0.0 }
    }
}

/// One usable passage, or why there is none.
enum Outcome {
    Usable { text: String, output_tokens: usize, cut: bool, cached: bool, first_token_ms: f64 },
    Unusable { reason: RawReason, detail: Option<String> },
}

/// What passages are written with.
pub struct Writing<'a> {
    /// Whose language model.
    pub bundle: &'a Bundle,
    /// The cache, and what is being written already.
    pub flights: &'a Flights,
    /// What is counted.
    pub metrics: &'a Metrics,
    /// Who hears of the passages as they come.
    pub watcher: &'a Watcher,
    /// A passage that the deadline cut is used when it has at least this many words.
    pub min_partial_words: usize,
    /// When what is there by then is taken.
    pub deadline: Instant,
}

/// Gets the passages for `query`: those of the request, else from cache or language model until the deadline.
pub async fn passages(writing: &Writing<'_>, query: &str, request: &CheckedExpansion) -> Passages {
    if let Some(texts) = &request.texts {
        for (passage, text) in texts.iter().enumerate() {
            writing.watcher.passage(passage).tell(text);
        }
        let report = ExpansionReport {
            texts: texts.clone(),
            query_weight: request.query_weight,
            joint_encoding: request.joint_encoding,
            ..ExpansionReport::without(ExpansionStatus::Supplied)
        };
        return Passages { report, first_token_ms: 0.0 };
    }
    let prompt = match writing.bundle.prompt.render(&[&normalize_query(query)]) {
        Ok(prompt) => prompt,
        Err(error) => {
            let outcome = Outcome::Unusable { reason: RawReason::LlmError, detail: Some(error.to_string()) };
            return summarize(vec![outcome], request);
        }
    };
    let samples =
        (0..request.count).map(|sample| write_one(writing, prompt.clone(), request.sampling, sample));
    summarize(join_all(samples).await, request)
}

/// What is embedded for the passages of `report`: each by itself, or behind its query.
pub fn texts_to_embed(query: &str, report: &ExpansionReport) -> Vec<String> {
    if report.joint_encoding {
        report.texts.iter().map(|text| behind_query(query, text)).collect()
    } else {
        report.texts.clone()
    }
}

/// Queries that differ only in white space share a passage.
fn normalize_query(query: &str) -> String {
    query.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn write_one(writing: &Writing<'_>, prompt: String, mut sampling: Sampling, sample: usize) -> Outcome {
    let &Writing { bundle, flights, metrics, watcher, min_partial_words, deadline } = writing;
    let Some(expander) = &bundle.expander else {
        let detail =
            "this server runs without a language model; send expansion.texts, or start it with --expander";
        return Outcome::Unusable { reason: RawReason::LlmError, detail: Some(detail.to_owned()) };
    };
    sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(sample as u64));
    let key = FlightKey::new(&bundle.id, prompt, &sampling, sample);
    let enough_tokens = min_partial_words * TOKENS_A_WORD.0 / TOKENS_A_WORD.1;
    let (landing, boarding) =
        flights.board(key, expander, sampling, deadline, enough_tokens, watcher.passage(sample)).await;
    metrics.count_boarding(boarding);
    let (written, cut, cached) = match landing {
        Landing::Cached(written) => (written, false, true),
        Landing::Finished(written) => (Arc::new(written), false, false),
        Landing::Cut(written) => (Arc::new(written), true, false),
        Landing::Overloaded(detail) => {
            return Outcome::Unusable { reason: RawReason::Overloaded, detail: Some(detail) };
        }
        Landing::Failed(detail) => {
            return Outcome::Unusable { reason: RawReason::LlmError, detail: Some(detail) };
        }
    };
    // Those who join a generation share its tokens; they are counted once.
    if boarding == Boarding::Started {
        metrics.count_tokens(written.output_tokens, written.first_token);
    }
    let text = clean(&written.text);
    let text = if cut { whole_words(&text) } else { text };
    if cut && text.split_whitespace().count() < min_partial_words {
        return Outcome::Unusable { reason: RawReason::Timeout, detail: None };
    }
    if text.is_empty() {
        return Outcome::Unusable { reason: RawReason::EmptyOutput, detail: None };
    }
    let first_token_ms =
        if cached { 0.0 } else { written.first_token.map_or(0.0, super::timings::milliseconds) };
    Outcome::Usable { text, output_tokens: written.output_tokens, cut, cached, first_token_ms }
}

/// Drops a last word that the deadline may have cut in two.
fn whole_words(text: &str) -> String {
    match text.rfind(char::is_whitespace) {
        Some(end) if !text.ends_with(['.', '!', '?']) => text[..end].trim_end().to_owned(),
        _ => text.to_owned(),
    }
}

fn summarize(outcomes: Vec<Outcome>, request: &CheckedExpansion) -> Passages {
    let mut report = ExpansionReport::without(ExpansionStatus::Applied);
    let mut all_cached = true;
    let mut first_token_ms = 0.0_f64;
    let mut failure = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Usable { text, output_tokens, cut, cached, first_token_ms: ms } => {
                report.texts.push(text);
                report.output_tokens += output_tokens;
                report.cut |= cut;
                all_cached &= cached;
                first_token_ms = first_token_ms.max(ms);
            }
            Outcome::Unusable { reason, detail } => failure = Some((reason, detail)),
        }
    }
    if report.texts.is_empty() {
        let (reason, detail) = failure.unwrap_or((RawReason::EmptyOutput, None));
        report = ExpansionReport {
            reason: Some(reason),
            detail,
            ..ExpansionReport::without(ExpansionStatus::Degraded)
        };
    } else {
        if all_cached {
            report.status = ExpansionStatus::Cached;
        }
        report.query_weight = request.query_weight;
        report.joint_encoding = request.joint_encoding;
        report.detail = failure.map(|(reason, detail)| {
            let detail = detail.map(|d| format!(": {d}")).unwrap_or_default();
            format!(
                "{} of {} passages are missing ({}{detail})",
                request.count - report.texts.len(),
                request.count,
                reason.name()
            )
        });
    }
    Passages { report, first_token_ms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_does_not_make_another_query() {
        assert_eq!(normalize_query("  why \n is\tit "), "why is it");
    }

    #[test]
    fn a_cut_word_is_dropped_but_a_finished_sentence_stays() {
        assert_eq!(whole_words("the sky is blu"), "the sky is");
        assert_eq!(whole_words("The sky is blue."), "The sky is blue.");
        assert_eq!(whole_words("sky"), "sky");
    }
}
