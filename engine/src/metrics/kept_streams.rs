//! The metrics of streams that can be resumed.

use super::kinds::Counter;
use super::page::Page;

#[derive(Debug, Default)]
pub struct KeptStreamMetrics {
    kept: Counter,
    resumed: Counter,
    abandoned: Counter,
}

impl KeptStreamMetrics {
    pub fn record_kept(&self) {
        self.kept.add(1);
    }

    pub fn record_resumed(&self) {
        self.resumed.add(1);
    }

    pub fn record_abandoned(&self) {
        self.abandoned.add(1);
    }

    pub fn render(&self, n_streams: usize, n_bytes: usize) -> String {
        let mut page = Page::new(None);
        for (name, help, value) in [
            (
                "engine_kept_streams",
                "Streams that can be resumed, running or ended.",
                n_streams,
            ),
            (
                "engine_kept_stream_bytes",
                "Memory of the events of these streams.",
                n_bytes,
            ),
        ] {
            page.gauge(name, help, value as f64);
        }
        for (name, help, counter) in [
            (
                "engine_kept_streams_total",
                "Streams that asked to be kept.",
                &self.kept,
            ),
            (
                "engine_stream_resumptions_total",
                "Connections that read on in a kept stream.",
                &self.resumed,
            ),
            (
                "engine_kept_streams_abandoned_total",
                "Kept streams that were cancelled because no client read them.",
                &self.abandoned,
            ),
        ] {
            page.counters(name, help, "", &[("", counter.get() as f64)]);
        }
        page.into_text()
    }
}
