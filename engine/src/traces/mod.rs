//! OpenTelemetry spans of requests (`--otlp-traces-endpoint`): a server span for each, with children
//! for the queue, prefill and decode of every choice.
//!
//! A request's parent comes from its W3C headers ([`propagation`]); a parent that is not sampled
//! turns its spans off. The engine thread leaves its times in a [`RequestTrace`], which becomes spans
//! when its last user drops it. Spans wait in a bounded queue for a thread that sends them
//! ([`export`]); what does not fit, or cannot be sent, is counted, and logged once.
//!
//! Only OTLP's `http/protobuf` is built, over the HTTP client that the program has already: gRPC
//! would bring tonic and HTTP/2, and collectors take both.

mod attributes;
mod client;
mod export;
mod propagation;
mod request_trace;

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Tracer as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
pub use opentelemetry_otlp::ExporterBuildError;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

pub use self::attributes::RequestFacts;
pub use self::request_trace::{ChoiceTrace, RequestTrace};
use crate::metrics::TrafficMetrics;

/// `service.name`, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES says another.
const SERVICE_NAME: &str = "engine";

/// Where spans are sent.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct TracesConfig {
    /// With its path.
    pub endpoint: String,
}

/// Begins the spans of requests.
#[derive(Debug)]
pub struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// What a request has from its beginning.
#[derive(Debug)]
pub struct Begun {
    /// The response's header `traceparent`.
    pub traceparent: Option<String>,
    /// `None` if its trace is not sampled.
    pub trace: Option<Arc<RequestTrace>>,
}

impl Tracer {
    /// Starts the thread that sends spans.
    ///
    /// # Errors
    ///
    /// If a variable of the environment that the exporter reads has a value that it does not know.
    pub fn start(
        config: &TracesConfig,
        metrics: Arc<TrafficMetrics>,
    ) -> Result<Self, ExporterBuildError> {
        let provider = SdkTracerProvider::builder()
            .with_resource(resource())
            .with_span_processor(export::processor(config, metrics)?)
            .build();
        tracing::info!(endpoint = config.endpoint, "sending traces of requests");
        Ok(Self {
            tracer: provider.tracer(SERVICE_NAME),
            provider,
        })
    }

    /// Begins the server span of a request that has just come.
    pub fn begin(&self, headers: &HeaderMap, operation: &'static str, path: &str) -> Begun {
        let parent = propagation::parent(headers);
        let begun = request_trace::Clock::default();
        let builder = SpanBuilder::from_name(operation)
            .with_kind(SpanKind::Server)
            .with_start_time(begun.wall)
            .with_attributes([
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("url.path", path.to_owned()),
                KeyValue::new("gen_ai.operation.name", operation),
                KeyValue::new("gen_ai.provider.name", SERVICE_NAME),
            ]);
        let span = self.tracer.build_with_context(builder, &parent);
        let traceparent = propagation::traceparent(span.span_context());
        let trace = span
            .is_recording()
            .then(|| RequestTrace::new(self.tracer.clone(), span, operation, begun));
        Begun {
            traceparent,
            trace: trace.map(Arc::new),
        }
    }

    /// Sends the spans that have ended. Blocks.
    pub fn flush(&self) {
        // A failure is counted and logged by the exporter.
        let _ = self.provider.force_flush();
    }

    /// Sends what is left, for at most `limit`. Blocks.
    pub fn stop(&self, limit: Duration) {
        // As above.
        let _ = self.provider.shutdown_with_timeout(limit);
    }
}

fn resource() -> Resource {
    let found = Resource::builder().build();
    let name = found.get(&"service.name".into());
    // What the libraries say without a name begins so.
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return found;
    }
    Resource::builder().with_service_name(SERVICE_NAME).build()
}

/// A span's parent, for its children.
fn context_of(span: &opentelemetry_sdk::trace::Span) -> Context {
    use opentelemetry::trace::TraceContextExt as _;
    Context::new().with_remote_span_context(span.span_context().clone())
}
