//! W3C trace context: `traceparent` and `tracestate` of a request, and `traceparent` of a response.

use std::collections::HashMap;

use axum::http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The headers of one request.
struct W3cHeaders {
    traceparent: Option<String>,
    tracestate: Option<String>,
}

impl Extractor for W3cHeaders {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => self.traceparent.as_deref(),
            TRACESTATE => self.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

/// The span that a request belongs to. A header that is malformed or there twice is ignored, and a
/// trace begins here.
pub(super) fn parent(headers: &HeaderMap) -> Context {
    let texts = |name| {
        let values = headers.get_all(name).iter();
        let texts: Result<Vec<&str>, _> = values.map(|value| value.to_str()).collect();
        texts.unwrap_or_default()
    };
    let traceparent = match texts(TRACEPARENT)[..] {
        [one] if is_well_formed(one.trim()) => Some(one.trim().to_owned()),
        _ => None,
    };
    // A list may come in several headers.
    let tracestate = texts(TRACESTATE).join(",");
    let headers = W3cHeaders {
        traceparent,
        tracestate: (!tracestate.is_empty()).then_some(tracestate),
    };
    TraceContextPropagator::new().extract_with_context(&Context::new(), &headers)
}

/// `version-trace id-parent id-flags` in lower-case hexadecimal digits. Version 00 has no more;
/// later ones may. That the ids are not zero is checked by the propagator.
fn is_well_formed(text: &str) -> bool {
    let mut parts = text.splitn(5, '-');
    let mut is_hex = |n_digits| {
        parts.next().is_some_and(|part| {
            let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
            part.len() == n_digits && part.bytes().all(is_digit)
        })
    };
    let is_whole = is_hex(2) && is_hex(32) && is_hex(16) && is_hex(2);
    let has_more = parts.next().is_some();
    is_whole && !text.starts_with("ff") && !(has_more && text.starts_with("00"))
}

/// `None` if the span has no valid ids.
pub(super) fn traceparent(span: &SpanContext) -> Option<String> {
    let context = Context::new().with_remote_span_context(span.clone());
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut headers);
    headers.remove(TRACEPARENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parent_of(traceparents: &[&str], tracestates: &[&str]) -> Option<SpanContext> {
        let mut headers = HeaderMap::new();
        for (name, values) in [(TRACEPARENT, traceparents), (TRACESTATE, tracestates)] {
            for value in values {
                headers.append(name, value.parse().unwrap());
            }
        }
        let context = parent(&headers);
        let span = context.span().span_context().clone();
        span.is_valid().then_some(span)
    }

    #[test]
    fn a_parent_is_read_and_written_again() {
        let span = parent_of(&[GOOD], &["a=1", "b=2"]).unwrap();
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(traceparent(&span).as_deref(), Some(GOOD));
        assert_eq!(span.trace_state().header(), "a=1,b=2");
        let later = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-what-comes";
        assert!(!parent_of(&[later], &[]).unwrap().is_sampled());
        // A tracestate that cannot be read does not spoil the parent.
        assert!(parent_of(&[GOOD], &["=;,"]).is_some());
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for text in [
            "",
            "00",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ] {
            assert_eq!(parent_of(&[text], &[]), None, "{text}");
        }
        assert_eq!(parent_of(&[GOOD, GOOD], &[]), None);
    }
}
