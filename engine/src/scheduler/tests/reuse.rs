//! Sharing KV between requests with the same prefix.

use super::*;

/// `n_shared` tokens that are the same for all, then 20 different ones.
fn beginning_alike(id: u64, n_shared: u32, max_new_tokens: usize) -> Request {
    let own = (0..20).map(|i| 1_000_000 + id as u32 * 100 + i);
    Request {
        prompt: (0..n_shared).chain(own).collect(),
        ..request(id, 1, max_new_tokens)
    }
}

fn cached_tokens(last: Option<&TokenEvent>) -> usize {
    match last {
        Some(TokenEvent::Finished { usage, .. }) => usage.cached_tokens,
        other => panic!("{other:?} is not the end of a request"),
    }
}

fn run_one(scheduler: &mut Scheduler, executor: &mut MockExecutor, request: Request) -> usize {
    let id = request.id.0;
    let alone = run_alone(&request, None);
    scheduler.add(request, T0).unwrap();
    let (tokens, last) = run(scheduler, executor).remove(&id).unwrap();
    assert_eq!(tokens, alone, "request {id}");
    cached_tokens(last.as_ref())
}

#[test]
fn a_prefix_is_computed_once_and_reported_as_cached() {
    let (mut scheduler, mut executor) = (Scheduler::new(config(64)), mock(64));
    assert_eq!(
        run_one(&mut scheduler, &mut executor, beginning_alike(1, 100, 5)),
        0
    );
    // 100 shared tokens are 6 whole pages.
    scheduler.add(beginning_alike(2, 100, 5), T0).unwrap();
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(2, 96, 24, true)]);
    let results = run(&mut scheduler, &mut executor);
    assert_eq!(cached_tokens(results[&2].1.as_ref()), 96);
    let stats = scheduler.stats();
    assert_eq!((stats.n_prompt_tokens, stats.n_cached_tokens), (240, 96));
    // 124 computed tokens are 7 whole pages; the second request added one of its own.
    assert_eq!((stats.n_pages_used, stats.n_pages_cached), (0, 8));
}

#[test]
fn output_is_reused_as_the_beginning_of_a_longer_conversation() {
    let (mut scheduler, mut executor) = (Scheduler::new(config(64)), mock(64));
    let first = request(1, 30, 40);
    let answer = run_alone(&first, None);
    run_one(&mut scheduler, &mut executor, first.clone());
    let second = Request {
        prompt: first
            .prompt
            .iter()
            .copied()
            .chain(answer)
            .chain([7, 8, 9])
            .collect(),
        ..request(2, 1, 4)
    };
    // Of 70 tokens all but the last sampled one were computed: 4 whole pages.
    assert_eq!(run_one(&mut scheduler, &mut executor, second), 64);
}

#[test]
fn the_last_token_is_computed_even_if_all_is_cached() {
    let (mut scheduler, mut executor) = (Scheduler::new(config(64)), mock(64));
    run_one(&mut scheduler, &mut executor, request(1, 64, 5));
    let again = Request {
        id: RequestId(2),
        ..request(1, 64, 5)
    };
    assert_eq!(run_one(&mut scheduler, &mut executor, again), 48);
}

#[test]
fn without_the_cache_nothing_is_shared_or_kept() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        radix_cache: false,
        ..config(64)
    });
    let mut executor = mock(64);
    for id in 1..=2 {
        assert_eq!(
            run_one(&mut scheduler, &mut executor, beginning_alike(id, 100, 5)),
            0
        );
        assert_eq!(scheduler.stats().n_pages_cached, 0);
    }
}

#[test]
fn a_prefix_that_another_request_is_about_to_compute_is_waited_for() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(64),
        ..config(64)
    });
    let mut executor = mock(64);
    for id in [1, 2, 4] {
        scheduler.add(beginning_alike(id, 100, 3), T0).unwrap();
    }
    scheduler.add(request(3, 10, 3), T0).unwrap();
    // 2 and 4 wait for 1; 3 shares nothing and continues.
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(1, 0, 64, false), (3, 0, 10, true)]);
    let mut computed: HashMap<u64, usize> = HashMap::new();
    while !scheduler.is_idle() {
        for row in step(&mut scheduler, &mut executor).0.rows {
            *computed.entry(row.request.0).or_default() += row.tokens.len();
        }
    }
    // Decode rows compute 2 tokens each; of the prompts, 2 and 4 compute only their unshared part.
    assert_eq!((computed[&2], computed[&4]), (24 + 2, 24 + 2));
}

#[test]
fn who_waited_for_a_prefix_computes_it_when_its_maker_is_cancelled() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(32),
        ..config(64)
    });
    let mut executor = mock(64);
    for id in 1..=2 {
        scheduler.add(beginning_alike(id, 100, 3), T0).unwrap();
    }
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(1, 0, 32, false)]);
    scheduler.cancel(RequestId(1));
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(2, 32, 32, false)]);
    run(&mut scheduler, &mut executor);
}

#[test]
fn what_was_not_used_for_longest_is_given_up_first() {
    // Room for three prompts of 4 pages each, and one page each for decoding.
    let (mut scheduler, mut executor) = (Scheduler::new(config(13)), mock(13));
    for id in 1..=3 {
        run_one(&mut scheduler, &mut executor, request(id, 65, 2));
    }
    let again = |id: u64, of: u64| Request {
        id: RequestId(id),
        ..request(of, 65, 2)
    };
    assert_eq!(run_one(&mut scheduler, &mut executor, again(11, 1)), 64);
    // 4 replaces 2, the only one that was neither used again nor the last.
    assert_eq!(run_one(&mut scheduler, &mut executor, request(4, 65, 2)), 0);
    assert_eq!(run_one(&mut scheduler, &mut executor, again(12, 1)), 64);
    assert_eq!(run_one(&mut scheduler, &mut executor, again(13, 3)), 64);
    assert_eq!(run_one(&mut scheduler, &mut executor, again(14, 4)), 64);
    assert_eq!(run_one(&mut scheduler, &mut executor, again(15, 2)), 0);
}

#[test]
fn a_full_cache_never_keeps_a_request_from_running() {
    let (mut scheduler, mut executor) = (Scheduler::new(config(8)), mock(8));
    for id in 0..20 {
        assert_eq!(
            run_one(&mut scheduler, &mut executor, request(id, 100, 20)),
            0
        );
        assert!(scheduler.stats().n_pages_cached >= 7);
    }
    assert_eq!(scheduler.stats().n_preemptions, 0);
}

#[test]
fn a_preempted_request_finds_what_it_had_computed() {
    let (mut scheduler, mut executor) = (Scheduler::new(config(7)), mock(7));
    for id in 1..=2 {
        scheduler.add(request(id, 33, 40), T0).unwrap();
    }
    let mut n_computed = 0;
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        n_computed += plan.rows.iter().map(|row| row.tokens.len()).sum::<usize>();
    }
    assert!(scheduler.stats().n_preemptions > 0);
    let without_preemption = 2 * (33 + 39);
    // Some of what was preempted was evicted, but not all of it.
    assert!(
        n_computed < without_preemption + 33,
        "{n_computed} tokens were computed"
    );
}
