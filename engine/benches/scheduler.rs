//! Cost of one step's bookkeeping, `plan` + `commit`, with 256 running and 4,096 waiting requests,
//! under each policy. Limit: 50 µs.
//!
//! - `full`: the batch is full and every row decodes.
//! - `turnover`: one request ends each step and one is admitted in its place, so the queue is
//!   ordered as well; the mean over prefill steps (one row) and decode steps (all rows).
//! - `mixed`: the same with decode rows riding along in prefill steps, so that each step does all of
//!   it.
//!
//! What the executor does, and the arrival of new requests, is not in the figures.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use engine::request::{Request, RequestId, SampledToken, SamplingParams};
use engine::scheduler::{PolicyName, Scheduler, SchedulerConfig};
use engine::step::{RowOutput, StepOutput, StepPlan};

const N_RUNNING: u64 = 256;
const N_WAITING: u64 = 4096;
/// Steps before the scheduler is set up anew, so that contexts stay between 96 and 352 tokens.
const N_STEPS: u64 = 256;
/// High enough that no request reaches its end.
const MAX_NEW_TOKENS: usize = 1024;
const STOP_TOKEN: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Load {
    Full,
    Turnover,
    Mixed,
}

fn request(id: u64) -> Request {
    // 64 prompts' beginnings, so that the prefix policies have something to compare.
    let group = (id % 64) as u32;
    let prompt = (0..96).map(|i| {
        if i < 48 {
            i + group * 1000
        } else {
            i + id as u32 * 7
        }
    });
    Request {
        id: RequestId(id),
        prompt: prompt.collect(),
        sampling: Arc::new(SamplingParams::default()),
        max_new_tokens: MAX_NEW_TOKENS,
        stop_token_ids: Arc::from([STOP_TOKEN]),
        priority: (id % 5) as i32,
        prefix_root: 0,
    }
}

/// What an executor would return; with `one_stops`, the row in the middle stops.
fn output_of(plan: &StepPlan, one_stops: bool) -> StepOutput {
    let middle = plan.rows.len() / 2;
    let rows = plan.rows.iter().enumerate().map(|(i, row)| {
        if row.sample.is_none() {
            return RowOutput::default();
        }
        let stops = one_stops && i == middle;
        vec![SampledToken {
            token: if stops { STOP_TOKEN } else { 9 },
            logprob: None,
            top_logprobs: Vec::new(),
        }]
        .into()
    });
    StepOutput {
        rows: rows.collect(),
    }
}

/// One step, and what `plan` and `commit` took of it.
fn step(scheduler: &mut Scheduler, one_stops: bool) -> Duration {
    let now = Duration::from_millis(10);
    let start = Instant::now();
    let plan = scheduler.plan(now);
    let planned = start.elapsed();
    let output = output_of(&plan, one_stops);
    let start = Instant::now();
    let events = scheduler.commit(&plan, output);
    scheduler.reuse(plan);
    let committed = start.elapsed();
    black_box(events);
    planned + committed
}

fn loaded(policy: PolicyName, load: Load) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: 1 << 18,
        max_running_requests: N_RUNNING as usize,
        max_prefill_tokens: 1 << 20,
        mixed_chunk: load == Load::Mixed,
        policy,
        ..SchedulerConfig::default()
    });
    for id in 0..N_RUNNING + N_WAITING {
        add(&mut scheduler, id);
    }
    // Who shares a beginning with another one waits for it, so this takes several steps.
    while (scheduler.stats().n_running as u64) < N_RUNNING {
        step(&mut scheduler, false);
    }
    // All of them decode, and the memory of a full plan is there.
    for _ in 0..4 {
        step(&mut scheduler, false);
    }
    scheduler
}

fn add(scheduler: &mut Scheduler, id: u64) {
    let arrival = Duration::from_micros(id);
    if let Err(error) = scheduler.add(request(id), arrival) {
        unreachable!("the pool is larger than any request: {error}");
    }
}

fn time_steps(policy: PolicyName, load: Load, n_iterations: u64) -> Duration {
    let mut elapsed = Duration::ZERO;
    let mut n_left = n_iterations;
    while n_left > 0 {
        let mut scheduler = loaded(policy, load);
        let mut next_id = N_RUNNING + N_WAITING;
        let n_steps = n_left.min(N_STEPS);
        for _ in 0..n_steps {
            elapsed += step(&mut scheduler, load != Load::Full);
            if load != Load::Full {
                add(&mut scheduler, next_id);
                next_id += 1;
            }
        }
        n_left -= n_steps;
    }
    elapsed
}

fn bench(c: &mut Criterion) {
    for (name, load) in [
        ("full", Load::Full),
        ("turnover", Load::Turnover),
        ("mixed", Load::Mixed),
    ] {
        for policy in PolicyName::ALL {
            c.bench_function(&format!("plan_commit/{name}/{policy}"), |b| {
                b.iter_custom(|n| time_steps(policy, load, n));
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = bench
}
criterion_main!(benches);
