//! Rows whose tokens follow a grammar.

use super::*;
use crate::speculation::scripted::Script;
use crate::speculation::{Algorithm, NgramConfig, SpeculationConfig, StepTimes};
use crate::structured::guide_of;

pub(super) fn guided(id: u64, regex: &str, max_new_tokens: usize) -> Request {
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
pub(super) fn guided_step(scheduler: &mut Scheduler, executor: &mut MockExecutor) -> StepPlan {
    let mut plan = scheduler.plan(T0);
    plan.check_drafts();
    let output = executor.execute(&plan).unwrap();
    advance(&plan, &output);
    scheduler.commit(&plan, output);
    plan
}

fn advance(plan: &StepPlan, output: &StepOutput) {
    for (row, made) in plan.rows.iter().zip(&output.rows) {
        let guide = |spec: &crate::sampler::SampleSpec| spec.params.guide.clone();
        if let Some(spec) = &row.sample
            && let Some(guide) = guide(spec)
        {
            let tokens: Vec<u32> = made.tokens.iter().map(|token| token.token).collect();
            guide.advance_all(spec.output_index, &tokens);
        }
    }
}

/// The text of a grammar's request without and with drafts, and how many steps they took.
fn with_and_without(regex: &str, is_right: bool, forces: bool) -> ([Vec<u32>; 2], [u64; 2]) {
    let run = |speculation: Option<SpeculationConfig>, output: &[u32]| {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            speculation,
            ..config(64)
        });
        scheduler.set_drafters(Box::new(Script {
            outputs: Arc::new(HashMap::from([(RequestId(1), output.to_vec())])),
            is_right: Arc::new(move |_, _, i| is_right || i == 0),
            vocab: 256,
        }));
        scheduler.set_step_times(StepTimes::line(1.0, 0.0));
        let mut executor = mock(64);
        scheduler.add(guided(1, regex, 40), T0).unwrap();
        let mut tokens = Vec::new();
        while !scheduler.is_idle() {
            if forces {
                scheduler.set_forced(|guide| guide.forced_tokens(&mut 1_000_000));
            }
            let mut plan = scheduler.plan(T0);
            plan.check_drafts();
            let output = executor.execute(&plan).unwrap();
            advance(&plan, &output);
            for (_, event) in scheduler.commit(&plan, output) {
                match event {
                    TokenEvent::Token(token) => tokens.push(token.token),
                    TokenEvent::Finished { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        (tokens, executor.n_executed())
    };
    let speculation = SpeculationConfig {
        algorithm: Algorithm::Ngram(NgramConfig::default()),
        n_draft_tokens: 4,
    };
    let (plain, n_plain) = run(None, &[]);
    let (drafted, n_drafted) = run(Some(speculation), &plain);
    ([plain, drafted], [n_plain, n_drafted])
}

#[test]
fn drafts_that_a_grammar_allows_save_steps_and_change_no_text() {
    for regex in [
        "[a-z]{30}",
        "(ab|cd|[0-9]x){12}",
        "(a|bb|ccc)*",
        "x{3}[yz]{20}",
    ] {
        let ([plain, drafted], [n_plain, n_drafted]) = with_and_without(regex, true, false);
        assert_eq!(drafted, plain, "{regex}");
        if plain.len() > 20 {
            assert!(2 * n_drafted < n_plain, "{regex}: {n_drafted} of {n_plain}");
        }
        // A wrong token after the first one, which the grammar refuses or the sampler does.
        let ([plain, drafted], _) = with_and_without(regex, false, false);
        assert_eq!(drafted, plain, "{regex}");
    }
}

#[test]
fn what_a_grammar_forces_is_drafted() {
    // All drafts of the script are wrong, or refused.
    let regex = "the only text there is: [0-9]";
    let ([plain, drafted], [n_plain, n_drafted]) = with_and_without(regex, false, true);
    assert_eq!(drafted, plain);
    assert_eq!(plain.len(), 26, "24 letters, a digit, the end");
    // The prompt's step, 23 letters in steps of five, the last with the digit, and the end.
    assert_eq!((n_plain, n_drafted), (26, 7));
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
