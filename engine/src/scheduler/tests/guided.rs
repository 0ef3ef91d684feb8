//! Rows whose tokens follow a grammar.

use super::*;
use crate::structured::guide_of;

fn guided(id: u64, regex: &str, max_new_tokens: usize) -> Request {
    Request {
        sampling: Arc::new(SamplingParams {
            guide: Some(guide_of(regex)),
            ..SamplingParams::default()
        }),
        stop_token_ids: Arc::from([257]),
        ..request(id, 4, max_new_tokens)
    }
}

/// Like the engine loop: guides are updated before the scheduler.
fn guided_step(scheduler: &mut Scheduler, executor: &mut MockExecutor) -> StepPlan {
    let plan = scheduler.plan(T0);
    let output = executor.execute(&plan).unwrap();
    for (row, made) in plan.rows.iter().zip(&output.rows) {
        let Some(spec) = &row.sample else { continue };
        for (i, token) in made.tokens.iter().enumerate() {
            if let Some(guide) = &spec.params.guide {
                guide.advance(spec.output_index + i, token.token);
            }
        }
    }
    scheduler.commit(&plan, output);
    plan
}

#[test]
fn a_guided_row_makes_its_batch_go_one_step_at_a_time() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        n_continuous_decode_steps: 4,
        run_ahead: true,
        ..config(64)
    });
    let mut executor = mock(64);
    scheduler.add(request(1, 4, 200), T0).unwrap();
    // Its prompt, and a decode step after which another prompt might come.
    guided_step(&mut scheduler, &mut executor);
    guided_step(&mut scheduler, &mut executor);
    let plan = guided_step(&mut scheduler, &mut executor);
    assert_eq!((plan.n_steps, plan.lookahead_steps), (4, 4));
    scheduler.add(guided(2, "ab", 100), T0).unwrap();
    let mut steps = Vec::new();
    while scheduler.stats().n_running + scheduler.stats().n_waiting > 1 {
        let plan = guided_step(&mut scheduler, &mut executor);
        let is_guided = |row: &crate::step::PlanRow| {
            row.sample
                .as_ref()
                .is_some_and(crate::sampler::SampleSpec::is_guided)
        };
        if plan.rows.iter().any(is_guided) {
            steps.push((plan.n_steps, plan.lookahead_steps));
        }
    }
    // Two letters and the end.
    assert_eq!(steps, [(1, 0); 3]);
    let plan = guided_step(&mut scheduler, &mut executor);
    assert_eq!((plan.n_steps, plan.lookahead_steps), (4, 4));
}

/// A mask that is not ready holds back only its own request.
#[test]
fn a_row_that_is_held_back_sits_out_and_goes_on_later() {
    for mixed_chunk in [false, true] {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            mixed_chunk,
            ..config(64)
        });
        let mut executor = mock(64);
        scheduler.add(request(1, 4, 200), T0).unwrap();
        scheduler.add(guided(2, "a{9}", 100), T0).unwrap();
        guided_step(&mut scheduler, &mut executor);
        let ids =
            |plan: &StepPlan| -> Vec<u64> { plan.rows.iter().map(|row| row.request.0).collect() };
        assert_eq!(ids(&guided_step(&mut scheduler, &mut executor)), [1, 2]);
        scheduler.hold_back(|_| true);
        // A prompt that arrives meanwhile is computed too.
        scheduler.add(request(3, 4, 200), T0).unwrap();
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.extend(ids(&guided_step(&mut scheduler, &mut executor)));
        }
        assert!(seen.contains(&1) && seen.contains(&3), "{seen:?}");
        assert!(!seen.contains(&2), "{seen:?}");
        for id in [1, 3] {
            scheduler.cancel(RequestId(id)).expect("running");
        }
        let plan = scheduler.plan(T0);
        assert!(plan.rows.is_empty() && !scheduler.is_idle());
        scheduler.hold_back(|_| false);
        for _ in 0..2 {
            assert_eq!(ids(&guided_step(&mut scheduler, &mut executor)), [2]);
        }
        scheduler.check_integrity().unwrap();
    }
}
