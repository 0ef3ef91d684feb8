//! Tables for each rule, against the mock executor.

mod ahead;
mod drafts;
mod guided;
mod host_tier;
mod pays;
mod policies;
mod purity;
mod random;
mod reuse;
mod row_errors;
mod scores;
mod waits;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::policy::{Candidate, MAX_HANDICAP_US};
use super::*;
use crate::executor::Executor;
use crate::executor::mock::{MockConfig, MockExecutor};
use crate::kv::{PAGE_TOKENS, pages_for};
use crate::request::{Failure, SampledToken, SamplingParams, Usage};
use crate::step::StepOutput;

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
        prefix_root: 0,
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
        let does_something = !plan.rows.is_empty() || !plan.copies.is_empty();
        assert!(does_something, "an empty plan with work left");
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
        ..Usage::default()
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
    // Running, with a step in progress.
    let usage = Usage {
        prompt_tokens: 20,
        completion_tokens: 1,
        cached_tokens: 0,
        ..Usage::default()
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
    let failure = Failure::Step {
        message: "broken".into(),
    };
    let events = scheduler.fail(&plan, &failure);
    assert_eq!(events, [(RequestId(1), TokenEvent::Failed(failure))]);
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
        rows: vec![vec![token.clone(), token.clone()].into()],
    };
    let events = scheduler.commit(&plan, output);
    assert_eq!(events[0], (RequestId(1), TokenEvent::Token(token)));
    assert!(matches!(events[1], (RequestId(2), TokenEvent::Failed(_))));
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
    assert!(scheduler.add(request(1, 4, usize::MAX), T0).is_err());
    scheduler.add(request(1, 90, 6), T0).unwrap();
    assert_eq!(
        scheduler.add(request(1, 9, 6), T0),
        Err(AddError::Duplicate(RequestId(1)))
    );
}
