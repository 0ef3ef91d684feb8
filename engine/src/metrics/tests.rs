//! Parses the text of `/metrics`.

use std::collections::HashMap;

use super::*;

/// A strict parser of the text format: every family has HELP, then TYPE, then its samples.
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
        n_waiting_tokens: 8,
        n_deferred: 1,
        n_pages_used: 5,
        n_pages_cached: 6,
        n_pages_total: 20,
        n_prompt_tokens: 70,
        n_cached_tokens: 30,
        n_preemptions: 2,
    });
    metrics.record_step(StepKind::Mixed, 12);
    metrics.record_finish(FinishReason::Cancelled);
    metrics.prompt_tokens.add(7);
    metrics.ttft_s.observe(0.02);
    metrics.ttft_s.observe(0.03);
    metrics.ttft_s.observe(1e6);
    let samples = parse(&metrics.render());
    let value = |series: &str| samples[series];
    assert_eq!(
        value("vllm:num_requests_running{engine=\"0\",model_name=\"m\"}"),
        3.0
    );
    assert_eq!(
        value("vllm:num_requests_waiting{engine=\"0\",model_name=\"m\"}"),
        4.0
    );
    for (reason, n) in [("capacity", 3.0), ("deferred", 1.0)] {
        let series = format!(
            "vllm:num_requests_waiting_by_reason{{engine=\"0\",model_name=\"m\",reason=\"{reason}\"}}"
        );
        assert_eq!(value(&series), n);
    }
    assert_eq!(value("engine_waiting_tokens{model_name=\"m\"}"), 8.0);
    let of_source = |source: &str| {
        let labels = format!("engine=\"0\",model_name=\"m\",source=\"{source}\"");
        value(&format!("vllm:prompt_tokens_by_source_total{{{labels}}}"))
    };
    assert_eq!(of_source("local_compute"), 40.0);
    assert_eq!(of_source("local_cache_hit"), 30.0);
    assert_eq!(value("engine_kv_pages_cached{model_name=\"m\"}"), 6.0);
    assert_eq!(
        value("vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"m\"}"),
        70.0
    );
    assert_eq!(
        value("vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"}"),
        30.0
    );
    assert_eq!(
        value("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"m\"}"),
        0.25
    );
    assert_eq!(value("engine_kv_pages_used{model_name=\"m\"}"), 5.0);
    assert_eq!(value("engine_kv_pages_total{model_name=\"m\"}"), 20.0);
    assert_eq!(
        value("vllm:num_preemptions_total{engine=\"0\",model_name=\"m\"}"),
        2.0
    );
    assert_eq!(
        value("vllm:prompt_tokens_total{engine=\"0\",model_name=\"m\"}"),
        7.0
    );
    assert_eq!(
        value("vllm:generation_tokens_total{engine=\"0\",model_name=\"m\"}"),
        0.0
    );
    assert_eq!(value("engine_aborted_total{model_name=\"m\"}"), 1.0);
    assert_eq!(
        value("engine_steps_total{model_name=\"m\",kind=\"mixed\"}"),
        1.0
    );
    let aborted =
        "vllm:request_success_total{engine=\"0\",model_name=\"m\",finished_reason=\"abort\"}";
    assert_eq!(value(aborted), 1.0);
    // A bound belongs to its bucket, buckets are cumulative, the last one counts all.
    let bucket = |le: &str| {
        value(&format!(
            "vllm:time_to_first_token_seconds_bucket{{engine=\"0\",model_name=\"m\",le=\"{le}\"}}"
        ))
    };
    assert_eq!(
        [
            bucket("0.01"),
            bucket("0.02"),
            bucket("1.0"),
            bucket("+Inf")
        ],
        [0.0, 1.0, 2.0, 3.0]
    );
    assert_eq!(
        value("vllm:time_to_first_token_seconds_count{engine=\"0\",model_name=\"m\"}"),
        3.0
    );
    assert_eq!(
        value("vllm:time_to_first_token_seconds_sum{engine=\"0\",model_name=\"m\"}"),
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
            kv_saturated_values: 9,
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
    assert_eq!(
        samples["engine_kv_saturated_values_total{model_name=\"m\"}"],
        9.0
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
#[expect(clippy::float_cmp, reason = "sums of halves come back exactly")]
fn the_parts_of_steps_add_up() {
    let metrics = Metrics::new("m");
    for execute_ms in [500, 1000] {
        let [plan, execute, commit] = [250, execute_ms, 0].map(Duration::from_millis);
        metrics.record_step_time(plan, execute, commit);
    }
    let samples = parse(&metrics.render());
    for (part, seconds) in [("plan", 0.5), ("execute", 1.5), ("commit", 0.0)] {
        let series = format!("engine_step_seconds_total{{model_name=\"m\",part=\"{part}\"}}");
        assert_eq!(samples[series.as_str()], seconds, "{part}");
    }
}

#[test]
fn labels_are_escaped() {
    let metrics = Metrics::new("a\"b\\c\nd");
    let text = metrics.render();
    assert!(
        text.contains(r#"vllm:num_requests_running{engine="0",model_name="a\"b\\c\nd"} 0"#),
        "{text}"
    );
    parse(&text);
}
