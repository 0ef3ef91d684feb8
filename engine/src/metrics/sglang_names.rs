//! The same metrics under SGLang's names, those that its dashboard uses.
//!
//! Deliberately absent: names of metrics that this engine does not have (speculation, LoRA,
//! transfers between servers).

use super::page::Page;
use super::{Counter, Metrics};
use crate::kv::PAGE_TOKENS;

/// Appends them to a model's page.
pub fn render(metrics: &Metrics, page: &mut Page<'_>) {
    let page_tokens = PAGE_TOKENS as f64;
    let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
    let count = |counter: &Counter| counter.get() as f64;
    let (used, total) = (metrics.kv_pages_used.get(), metrics.kv_pages_total.get());
    let hits = count(&metrics.prefix_cache_hits);
    for (name, help, value) in [
        (
            "sglang:num_running_reqs",
            "Requests in the running batch.",
            metrics.n_running.get(),
        ),
        (
            "sglang:num_queue_reqs",
            "Requests waiting for admission.",
            metrics.n_waiting.get(),
        ),
        (
            "sglang:num_used_tokens",
            "Capacity of the KV cache pages in use, in tokens.",
            used * page_tokens,
        ),
        (
            "sglang:max_total_num_tokens",
            "Capacity of the KV cache, in tokens.",
            total * page_tokens,
        ),
        (
            "sglang:token_usage",
            "Share of the KV cache in use; 1 is all.",
            share(used, total),
        ),
        (
            "sglang:cache_hit_rate",
            "Share of all prompt tokens since the start that were served from the prefix cache.",
            share(hits, count(&metrics.prefix_cache_queries)),
        ),
        (
            "sglang:gen_throughput",
            "Output tokens per second over about the last second; 0 while no request runs.",
            metrics.output_rate.get(),
        ),
    ] {
        page.gauge(name, help, value);
    }
    let ended = [
        &metrics.stopped,
        &metrics.reached_length,
        &metrics.aborted,
        &metrics.failed,
    ];
    for (name, help, value) in [
        (
            "sglang:prompt_tokens_total",
            "Prompt tokens of requests that have received their first token.",
            count(&metrics.prompt_tokens),
        ),
        (
            "sglang:generation_tokens_total",
            "Output tokens generated.",
            count(&metrics.generation_tokens),
        ),
        (
            "sglang:num_requests_total",
            "Requests ended, for any reason.",
            ended.into_iter().map(count).sum(),
        ),
        (
            "sglang:num_aborted_requests_total",
            "Requests cancelled by their client.",
            count(&metrics.aborted),
        ),
        (
            "sglang:num_retracted_requests_total",
            "Requests preempted because KV pages ran out.",
            count(&metrics.preemptions),
        ),
    ] {
        page.counters(name, help, "", &[("", value)]);
    }
    page.counters(
        "sglang:cached_tokens_total",
        "Prompt tokens served from the prefix cache.",
        "cache_source",
        &[("total", hits)],
    );
    for (name, help, histogram) in [
        (
            "sglang:time_to_first_token_seconds",
            "Seconds from a request's submission to its first token.",
            &metrics.ttft_s,
        ),
        (
            "sglang:inter_token_latency_seconds",
            "Seconds between two tokens of a request.",
            &metrics.itl_s,
        ),
        (
            "sglang:time_per_output_token_seconds",
            "Seconds per output token after the first, of a request.",
            &metrics.tpot_s,
        ),
        (
            "sglang:e2e_request_latency_seconds",
            "Seconds from a request's submission to its last token.",
            &metrics.e2e_s,
        ),
        (
            "sglang:queue_time_seconds",
            "Seconds from a request's submission to its first admission.",
            &metrics.queue_s,
        ),
        (
            "sglang:prompt_tokens_histogram",
            "Prompt tokens of a finished request.",
            &metrics.n_prompt,
        ),
        (
            "sglang:generation_tokens_histogram",
            "Output tokens of a finished request.",
            &metrics.n_generated,
        ),
    ] {
        page.histogram(name, help, histogram);
    }
    let pages = [
        ("page_size", PAGE_TOKENS.to_string()),
        ("num_pages", total.to_string()),
    ];
    page.info(
        "sglang:cache_config_info",
        "Tokens of a KV cache page and number of pages, as labels; the value is 1.",
        &pages,
    );
}
