//! KV that was computed for another request gives the same log-probabilities, bit for bit, as
//! recomputed KV, also after it was moved to the host tier and back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use engine::executor::cpu::{ActivationType, CpuOptions, KvFormat};
use engine::executor::{Executor, HostTierOptions, HostTierSize};
use engine::model::config::Family;
use engine::request::{Request, RequestId, SampledToken, SamplingParams, TokenEvent};
use engine::scheduler::{HostTierConfig, HostTierStats, Scheduler, SchedulerConfig};
use engine::weights::ElementFormat;
use engine::weights::fixture::wide_config;
use engine::weights::synthetic::{SyntheticCheckpoint, SyntheticFormat};
use kernels::Isa;

use super::{executor, options, tokens};

/// Three requests that share their first 100 tokens; one of them is sent repeatedly.
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
            prefix_root: 0,
        })
        .collect()
}

/// Output tokens and number of cached tokens of each request.
type Told = HashMap<u64, (Vec<SampledToken>, usize)>;

fn run(family: Family, radix_cache: bool, kv_pool_tokens: usize) -> Told {
    let config = SchedulerConfig {
        max_total_tokens: kv_pool_tokens,
        radix_cache,
        ..SchedulerConfig::default()
    };
    let vocab = wide_config(family).vocab;
    run_all(family, config, None, KvFormat::F16, requests(vocab)).0
}

fn run_all(
    family: Family,
    scheduler: SchedulerConfig,
    n_host_pages: Option<usize>,
    kv_format: KvFormat,
    requests: Vec<Request>,
) -> (Told, HostTierStats) {
    let config = wide_config(family);
    let format = SyntheticFormat::Rows(ElementFormat::Q4_0);
    let checkpoint = SyntheticCheckpoint::new(config.clone(), format, 3);
    let options = CpuOptions {
        kv_format,
        host_tier: n_host_pages.map(|n_pages| HostTierOptions {
            size: HostTierSize::Ratio(n_pages as f64 / 128.0),
            free_bytes: u64::MAX,
        }),
        ..options(ActivationType::Int8, Isa::detect())
    };
    let mut executor = executor(&checkpoint, options);
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(48),
        host_tier: executor.info().host_tier.map(|tier| HostTierConfig {
            n_pages: tier.n_pages,
            n_copies: 3,
        }),
        ..scheduler
    });
    for request in requests {
        scheduler.add(request, Duration::ZERO).expect("fits");
    }
    let mut results = Told::new();
    while !scheduler.is_idle() {
        let plan = scheduler.plan(Duration::ZERO);
        let output = executor.execute(&plan).expect("step");
        for (id, event) in scheduler.commit(&plan, output) {
            let (tokens, cached) = results.entry(id.0).or_default();
            match event {
                TokenEvent::Token(token) => tokens.push(token),
                TokenEvent::PromptLogprobs(_) => {}
                TokenEvent::Finished { usage, .. } => *cached = usage.cached_tokens,
                TokenEvent::Failed(failure) => panic!("request {id}: {failure}"),
            }
        }
    }
    (results, scheduler.host_tier_stats())
}

/// The six requests between others that take all pages of the pool, so that the shared pages are
/// evicted again and again.
#[test]
fn a_prefix_from_the_host_tier_changes_no_logit() {
    let vocab = wide_config(Family::Qwen3).vocab;
    let crowded: Vec<Request> = requests(vocab)
        .into_iter()
        .flat_map(|request| {
            let id = request.id.0;
            let other = Request {
                id: RequestId(100 + id),
                prompt: tokens(220, 50 + id as u32, vocab).into(),
                ..request.clone()
            };
            [request, other]
        })
        .collect();
    for kv_format in [KvFormat::F16, KvFormat::Fp8E4m3] {
        let config = |radix_cache| SchedulerConfig {
            max_total_tokens: 256,
            max_running_requests: 2,
            radix_cache,
            ..SchedulerConfig::default()
        };
        let (plain, _) = run_all(
            Family::Qwen3,
            config(false),
            None,
            kv_format,
            crowded.clone(),
        );
        let (lost, _) = run_all(
            Family::Qwen3,
            config(true),
            None,
            kv_format,
            crowded.clone(),
        );
        let (kept, stats) = run_all(
            Family::Qwen3,
            config(true),
            Some(256),
            kv_format,
            crowded.clone(),
        );
        assert!(stats.n_restored > 0, "{stats:?}");
        for (id, (expected, _)) in &plain {
            assert_eq!(kept[id].0, *expected, "request {id}");
        }
        let cached = |told: &Told| (0..6).map(|id| told[&id].1).sum::<usize>();
        assert!(cached(&kept) > cached(&lost), "{} cached", cached(&lost));
        assert!(cached(&kept) >= 5 * 96, "{} cached", cached(&kept));
    }
}

#[test]
fn a_cached_prefix_changes_no_logit() {
    for family in [Family::Qwen3, Family::Qwen3Moe] {
        check_cached_prefix(family);
    }
}

fn check_cached_prefix(family: Family) {
    let plain = run(family, false, 2048);
    // The smaller pool evicts and preempts as well.
    for kv_pool_tokens in [2048, 256] {
        let shared = run(family, true, kv_pool_tokens);
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
