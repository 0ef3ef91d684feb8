//! Counters, gauges and histograms, and their Prometheus text form.
//!
//! Names are vLLM's and SGLang's if the meaning is the same, so that their dashboards work; metrics
//! of this engine alone are called `engine_…`. The engine thread writes, `/metrics` reads: plain
//! atomics, no locks.
//! Deliberately absent: metrics that are added at run time, and timestamps.

mod kept_streams;
mod kinds;
mod model_page;
mod page;
mod sglang_names;
#[cfg(test)]
mod tests;
mod traffic;

use std::time::Duration;

pub use self::kept_streams::KeptStreamMetrics;
pub use self::kinds::{Counter, Gauge, Histogram};
pub use self::traffic::{Dropped, TrafficMetrics};
use crate::executor::ExecutorCounts;
use crate::guide::MaskCounts;
use crate::request::{Failure, FinishReason};
use crate::scheduler::{HostTierStats, SchedulerStats, StepKind};
use crate::speculation::{MAX_DRAFTS, SpeculationCounts};

const TTFT_BOUNDS_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const ITL_BOUNDS_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const TOKEN_BOUNDS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0,
    20_000.0, 50_000.0, 100_000.0, 200_000.0,
];
const CHOICE_BOUNDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTION_BOUNDS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
const E2E_BOUNDS_S: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// All metrics of one model.
#[derive(Debug)]
pub struct Metrics {
    model_name: String,
    pub n_running: Gauge,
    pub n_waiting: Gauge,
    /// Tokens that waiting requests have to compute.
    pub n_waiting_tokens: Gauge,
    /// Waiting requests whose prefix another request is computing.
    pub n_deferred: Gauge,
    /// 1 while the model is suspended, otherwise 0.
    pub is_asleep: Gauge,
    pub kv_pages_used: Gauge,
    pub kv_pages_cached: Gauge,
    pub kv_pages_total: Gauge,
    pub host_kv_pages_used: Gauge,
    pub host_kv_pages_total: Gauge,
    pub host_kv_offloaded: Counter,
    pub host_kv_restored: Counter,
    pub host_kv_declined: Counter,
    /// Cached pages that were evicted without a copy.
    pub kv_pages_lost: Counter,
    pub prefix_cache_queries: Counter,
    pub prefix_cache_hits: Counter,
    pub prompt_tokens: Counter,
    pub generation_tokens: Counter,
    pub preemptions: Counter,
    /// Rows with drafts.
    pub drafted_rows: Counter,
    pub draft_tokens: Counter,
    pub accepted_draft_tokens: Counter,
    /// By position in the row.
    pub accepted_draft_tokens_at: [Counter; MAX_DRAFTS],
    /// Drafts that a row may have; 0 without speculation.
    pub n_draft_positions: Gauge,
    pub stopped: Counter,
    pub reached_length: Counter,
    /// Cancelled by the client or by its disconnecting.
    pub aborted: Counter,
    /// Ended by any error.
    pub failed: Counter,
    pub prefill_steps: Counter,
    pub decode_steps: Counter,
    pub mixed_steps: Counter,
    pub failed_steps: Counter,
    /// Nanoseconds of steps: before their execution, in it, and after it.
    pub step_ns: [Counter; 3],
    pub run_ahead_used: Counter,
    pub run_ahead_discarded: Counter,
    pub host_sampled_tokens: Counter,
    pub kv_saturated_values: Counter,
    pub masks_ready: Counter,
    pub masks_late: Counter,
    pub ttft_s: Histogram,
    pub itl_s: Histogram,
    pub tpot_s: Histogram,
    pub e2e_s: Histogram,
    pub queue_s: Histogram,
    /// From admission to the first token.
    pub prefill_s: Histogram,
    /// From the first token to the last.
    pub decode_s: Histogram,
    /// From admission to the last token.
    pub inference_s: Histogram,
    pub n_prompt: Histogram,
    pub n_generated: Histogram,
    /// How often a finished request was preempted.
    pub n_request_preemptions: Histogram,
    /// `max_tokens` of answered requests.
    pub n_asked: Histogram,
    /// Choices for each prompt, once all have ended.
    pub n_choices: Histogram,
    /// Output tokens of the longest choice.
    pub n_longest: Histogram,
    /// Output tokens per second over about the last second; 0 while idle.
    pub output_rate: Gauge,
    /// Requests that were refused because the queue was full.
    pub rejections: Counter,
    /// Tokens in a step.
    pub n_step_tokens: Histogram,
    pub queue_timeouts: Counter,
    pub request_timeouts: Counter,
    pub result_cache_hits: Counter,
    pub result_cache_misses: Counter,
    pub result_cache_stored: Counter,
    /// Lookups and stores that failed because the cache could not be reached.
    pub result_cache_errors: Counter,
    /// Batches of changes of the prefix cache.
    pub kv_event_batches_published: Counter,
    pub kv_event_batches_dropped: Counter,
}

impl Metrics {
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            n_running: Gauge::default(),
            n_waiting: Gauge::default(),
            n_waiting_tokens: Gauge::default(),
            n_deferred: Gauge::default(),
            is_asleep: Gauge::default(),
            kv_pages_used: Gauge::default(),
            kv_pages_cached: Gauge::default(),
            kv_pages_total: Gauge::default(),
            host_kv_pages_used: Gauge::default(),
            host_kv_pages_total: Gauge::default(),
            host_kv_offloaded: Counter::default(),
            host_kv_restored: Counter::default(),
            host_kv_declined: Counter::default(),
            kv_pages_lost: Counter::default(),
            prefix_cache_queries: Counter::default(),
            prefix_cache_hits: Counter::default(),
            prompt_tokens: Counter::default(),
            generation_tokens: Counter::default(),
            preemptions: Counter::default(),
            drafted_rows: Counter::default(),
            draft_tokens: Counter::default(),
            accepted_draft_tokens: Counter::default(),
            accepted_draft_tokens_at: Default::default(),
            n_draft_positions: Gauge::default(),
            stopped: Counter::default(),
            reached_length: Counter::default(),
            aborted: Counter::default(),
            failed: Counter::default(),
            prefill_steps: Counter::default(),
            decode_steps: Counter::default(),
            mixed_steps: Counter::default(),
            failed_steps: Counter::default(),
            step_ns: Default::default(),
            run_ahead_used: Counter::default(),
            run_ahead_discarded: Counter::default(),
            host_sampled_tokens: Counter::default(),
            kv_saturated_values: Counter::default(),
            masks_ready: Counter::default(),
            masks_late: Counter::default(),
            ttft_s: Histogram::new(TTFT_BOUNDS_S),
            itl_s: Histogram::new(ITL_BOUNDS_S),
            tpot_s: Histogram::new(ITL_BOUNDS_S),
            e2e_s: Histogram::new(E2E_BOUNDS_S),
            queue_s: Histogram::new(E2E_BOUNDS_S),
            prefill_s: Histogram::new(E2E_BOUNDS_S),
            decode_s: Histogram::new(E2E_BOUNDS_S),
            inference_s: Histogram::new(E2E_BOUNDS_S),
            n_prompt: Histogram::new(TOKEN_BOUNDS),
            n_generated: Histogram::new(TOKEN_BOUNDS),
            n_request_preemptions: Histogram::new(PREEMPTION_BOUNDS),
            n_asked: Histogram::new(TOKEN_BOUNDS),
            n_choices: Histogram::new(CHOICE_BOUNDS),
            n_longest: Histogram::new(TOKEN_BOUNDS),
            output_rate: Gauge::default(),
            rejections: Counter::default(),
            n_step_tokens: Histogram::new(TOKEN_BOUNDS),
            queue_timeouts: Counter::default(),
            request_timeouts: Counter::default(),
            result_cache_hits: Counter::default(),
            result_cache_misses: Counter::default(),
            result_cache_stored: Counter::default(),
            result_cache_errors: Counter::default(),
            kv_event_batches_published: Counter::default(),
            kv_event_batches_dropped: Counter::default(),
        }
    }

    pub fn record_stats(&self, stats: &SchedulerStats) {
        self.n_running.set(stats.n_running as f64);
        self.n_waiting.set(stats.n_waiting as f64);
        self.n_waiting_tokens.set(stats.n_waiting_tokens as f64);
        self.n_deferred.set(stats.n_deferred as f64);
        self.kv_pages_used.set(stats.n_pages_used as f64);
        self.kv_pages_total.set(stats.n_pages_total as f64);
        self.kv_pages_cached.set(stats.n_pages_cached as f64);
        for (counter, now) in [
            (&self.preemptions, stats.n_preemptions),
            (&self.prefix_cache_queries, stats.n_prompt_tokens),
            (&self.prefix_cache_hits, stats.n_cached_tokens),
        ] {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_host_tier(&self, stats: &HostTierStats) {
        self.host_kv_pages_used.set(stats.n_pages_used as f64);
        self.host_kv_pages_total.set(stats.n_pages_total as f64);
        for (counter, now) in [
            (&self.host_kv_offloaded, stats.n_offloaded),
            (&self.host_kv_restored, stats.n_restored),
            (&self.host_kv_declined, stats.n_declined),
            (&self.kv_pages_lost, stats.n_lost),
        ] {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_speculation(&self, counts: &SpeculationCounts) {
        self.n_draft_positions.set(counts.accepted_at.len() as f64);
        let totals = [
            (&self.drafted_rows, counts.n_drafted_rows),
            (&self.draft_tokens, counts.n_draft_tokens),
            (&self.accepted_draft_tokens, counts.n_accepted),
        ];
        let by_position = self.accepted_draft_tokens_at.iter();
        let by_position = by_position.zip(counts.accepted_at.iter().copied());
        for (counter, now) in totals.into_iter().chain(by_position) {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_masks(&self, counts: MaskCounts) {
        for (counter, now) in [
            (&self.masks_ready, counts.ready),
            (&self.masks_late, counts.late),
        ] {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_step(&self, kind: StepKind, n_tokens: usize) {
        self.n_step_tokens.observe(n_tokens as f64);
        match kind {
            StepKind::Prefill => self.prefill_steps.add(1),
            StepKind::Decode => self.decode_steps.add(1),
            StepKind::Mixed => self.mixed_steps.add(1),
        }
    }

    pub fn record_step_time(&self, plan: Duration, execute: Duration, commit: Duration) {
        for (counter, part) in self.step_ns.iter().zip([plan, execute, commit]) {
            counter.add(u64::try_from(part.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    pub fn record_executor(&self, counts: &ExecutorCounts) {
        for (counter, now) in [
            (&self.run_ahead_used, counts.run_ahead_used),
            (&self.run_ahead_discarded, counts.run_ahead_discarded),
            (&self.host_sampled_tokens, counts.host_sampled_tokens),
            (&self.kv_saturated_values, counts.kv_saturated_values),
        ] {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_failure(&self, failure: &Failure) {
        self.failed.add(1);
        match failure {
            Failure::QueueTimeout { .. } => self.queue_timeouts.add(1),
            Failure::RequestTimeout { .. } => self.request_timeouts.add(1),
            _ => {}
        }
    }

    pub fn record_finish(&self, reason: FinishReason) {
        match reason {
            FinishReason::Stop => self.stopped.add(1),
            FinishReason::Length => self.reached_length.add(1),
            FinishReason::Cancelled => self.aborted.add(1),
        }
    }
}
