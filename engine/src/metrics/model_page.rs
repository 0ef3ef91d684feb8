//! The metrics of a model in `/metrics`, name by name.

use super::page::Page;
use super::{Counter, Metrics, sglang_names};
use crate::kv::PAGE_TOKENS;

impl Metrics {
    /// Prometheus text exposition format, version 0.0.4
    /// (content type `text/plain; version=0.0.4; charset=utf-8`).
    pub fn render(&self) -> String {
        let mut page = Page::new(Some(&self.model_name));
        let count = |counter: &Counter| counter.get() as f64;
        let usage = match self.kv_pages_total.get() {
            0.0 => 0.0,
            total => self.kv_pages_used.get() / total,
        };
        let gauges: &[(&str, &str, f64)] = &[
            (
                "vllm:num_requests_running",
                "Requests in the running batch.",
                self.n_running.get(),
            ),
            (
                "vllm:num_requests_waiting",
                "Requests waiting for admission.",
                self.n_waiting.get(),
            ),
            (
                "vllm:kv_cache_usage_perc",
                "Share of KV cache pages in use; 1 is all.",
                usage,
            ),
            (
                "vllm:gpu_cache_usage_perc",
                "Share of KV cache pages in use; deprecated alias of vllm:kv_cache_usage_perc.",
                usage,
            ),
            (
                "engine_kv_pages_used",
                "KV cache pages in use.",
                self.kv_pages_used.get(),
            ),
            (
                "engine_kv_pages_cached",
                "KV cache pages that hold cached prefixes; they count as free.",
                self.kv_pages_cached.get(),
            ),
            (
                "engine_kv_pages_total",
                "Total KV cache pages.",
                self.kv_pages_total.get(),
            ),
            (
                "engine_waiting_tokens",
                "Tokens that waiting requests have to compute, as if none were cached.",
                self.n_waiting_tokens.get(),
            ),
            (
                "engine_host_kv_pages_used",
                "KV cache pages of the host tier in use.",
                self.host_kv_pages_used.get(),
            ),
            (
                "engine_host_kv_pages_total",
                "Total KV cache pages of the host tier.",
                self.host_kv_pages_total.get(),
            ),
        ];
        for (name, help, value) in gauges {
            page.gauge(name, help, *value);
        }
        let (n_waiting, n_deferred) = (self.n_waiting.get(), self.n_deferred.get());
        page.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Requests waiting for admission, by reason: for a batch slot or pages (capacity), or for a prefix that \
             another request is computing (deferred).",
            "reason",
            &[
                ("capacity", (n_waiting - n_deferred).max(0.0)),
                ("deferred", n_deferred),
            ],
        );
        let is_asleep = self.is_asleep.get();
        page.gauges(
            "vllm:engine_sleep_state",
            "Whether the model is awake, sleeps with its weights in host memory, or sleeps without \
             them (never here); 1 is yes.",
            "sleep_state",
            &[
                ("awake", 1.0 - is_asleep),
                ("weights_offloaded", is_asleep),
                ("discard_all", 0.0),
            ],
        );
        page.counters(
            "engine_host_kv_moves_total",
            "KV cache pages offloaded to the host, restored from it, or on the host but computed \
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
            "Cached KV pages evicted without a copy in host memory.",
            "",
            &[("", count(&self.kv_pages_lost))],
        );
        page.counters(
            "vllm:prompt_tokens_total",
            "Prompt tokens of requests that have received their first token.",
            "",
            &[("", count(&self.prompt_tokens))],
        );
        page.counters(
            "vllm:generation_tokens_total",
            "Output tokens generated.",
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
            "Prompt tokens served from the prefix cache.",
            "",
            &[("", count(&self.prefix_cache_hits))],
        );
        let (n_prompt, n_cached) = (
            count(&self.prefix_cache_queries),
            count(&self.prefix_cache_hits),
        );
        page.counters(
            "vllm:prompt_tokens_by_source_total",
            "Prompt tokens of admitted requests: computed, cached on the device or on the host, or \
             received from another server (never here).",
            "source",
            &[
                ("local_compute", (n_prompt - n_cached).max(0.0)),
                ("local_cache_hit", n_cached),
                ("external_kv_transfer", 0.0),
            ],
        );
        page.counters(
            "vllm:prompt_tokens_cached_total",
            "Prompt tokens that were not computed because their KV was cached, on the device or on \
             the host.",
            "",
            &[("", count(&self.prefix_cache_hits))],
        );
        page.counters(
            "vllm:num_preemptions_total",
            "Sequences preempted because KV pages ran out.",
            "",
            &[("", count(&self.preemptions))],
        );
        page.counters(
            "vllm:spec_decode_num_drafts_total",
            "Decode rows that had drafts.",
            "",
            &[("", count(&self.drafted_rows))],
        );
        page.counters(
            "vllm:spec_decode_num_draft_tokens_total",
            "Tokens drafted and verified.",
            "",
            &[("", count(&self.draft_tokens))],
        );
        page.counters(
            "vllm:spec_decode_num_accepted_tokens_total",
            "Drafted tokens that became part of an output.",
            "",
            &[("", count(&self.accepted_draft_tokens))],
        );
        let positions: Vec<String> = (0..self.n_draft_positions.get() as usize)
            .map(|position| position.to_string())
            .collect();
        let by_position = positions.iter().zip(&self.accepted_draft_tokens_at);
        let by_position: Vec<(&str, f64)> = by_position
            .map(|(position, counter)| (position.as_str(), count(counter)))
            .collect();
        if !by_position.is_empty() {
            page.counters(
                "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                "Drafted tokens that became part of an output, by their place in the row.",
                "position",
                &by_position,
            );
        }
        page.counters(
            "vllm:request_success_total",
            "Requests ended, by reason.",
            "finished_reason",
            &[
                ("stop", count(&self.stopped)),
                ("length", count(&self.reached_length)),
                ("abort", count(&self.aborted)),
                ("error", count(&self.failed)),
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
        let [plan_s, execute_s, commit_s] = self.step_ns.each_ref().map(|ns| count(ns) / 1e9);
        page.counters(
            "engine_step_seconds_total",
            "Seconds of the engine's thread in steps: plan (drafts and masks included), execute, and \
             commit (what was sampled is sent).",
            "part",
            &[
                ("plan", plan_s),
                ("execute", execute_s),
                ("commit", commit_s),
            ],
        );
        page.counters(
            "engine_run_ahead_total",
            "Decode steps started on the device before they were planned, by outcome.",
            "outcome",
            &[
                ("used", count(&self.run_ahead_used)),
                ("discarded", count(&self.run_ahead_discarded)),
            ],
        );
        page.counters(
            "engine_host_sampled_tokens_total",
            "Tokens sampled on the host for a model on a GPU.",
            "",
            &[("", count(&self.host_sampled_tokens))],
        );
        page.counters(
            "engine_kv_saturated_values_total",
            "Keys and values that were too large for the KV cache's format, or NaN, and were stored as \
             its largest value or 0.",
            "",
            &[("", count(&self.kv_saturated_values))],
        );
        page.counters(
            "engine_grammar_masks_total",
            "Grammar masks, by whether they were ready when a token was sampled.",
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
            "Requests ended by an error: a failed step, a grammar, a time limit, or a shutdown.",
            "",
            &[("", count(&self.failed))],
        );
        page.counters(
            "engine_timed_out_total",
            "Requests ended by --max-queue-s or --max-request-s.",
            "limit",
            &[
                ("queue", count(&self.queue_timeouts)),
                ("total", count(&self.request_timeouts)),
            ],
        );
        page.counters(
            "engine_result_cache_total",
            "Deterministic requests by result cache outcome; responses stored in it; lookups \
             and stores that failed.",
            "outcome",
            &[
                ("hit", count(&self.result_cache_hits)),
                ("miss", count(&self.result_cache_misses)),
                ("stored", count(&self.result_cache_stored)),
                ("error", count(&self.result_cache_errors)),
            ],
        );
        page.counters(
            "engine_kv_event_batches_total",
            "Batches of changes of the prefix cache that were published, or dropped because the \
             queue was full (--kv-events-config).",
            "outcome",
            &[
                ("published", count(&self.kv_event_batches_published)),
                ("dropped", count(&self.kv_event_batches_dropped)),
            ],
        );
        for (name, help, histogram) in [
            (
                "vllm:time_to_first_token_seconds",
                "Seconds from a request's submission to its first token.",
                &self.ttft_s,
            ),
            (
                "vllm:inter_token_latency_seconds",
                "Seconds between two tokens of a request.",
                &self.itl_s,
            ),
            (
                "vllm:time_per_output_token_seconds",
                "Seconds between two tokens of a request; deprecated alias of vllm:inter_token_latency_seconds.",
                &self.itl_s,
            ),
            (
                "vllm:request_time_per_output_token_seconds",
                "Mean time per output token after the first, one value per request.",
                &self.tpot_s,
            ),
            (
                "vllm:e2e_request_latency_seconds",
                "Seconds from a request's submission to its last token.",
                &self.e2e_s,
            ),
            (
                "vllm:request_queue_time_seconds",
                "Seconds from a request's submission to its first admission.",
                &self.queue_s,
            ),
            (
                "vllm:request_prefill_time_seconds",
                "Seconds from a request's admission to its first token.",
                &self.prefill_s,
            ),
            (
                "vllm:request_decode_time_seconds",
                "Seconds from a request's first token to its last.",
                &self.decode_s,
            ),
            (
                "vllm:request_inference_time_seconds",
                "Seconds from a request's admission to its last token.",
                &self.inference_s,
            ),
            (
                "vllm:request_prompt_tokens",
                "Prompt tokens of a finished request.",
                &self.n_prompt,
            ),
            (
                "vllm:request_generation_tokens",
                "Output tokens of a finished request.",
                &self.n_generated,
            ),
            (
                "vllm:request_num_preemptions",
                "How often a finished request was preempted.",
                &self.n_request_preemptions,
            ),
            (
                "vllm:request_params_max_tokens",
                "Maximum output tokens (max_tokens) of a finished request.",
                &self.n_asked,
            ),
            (
                "vllm:request_params_n",
                "Choices (n) of a finished request.",
                &self.n_choices,
            ),
            (
                "vllm:request_max_num_generation_tokens",
                "Output tokens of the longest choice of a finished request.",
                &self.n_longest,
            ),
            (
                "vllm:iteration_tokens_total",
                "Prompt tokens computed and output tokens generated in a step.",
                &self.n_step_tokens,
            ),
        ] {
            page.histogram(name, help, histogram);
        }
        page.counters(
            "vllm:admission_rejections_total",
            "Requests refused because the queue was full.",
            "",
            &[("", count(&self.rejections))],
        );
        let pages = [
            ("block_size", PAGE_TOKENS.to_string()),
            ("num_gpu_blocks", self.kv_pages_total.get().to_string()),
        ];
        page.info(
            "vllm:cache_config_info",
            "Tokens of a KV cache page and number of pages, as labels; the value is 1.",
            &pages,
        );
        sglang_names::render(self, &mut page);
        page.into_text()
    }
}
