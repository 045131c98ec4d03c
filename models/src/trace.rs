//! Whose trace a piece of work belongs to: W3C Trace Context (<https://www.w3.org/TR/trace-context/>), so that a language model
//! on another server is part of the trace of the search that asked it.

use std::{fmt::Write, sync::Arc};

tokio::task_local! {
    static CURRENT: TraceContext;
}

/// Longest `tracestate` that is passed on, in bytes: the standard asks for 512 at least.
const LONGEST_STATE: usize = 512;

/// A place in a trace: what a `traceparent` header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Names the trace; never 0.
    pub trace_id: u128,
    /// Names the piece of work that asks; never 0.
    pub span_id: u64,
    /// Whether whoever began the trace records it.
    pub is_sampled: bool,
    /// What tracing systems on the way have added (`tracestate`); passed on as it came.
    pub state: Option<Arc<str>>,
}

impl TraceContext {
    /// Reads the headers `traceparent` and `tracestate`; none where the first is not one.
    pub fn parse(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let version = hexadecimal(parts.next()?, 2)?;
        let trace_id = hexadecimal(parts.next()?, 32)?;
        let span_id = u64::try_from(hexadecimal(parts.next()?, 16)?).ok()?;
        let flags = hexadecimal(parts.next()?, 2)?;
        // Version 0 has these four parts, later ones may have more, 255 is forbidden.
        let is_version_known = version != 0xff && (version > 0 || parts.next().is_none());
        if !is_version_known || trace_id == 0 || span_id == 0 {
            return None;
        }
        let state = tracestate.map(str::trim).filter(|state| (1..=LONGEST_STATE).contains(&state.len()));
        Some(Self { trace_id, span_id, is_sampled: flags & 1 == 1, state: state.map(Arc::from) })
    }

    /// The header `traceparent` of a request that is part of this work.
    pub fn traceparent(&self) -> String {
        let mut header = String::with_capacity(55);
        let flags = u8::from(self.is_sampled);
        // Writing into a text does not fail.
        let _ = write!(header, "00-{:032x}-{:016x}-{flags:02x}", self.trace_id, self.span_id);
        header
    }

    /// What the work at hand belongs to; none outside of [`TraceContext::scope`].
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Self::clone).ok()
    }

    /// Does `work` as a part of `context`, where there is one.
    pub async fn scope<F: Future>(context: Option<Self>, work: F) -> F::Output {
        match context {
            Some(context) => CURRENT.scope(context, work).await,
            None => work.await,
        }
    }
}

/// Exactly `digits` lower-case hexadecimal digits.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let is_right = text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_right { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_header_comes_back_as_it_was() {
        let context = TraceContext::parse(PARENT, Some("rojo=1")).unwrap();
        assert_eq!((context.is_sampled, context.state.as_deref()), (true, Some("rojo=1")));
        assert_eq!(context.traceparent(), PARENT);
        let unsampled = TraceContext::parse(&PARENT.replace("-01", "-00"), None).unwrap();
        assert!(!unsampled.is_sampled && unsampled.traceparent().ends_with("-00"));
        // A later version may say more; what is known of it is passed on as version 0.
        let later =
            TraceContext::parse(&PARENT.replace("00-4", "01-4").replace("-01", "-03-more"), None).unwrap();
        assert_eq!(later.traceparent(), PARENT);
    }

    #[test]
    fn what_is_no_header_is_none() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(wrong, None), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn work_knows_its_trace_inside_the_scope_alone() {
        let context = TraceContext::parse(PARENT, None);
        let seen = TraceContext::scope(context.clone(), async { TraceContext::current() }).await;
        assert_eq!(seen, context);
        assert_eq!(TraceContext::current(), None);
    }
}
