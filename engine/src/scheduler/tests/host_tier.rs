//! Evicted pages and their restoration.

use super::*;

const N_COPIES: usize = 2;

fn with_host_tier(n_pages: usize, n_host_pages: usize) -> (Scheduler, MockExecutor) {
    let config = SchedulerConfig {
        host_tier: Some(HostTierConfig {
            n_pages: n_host_pages,
            n_copies: N_COPIES,
        }),
        ..config(n_pages)
    };
    let executor = MockExecutor::new(MockConfig {
        n_pages,
        n_host_pages,
        ..MockConfig::default()
    });
    (Scheduler::new(config), executor)
}

/// Its tokens, which are the same as without a cache, and how many of them were cached.
fn run_one(scheduler: &mut Scheduler, executor: &mut MockExecutor, request: Request) -> usize {
    let id = request.id.0;
    let alone = run_alone(&request, None);
    scheduler.add(request, T0).unwrap();
    let (tokens, last) = run(scheduler, executor).remove(&id).unwrap();
    assert_eq!(tokens, alone, "request {id}");
    match last {
        Some(TokenEvent::Finished { usage, .. }) => usage.cached_tokens,
        other => panic!("{other:?} is not the end of a request"),
    }
}

/// Request 1 again, under another id.
pub(super) fn again(id: u64, n_prompt: usize, max_new_tokens: usize) -> Request {
    Request {
        id: RequestId(id),
        ..request(1, n_prompt, max_new_tokens)
    }
}

/// 10 pages: 8 for a first request, then others until nothing of it is left on the device.
pub(super) fn given_up() -> (Scheduler, MockExecutor) {
    let (mut scheduler, mut executor) = with_host_tier(10, 40);
    run_one(&mut scheduler, &mut executor, request(1, 100, 20));
    run_one(&mut scheduler, &mut executor, request(2, 140, 20));
    let found = scheduler.allocator.lookup(Prefix {
        hashes: &crate::kv::prefix::chain_hashes(&request(1, 100, 1).prompt),
        tokens: &request(1, 100, 1).prompt,
    });
    assert_eq!((found.n_device, found.n_host), (0, 6), "only on the host");
    (scheduler, executor)
}

#[test]
fn what_the_device_gave_up_comes_back_and_changes_no_token() {
    let (mut scheduler, mut executor) = given_up();
    assert_eq!(
        run_one(&mut scheduler, &mut executor, again(3, 100, 20)),
        96
    );
    let stats = scheduler.host_tier_stats();
    assert_eq!(stats.n_restored, 6);
    assert_eq!(scheduler.stats().n_cached_tokens, 96);
    assert_eq!((stats.n_declined, stats.n_pages_total), (0, 40));
    assert!(
        stats.n_offloaded >= 12 && stats.n_pages_used >= 12,
        "{stats:?}"
    );
    // Without a tier it is computed again.
    let (mut scheduler, mut executor) = (Scheduler::new(config(10)), mock(10));
    run_one(&mut scheduler, &mut executor, request(1, 100, 20));
    run_one(&mut scheduler, &mut executor, request(2, 140, 20));
    assert_eq!(run_one(&mut scheduler, &mut executor, again(3, 100, 20)), 0);
    assert!(scheduler.host_tier_stats().n_lost > 0);
}

#[test]
fn alone_all_is_restored_at_once_and_the_rest_is_computed_after_it() {
    let (mut scheduler, mut executor) = given_up();
    scheduler.add(again(3, 100, 4), T0).unwrap();
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert!(plan.rows.is_empty());
    assert_eq!(plan.copies.restores.len(), 6);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(3, 96, 4, true)]);
    assert!(plan.copies.restores.is_empty());
}

#[test]
fn decode_steps_go_on_while_pages_come_back_in_portions() {
    let (mut scheduler, mut executor) = given_up();
    scheduler.add(request(9, 10, 12), T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(again(3, 100, 4), T0).unwrap();
    // After a prefill step, decode rows run before any request is admitted.
    step(&mut scheduler, &mut executor);
    let mut n_restored = 0;
    for i in 0..3 {
        let (plan, _) = step(&mut scheduler, &mut executor);
        assert_eq!(shape(&plan), [(9, 11 + i, 1, true)], "step {i}");
        assert_eq!(plan.copies.restores.len(), N_COPIES);
        assert!(plan.copies.offloads.len() <= N_COPIES);
        n_restored += plan.copies.restores.len();
    }
    assert_eq!(n_restored, 6);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(shape(&plan), [(3, 96, 4, true)]);
    let results = run(&mut scheduler, &mut executor);
    assert_eq!(results.len(), 2);
}

#[test]
fn a_request_waits_for_pages_that_another_one_brings_back() {
    let (mut scheduler, mut executor) = given_up();
    scheduler.add(again(3, 100, 4), T0).unwrap();
    scheduler.add(again(4, 100, 4), T0).unwrap();
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(plan.copies.restores.len(), 6, "once, not twice");
    let results = run(&mut scheduler, &mut executor);
    assert_eq!(results[&3].0, results[&4].0);
    assert_eq!(scheduler.host_tier_stats().n_restored, 6);
}

#[test]
fn a_hit_that_would_be_slower_than_computing_is_not_taken() {
    let (mut scheduler, mut executor) = given_up();
    let costs = RestoreCosts {
        page_s: 1e-3,
        token_s: 1e-5,
        step_s: 0.0,
    };
    scheduler.set_restore_costs(costs);
    assert_eq!(run_one(&mut scheduler, &mut executor, again(3, 100, 20)), 0);
    let stats = scheduler.host_tier_stats();
    assert_eq!((stats.n_restored, stats.n_declined), (0, 6));
    // Computed again, they are in both tiers.
    assert_eq!(
        run_one(&mut scheduler, &mut executor, again(4, 100, 20)),
        96
    );
}

#[test]
fn the_rule_weighs_copies_and_steps_against_computing() {
    let costs = RestoreCosts {
        page_s: 1e-3,
        token_s: 1e-4,
        step_s: 10e-3,
    };
    // A page takes 1 ms to copy and 1.6 ms to compute.
    assert!(costs.is_worth_it(5, None));
    // One step for up to 8 pages, and 10 ms: 6 pages are computed in 9.6 ms, 7 in 11.2.
    assert!(!costs.is_worth_it(6, Some(8)));
    assert!(costs.is_worth_it(7, Some(8)));
    let slow_link = RestoreCosts {
        page_s: 2e-3,
        ..costs
    };
    assert!(!slow_link.is_worth_it(1000, None));
    assert!(RestoreCosts::default().is_worth_it(1, Some(1)), "unknown");
}

#[test]
fn copies_that_failed_are_forgotten_and_their_pages_computed() {
    let (mut scheduler, mut executor) = given_up();
    scheduler.add(again(3, 100, 4), T0).unwrap();
    let before = scheduler.host_tier_stats();
    let plan = scheduler.plan(T0);
    assert_eq!(plan.copies.restores.len(), 6);
    let failure = Failure::Step {
        message: "broken".into(),
    };
    assert!(scheduler.fail(&plan, &failure).is_empty(), "it had no row");
    scheduler.check_integrity().unwrap();
    let after = scheduler.host_tier_stats();
    assert_eq!(after.n_restored, 0);
    assert_eq!(after.n_pages_used, before.n_pages_used);
    let (tokens, last) = run(&mut scheduler, &mut executor).remove(&3).unwrap();
    assert_eq!(tokens, run_alone(&again(3, 100, 4), None));
    assert!(matches!(last, Some(TokenEvent::Finished { usage, .. }) if usage.cached_tokens == 0));
}

#[test]
fn a_request_that_is_cancelled_while_its_pages_come_back_gives_everything_back() {
    let (mut scheduler, mut executor) = given_up();
    scheduler.add(request(9, 10, 12), T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(again(3, 100, 4), T0).unwrap();
    step(&mut scheduler, &mut executor);
    let plan = scheduler.plan(T0);
    assert_eq!(plan.copies.restores.len(), N_COPIES);
    assert!(scheduler.cancel(RequestId(3)).is_some());
    let output = executor.execute(&plan).unwrap();
    scheduler.commit(&plan, output);
    scheduler.check_integrity().unwrap();
    let results = run(&mut scheduler, &mut executor);
    assert_eq!(results.len(), 1);
    assert_eq!(scheduler.stats().n_pages_used, 0);
    // What had been restored was kept.
    assert_eq!(run_one(&mut scheduler, &mut executor, again(4, 100, 4)), 96);
}
