//! What plans announce about the next step.

use super::*;

fn ahead(n_pages: usize, n_continuous_decode_steps: usize) -> SchedulerConfig {
    SchedulerConfig {
        run_ahead: true,
        n_continuous_decode_steps,
        ..config(n_pages)
    }
}

#[test]
fn the_next_step_is_announced_as_long_as_no_row_ends() {
    let mut scheduler = Scheduler::new(ahead(64, 4));
    let mut executor = mock(64);
    scheduler.add(request(1, 10, 16), T0).unwrap();
    let steps: Vec<_> = std::iter::from_fn(|| {
        (!scheduler.is_idle()).then(|| {
            let (plan, _) = step(&mut scheduler, &mut executor);
            (plan.n_steps, plan.lookahead_steps)
        })
    })
    .collect();
    // The prefill, and the decode step that follows it, announce nothing.
    assert_eq!(steps, [(1, 0), (4, 0), (4, 4), (4, 3), (3, 0)]);
}

#[test]
fn without_lookahead_no_pages_are_reserved_for_it() {
    let n_pages_used = |lookahead_enabled: bool| {
        let mut scheduler = Scheduler::new(ahead(64, 4));
        scheduler.set_lookahead(lookahead_enabled);
        let mut executor = mock(64);
        scheduler.add(request(1, 8, 40), T0).unwrap();
        let mut lookahead_steps = 0;
        // The prefill and two decode steps: at most 17 tokens, and 21 with lookahead.
        for _ in 0..3 {
            let (plan, _) = step(&mut scheduler, &mut executor);
            lookahead_steps += plan.lookahead_steps;
        }
        (lookahead_steps, scheduler.stats().n_pages_used)
    };
    assert_eq!(n_pages_used(false), (0, 1));
    assert_eq!(n_pages_used(true), (4, 2));
}

#[test]
fn the_announced_step_has_its_pages_and_is_what_comes() {
    let mut scheduler = Scheduler::new(ahead(64, 3));
    let mut executor = mock(64);
    for id in 1..=3 {
        scheduler.add(request(id, 9 + id as usize, 70), T0).unwrap();
    }
    let mut expected: Option<StepPlan> = None;
    let mut n_announced = 0;
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        if let Some(expected) = expected.take() {
            assert_eq!(plan.n_steps, expected.lookahead_steps);
            for (row, before) in plan.rows.iter().zip(&expected.rows) {
                assert_eq!(row.request, before.request);
                assert_eq!(row.start, before.start + expected.n_steps);
                assert!(row.pages.starts_with(&before.pages));
                let covered = before.pages.len() * PAGE_TOKENS;
                assert!(row.start + plan.n_steps <= covered);
            }
            n_announced += 1;
        }
        expected = (plan.lookahead_steps > 0).then_some(plan);
    }
    // 69 tokens after the prefill in steps of 3: 23 steps, the first of which announces nothing.
    assert_eq!(n_announced, 21);
}

#[test]
fn nothing_is_announced_without_free_pages_and_none_are_lost() {
    // Two sequences fill the pool of 4 pages exactly, with 32 tokens of KV each.
    let mut scheduler = Scheduler::new(ahead(4, 1));
    let mut executor = mock(4);
    for id in 1..=2 {
        scheduler.add(request(id, 10, 30), T0).unwrap();
    }
    let mut announced = Vec::new();
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        announced.push((plan.rows.len(), plan.rows[0].start, plan.lookahead_steps));
    }
    let at = |start| announced.iter().find(|f| f.0 == 2 && f.1 == start);
    assert_eq!(at(15), Some(&(2, 15, 1)), "both take their second page");
    assert_eq!(at(31), Some(&(2, 31, 0)), "a third page is not there");

    let plain = |run_ahead| {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            run_ahead,
            ..ahead(7, 2)
        });
        let mut executor = mock(7);
        for id in 0..6 {
            scheduler
                .add(request(id, 20 + id as usize, 40), T0)
                .unwrap();
        }
        let results = run(&mut scheduler, &mut executor);
        (0..6).map(|id| results[&id].0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(plain(true), plain(false));
}

#[test]
fn without_the_setting_nothing_is_announced() {
    let mut scheduler = Scheduler::new(config(64));
    let mut executor = mock(64);
    scheduler.add(request(1, 10, 16), T0).unwrap();
    while !scheduler.is_idle() {
        assert_eq!(step(&mut scheduler, &mut executor).0.lookahead_steps, 0);
    }
}
