//! Random workloads under random settings.

use super::*;
use crate::speculation::{Algorithm, NgramConfig, SpeculationConfig, StepTimes, SuffixConfig};

#[derive(Debug, Clone)]
struct Workload {
    config: SchedulerConfig,
    /// Prompt length, output length, arrival step, number of steps until it is cancelled.
    requests: Vec<(usize, usize, usize, Option<usize>)>,
    stop: Option<(u32, u64)>,
    /// A draft is right this often, in four; 5: drafts are what SUFFIX finds.
    n_right: usize,
}

fn workload() -> impl Strategy<Value = Workload> {
    let n_pages = 4usize..24;
    n_pages.prop_flat_map(|n_pages| {
        let n_tokens = n_pages * PAGE_TOKENS;
        let config = (
            1usize..8,
            1usize..80,
            prop::option::of(1usize..60),
            any::<bool>(),
            1usize..5,
            0..PolicyName::ALL.len(),
            any::<bool>(),
            any::<bool>(),
            prop::option::of((1usize..40, 1usize..4)),
            prop::option::of(1usize..12),
        )
            .prop_map(
                move |(
                    running,
                    prefill,
                    chunk,
                    mixed_chunk,
                    n_continuous,
                    policy,
                    radix_cache,
                    run_ahead,
                    host_tier,
                    n_draft_tokens,
                )| {
                    SchedulerConfig {
                        max_total_tokens: n_tokens,
                        max_running_requests: running,
                        max_prefill_tokens: prefill,
                        chunked_prefill_size: chunk,
                        mixed_chunk,
                        n_continuous_decode_steps: n_continuous,
                        radix_cache,
                        host_tier: host_tier
                            .map(|(n_pages, n_copies)| HostTierConfig { n_pages, n_copies }),
                        run_ahead,
                        speculation: n_draft_tokens.map(|n_draft_tokens| SpeculationConfig {
                            algorithm: Algorithm::Ngram(NgramConfig::default()),
                            n_draft_tokens,
                        }),
                        policy: PolicyName::ALL[policy],
                        policy_seed: 1,
                    }
                },
            );
        let one = (1..n_tokens).prop_flat_map(move |n_prompt| {
            (
                Just(n_prompt),
                1..=(n_tokens - n_prompt).min(60),
                0usize..40,
                prop::option::weighted(0.2, 0usize..60),
            )
        });
        let stop = prop::option::of((Just(17u32), 2u64..40));
        let requests = prop::collection::vec(one, 1..14);
        (config, requests, stop, 0usize..=5).prop_map(|(config, requests, stop, n_right)| {
            Workload {
                config,
                requests,
                stop,
                n_right,
            }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// For any workload, every request ends, gets the tokens that it gets alone, and no page is
    /// lost.
    #[test]
    fn random_workloads_finish_with_the_right_tokens(workload in workload()) {
        let Workload { config, requests, stop, n_right } = workload;
        let n_pages = config.max_total_tokens / PAGE_TOKENS;
        let mut executor = MockExecutor::new(MockConfig {
            n_pages,
            n_host_pages: config.host_tier.map_or(0, |tier| tier.n_pages),
            stop,
            ..MockConfig::default()
        });
        let make = |i: usize| {
            let (n_prompt, max_new_tokens, ..) = requests[i];
            let sampling = SamplingParams {
                temperature: (i % 2) as f32,
                seed: i as u64,
                presence_penalty: (i % 3) as f32,
                ..SamplingParams::default()
            };
            // Every other prompt has the first one's prefix, for the policies that use prefixes.
            let salt = if i.is_multiple_of(2) { 0 } else { i as u32 };
            Request {
                prompt: (0..n_prompt as u32).map(|t| t * 7 + salt * 100_003).collect(),
                sampling: Arc::new(sampling),
                stop_token_ids: Arc::from([17]),
                ..request(i as u64, n_prompt, max_new_tokens)
            }
        };
        let all: Vec<Request> = (0..requests.len()).map(make).collect();
        let is_right = move |id: RequestId, n_tokens: usize, i: usize| {
            (id.0 as usize + n_tokens / 5 + i) % 4 < n_right
        };
        let mut scheduler = drafts::scripted(config.clone(), &all, stop, is_right);
        if n_right == 5 {
            scheduler.set_drafters(Box::new(SuffixConfig::default()));
        }
        let mut results = HashMap::new();
        let mut cancelled = HashSet::new();
        let mut i_step = 0;
        while i_step < 40 || !scheduler.is_idle() {
            prop_assert!(i_step < 20_000, "livelock: {:?}", scheduler.stats());
            let now = Duration::from_millis(i_step as u64);
            for (i, (.., arrival, _)) in requests.iter().enumerate() {
                if *arrival == i_step {
                    scheduler.add(make(i), now).unwrap();
                }
            }
            let plan = scheduler.plan(now);
            for (i, (.., arrival, cancel)) in requests.iter().enumerate() {
                if cancel.is_some_and(|after| arrival + after == i_step)
                    && let Some(event) = scheduler.cancel(RequestId(i as u64))
                {
                    cancelled.insert(i as u64);
                    collect(&mut results, vec![(RequestId(i as u64), event)]);
                }
            }
            let is_empty = plan.rows.is_empty() && plan.copies.is_empty();
            prop_assert_eq!(is_empty && cancelled.is_empty() && !scheduler.is_idle(), false);
            if !is_empty {
                let n_running = plan.rows.len();
                prop_assert!(n_running <= config.max_running_requests);
                let output = executor.execute(&plan).map_err(|e| TestCaseError::fail(e.to_string()))?;
                let events = scheduler.commit(&plan, output);
                collect(&mut results, events);
            }
            scheduler.check_integrity().unwrap();
            // Now and then a row costs so much that there are no drafts.
            scheduler.set_step_times(StepTimes::line(1.0, if i_step % 11 < 8 { 0.0 } else { 1.0 }));
            // Now and then restoring is slower.
            scheduler.set_restore_costs(RestoreCosts {
                page_s: 1.0,
                token_s: if i_step % 7 < 4 { 1.0 } else { 1e-3 },
                step_s: 1.0,
            });
            i_step += 1;
        }
        prop_assert_eq!(scheduler.stats().n_pages_used, 0);
        for i in 0..requests.len() {
            let (tokens, last) = &results[&(i as u64)];
            let alone = run_alone(&make(i), stop);
            if cancelled.contains(&(i as u64)) {
                prop_assert!(alone.starts_with(tokens), "request {i} was cancelled");
                continue;
            }
            prop_assert_eq!(tokens, &alone, "request {}", i);
            let reason = if tokens.last() == Some(&17) { FinishReason::Stop } else { FinishReason::Length };
            let Some(TokenEvent::Finished { reason: found, usage }) = last else {
                return Err(TestCaseError::fail(format!("request {i} ended with {last:?}")));
            };
            prop_assert_eq!(*found, reason);
            prop_assert_eq!(usage.prompt_tokens, requests[i].0);
            prop_assert_eq!(usage.completion_tokens, tokens.len());
            prop_assert!(usage.cached_tokens < usage.prompt_tokens);
            prop_assert!(config.radix_cache || usage.cached_tokens == 0);
        }
    }
}
