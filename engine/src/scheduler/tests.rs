//! Tables for each rule, and random workloads against the mock executor.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::policy::{Candidate, MAX_HANDICAP_US};
use super::*;
use crate::executor::mock::{MockConfig, MockExecutor};
use crate::executor::{Executor, StepOutput};
use crate::kv::PAGE_TOKENS;
use crate::request::{SampledToken, SamplingParams, Usage};

fn request(id: u64, n_prompt: usize, max_new_tokens: usize) -> Request {
    Request {
        id: RequestId(id),
        prompt: (0..n_prompt as u32)
            .map(|i| i * 31 + id as u32 * 1009)
            .collect(),
        sampling: Arc::new(SamplingParams::default()),
        max_new_tokens,
        stop_token_ids: Arc::from([]),
        priority: 0,
    }
}

fn mock(n_pages: usize) -> MockExecutor {
    MockExecutor::new(MockConfig {
        n_pages,
        ..MockConfig::default()
    })
}

fn config(n_pages: usize) -> SchedulerConfig {
    SchedulerConfig {
        max_total_tokens: n_pages * PAGE_TOKENS,
        ..SchedulerConfig::default()
    }
}

const T0: Duration = Duration::ZERO;

fn shape(plan: &StepPlan) -> Vec<(u64, usize, usize, bool)> {
    plan.rows
        .iter()
        .map(|row| {
            (
                row.request.0,
                row.start,
                row.tokens.len(),
                row.sample.is_some(),
            )
        })
        .collect()
}

fn step(scheduler: &mut Scheduler, executor: &mut MockExecutor) -> (StepPlan, sequence::Events) {
    let plan = scheduler.plan(T0);
    let output = executor.execute(&plan).unwrap();
    let events = scheduler.commit(&plan, output);
    scheduler.check_integrity().unwrap();
    (plan, events)
}

/// Runs until idle and returns each request's tokens and last event.
fn run(
    scheduler: &mut Scheduler,
    executor: &mut MockExecutor,
) -> HashMap<u64, (Vec<u32>, Option<TokenEvent>)> {
    let mut results: HashMap<u64, (Vec<u32>, Option<TokenEvent>)> = HashMap::new();
    let mut n_steps = 0;
    while !scheduler.is_idle() {
        n_steps += 1;
        assert!(n_steps < 100_000, "livelock: {:?}", scheduler.stats());
        let (plan, events) = step(scheduler, executor);
        assert!(!plan.rows.is_empty(), "an empty plan with work left");
        collect(&mut results, events);
    }
    results
}

fn collect(
    results: &mut HashMap<u64, (Vec<u32>, Option<TokenEvent>)>,
    events: Vec<(RequestId, TokenEvent)>,
) {
    for (id, event) in events {
        let (tokens, last) = results.entry(id.0).or_default();
        assert_eq!(
            *last, None,
            "request {id} got {event:?} after its last event"
        );
        match event {
            TokenEvent::Token(token) => tokens.push(token.token),
            event => *last = Some(event),
        }
    }
}

fn run_alone(request: &Request, stop: Option<(u32, u64)>) -> Vec<u32> {
    let n_pages = pages_for(request.prompt.len() + request.max_new_tokens);
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: None,
        ..config(n_pages)
    });
    let mut executor = MockExecutor::new(MockConfig {
        n_pages,
        stop,
        ..MockConfig::default()
    });
    scheduler.add(request.clone(), T0).unwrap();
    run(&mut scheduler, &mut executor)
        .remove(&request.id.0)
        .unwrap()
        .0
}

#[test]
fn a_prompt_is_computed_in_chunks_and_then_decoded() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(40),
        max_prefill_tokens: 64,
        ..config(64)
    });
    let mut executor = mock(64);
    scheduler.add(request(1, 90, 2), T0).unwrap();
    let shapes: Vec<_> = (0..4)
        .map(|_| shape(&step(&mut scheduler, &mut executor).0))
        .collect();
    assert_eq!(
        shapes,
        [
            vec![(1, 0, 40, false)],
            vec![(1, 40, 40, false)],
            vec![(1, 80, 10, true)],
            vec![(1, 90, 1, true)],
        ]
    );
    assert!(scheduler.is_idle());
    assert_eq!(scheduler.stats().n_pages_used, 0);
}

#[test]
fn the_step_budget_is_shared_between_prompts() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(40),
        max_prefill_tokens: 64,
        ..config(64)
    });
    for id in 1..=3 {
        scheduler.add(request(id, 50, 4), T0).unwrap();
    }
    let plan = scheduler.plan(T0);
    assert_eq!(shape(&plan), [(1, 0, 40, false), (2, 0, 24, false)]);
}

#[test]
fn without_chunking_a_prompt_stays_whole_and_over_the_budget_runs_alone() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: None,
        max_prefill_tokens: 64,
        ..config(64)
    });
    let mut executor = mock(64);
    for (id, n_prompt) in [(1, 100), (2, 30), (3, 30), (4, 30)] {
        scheduler.add(request(id, n_prompt, 1), T0).unwrap();
    }
    assert_eq!(
        shape(&step(&mut scheduler, &mut executor).0),
        [(1, 0, 100, true)]
    );
    let second = shape(&step(&mut scheduler, &mut executor).0);
    assert_eq!(second, [(2, 0, 30, true), (3, 0, 30, true)]);
}

#[test]
fn prefill_and_decode_take_turns() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(16),
        max_prefill_tokens: 16,
        ..config(64)
    });
    let mut executor = mock(64);
    scheduler.add(request(1, 10, 20), T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(request(2, 64, 20), T0).unwrap();
    let kinds: Vec<_> = (0..7)
        .map(|_| StepKind::of(&step(&mut scheduler, &mut executor).0))
        .collect();
    use StepKind::{Decode, Prefill};
    assert_eq!(
        kinds,
        [Decode, Prefill, Decode, Prefill, Decode, Prefill, Decode]
    );
}

#[test]
fn with_mixed_chunk_decode_rows_ride_along_at_the_chunks_cost() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(16),
        mixed_chunk: true,
        n_continuous_decode_steps: 4,
        ..config(64)
    });
    let mut executor = mock(64);
    scheduler.add(request(1, 10, 20), T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(request(2, 40, 20), T0).unwrap();
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(2, 0, 15, false), (1, 10, 1, true)]);
    assert_eq!((StepKind::of(&plan), plan.n_steps), (StepKind::Mixed, 1));
    step(&mut scheduler, &mut executor);
    step(&mut scheduler, &mut executor);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!((StepKind::of(&plan), plan.n_steps), (StepKind::Decode, 4));
}

#[test]
fn a_burst_is_no_longer_than_its_shortest_row() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        n_continuous_decode_steps: 4,
        ..config(64)
    });
    let mut executor = mock(64);
    scheduler.add(request(1, 10, 4), T0).unwrap();
    scheduler.add(request(2, 10, 9), T0).unwrap();
    let n_steps: Vec<_> = (0..4)
        .map(|_| step(&mut scheduler, &mut executor).0.n_steps)
        .collect();
    // Prefill makes token 1; request 1 has 3 left, then request 2 has 5 left.
    assert_eq!(n_steps, [1, 3, 4, 1]);
    assert!(scheduler.is_idle());
}

#[test]
fn a_burst_shrinks_to_the_pages_that_are_left() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        n_continuous_decode_steps: 8,
        ..config(2)
    });
    let mut executor = mock(2);
    scheduler.add(request(1, 12, 8), T0).unwrap();
    step(&mut scheduler, &mut executor);
    // 19 tokens' KV would need 2 pages: both are there.
    assert_eq!(step(&mut scheduler, &mut executor).0.n_steps, 7);

    let mut scheduler = Scheduler::new(SchedulerConfig {
        n_continuous_decode_steps: 8,
        ..config(3)
    });
    let mut executor = mock(3);
    scheduler.add(request(1, 12, 20), T0).unwrap();
    scheduler.add(request(2, 12, 20), T0).unwrap();
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(plan.rows.len(), 2, "one page each, and a spare one");
    // 4 tokens fit the present pages; for the 5th both would need a page and one is left.
    assert_eq!(step(&mut scheduler, &mut executor).0.n_steps, 4);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(
        shape(&plan),
        [(1, 16, 1, true)],
        "the last admitted one is preempted"
    );
    assert_eq!(scheduler.stats().n_preemptions, 1);
}

#[test]
fn a_stop_id_inside_a_burst_discards_the_rest() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        n_continuous_decode_steps: 4,
        ..config(8)
    });
    let script: Arc<[u32]> = Arc::from([5, 6, 7, 8, 9]);
    let mut executor = MockExecutor::new(MockConfig {
        n_pages: 8,
        script: Some(script),
        ..MockConfig::default()
    });
    let stop = Request {
        stop_token_ids: Arc::from([7]),
        ..request(1, 3, 10)
    };
    scheduler.add(stop, T0).unwrap();
    let results = run(&mut scheduler, &mut executor);
    let usage = Usage {
        prompt_tokens: 3,
        completion_tokens: 3,
        cached_tokens: 0,
    };
    let last = TokenEvent::Finished {
        reason: FinishReason::Stop,
        usage,
    };
    assert_eq!(results[&1], (vec![5, 6, 7], Some(last)));
}

#[test]
fn preemption_changes_no_token() {
    // 6 requests of up to 4 pages each on 7 pages.
    let requests: Vec<_> = (0..6).map(|id| request(id, 20 + id as usize, 40)).collect();
    let mut scheduler = Scheduler::new(config(7));
    let mut executor = mock(7);
    for request in &requests {
        scheduler.add(request.clone(), T0).unwrap();
    }
    let results = run(&mut scheduler, &mut executor);
    assert!(scheduler.stats().n_preemptions > 0);
    assert_eq!(scheduler.stats().n_pages_used, 0);
    for request in &requests {
        assert_eq!(
            results[&request.id.0].0,
            run_alone(request, None),
            "request {}",
            request.id
        );
    }
}

#[test]
fn cancel_frees_pages_at_once_wherever_the_request_is() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 2,
        ..config(16)
    });
    let mut executor = mock(16);
    for id in 1..=3 {
        scheduler.add(request(id, 20, 10), T0).unwrap();
    }
    step(&mut scheduler, &mut executor);
    let plan = scheduler.plan(T0);
    let used_before = scheduler.stats().n_pages_used;
    // Running, with a step under way.
    let usage = Usage {
        prompt_tokens: 20,
        completion_tokens: 1,
        cached_tokens: 0,
    };
    let last = TokenEvent::Finished {
        reason: FinishReason::Cancelled,
        usage,
    };
    assert_eq!(scheduler.cancel(RequestId(1)), Some(last));
    assert_eq!(scheduler.stats().n_pages_used, used_before - 2);
    assert_eq!(scheduler.cancel(RequestId(1)), None);
    // Waiting.
    assert!(scheduler.cancel(RequestId(3)).is_some());
    let output = executor.execute(&plan).unwrap();
    let events = scheduler.commit(&plan, output);
    assert_eq!(events.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [2]);
    scheduler.cancel(RequestId(2));
    assert!(scheduler.is_idle());
    scheduler.check_integrity().unwrap();
    assert_eq!(scheduler.stats().n_pages_used, 0);
    assert!(scheduler.plan(T0).rows.is_empty());
}

#[test]
fn a_failed_step_ends_its_requests_only() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 1,
        ..config(16)
    });
    let mut executor = mock(16);
    scheduler.add(request(1, 20, 10), T0).unwrap();
    scheduler.add(request(2, 20, 3), T0).unwrap();
    let plan = scheduler.plan(T0);
    let events = scheduler.fail(&plan, "broken");
    assert_eq!(
        events,
        [(
            RequestId(1),
            TokenEvent::Failed {
                message: "broken".into()
            }
        )]
    );
    scheduler.check_integrity().unwrap();
    let results = run(&mut scheduler, &mut executor);
    assert_eq!(results[&2].0, run_alone(&request(2, 20, 3), None));
}

#[test]
fn an_executor_that_returns_too_little_or_too_much_does_no_harm() {
    let mut scheduler = Scheduler::new(config(16));
    scheduler.add(request(1, 5, 10), T0).unwrap();
    scheduler.add(request(2, 5, 10), T0).unwrap();
    let plan = scheduler.plan(T0);
    let token = SampledToken {
        token: 3,
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let output = StepOutput {
        rows: vec![vec![token.clone(), token.clone()]],
    };
    let events = scheduler.commit(&plan, output);
    assert_eq!(events[0], (RequestId(1), TokenEvent::Token(token)));
    assert!(matches!(
        events[1],
        (RequestId(2), TokenEvent::Failed { .. })
    ));
    assert_eq!(events.len(), 2);
    scheduler.check_integrity().unwrap();
}

#[test]
fn what_could_never_run_is_refused_with_the_limit() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: 100,
        ..SchedulerConfig::default()
    });
    let error = scheduler.add(request(1, 90, 7), T0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "90 prompt tokens and 7 output tokens exceed the KV pool of 96 tokens"
    );
    assert_eq!(
        scheduler.add(request(1, 0, 7), T0),
        Err(AddError::EmptyPrompt)
    );
    assert_eq!(scheduler.add(request(1, 4, 0), T0), Err(AddError::NoOutput));
    assert!(scheduler.add(request(1, 4, usize::MAX), T0).is_err());
    scheduler.add(request(1, 90, 6), T0).unwrap();
    assert_eq!(
        scheduler.add(request(1, 9, 6), T0),
        Err(AddError::Duplicate(RequestId(1)))
    );
}

/// Ids in the order in which they are admitted, one at a time.
fn admission_order(policy: PolicyName, requests: Vec<(Request, Duration)>) -> Vec<u64> {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 1,
        policy,
        policy_seed: 7,
        ..config(256)
    });
    let mut executor = mock(256);
    for (request, arrival) in requests {
        scheduler.add(request, arrival).unwrap();
    }
    let mut order = Vec::new();
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        for row in plan.rows {
            if order.last() != Some(&row.request.0) {
                order.push(row.request.0);
            }
        }
    }
    order
}

#[test]
fn each_policy_has_its_order() {
    let at_once = |requests: Vec<Request>| requests.into_iter().map(|r| (r, T0)).collect();
    let mixed = || {
        at_once(vec![
            request(1, 50, 30),
            request(2, 10, 40),
            request(3, 20, 5),
        ])
    };
    assert_eq!(admission_order(PolicyName::Fcfs, mixed()), [1, 2, 3]);
    assert_eq!(admission_order(PolicyName::Lof, mixed()), [3, 2, 1]);
    assert_eq!(
        admission_order(PolicyName::LongestOutputFirst, mixed()),
        [2, 1, 3]
    );
    assert_eq!(admission_order(PolicyName::Lpm, mixed()), [1, 2, 3]);
    assert_eq!(admission_order(PolicyName::DfsWeight, mixed()), [1, 2, 3]);

    let with_priority = |id, priority| Request {
        priority,
        ..request(id, 5, 2)
    };
    let order = admission_order(
        PolicyName::Priority,
        at_once(vec![
            with_priority(1, 0),
            with_priority(2, -1),
            with_priority(3, 2),
        ]),
    );
    assert_eq!(order, [3, 1, 2]);

    let many = || at_once((0..20).map(|id| request(id, 5, 2)).collect());
    let random = admission_order(PolicyName::Random, many());
    assert_ne!(random, (0..20).collect::<Vec<_>>());
    assert_eq!(
        random,
        admission_order(PolicyName::Random, many()),
        "seeded"
    );
}

fn with_prompt(id: u64, prompt: Vec<u32>) -> Request {
    Request {
        prompt: prompt.into(),
        ..request(id, 1, 2)
    }
}

#[test]
fn lpm_prefers_what_shares_a_prefix_with_the_running() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 2,
        policy: PolicyName::Lpm,
        ..config(64)
    });
    let mut executor = mock(64);
    let system: Vec<u32> = (500..540).collect();
    let long = Request {
        max_new_tokens: 50,
        ..with_prompt(1, system.clone())
    };
    scheduler.add(long, T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(request(2, 40, 2), T0).unwrap();
    scheduler
        .add(with_prompt(3, [&system[..], &[1, 2, 3]].concat()), T0)
        .unwrap();
    step(&mut scheduler, &mut executor);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(3, 0, 43, true)]);
}

#[test]
fn dfs_weight_walks_the_heaviest_subtree_first() {
    let prefix = |first: u32, tail: u32| {
        let mut prompt: Vec<u32> = (first..first + 32).collect();
        prompt.extend(tail..tail + 16);
        prompt
    };
    let requests = vec![
        with_prompt(1, prefix(1000, 0)),
        with_prompt(2, prefix(2000, 0)),
        with_prompt(3, vec![9; 4]),
        with_prompt(4, prefix(1000, 50)),
        with_prompt(5, prefix(2000, 50)),
        with_prompt(6, prefix(2000, 50)),
        with_prompt(7, (2000..2032).collect()),
    ];
    let mut scheduler = Scheduler::new(SchedulerConfig {
        policy: PolicyName::DfsWeight,
        ..config(256)
    });
    for request in requests {
        scheduler.add(request, T0).unwrap();
    }
    let admitted = |plan: &StepPlan| {
        plan.rows
            .iter()
            .map(|row| row.request.0)
            .collect::<Vec<_>>()
    };
    let (plan, _) = step(&mut scheduler, &mut mock(256));
    // 2000…: four, with the prompt that is the prefix itself first, then the pair; 1000…: two.
    assert_eq!(admitted(&plan), [7, 5, 6, 2, 1, 4, 3]);

    // A light subtree that is running goes before a heavy one that is not.
    for id in [11, 12] {
        scheduler.add(with_prompt(id, prefix(3000, 0)), T0).unwrap();
    }
    scheduler
        .add(with_prompt(13, prefix(1000, 99)), T0)
        .unwrap();
    scheduler.decode_is_due = false;
    assert_eq!(admitted(&scheduler.plan(T0)), [13, 11, 12]);
}

#[test]
fn policies_are_named_as_on_the_command_line() {
    for policy in PolicyName::ALL {
        assert_eq!(policy.as_str().parse(), Ok(policy));
    }
    let error = "lpmm".parse::<PolicyName>().unwrap_err().to_string();
    assert!(error.contains("\"lpmm\""), "{error}");
    for policy in PolicyName::ALL {
        assert!(error.contains(policy.as_str()), "{error}");
    }
}

#[test]
fn nothing_starves_under_any_policy() {
    // The worst case of each policy against a stream of requests that it prefers, one every
    // 10 ms for twice the documented bound, on an engine that runs one request per arrival.
    let bound = Duration::from_micros(2 * MAX_HANDICAP_US as u64);
    for policy in PolicyName::ALL {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            max_running_requests: 1,
            policy,
            ..config(4096)
        });
        let disliked = match policy {
            PolicyName::LongestOutputFirst => request(0, 10, 1),
            _ => Request {
                priority: i32::MIN,
                ..request(0, 30_000, 30_000)
            },
        };
        scheduler.add(disliked, T0).unwrap();
        scheduler.add(request(1, 10, 1), T0).unwrap();
        let mut now = T0;
        let mut next_id = 2;
        let admitted_at = loop {
            let plan = scheduler.plan(now);
            if plan.rows.iter().any(|row| row.request.0 == 0) {
                break now;
            }
            let token = SampledToken {
                token: 0,
                logprob: None,
                top_logprobs: Vec::new(),
            };
            let output = StepOutput {
                rows: vec![vec![token]; plan.rows.len()],
            };
            scheduler.commit(&plan, output);
            now += Duration::from_millis(10);
            assert!(now <= bound + Duration::from_secs(1), "{policy} starves");
            let n_output = if policy == PolicyName::LongestOutputFirst {
                30_000
            } else {
                1
            };
            scheduler
                .add(
                    Request {
                        priority: i32::MAX,
                        ..request(next_id, 10, n_output)
                    },
                    now,
                )
                .unwrap();
            if let PolicyName::LongestOutputFirst = policy {
                // Let it end after its first token, whatever it was allowed.
                scheduler
                    .running
                    .iter_mut()
                    .for_each(|s| s.request.max_new_tokens = 1);
            }
            next_id += 1;
        };
        assert!(admitted_at <= bound, "{policy}: {admitted_at:?}");
    }
}

proptest! {
    #[test]
    fn order_of_two_waiting_requests_never_depends_on_the_present(
        a in (0u64..500_000_000, 0usize..100_000, 0usize..100_000, any::<i32>()),
        gap_us in 2 * MAX_HANDICAP_US as u64..1_000_000_000,
        b in (0usize..100_000, 0usize..100_000, any::<i32>()),
    ) {
        for policy in PolicyName::ALL {
            let policy = policy.build(3);
            let candidate = |id, n_uncomputed_tokens, n_output_left, priority| Candidate {
                request: RequestId(id),
                n_uncomputed_tokens,
                n_output_left,
                priority,
                prefix_hashes: &[],
            };
            let start = |arrival_us, candidate: &Candidate<'_>| {
                let arrival = Duration::from_micros(arrival_us);
                waiting::virtual_start_us(arrival, policy.handicap_us(candidate))
            };
            let earlier = start(a.0, &candidate(1, a.1, a.2, a.3));
            let later = start(a.0 + gap_us, &candidate(2, b.0, b.1, b.2));
            prop_assert!(earlier <= later, "{policy:?}: {earlier} > {later}");
        }
    }
}

#[derive(Debug, Clone)]
struct Workload {
    config: SchedulerConfig,
    /// Prompt length, output length, arrival step, cancelled after so many steps.
    requests: Vec<(usize, usize, usize, Option<usize>)>,
    stop: Option<(u32, u64)>,
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
        )
            .prop_map(
                move |(running, prefill, chunk, mixed_chunk, n_continuous, policy)| {
                    SchedulerConfig {
                        max_total_tokens: n_tokens,
                        max_running_requests: running,
                        max_prefill_tokens: prefill,
                        chunked_prefill_size: chunk,
                        mixed_chunk,
                        n_continuous_decode_steps: n_continuous,
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
        (config, prop::collection::vec(one, 1..14), stop).prop_map(|(config, requests, stop)| {
            Workload {
                config,
                requests,
                stop,
            }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the workload: every request ends, gets the tokens that it gets alone, and no page
    /// is lost.
    #[test]
    fn random_workloads_finish_with_the_right_tokens(workload in workload()) {
        let Workload { config, requests, stop } = workload;
        let n_pages = config.max_total_tokens / PAGE_TOKENS;
        let mut executor = MockExecutor::new(MockConfig { n_pages, stop, ..MockConfig::default() });
        let mut scheduler = Scheduler::new(config.clone());
        let make = |i: usize| {
            let (n_prompt, max_new_tokens, ..) = requests[i];
            let sampling = SamplingParams {
                temperature: (i % 2) as f32,
                seed: i as u64,
                presence_penalty: (i % 3) as f32,
                ..SamplingParams::default()
            };
            // Every other prompt begins like the first, for the policies that look at prefixes.
            let salt = if i.is_multiple_of(2) { 0 } else { i as u32 };
            Request {
                prompt: (0..n_prompt as u32).map(|t| t * 7 + salt * 100_003).collect(),
                sampling: Arc::new(sampling),
                stop_token_ids: Arc::from([17]),
                ..request(i as u64, n_prompt, max_new_tokens)
            }
        };
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
            prop_assert_eq!(plan.rows.is_empty() && cancelled.is_empty() && !scheduler.is_idle(), false);
            if !plan.rows.is_empty() {
                let n_running = plan.rows.len();
                prop_assert!(n_running <= config.max_running_requests);
                let output = executor.execute(&plan).map_err(|e| TestCaseError::fail(e.to_string()))?;
                let events = scheduler.commit(&plan, output);
                collect(&mut results, events);
            }
            scheduler.check_integrity().unwrap();
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
            let usage = Usage {
                prompt_tokens: requests[i].0,
                completion_tokens: tokens.len(),
                cached_tokens: 0,
            };
            prop_assert_eq!(last, &Some(TokenEvent::Finished { reason, usage }));
        }
    }
}
