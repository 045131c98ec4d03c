//! Traces: which request a piece of work belongs to, across servers.
//!
//! A request with a `traceparent` header (W3C Trace Context) goes on with its caller's trace, another one begins its own. Spans of
//! `tracing` are the pieces of work: [`Recorder`] gives each its place in the trace, [`current`] tells it to whoever sends a
//! request of its own, and [`export`] sends finished spans to a collector, where the operator names one.

pub mod export;

use std::time::SystemTime;

use axum::http::HeaderMap;
use expandr_models::TraceContext;
use serde_json::Value;
use tracing::{
    Metadata, Span, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterFn, LevelFilter},
    layer::Context,
    registry::LookupSpan,
};

use self::export::Outbox;

/// What is known of a span.
#[derive(Clone, Debug)]
struct Recorded {
    context: TraceContext,
    parent: Option<u64>,
    started: SystemTime,
    /// When it was left last: a span that others still name is closed later than it ended.
    left: Option<SystemTime>,
    fields: Vec<(&'static str, Value)>,
}

/// Gives every span of this program its place in a trace; with an outbox it hands finished ones on.
pub struct Recorder {
    outbox: Option<Outbox>,
}

impl Recorder {
    /// One that exports nothing, or to `outbox`.
    pub fn new(outbox: Option<Outbox>) -> Self {
        Self { outbox }
    }

    /// Itself as a layer that sees the spans of this program, whatever is logged.
    pub fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(self) -> impl Layer<S> {
        let is_ours =
            |metadata: &Metadata<'_>| metadata.is_span() && metadata.target().starts_with("expandr");
        self.with_filter(FilterFn::new(is_ours).with_max_level_hint(LevelFilter::DEBUG))
    }

    /// A place in the trace of `parent`, or in a new one.
    fn place(&self, parent: Option<&TraceContext>) -> TraceContext {
        let span_id = rand::random::<u64>().max(1);
        match parent {
            Some(parent) => TraceContext { span_id, ..parent.clone() },
            None => TraceContext {
                trace_id: rand::random::<u128>().max(1),
                span_id,
                is_sampled: self.outbox.is_some(),
                state: None,
            },
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let parent = span.parent().and_then(|parent| {
            parent.extensions().get::<Recorded>().map(|recorded| recorded.context.clone())
        });
        let mut fields = Fields(Vec::new());
        attributes.record(&mut fields);
        span.extensions_mut().insert(Recorded {
            context: self.place(parent.as_ref()),
            parent: parent.map(|parent| parent.span_id),
            started: SystemTime::now(),
            left: None,
            fields: fields.0,
        });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(recorded) = span.extensions_mut().get_mut::<Recorded>() {
            let mut fields = Fields(std::mem::take(&mut recorded.fields));
            values.record(&mut fields);
            recorded.fields = fields.0;
        }
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        if self.outbox.is_none() {
            return;
        }
        if let Some(span) = context.span(id)
            && let Some(recorded) = span.extensions_mut().get_mut::<Recorded>()
        {
            recorded.left = Some(SystemTime::now());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let (Some(outbox), Some(span)) = (&self.outbox, context.span(&id)) else { return };
        let recorded = span.extensions_mut().remove::<Recorded>();
        if let Some(recorded) = recorded.filter(|recorded| recorded.context.is_sampled) {
            outbox.put(span.name(), recorded);
        }
    }
}

/// Fields as they are exported.
struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.push((field.name(), value));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// The place of the span at hand; none where nobody records.
pub fn current() -> Option<TraceContext> {
    of(&Span::current())
}

/// The place of `span`; none where nobody records.
pub fn of(span: &Span) -> Option<TraceContext> {
    with_recorded(span, |recorded| recorded.context.clone())
}

/// Makes `span` a part of the trace that the headers of a request name, if they name one. To be called before it has parts
/// itself.
pub(crate) fn go_on(span: &Span, headers: &HeaderMap) {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let caller = text("traceparent").and_then(|parent| TraceContext::parse(parent, text("tracestate")));
    let Some(caller) = caller else { return };
    with_recorded(span, |recorded| {
        recorded.parent = Some(caller.span_id);
        recorded.context = TraceContext { span_id: recorded.context.span_id, ..caller };
    });
}

/// Keeps `span` and its parts out of the export: of probes there are too many.
pub(crate) fn leave_out(span: &Span) {
    with_recorded(span, |recorded| recorded.context.is_sampled = false);
}

fn with_recorded<T>(span: &Span, read: impl FnOnce(&mut Recorded) -> T) -> Option<T> {
    let read = |(id, dispatch): (&Id, &tracing::Dispatch)| {
        let span = dispatch.downcast_ref::<Registry>()?.span(id)?;
        let mut extensions = span.extensions_mut();
        extensions.get_mut::<Recorded>().map(read)
    };
    span.with_subscriber(read).flatten()
}
