//! What a search says when a part of it failed: a degraded report, or a problem.

use super::answer::{ExpansionReport, ExpansionStatus, RawReason};
use crate::http::problem::{Code, Problem};

/// Turns the report of an expansion into that of a raw answer; the tokens were written all the same.
pub(super) fn degrade(report: &mut ExpansionReport, reason: RawReason, detail: &str) {
    *report = ExpansionReport {
        reason: Some(reason),
        detail: Some(detail.to_owned()),
        output_tokens: report.output_tokens,
        ..ExpansionReport::without(ExpansionStatus::Degraded)
    };
}

/// For a request that asked to fail with its expansion.
pub(super) fn failed_expansion(report: &ExpansionReport) -> Problem {
    let reason = report.reason.unwrap_or(RawReason::LlmError);
    let detail = report.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let code = if reason == RawReason::Timeout { Code::DeadlineExceeded } else { Code::ExpansionFailed };
    Problem {
        retry_after_seconds: (reason == RawReason::Overloaded).then_some(1),
        ..Problem::new(
            code,
            format!("no expansion ({}{detail}), and the request asked to fail in that case", reason.name()),
        )
    }
}

/// Not even raw hits came in time.
pub(super) fn deadline_exceeded(timeout_ms: u64) -> Problem {
    Problem::new(
        Code::DeadlineExceeded,
        format!(
            "not even the raw hits were there within {timeout_ms} ms; allow more time or try again later"
        ),
    )
}
