//! Several decode steps in one plan.

use super::*;

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
