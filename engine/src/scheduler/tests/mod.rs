//! Tables for each rule, and random workloads against the mock executor.

mod bursts;
mod chunks;
mod lifecycle;
mod policies;
mod random_workloads;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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
