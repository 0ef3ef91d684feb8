//! Every reason why a request waits, as the plan that left it out recorded it.

use super::*;
use crate::scheduler::WaitReason::{
    self, BatchFull, Grammar, New, Order, Pages, Preempted, Restore, SharedPrefix, TokenBudget,
};
use crate::scheduler::tests::guided::{guided, guided_step};
use crate::scheduler::tests::host_tier::{again, given_up};

/// The waiting requests in their order, or the running ones, with their reasons.
fn waits(scheduler: &Scheduler, are_running: bool) -> Vec<(u64, Option<WaitReason>)> {
    let views = scheduler.requests(T0, usize::MAX).into_iter();
    let those = views.filter(|view| view.is_running == are_running);
    those.map(|view| (view.id.0, view.wait)).collect()
}

fn waiting(scheduler: &Scheduler) -> Vec<(u64, WaitReason)> {
    let waits = waits(scheduler, false).into_iter();
    waits
        .map(|(id, wait)| (id, wait.expect("a reason")))
        .collect()
}

#[test]
fn the_first_waits_for_pages_and_the_others_for_it() {
    let mut scheduler = Scheduler::new(config(8));
    for (id, n_prompt) in [(1, 80), (2, 64), (3, 16)] {
        scheduler.add(request(id, n_prompt, 1), T0).unwrap();
    }
    assert_eq!(waiting(&scheduler), [(1, New), (2, New), (3, New)]);
    step(&mut scheduler, &mut mock(8));
    scheduler.add(request(4, 16, 1), T0).unwrap();
    // Four pages and one to spare for the first request, of the three that are left.
    let pages = Pages {
        n_needed: 5,
        n_available: 3,
    };
    assert_eq!(waiting(&scheduler), [(2, pages), (3, Order), (4, New)]);
}

#[test]
fn a_full_batch_holds_up_all_of_the_queue() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 1,
        ..config(64)
    });
    let mut executor = mock(64);
    for id in 1..=3 {
        scheduler.add(request(id, 16, 9), T0).unwrap();
    }
    let full = BatchFull { limit: 1 };
    for _ in 0..4 {
        step(&mut scheduler, &mut executor);
        assert_eq!(waiting(&scheduler), [(2, full), (3, full)]);
    }
    let views = scheduler.requests(Duration::from_secs(3), 2);
    assert_eq!((views.len(), views[1].id.0), (2, 2));
    let (first, age) = (&views[0], Duration::from_secs(3));
    assert_eq!((first.n_prompt, first.n_computed, first.age), (16, 19, age));
    assert_eq!(
        (first.n_output, first.max_new_tokens, first.wait),
        (4, 9, None)
    );
}

#[test]
fn a_steps_tokens_hold_up_running_and_waiting_prompts() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(40),
        max_prefill_tokens: 64,
        ..config(64)
    });
    let mut executor = mock(64);
    for id in 1..=3 {
        scheduler.add(request(id, 200, 1), T0).unwrap();
    }
    step(&mut scheduler, &mut executor);
    let spent = TokenBudget { limit: 64 };
    assert_eq!(waits(&scheduler, true), [(1, None), (2, None)]);
    assert_eq!(waiting(&scheduler), [(3, spent)]);
    // With a smaller piece each, a third prompt is admitted, and then finds nothing left.
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(40),
        max_prefill_tokens: 80,
        ..config(64)
    });
    scheduler.add(request(1, 100, 1), T0).unwrap();
    scheduler.add(request(2, 60, 1), T0).unwrap();
    for _ in 0..2 {
        step(&mut scheduler, &mut executor);
    }
    for id in 3..=5 {
        scheduler.add(request(id, 100, 1), T0).unwrap();
    }
    step(&mut scheduler, &mut executor);
    step(&mut scheduler, &mut executor);
    let spent = TokenBudget { limit: 80 };
    assert_eq!(waiting(&scheduler).last(), Some(&(5, spent)));
}

#[test]
fn a_shared_prefix_is_waited_for_while_others_pass() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        chunked_prefill_size: Some(32),
        max_prefill_tokens: 48,
        ..config(64)
    });
    let same = |id| Request {
        id: RequestId(id),
        ..request(1, 64, 1)
    };
    for one in [same(1), same(2), request(3, 16, 1)] {
        scheduler.add(one, T0).unwrap();
    }
    step(&mut scheduler, &mut mock(64));
    assert_eq!(waiting(&scheduler), [(2, SharedPrefix)]);
}

#[test]
fn a_preempted_request_says_so_until_it_is_looked_at_again() {
    let mut scheduler = Scheduler::new(config(4));
    let mut executor = mock(4);
    for id in 1..=2 {
        scheduler.add(request(id, 15, 33), T0).unwrap();
    }
    step(&mut scheduler, &mut executor);
    while waits(&scheduler, false).is_empty() {
        step(&mut scheduler, &mut executor);
    }
    assert_eq!(waiting(&scheduler), [(2, Preempted)]);
    step(&mut scheduler, &mut executor);
    assert!(matches!(waiting(&scheduler)[..], [(2, Pages { .. })]));
}

#[test]
fn a_request_is_held_back_for_its_grammar() {
    let mut scheduler = Scheduler::new(config(64));
    let mut executor = mock(64);
    scheduler.add(guided(1, "[a-z]{20}", 8), T0).unwrap();
    scheduler.add(request(2, 4, 8), T0).unwrap();
    guided_step(&mut scheduler, &mut executor);
    scheduler.hold_back(|_| true);
    guided_step(&mut scheduler, &mut executor);
    assert_eq!(waits(&scheduler, true), [(1, Some(Grammar)), (2, None)]);
}

#[test]
fn a_request_waits_for_pages_from_the_host() {
    let (mut scheduler, mut executor) = given_up();
    scheduler.add(again(3, 100, 4), T0).unwrap();
    let plan = scheduler.plan(T0);
    assert_eq!(waits(&scheduler, true), [(3, Some(Restore))]);
    let output = executor.execute(&plan).unwrap();
    scheduler.commit(&plan, output);
    assert_eq!(waits(&scheduler, true), [(3, None)]);
}
