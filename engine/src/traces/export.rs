//! From ended spans to the collector: a bounded queue, and counts of what was sent and what was lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_otlp::{
    ExporterBuildError, Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor,
};

use super::TracesConfig;
use super::client::BlockingClient;
use crate::metrics::TrafficMetrics;

/// Spans that wait to be sent, about a thousand requests.
const MAX_QUEUED: usize = 4096;

/// Shared by both ends of the queue.
#[derive(Debug)]
struct Queue {
    n_waiting: AtomicUsize,
    metrics: Arc<TrafficMetrics>,
    has_warned: AtomicBool,
}

impl Queue {
    fn warn_once(&self, problem: &dyn std::fmt::Display) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!("traces of requests are lost: {problem}; further ones are only counted");
        }
    }
}

pub(super) fn processor(
    config: &TracesConfig,
    metrics: Arc<TrafficMetrics>,
) -> Result<impl SpanProcessor + 'static, ExporterBuildError> {
    let exporter = OtlpExporter::builder()
        .with_http()
        .with_http_client(BlockingClient::new())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(&config.endpoint)
        .build()?;
    let queue = Arc::new(Queue {
        n_waiting: AtomicUsize::new(0),
        metrics,
        has_warned: AtomicBool::new(false),
    });
    let exporter = CountedExporter {
        inner: exporter,
        queue: Arc::clone(&queue),
    };
    let settings = BatchConfigBuilder::default().with_max_queue_size(MAX_QUEUED);
    let inner = BatchSpanProcessor::builder(exporter)
        .with_batch_config(settings.build())
        .build();
    Ok(BoundedProcessor { inner, queue })
}

/// Counts what its queue has no room for.
#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchSpanProcessor,
    queue: Arc<Queue>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let one_more = |n: usize| (n < MAX_QUEUED).then_some(n + 1);
        let n_waiting = &self.queue.n_waiting;
        if n_waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more)
            .is_err()
        {
            self.queue.metrics.record_dropped_span();
            let problem = format!("{MAX_QUEUED} spans wait to be sent, the limit");
            self.queue.warn_once(&problem);
            return;
        }
        self.inner.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts what was sent and what could not be.
#[derive(Debug)]
struct CountedExporter<E> {
    inner: E,
    queue: Arc<Queue>,
}

impl<E: SpanExporter> SpanExporter for CountedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let n_spans = batch.len();
        let outcome = self.inner.export(batch).await;
        self.queue.n_waiting.fetch_sub(n_spans, Ordering::AcqRel);
        self.queue
            .metrics
            .record_sent_spans(n_spans as u64, outcome.is_ok());
        if let Err(error) = &outcome {
            self.queue.warn_once(error);
        }
        outcome
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}
