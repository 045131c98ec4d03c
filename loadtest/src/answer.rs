//! What an answer says: hits, what became of the expansion, the server's own times.

use std::collections::BTreeMap;

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// What one search's answer says.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SearchOutcome {
    /// `applied`, `cached`, `supplied`, `skipped`, `disabled`, `degraded`; `problem` for a failed member of a batch.
    pub(crate) expansion: String,
    /// The status of a failed member of a batch, where it names one.
    pub(crate) problem_status: Option<u16>,
    /// Why it degraded.
    pub(crate) reason: Option<String>,
    /// Tokens of the expansions.
    pub(crate) output_tokens: u64,
    /// The bundle that answered.
    pub(crate) bundle: Option<String>,
    /// The server's own measurements in milliseconds, by name: `took`, its stages, and `own`.
    pub(crate) times_ms: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Answer {
    hits: Option<Vec<IgnoredAny>>,
    expansion: Option<ExpansionAnswer>,
    bundle: Option<Value>,
    took_ms: Option<f64>,
    /// Of a problem.
    status: Option<u16>,
    #[serde(default)]
    timings: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct ExpansionAnswer {
    status: String,
    reason: Option<String>,
    #[serde(default)]
    output_tokens: u64,
}

/// The `dur` values of a `server-timing` header, in milliseconds.
pub(crate) fn server_timing(headers: &HeaderMap) -> BTreeMap<String, f64> {
    let mut times = BTreeMap::new();
    for value in headers.get_all("server-timing") {
        for entry in value.to_str().unwrap_or_default().split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let duration = parts.find_map(|part| part.strip_prefix("dur=")).and_then(|dur| dur.parse().ok());
            if let (false, Some(duration)) = (name.is_empty(), duration) {
                times.insert(name.to_owned(), duration);
            }
        }
    }
    times
}

/// What each search of the answer says.
///
/// # Errors
///
/// What is wrong with an answer that is not of this wire form.
pub(crate) fn parse(
    bytes: &[u8],
    batch: bool,
    expected: usize,
    server_timing: &BTreeMap<String, f64>,
) -> Result<Vec<SearchOutcome>, String> {
    let broken = |error: serde_json::Error| format!("the answer is not of this wire form: {error}");
    if !batch {
        let answer: Answer = serde_json::from_slice(bytes).map_err(broken)?;
        if answer.hits.is_none() {
            return Err("the answer has no `hits`".into());
        }
        return Ok(vec![outcome(answer, server_timing)]);
    }
    #[derive(Deserialize)]
    struct Batch {
        results: Vec<Answer>,
    }
    let batch: Batch = serde_json::from_slice(bytes).map_err(broken)?;
    if batch.results.len() != expected {
        return Err(format!("{} results for {expected} searches", batch.results.len()));
    }
    Ok(batch.results.into_iter().map(|answer| outcome(answer, &BTreeMap::new())).collect())
}

/// An answer without hits is the problem of one member of a batch. `own` is what the server reports as its own time;
/// where it reports none, `own_at_most` is `took` less the longest stage.
fn outcome(answer: Answer, server_timing: &BTreeMap<String, f64>) -> SearchOutcome {
    if answer.hits.is_none() {
        return SearchOutcome {
            expansion: "problem".into(),
            problem_status: answer.status,
            ..SearchOutcome::default()
        };
    }
    let mut times_ms: BTreeMap<String, f64> = server_timing.clone();
    for (name, value) in &answer.timings {
        if let Some(milliseconds) = value.as_f64() {
            times_ms.insert(name.trim_end_matches("_ms").to_owned(), milliseconds);
        }
    }
    let longest =
        times_ms.iter().filter(|(name, _)| *name != "total").map(|(_, time)| *time).fold(0.0, f64::max);
    if let Some(took) = answer.took_ms {
        if !times_ms.contains_key("own") && !times_ms.is_empty() {
            times_ms.insert("own_at_most".into(), (took - longest).max(0.0));
        }
        times_ms.insert("took".into(), took);
    }
    let bundle = answer.bundle.map(|bundle| match bundle {
        Value::String(name) => name,
        other => other.to_string(),
    });
    let expansion = answer.expansion;
    SearchOutcome {
        reason: expansion.as_ref().and_then(|expansion| expansion.reason.clone()),
        problem_status: None,
        output_tokens: expansion.as_ref().map_or(0, |expansion| expansion.output_tokens),
        expansion: expansion.map_or_else(|| "unstated".into(), |expansion| expansion.status),
        bundle,
        times_ms,
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn server_timing_entries() {
        let mut headers = HeaderMap::new();
        headers.append(
            "server-timing",
            HeaderValue::from_static("encode;desc=\"q\";dur=1.5, cache;hit, own;dur=0.2"),
        );
        assert_eq!(server_timing(&headers), BTreeMap::from([("encode".into(), 1.5), ("own".into(), 0.2)]));
    }

    #[test]
    fn an_answer_tells_its_times() {
        let body = br#"{"hits":[],"expansion":{"status":"degraded","reason":"timeout","output_tokens":7},"bundle":"b1",
            "took_ms":30.5,"timings":{"encode_query_ms":4.0,"expansion_ms":25.0}}"#;
        let outcome = parse(body, false, 1, &BTreeMap::new()).unwrap().remove(0);
        assert_eq!((outcome.expansion.as_str(), outcome.reason.as_deref()), ("degraded", Some("timeout")));
        assert_eq!((outcome.output_tokens, outcome.bundle.as_deref()), (7, Some("b1")));
        assert_eq!(outcome.times_ms["own_at_most"], 5.5);
        assert_eq!(outcome.times_ms["took"], 30.5);
    }

    #[test]
    fn the_servers_own_time_is_taken_when_it_says_so() {
        let body = br#"{"hits":[],"took_ms":3.0,"timings":{"own_ms":0.4,"search_ms":2.0}}"#;
        let outcome = parse(body, false, 1, &BTreeMap::new()).unwrap().remove(0);
        assert_eq!(outcome.times_ms["own"], 0.4);
        assert!(!outcome.times_ms.contains_key("own_at_most"));
        assert_eq!(outcome.expansion, "unstated");
    }

    #[test]
    fn malformed_answers_are_told_apart() {
        let none = BTreeMap::new();
        assert!(parse(b"<html>", false, 1, &none).unwrap_err().contains("wire form"));
        assert!(parse(b"{}", false, 1, &none).unwrap_err().contains("no `hits`"));
        assert!(
            parse(br#"{"results":[{"hits":[]}]}"#, true, 2, &none).unwrap_err().contains("1 results for 2")
        );
        let batch =
            parse(br#"{"results":[{"hits":[]},{"code":"bad_query","status":400}]}"#, true, 2, &none).unwrap();
        assert_eq!((batch[1].expansion.as_str(), batch[1].problem_status), ("problem", Some(400)));
    }
}
