//! Cost of one step's bookkeeping: `plan` + `commit` with 256 running and 4096 waiting requests,
//! under each policy.
//!
//! `full` is the steady state: the batch is full and every row decodes. In `turnover` one request
//! ends each step and one is admitted in its place, so the queue is ordered as well; its figure is
//! the mean over prefill steps (one row, with the ordering) and decode steps (all rows).

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use engine::executor::{StepOutput, StepPlan};
use engine::request::{Request, RequestId, SampledToken, SamplingParams, TokenEvent};
use engine::scheduler::{PolicyName, Scheduler, SchedulerConfig};

const N_RUNNING: u64 = 256;
const N_WAITING: u64 = 4096;
/// Steps before the scheduler is set up anew, so that contexts stay between 96 and 352 tokens.
const N_STEPS: u64 = 256;
/// So many that no request ends by itself.
const MAX_NEW_TOKENS: usize = 1024;

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
        stop_token_ids: Arc::from([2]),
        priority: (id % 5) as i32,
    }
}

/// What an executor would return; costs little, and is part of what is measured.
fn output_of(plan: &StepPlan) -> StepOutput {
    let token = SampledToken {
        token: 9,
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let rows = plan.rows.iter().map(|row| {
        if row.sample.is_some() {
            vec![token.clone()]
        } else {
            Vec::new()
        }
    });
    StepOutput {
        rows: rows.collect(),
    }
}

fn step(scheduler: &mut Scheduler, now: Duration) -> Vec<(RequestId, TokenEvent)> {
    let plan = scheduler.plan(now);
    let output = output_of(&plan);
    scheduler.commit(&plan, output)
}

fn loaded(policy: PolicyName) -> Scheduler {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: 1 << 24,
        max_running_requests: N_RUNNING as usize,
        max_prefill_tokens: 1 << 20,
        policy,
        ..SchedulerConfig::default()
    });
    for id in 0..N_RUNNING + N_WAITING {
        if scheduler
            .add(request(id), Duration::from_micros(id))
            .is_err()
        {
            unreachable!("the pool is larger than any request");
        }
    }
    step(&mut scheduler, Duration::from_millis(5));
    assert_eq!(scheduler.stats().n_running as u64, N_RUNNING);
    scheduler
}

/// Times `n_iterations` calls of `one`, on a scheduler that is never more than [`N_STEPS`] old.
fn time_steps(
    policy: PolicyName,
    n_iterations: u64,
    mut one: impl FnMut(&mut Scheduler),
) -> Duration {
    let mut elapsed = Duration::ZERO;
    let mut n_left = n_iterations;
    while n_left > 0 {
        let mut scheduler = loaded(policy);
        let n_steps = n_left.min(N_STEPS);
        let start = Instant::now();
        for _ in 0..n_steps {
            one(&mut scheduler);
        }
        elapsed += start.elapsed();
        n_left -= n_steps;
    }
    elapsed
}

fn bench(c: &mut Criterion) {
    let now = Duration::from_millis(10);
    for policy in PolicyName::ALL {
        c.bench_function(&format!("plan_commit/full/{policy}"), |b| {
            b.iter_custom(|n| {
                time_steps(policy, n, |scheduler| {
                    black_box(step(scheduler, now));
                })
            });
        });
    }
    for policy in PolicyName::ALL {
        let mut next_id = N_RUNNING + N_WAITING;
        c.bench_function(&format!("plan_commit/turnover/{policy}"), |b| {
            b.iter_custom(|n| {
                time_steps(policy, n, |scheduler| {
                    // Prefill steps hold only the newcomer, decode steps all: either way one leaves.
                    if let Some((id, _)) = step(scheduler, now).first() {
                        scheduler.cancel(*id);
                        let arrival = Duration::from_micros(next_id);
                        black_box(scheduler.add(request(next_id), arrival).is_ok());
                        next_id += 1;
                    }
                })
            });
        });
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
