//! KV that was computed for another request gives the same log-probabilities, bit for bit, as KV
//! that was computed anew.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::Executor;
use engine::executor::cpu::ActivationType;
use engine::model::config::Family;
use engine::request::{Request, RequestId, SampledToken, SamplingParams, TokenEvent};
use engine::scheduler::{Scheduler, SchedulerConfig};
use engine::weights::ElementFormat;
use engine::weights::fixture::wide_config;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use kernels::Isa;

use super::{executor, options, tokens};

/// Three requests that share their first 100 tokens, one of them over and over.
fn requests(vocab: usize) -> Vec<Request> {
    let shared = tokens(100, 1, vocab);
    (0..6u64)
        .map(|id| Request {
            id: RequestId(id),
            prompt: [&shared[..], &tokens(20, 5 + (id % 3) as u32, vocab)]
                .concat()
                .into(),
            sampling: Arc::new(SamplingParams {
                n_logprobs: Some(4),
                ..SamplingParams::default()
            }),
            max_new_tokens: 12,
            stop_token_ids: Arc::from([]),
            priority: 0,
        })
        .collect()
}

/// What each request was told, and its cached tokens.
fn run(radix_cache: bool, kv_pool_tokens: usize) -> HashMap<u64, (Vec<SampledToken>, usize)> {
    let config = wide_config(Family::Qwen3);
    let format = SyntheticFormat::Rows(ElementFormat::Q4_0);
    let checkpoint = SyntheticCheckpoint::new(config.clone(), format, 3);
    let mut executor = executor(&checkpoint, options(ActivationType::Int8, Isa::detect()));
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: kv_pool_tokens,
        chunked_prefill_size: Some(48),
        radix_cache,
        ..SchedulerConfig::default()
    });
    for request in requests(config.vocab) {
        scheduler.add(request, Duration::ZERO).expect("fits");
    }
    let mut results: HashMap<u64, (Vec<SampledToken>, usize)> = HashMap::new();
    while !scheduler.is_idle() {
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("step");
        for (id, event) in scheduler.commit(&plan, output) {
            let (tokens, cached) = results.entry(id.0).or_default();
            match event {
                TokenEvent::Token(token) => tokens.push(token),
                TokenEvent::Finished { usage, .. } => *cached = usage.cached_tokens,
                TokenEvent::Failed { message } => panic!("request {id}: {message}"),
            }
        }
    }
    results
}

#[test]
fn a_cached_prefix_changes_no_logit() {
    let plain = run(false, 2048);
    // The smaller pool evicts and preempts as well.
    for kv_pool_tokens in [2048, 256] {
        let shared = run(true, kv_pool_tokens);
        for id in 0..6 {
            let (expected, none) = &plain[&id];
            let (found, cached) = &shared[&id];
            assert_eq!(*none, 0);
            assert_eq!(found, expected, "request {id}, pool of {kv_pool_tokens}");
            assert_eq!(found.len(), 12);
            assert!(*cached >= 96 || id == 0, "request {id}: {cached} cached");
        }
    }
}
