//! Which prompt tokens a step computes, and when decode has its turn.

use super::*;

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
