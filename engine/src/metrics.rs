//! Counters, gauges and histograms, and their Prometheus text form.
//!
//! Names are vLLM's where they mean the same, so that its dashboards work; what only this engine
//! has is called `engine_…`. The engine thread writes, `/metrics` reads; plain atomics, no lock.
//! Deliberately absent: metrics that come and go at run time, and time stamps.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::executor::ExecutorCounts;
use crate::request::FinishReason;
use crate::scheduler::{HostTierStats, SchedulerStats, StepKind};
use crate::structured::MaskCounts;

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Holds the latest value.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

/// Counts observations by upper bounds, with their sum.
#[derive(Debug)]
pub struct Histogram {
    /// Ascending; the bucket for everything above is implied.
    bounds: &'static [f64],
    /// One more than `bounds`; not cumulative.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Histogram {
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self {
            bounds,
            counts,
            sum: AtomicU64::new(0f64.to_bits()),
        }
    }

    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure always gives a value, so the update always succeeds.
        let _ = self
            .sum
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    pub fn count(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    pub fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

const TTFT_BOUNDS_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
const ITL_BOUNDS_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E_BOUNDS_S: &[f64] = &[
    0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
];

/// Everything `/metrics` shows.
#[derive(Debug)]
pub struct Metrics {
    model_name: String,
    pub n_running: Gauge,
    pub n_waiting: Gauge,
    pub kv_pages_used: Gauge,
    pub kv_pages_cached: Gauge,
    pub kv_pages_total: Gauge,
    pub host_kv_pages_used: Gauge,
    pub host_kv_pages_total: Gauge,
    pub host_kv_offloaded: Counter,
    pub host_kv_restored: Counter,
    pub host_kv_declined: Counter,
    /// Cached pages that were given up for good.
    pub kv_pages_lost: Counter,
    pub prefix_cache_queries: Counter,
    pub prefix_cache_hits: Counter,
    pub prompt_tokens: Counter,
    pub generation_tokens: Counter,
    pub preemptions: Counter,
    pub stopped: Counter,
    pub reached_length: Counter,
    /// Cancelled, by the client or by its going away.
    pub aborted: Counter,
    /// Ended by a failed step.
    pub failed: Counter,
    pub prefill_steps: Counter,
    pub decode_steps: Counter,
    pub mixed_steps: Counter,
    pub failed_steps: Counter,
    pub run_ahead_used: Counter,
    pub run_ahead_discarded: Counter,
    pub host_sampled_tokens: Counter,
    pub masks_ready: Counter,
    pub masks_late: Counter,
    pub ttft_s: Histogram,
    pub itl_s: Histogram,
    pub tpot_s: Histogram,
    pub e2e_s: Histogram,
    pub queue_s: Histogram,
}

impl Metrics {
    pub fn new(model_name: impl Into<String>) -> Self {
        Self {
            model_name: model_name.into(),
            n_running: Gauge::default(),
            n_waiting: Gauge::default(),
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
            stopped: Counter::default(),
            reached_length: Counter::default(),
            aborted: Counter::default(),
            failed: Counter::default(),
            prefill_steps: Counter::default(),
            decode_steps: Counter::default(),
            mixed_steps: Counter::default(),
            failed_steps: Counter::default(),
            run_ahead_used: Counter::default(),
            run_ahead_discarded: Counter::default(),
            host_sampled_tokens: Counter::default(),
            masks_ready: Counter::default(),
            masks_late: Counter::default(),
            ttft_s: Histogram::new(TTFT_BOUNDS_S),
            itl_s: Histogram::new(ITL_BOUNDS_S),
            tpot_s: Histogram::new(ITL_BOUNDS_S),
            e2e_s: Histogram::new(E2E_BOUNDS_S),
            queue_s: Histogram::new(E2E_BOUNDS_S),
        }
    }

    pub fn record_stats(&self, stats: &SchedulerStats) {
        self.n_running.set(stats.n_running as f64);
        self.n_waiting.set(stats.n_waiting as f64);
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

    pub fn record_masks(&self, counts: MaskCounts) {
        for (counter, now) in [
            (&self.masks_ready, counts.ready),
            (&self.masks_late, counts.late),
        ] {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_step(&self, kind: StepKind) {
        match kind {
            StepKind::Prefill => self.prefill_steps.add(1),
            StepKind::Decode => self.decode_steps.add(1),
            StepKind::Mixed => self.mixed_steps.add(1),
        }
    }

    pub fn record_executor(&self, counts: &ExecutorCounts) {
        for (counter, now) in [
            (&self.run_ahead_used, counts.run_ahead_used),
            (&self.run_ahead_discarded, counts.run_ahead_discarded),
            (&self.host_sampled_tokens, counts.host_sampled_tokens),
        ] {
            counter.add(now.saturating_sub(counter.get()));
        }
    }

    pub fn record_finish(&self, reason: FinishReason) {
        match reason {
            FinishReason::Stop => self.stopped.add(1),
            FinishReason::Length => self.reached_length.add(1),
            FinishReason::Cancelled => self.aborted.add(1),
        }
    }

    /// Prometheus text exposition format, version 0.0.4
    /// (content type `text/plain; version=0.0.4; charset=utf-8`).
    pub fn render(&self) -> String {
        let mut page = Page {
            text: String::with_capacity(8192),
            model_name: &self.model_name,
        };
        let count = |counter: &Counter| counter.get() as f64;
        let usage = match self.kv_pages_total.get() {
            0.0 => 0.0,
            total => self.kv_pages_used.get() / total,
        };
        page.gauge(
            "vllm:num_requests_running",
            "Requests in the running batch.",
            self.n_running.get(),
        );
        page.gauge(
            "vllm:num_requests_waiting",
            "Requests waiting for admission.",
            self.n_waiting.get(),
        );
        page.gauge(
            "vllm:kv_cache_usage_perc",
            "Share of KV cache pages in use; 1 is all.",
            usage,
        );
        page.gauge(
            "engine_kv_pages_used",
            "KV cache pages in use.",
            self.kv_pages_used.get(),
        );
        page.gauge(
            "engine_kv_pages_cached",
            "KV cache pages kept for requests to come; they count as free.",
            self.kv_pages_cached.get(),
        );
        page.gauge(
            "engine_kv_pages_total",
            "KV cache pages.",
            self.kv_pages_total.get(),
        );
        page.gauge(
            "engine_host_kv_pages_used",
            "KV cache pages in the host tier that hold something.",
            self.host_kv_pages_used.get(),
        );
        page.gauge(
            "engine_host_kv_pages_total",
            "KV cache pages of the host tier.",
            self.host_kv_pages_total.get(),
        );
        page.counters(
            "engine_host_kv_moves_total",
            "KV cache pages that went to the host, came back, or were on the host and computed \
             again because that was faster.",
            "outcome",
            &[
                ("offloaded", count(&self.host_kv_offloaded)),
                ("restored", count(&self.host_kv_restored)),
                ("declined", count(&self.host_kv_declined)),
            ],
        );
        page.counters(
            "engine_kv_pages_lost_total",
            "Cached KV pages given up without a copy on the host.",
            "",
            &[("", count(&self.kv_pages_lost))],
        );
        page.counters(
            "vllm:prompt_tokens_total",
            "Prompt tokens of answered requests.",
            "",
            &[("", count(&self.prompt_tokens))],
        );
        page.counters(
            "vllm:generation_tokens_total",
            "Tokens generated.",
            "",
            &[("", count(&self.generation_tokens))],
        );
        page.counters(
            "vllm:prefix_cache_queries_total",
            "Prompt tokens of admitted requests.",
            "",
            &[("", count(&self.prefix_cache_queries))],
        );
        page.counters(
            "vllm:prefix_cache_hits_total",
            "Those of them whose KV was cached.",
            "",
            &[("", count(&self.prefix_cache_hits))],
        );
        page.counters(
            "vllm:num_preemptions_total",
            "Sequences sent back to the queue because KV pages ran out.",
            "",
            &[("", count(&self.preemptions))],
        );
        page.counters(
            "vllm:request_success_total",
            "Requests ended, by reason.",
            "finished_reason",
            &[
                ("stop", count(&self.stopped)),
                ("length", count(&self.reached_length)),
                ("abort", count(&self.aborted)),
            ],
        );
        page.counters(
            "engine_steps_total",
            "Steps executed, by kind.",
            "kind",
            &[
                ("prefill", count(&self.prefill_steps)),
                ("decode", count(&self.decode_steps)),
                ("mixed", count(&self.mixed_steps)),
                ("failed", count(&self.failed_steps)),
            ],
        );
        page.counters(
            "engine_run_ahead_total",
            "Decode work begun on the device before its plan was there, by what became of it.",
            "outcome",
            &[
                ("used", count(&self.run_ahead_used)),
                ("discarded", count(&self.run_ahead_discarded)),
            ],
        );
        page.counters(
            "engine_host_sampled_tokens_total",
            "Tokens that the host's sampler chose for a model on a device.",
            "",
            &[("", count(&self.host_sampled_tokens))],
        );
        page.counters(
            "engine_grammar_masks_total",
            "Masks of allowed tokens, by whether they were there when a token was chosen.",
            "when",
            &[
                ("ready", count(&self.masks_ready)),
                ("late", count(&self.masks_late)),
            ],
        );
        page.counters(
            "engine_aborted_total",
            "Requests cancelled by their client.",
            "",
            &[("", count(&self.aborted))],
        );
        page.counters(
            "engine_failed_total",
            "Requests ended by a failed step.",
            "",
            &[("", count(&self.failed))],
        );
        for (name, help, histogram) in [
            (
                "vllm:time_to_first_token_seconds",
                "From submission to the first token.",
                &self.ttft_s,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Between two tokens of a request.",
                &self.itl_s,
            ),
            (
                "vllm:request_time_per_output_token_seconds",
                "Mean time per output token after the first, one value a request.",
                &self.tpot_s,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "From submission to the last token.",
                &self.e2e_s,
            ),
            (
                "vllm:request_queue_time_seconds",
                "From submission to the first admission.",
                &self.queue_s,
            ),
        ] {
            page.histogram(name, help, histogram);
        }
        page.text
    }
}

/// The text being written; every sample carries the model's name.
struct Page<'a> {
    text: String,
    model_name: &'a str,
}

impl Page<'_> {
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {}", escape_help(help));
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, label: &str, label_value: &str, value: f64) {
        let _ = write!(
            self.text,
            "{name}{{model_name=\"{}\"",
            escape_label(self.model_name)
        );
        if !label.is_empty() {
            let _ = write!(self.text, ",{label}=\"{}\"", escape_label(label_value));
        }
        let _ = writeln!(self.text, "}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.head(name, help, "gauge");
        self.sample(name, "", "", value);
    }

    fn counters(&mut self, name: &str, help: &str, label: &str, values: &[(&str, f64)]) {
        self.head(name, help, "counter");
        for (label_value, value) in values {
            self.sample(name, label, label_value, *value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let bucket_name = format!("{name}_bucket");
        let mut cumulative = 0;
        for (i, count) in histogram.counts.iter().enumerate() {
            cumulative += count.load(Ordering::Relaxed);
            let bound = histogram
                .bounds
                .get(i)
                .map_or("+Inf".to_owned(), ToString::to_string);
            self.sample(&bucket_name, "le", &bound, cumulative as f64);
        }
        self.sample(&format!("{name}_sum"), "", "", histogram.sum());
        // From the same reading as the buckets, so that it equals the last one.
        self.sample(&format!("{name}_count"), "", "", cumulative as f64);
    }
}

fn escape_label(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn escape_help(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A strict reader of the text format: every family has HELP, then TYPE, then its samples.
    fn parse(text: &str) -> HashMap<String, f64> {
        let mut samples = HashMap::new();
        let mut family = String::new();
        let mut kind = String::new();
        let mut helped = String::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert!(!help.is_empty());
                helped = name.to_owned();
                continue;
            }
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, type_name) = rest.split_once(' ').unwrap();
                assert_eq!(name, helped, "TYPE follows its HELP");
                assert!(["counter", "gauge", "histogram"].contains(&type_name));
                (family, kind) = (name.to_owned(), type_name.to_owned());
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let is_name_char = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            assert!(name.chars().all(is_name_char), "{name}");
            match kind.as_str() {
                "histogram" => assert!(
                    ["_bucket", "_sum", "_count"]
                        .iter()
                        .any(|s| name == family.clone() + s),
                    "{name} in {family}"
                ),
                _ => assert_eq!(name, family),
            }
            assert!(series.ends_with('}'));
            let value = value.parse().unwrap();
            assert!(
                samples.insert(series.to_owned(), value).is_none(),
                "{series} appears twice"
            );
        }
        samples
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "counts of whole things come back exactly")]
    fn the_text_is_valid_and_says_what_was_recorded() {
        let metrics = Metrics::new("m");
        metrics.record_stats(&SchedulerStats {
            n_running: 3,
            n_waiting: 4,
            n_pages_used: 5,
            n_pages_cached: 6,
            n_pages_total: 20,
            n_prompt_tokens: 70,
            n_cached_tokens: 30,
            n_preemptions: 2,
        });
        metrics.record_step(StepKind::Mixed);
        metrics.record_finish(FinishReason::Cancelled);
        metrics.prompt_tokens.add(7);
        metrics.ttft_s.observe(0.02);
        metrics.ttft_s.observe(0.03);
        metrics.ttft_s.observe(1e6);
        let samples = parse(&metrics.render());
        let value = |series: &str| samples[series];
        assert_eq!(value("vllm:num_requests_running{model_name=\"m\"}"), 3.0);
        assert_eq!(value("vllm:num_requests_waiting{model_name=\"m\"}"), 4.0);
        assert_eq!(value("engine_kv_pages_cached{model_name=\"m\"}"), 6.0);
        assert_eq!(
            value("vllm:prefix_cache_queries_total{model_name=\"m\"}"),
            70.0
        );
        assert_eq!(
            value("vllm:prefix_cache_hits_total{model_name=\"m\"}"),
            30.0
        );
        assert_eq!(value("vllm:kv_cache_usage_perc{model_name=\"m\"}"), 0.25);
        assert_eq!(value("engine_kv_pages_used{model_name=\"m\"}"), 5.0);
        assert_eq!(value("engine_kv_pages_total{model_name=\"m\"}"), 20.0);
        assert_eq!(value("vllm:num_preemptions_total{model_name=\"m\"}"), 2.0);
        assert_eq!(value("vllm:prompt_tokens_total{model_name=\"m\"}"), 7.0);
        assert_eq!(value("vllm:generation_tokens_total{model_name=\"m\"}"), 0.0);
        assert_eq!(value("engine_aborted_total{model_name=\"m\"}"), 1.0);
        assert_eq!(
            value("engine_steps_total{model_name=\"m\",kind=\"mixed\"}"),
            1.0
        );
        let aborted = "vllm:request_success_total{model_name=\"m\",finished_reason=\"abort\"}";
        assert_eq!(value(aborted), 1.0);
        // A bound belongs to its bucket, buckets are cumulative, the last one counts all.
        let bucket = |le: &str| {
            value(&format!(
                "vllm:time_to_first_token_seconds_bucket{{model_name=\"m\",le=\"{le}\"}}"
            ))
        };
        assert_eq!(
            [
                bucket("0.01"),
                bucket("0.02"),
                bucket("0.04"),
                bucket("+Inf")
            ],
            [0.0, 1.0, 2.0, 3.0]
        );
        assert_eq!(
            value("vllm:time_to_first_token_seconds_count{model_name=\"m\"}"),
            3.0
        );
        assert_eq!(
            value("vllm:time_to_first_token_seconds_sum{model_name=\"m\"}"),
            1_000_000.05
        );
    }

    #[test]
    fn preemptions_are_counted_once_however_often_they_are_reported() {
        let metrics = Metrics::new("m");
        for n_preemptions in [1, 1, 4] {
            metrics.record_stats(&SchedulerStats {
                n_preemptions,
                ..SchedulerStats::default()
            });
        }
        assert_eq!(metrics.preemptions.get(), 4);
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "counts of whole things come back exactly")]
    fn the_executors_counts_are_taken_over() {
        let metrics = Metrics::new("m");
        for run_ahead_used in [3, 5] {
            metrics.record_executor(&ExecutorCounts {
                run_ahead_used,
                run_ahead_discarded: 2,
                host_sampled_tokens: 7,
                ..ExecutorCounts::default()
            });
        }
        let samples = parse(&metrics.render());
        let ahead = |outcome| {
            samples[&format!("engine_run_ahead_total{{model_name=\"m\",outcome=\"{outcome}\"}}")]
        };
        assert_eq!((ahead("used"), ahead("discarded")), (5.0, 2.0));
        assert_eq!(
            samples["engine_host_sampled_tokens_total{model_name=\"m\"}"],
            7.0
        );
    }

    #[test]
    #[expect(clippy::float_cmp, reason = "counts of whole things come back exactly")]
    fn the_host_tier_is_shown() {
        let metrics = Metrics::new("m");
        for n_restored in [2, 5] {
            metrics.record_host_tier(&HostTierStats {
                n_pages_used: 3,
                n_pages_total: 8,
                n_offloaded: 7,
                n_restored,
                n_declined: 1,
                n_lost: 4,
            });
        }
        let samples = parse(&metrics.render());
        let value = |series: &str| samples[series];
        assert_eq!(value("engine_host_kv_pages_used{model_name=\"m\"}"), 3.0);
        assert_eq!(value("engine_host_kv_pages_total{model_name=\"m\"}"), 8.0);
        assert_eq!(value("engine_kv_pages_lost_total{model_name=\"m\"}"), 4.0);
        for (outcome, n) in [("offloaded", 7.0), ("restored", 5.0), ("declined", 1.0)] {
            let name = "engine_host_kv_moves_total";
            let series = format!("{name}{{model_name=\"m\",outcome=\"{outcome}\"}}");
            assert_eq!(value(&series), n, "{outcome}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        let metrics = Metrics::new("a\"b\\c\nd");
        let text = metrics.render();
        assert!(
            text.contains(r#"vllm:num_requests_running{model_name="a\"b\\c\nd"} 0"#),
            "{text}"
        );
        parse(&text);
    }
}
