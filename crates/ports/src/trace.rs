//! One trace through everything, whoever exports it: the parent that a request brings along, and what the next one in
//! line is told, both as W3C `traceparent`.
//!
//! Where nobody exports traces nothing is installed, and each call costs one load.
use std::sync::OnceLock;

use tracing::Span;

/// The header, in small letters.
pub const TRACEPARENT: &str = "traceparent";

/// Who knows the trace that a span belongs to.
pub trait Traces: Send + Sync {
    /// Makes a span that was not entered yet a child of what `traceparent` names; one that is broken is ignored.
    fn adopt(&self, span: &Span, traceparent: &str);
    /// What tells others that they act for this span; none where the span is not part of a trace.
    fn traceparent(&self, span: &Span) -> Option<String>;
}

static TRACES: OnceLock<Box<dyn Traces>> = OnceLock::new();

/// Sets who knows, once in a process; a second is ignored.
pub fn install(traces: impl Traces + 'static) {
    let _ = TRACES.set(Box::new(traces));
}

/// Makes a new span a child of what a header names.
pub fn adopt(span: &Span, traceparent: Option<&str>) {
    if let (Some(traces), Some(traceparent)) = (TRACES.get(), traceparent) {
        traces.adopt(span, traceparent);
    }
}

/// The header for whoever acts for this span.
#[must_use]
pub fn traceparent(span: &Span) -> Option<String> {
    TRACES.get()?.traceparent(span)
}
