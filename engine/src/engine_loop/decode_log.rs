//! `--decode-log-interval`: log lines about decoding, and the rate that `/metrics` shows.

use std::time::{Duration, Instant};

use crate::metrics::Metrics;
use crate::scheduler::Scheduler;

/// The averaging period of the rate in `/metrics`.
const RATE_PERIOD: Duration = Duration::from_secs(1);

/// Writes a log line after every N decode steps.
pub(super) struct DecodeLog {
    interval: u64,
    n_steps: u64,
    /// Start of the current line's period and the tokens generated before it; `None` while idle.
    since: Option<(Instant, u64)>,
    /// The same for the rate.
    rate_since: Option<(Instant, u64)>,
}

impl DecodeLog {
    pub fn new(interval: u64) -> Self {
        Self {
            interval,
            n_steps: 0,
            since: None,
            rate_since: None,
        }
    }

    pub fn step(&mut self, n_steps: u64, scheduler: &Scheduler, metrics: &Metrics) {
        let now = Instant::now();
        let n_generated = metrics.generation_tokens.get();
        self.set_rate(now, n_generated, metrics);
        let (since, n_before) = *self.since.get_or_insert((now, n_generated));
        self.n_steps += n_steps;
        if self.interval == 0 || self.n_steps < self.interval {
            return;
        }
        let elapsed_s = now.saturating_duration_since(since).as_secs_f64();
        let stats = scheduler.stats();
        tracing::info!(
            n_running = stats.n_running,
            n_waiting = stats.n_waiting,
            output_tok_per_s = format_args!(
                "{:.1}",
                (n_generated - n_before) as f64 / elapsed_s.max(1e-9)
            ),
            kv_pages_used = stats.n_pages_used,
            kv_pages_total = stats.n_pages_total,
            "decode"
        );
        self.n_steps = 0;
        self.since = Some((now, n_generated));
    }

    fn set_rate(&mut self, now: Instant, n_generated: u64, metrics: &Metrics) {
        let (since, n_before) = *self.rate_since.get_or_insert((now, n_generated));
        let elapsed = now.saturating_duration_since(since);
        if elapsed >= RATE_PERIOD {
            let n_new = n_generated.saturating_sub(n_before);
            metrics
                .output_rate
                .set(n_new as f64 / elapsed.as_secs_f64());
            self.rate_since = Some((now, n_generated));
        }
    }

    /// The engine goes idle: the wait is not part of the next line's period.
    pub fn pause(&mut self, metrics: &Metrics) {
        metrics.output_rate.set(0.0);
        self.rate_since = None;
        self.since = None;
        self.n_steps = 0;
    }
}
