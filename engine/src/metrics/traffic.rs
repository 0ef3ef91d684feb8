//! The metrics of the process: connections, errors by code, memory.

use std::time::{SystemTime, UNIX_EPOCH};

use super::kinds::Counter;
use super::page::Page;
use crate::errors::Code;

/// Why a connection was closed by the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// The client read none of a response for too long.
    SlowReader,
    /// No complete request head arrived for too long.
    Idle,
}

/// Written by the HTTP side, one for the process.
#[derive(Debug)]
pub struct TrafficMetrics {
    started_s: f64,
    opened: Counter,
    closed: Counter,
    slow_readers: Counter,
    idle: Counter,
    /// One for each [`Code`], in the order of [`Code::ALL`].
    errors: Vec<Counter>,
    spans_sent: Counter,
    spans_failed: Counter,
    spans_dropped: Counter,
}

impl Default for TrafficMetrics {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            started_s: since.map_or(0.0, |since| since.as_secs_f64()),
            opened: Counter::default(),
            closed: Counter::default(),
            slow_readers: Counter::default(),
            idle: Counter::default(),
            errors: Code::ALL.iter().map(|_| Counter::default()).collect(),
            spans_sent: Counter::default(),
            spans_failed: Counter::default(),
            spans_dropped: Counter::default(),
        }
    }
}

impl TrafficMetrics {
    pub fn record_opened(&self) {
        self.opened.add(1);
    }

    pub fn record_closed(&self) {
        self.closed.add(1);
    }

    pub fn record_dropped(&self, why: Dropped) {
        match why {
            Dropped::SlowReader => self.slow_readers.add(1),
            Dropped::Idle => self.idle.add(1),
        }
    }

    pub fn record_error(&self, code: Code) {
        let place = Code::ALL.iter().position(|known| *known == code);
        if let Some(counter) = place.and_then(|i| self.errors.get(i)) {
            counter.add(1);
        }
    }

    /// Spans of requests that were given to the collector, or could not be.
    pub fn record_sent_spans(&self, n: u64, is_ok: bool) {
        let counter = if is_ok {
            &self.spans_sent
        } else {
            &self.spans_failed
        };
        counter.add(n);
    }

    /// A span that the queue had no room for.
    pub fn record_dropped_span(&self) {
        self.spans_dropped.add(1);
    }

    pub fn n_connections(&self) -> u64 {
        self.opened.get().saturating_sub(self.closed.get())
    }

    pub fn render(&self) -> String {
        let mut page = Page::new(None);
        page.gauge(
            "engine_http_connections",
            "Open connections.",
            self.n_connections() as f64,
        );
        page.counters(
            "engine_http_connections_total",
            "Connections accepted.",
            "",
            &[("", self.opened.get() as f64)],
        );
        page.counters(
            "engine_http_dropped_total",
            "Connections closed by the server, by reason.",
            "reason",
            &[
                ("slow_reader", self.slow_readers.get() as f64),
                ("idle", self.idle.get() as f64),
            ],
        );
        let errors: Vec<(&str, f64)> = Code::ALL
            .iter()
            .zip(&self.errors)
            .filter(|(code, _)| code.entry().status.is_some())
            .map(|(code, counter)| (code.word(), counter.get() as f64))
            .collect();
        page.counters(
            "engine_http_errors_total",
            "Requests answered with an error, by its code.",
            "code",
            &errors,
        );
        page.counters(
            "engine_trace_spans_total",
            "Spans of requests that were sent, could not be sent, or were dropped because the queue \
             was full (--otlp-traces-endpoint).",
            "outcome",
            &[
                ("sent", self.spans_sent.get() as f64),
                ("failed", self.spans_failed.get() as f64),
                ("dropped", self.spans_dropped.get() as f64),
            ],
        );
        page.gauge(
            "process_start_time_seconds",
            "Start time of the process in seconds since 1970.",
            self.started_s,
        );
        if let Some(bytes) = resident_bytes() {
            page.gauge(
                "process_resident_memory_bytes",
                "Resident memory of the process.",
                bytes as f64,
            );
        }
        page.into_text()
    }
}

/// As reported by Linux; elsewhere the metric is left out.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
