//! Speculation: the texts are those without, whatever is drafted, and drafts take only what is
//! left.

use super::*;
use crate::speculation::scripted::{IsRight, Script};
use crate::speculation::{Algorithm, NgramConfig, Shared, SpeculationConfig, StepTimes};

const VOCAB: u32 = 32_000;

fn speculating(n_pages: usize, n_draft_tokens: usize) -> SchedulerConfig {
    SchedulerConfig {
        speculation: Some(SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig::default()),
            n_draft_tokens,
        }),
        ..config(n_pages)
    }
}

/// A scheduler whose drafts are right where `is_right` (request, tokens so far, place) says so.
pub(super) fn scripted(
    config: SchedulerConfig,
    requests: &[Request],
    stop: Option<(u32, u64)>,
    is_right: impl Fn(RequestId, usize, usize) -> bool + Send + Sync + 'static,
) -> Scheduler {
    let is_right: IsRight = Arc::new(is_right);
    let outputs = requests.iter().map(|r| (r.id, run_alone(r, stop)));
    let script = Script {
        outputs: Arc::new(outputs.collect()),
        is_right,
        vocab: VOCAB,
    };
    let mut scheduler = Scheduler::new(config);
    scheduler.set_drafters(Box::new(script));
    // Rows that cost nothing, so that all drafts are made.
    scheduler.set_step_times(StepTimes::line(1.0, 0.0));
    scheduler
}

fn drafts_of(plan: &StepPlan) -> Vec<usize> {
    plan.rows.iter().map(|row| row.n_drafts).collect()
}

fn add_all(scheduler: &mut Scheduler, requests: &[Request]) {
    for request in requests {
        scheduler.add(request.clone(), T0).unwrap();
    }
}

#[test]
fn each_number_of_right_drafts_gives_the_same_text_in_fewer_steps() {
    const K: usize = 4;
    for n_right in 0..=K {
        // Prompts that end before, at and after the end of a page.
        for n_prompt in [1, 15, 16, 17] {
            let requests = [request(1, n_prompt, 41)];
            let right = move |_, _, i| i < n_right;
            let mut scheduler = scripted(speculating(64, K), &requests, None, right);
            let mut executor = mock(64);
            add_all(&mut scheduler, &requests);
            let results = run(&mut scheduler, &mut executor);
            assert_eq!(results[&1].0, run_alone(&requests[0], None));
            let counts = scheduler.speculation_counts().unwrap();
            assert_eq!(scheduler.stats().n_pages_used, 0);
            let TokenEvent::Finished { usage, .. } = results[&1].1.clone().unwrap() else {
                panic!("{:?}", results[&1].1);
            };
            assert_eq!(usage.accepted_drafts as u64, counts.n_accepted);
            let n_rejected = counts.n_draft_tokens - counts.n_accepted;
            assert_eq!(usage.rejected_drafts as u64, n_rejected);
            // The prompt's step makes one token, each other one those that were right and one.
            let n_steps = executor.n_executed() as usize;
            if n_right == K {
                assert_eq!(n_steps, 1 + 40usize.div_ceil(K + 1));
                assert_eq!(counts.accepted_at, [8; K]);
            }
            assert!(n_steps <= 41 && (n_right > 0 || n_steps == 41), "{n_steps}");
            let kept = counts.accepted_at.iter().take_while(|n| **n > 0).count();
            assert_eq!(kept, n_right, "{counts:?}");
        }
    }
}

#[test]
fn outputs_of_every_length_end_where_they_end_without_drafts() {
    for max_new_tokens in 1..=14 {
        let requests = [request(1, 9, max_new_tokens)];
        let mut scheduler = scripted(speculating(8, 4), &requests, None, |_, _, _| true);
        let mut executor = mock(8);
        add_all(&mut scheduler, &requests);
        let mut results = HashMap::new();
        while !scheduler.is_idle() {
            let (plan, events) = step(&mut scheduler, &mut executor);
            let row = &plan.rows[0];
            let last = row.start + row.tokens.len();
            assert!(last < 9 + max_new_tokens, "a token that is not needed");
            collect(&mut results, events);
        }
        let (tokens, last) = &results[&1];
        assert_eq!(*tokens, run_alone(&requests[0], None));
        assert!(matches!(
            last,
            Some(TokenEvent::Finished {
                reason: FinishReason::Length,
                ..
            })
        ));
    }
}

#[test]
fn a_stop_id_among_the_drafts_discards_the_rest() {
    let script: Arc<[u32]> = Arc::from([5, 6, 7, 8, 9]);
    let stop = Request {
        stop_token_ids: Arc::from([8]),
        ..request(1, 3, 20)
    };
    let outputs = HashMap::from([(stop.id, vec![5, 6, 7, 8, 9, 5, 6, 7, 8])]);
    let mut scheduler = scripted(speculating(8, 6), &[], None, |_, _, _| true);
    scheduler.set_drafters(Box::new(Script {
        outputs: Arc::new(outputs),
        is_right: Arc::new(|_, _, _| true),
        vocab: VOCAB,
    }));
    let mut executor = MockExecutor::new(MockConfig {
        n_pages: 8,
        script: Some(script),
        ..MockConfig::default()
    });
    scheduler.add(stop, T0).unwrap();
    let results = run(&mut scheduler, &mut executor);
    let usage = Usage {
        prompt_tokens: 3,
        completion_tokens: 4,
        cached_tokens: 0,
        // 6, 7 and 8; what was right after them is not part of the text.
        accepted_drafts: 3,
        rejected_drafts: 3,
    };
    let reason = FinishReason::Stop;
    let expected = (
        vec![5, 6, 7, 8],
        Some(TokenEvent::Finished { reason, usage }),
    );
    assert_eq!(results[&1], expected);
    assert_eq!(executor.n_executed(), 2);
}

#[test]
fn cached_pages_never_hold_wrong_drafts() {
    let first = request(1, 20, 50);
    let output = run_alone(&first, None);
    // The same text and more: whatever of it is cached is shared. The mock reads tokens back
    // through the pages, so a rejected draft in one of them would fail the step.
    let second = Request {
        prompt: first.prompt.iter().chain(&output).copied().collect(),
        ..request(2, 1, 30)
    };
    for n_right in 0..4 {
        let requests = [first.clone(), second.clone()];
        let right = move |_, n: usize, i| i < (n + n_right) % 4;
        let mut scheduler = scripted(speculating(64, 5), &requests, None, right);
        let mut executor = mock(64);
        for request in &requests {
            scheduler.add(request.clone(), T0).unwrap();
            let results = run(&mut scheduler, &mut executor);
            assert_eq!(results[&request.id.0].0, run_alone(request, None));
        }
        // 69 tokens of the first were computed: four whole pages.
        assert_eq!(scheduler.stats().n_cached_tokens, 64);
    }
}

#[test]
fn drafts_take_no_page_that_a_decoding_row_could_need() {
    // One sequence in a pool that it fills: drafts within its pages, then none.
    let requests = [request(1, 14, 18)];
    let mut scheduler = scripted(speculating(2, 8), &requests, None, |_, _, i| i < 1);
    let mut executor = mock(2);
    add_all(&mut scheduler, &requests);
    step(&mut scheduler, &mut executor);
    // Position 14, and one more in the page; the second page is the one that is kept free.
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!((plan.rows[0].start, plan.rows[0].n_drafts), (14, 1));
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!((plan.rows[0].start, plan.rows[0].n_drafts), (16, 8));
    run(&mut scheduler, &mut executor);
    assert_eq!(scheduler.stats().n_preemptions, 0);
}

#[test]
fn pages_of_drafts_are_given_back_before_a_request_is_preempted() {
    let requests = [request(1, 14, 30), request(2, 15, 30)];
    // Six pages for two requests of at most three pages each: without drafts none is preempted.
    let mut scheduler = scripted(speculating(6, 8), &requests, None, |_, _, _| false);
    let mut executor = mock(6);
    add_all(&mut scheduler, &requests);
    run(&mut scheduler, &mut executor);
    assert_eq!(scheduler.stats().n_preemptions, 0);

    // A page that only drafts needed is freed when the other request needs it.
    let requests = [request(1, 9, 9), request(2, 10, 9)];
    let mut scheduler = scripted(speculating(6, 8), &requests, None, |_, _, _| false);
    let mut executor = mock(6);
    add_all(&mut scheduler, &requests);
    step(&mut scheduler, &mut executor);
    let (plan, _) = step(&mut scheduler, &mut executor);
    let pages = |plan: &StepPlan| plan.rows.iter().map(|r| r.pages.len()).collect::<Vec<_>>();
    assert_eq!(drafts_of(&plan), [7, 7]);
    assert_eq!(pages(&plan), [2, 2]);
    assert!(scheduler.free_spare_pages(), "both hold a page for drafts");
    assert_eq!(scheduler.stats().n_pages_used, 2);
    assert!(!scheduler.free_spare_pages());
}

#[test]
fn drafts_get_the_rows_that_a_pass_has_left() {
    let requests: Vec<Request> = (0..56).map(|id| request(id, 3, 20)).collect();
    let mut scheduler = scripted(speculating(512, 8), &requests, None, |_, _, _| true);
    let mut executor = mock(512);
    add_all(&mut scheduler, &requests);
    step(&mut scheduler, &mut executor);
    let (plan, _) = step(&mut scheduler, &mut executor);
    assert_eq!(plan.rows.len(), 56);
    assert_eq!(drafts_of(&plan).iter().sum::<usize>(), 8);

    let few = &requests[..20];
    let mut scheduler = scripted(speculating(512, 8), few, None, |_, _, _| true);
    add_all(&mut scheduler, few);
    step(&mut scheduler, &mut executor);
    let (plan, _) = step(&mut scheduler, &mut executor);
    let drafts = drafts_of(&plan);
    assert_eq!(drafts.iter().sum::<usize>(), 44);
    assert!(drafts.iter().all(|n| (2..=3).contains(n)), "{drafts:?}");
}

#[test]
fn in_a_mixed_step_drafts_take_what_prompts_leave() {
    let requests = [request(1, 10, 30), request(2, 40, 2)];
    let mixed = SchedulerConfig {
        chunked_prefill_size: Some(16),
        max_prefill_tokens: 20,
        mixed_chunk: true,
        ..speculating(64, 8)
    };
    let mut scheduler = scripted(mixed, &requests, None, |_, _, _| true);
    let mut executor = mock(64);
    scheduler.add(requests[0].clone(), T0).unwrap();
    step(&mut scheduler, &mut executor);
    scheduler.add(requests[1].clone(), T0).unwrap();
    let mut results = HashMap::new();
    let shapes: Vec<_> = (0..3)
        .map(|_| {
            let (plan, events) = step(&mut scheduler, &mut executor);
            collect(&mut results, events);
            assert_eq!(StepKind::of(&plan), StepKind::Mixed);
            (plan.rows[0].tokens.len(), plan.rows[1].n_drafts)
        })
        .collect();
    // Chunks of 15 beside one rider, of 19 tokens that a step has for prompts.
    assert_eq!(shapes, [(15, 4), (15, 4), (10, 8)]);
    let rest = run(&mut scheduler, &mut executor);
    assert_eq!(rest[&2].0.len(), 1);
}

#[test]
fn a_step_with_drafts_is_not_announced_and_an_announced_one_has_none() {
    // The second half of the text is drafted, all of it rightly.
    #[derive(Debug)]
    struct LateDrafter(Script);
    #[derive(Debug)]
    struct Late(Box<dyn crate::speculation::Drafter>);
    impl crate::speculation::Drafters for LateDrafter {
        fn drafter_of(&self, request: &Request) -> Box<dyn crate::speculation::Drafter> {
            Box::new(Late(self.0.drafter_of(request)))
        }
    }
    impl crate::speculation::Drafter for Late {
        fn draft(
            &mut self,
            shared: &mut Shared,
            tokens: &[u32],
            max: usize,
            drafts: &mut Vec<u32>,
        ) {
            if tokens.len() >= 20 {
                self.0.draft(shared, tokens, max, drafts);
            }
        }
        fn may_draft_next(&self, tokens: &[u32]) -> bool {
            tokens.len() >= 19
        }
    }
    let requests = [request(1, 10, 30)];
    let ahead = SchedulerConfig {
        run_ahead: true,
        ..speculating(64, 4)
    };
    let mut scheduler = scripted(ahead, &requests, None, |_, _, _| true);
    let outputs = HashMap::from([(RequestId(1), run_alone(&requests[0], None))]);
    scheduler.set_drafters(Box::new(LateDrafter(Script {
        outputs: Arc::new(outputs),
        is_right: Arc::new(|_, _, _| true),
        vocab: VOCAB,
    })));
    let mut executor = mock(64);
    add_all(&mut scheduler, &requests);
    let (mut announced, mut drafted) = (Vec::new(), Vec::new());
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        announced.push(plan.lookahead_steps > 0);
        drafted.push(plan.rows[0].n_drafts > 0);
    }
    for i in 1..announced.len() {
        assert!(!(announced[i - 1] && drafted[i]), "step {i} began in vain");
        assert!(!(announced[i] && drafted[i]), "step {i}");
    }
    assert!(announced[3] && drafted.iter().filter(|d| **d).count() >= 3);
}

#[test]
fn bursts_and_drafts_take_turns() {
    let requests = [request(1, 10, 40)];
    let bursts = SchedulerConfig {
        n_continuous_decode_steps: 4,
        ..speculating(64, 4)
    };
    let mut scheduler = scripted(bursts, &requests, None, |_, _, _| false);
    let mut executor = mock(64);
    add_all(&mut scheduler, &requests);
    let mut shapes = Vec::new();
    let mut tokens = Vec::new();
    while !scheduler.is_idle() {
        let (plan, events) = step(&mut scheduler, &mut executor);
        shapes.push((plan.rows[0].n_drafts > 0, plan.n_steps));
        tokens.extend(events.into_iter().filter_map(|(_, event)| match event {
            TokenEvent::Token(token) => Some(token.token),
            _ => None,
        }));
    }
    assert_eq!(tokens, run_alone(&requests[0], None));
    assert!(shapes.iter().all(|(drafts, n)| !drafts || *n == 1));
    // Wrong drafts end, and bursts begin.
    assert!(shapes[1].0 && shapes.contains(&(false, 4)), "{shapes:?}");
}

#[test]
fn wrong_drafts_end_and_right_ones_that_were_not_computed_bring_them_back() {
    let requests = [request(1, 10, 200)];
    let right = |_, n_tokens: usize, _| n_tokens > 120;
    let mut scheduler = scripted(speculating(64, 4), &requests, None, right);
    // Rows that cost something.
    scheduler.set_step_times(StepTimes::line(0.9, 0.1));
    let mut executor = mock(64);
    add_all(&mut scheduler, &requests);
    let mut wrong = 0;
    let (mut last_wrong, mut first_right) = (0, None);
    while !scheduler.is_idle() {
        let (plan, _) = step(&mut scheduler, &mut executor);
        let row = &plan.rows[0];
        if row.n_drafts > 0 && row.start < 120 {
            wrong += row.n_drafts;
            last_wrong = row.start;
        } else if row.n_drafts > 0 {
            first_right.get_or_insert(row.start);
        }
    }
    assert!(
        wrong < 40 && last_wrong < 40,
        "{wrong} drafts, {last_wrong}"
    );
    let first_right = first_right.expect("drafts come back");
    assert!(first_right < 140, "{first_right}");
}

#[test]
fn drafts_of_a_row_with_a_grammar_wait_for_its_check() {
    let guided = Request {
        sampling: Arc::new(SamplingParams {
            guide: Some(crate::structured::guide_of("[a-z]+")),
            ..SamplingParams::default()
        }),
        ..request(1, 10, 8)
    };
    let free = request(2, 10, 8);
    let mut scheduler = scripted(speculating(64, 4), &[], None, |_, _, _| true);
    let output: Vec<u32> = b"aaa1aaaa".iter().map(|byte| u32::from(*byte)).collect();
    let outputs = [1, 2].map(|id| (RequestId(id), output.clone()));
    scheduler.set_drafters(Box::new(Script {
        outputs: Arc::new(HashMap::from(outputs)),
        is_right: Arc::new(|_, _, _| true),
        vocab: 256,
    }));
    let mut executor = mock(64);
    add_all(&mut scheduler, &[guided.clone(), free]);
    let plan = scheduler.plan(T0);
    let output = executor.execute(&plan).unwrap();
    let guide = guided.sampling.guide.as_ref().expect("guided");
    guide.advance(0, output.rows[0].tokens[0].token);
    scheduler.commit(&plan, output);
    let mut plan = scheduler.plan(T0);
    assert_eq!(drafts_of(&plan), [4, 4]);
    assert!(!plan.rows[0].grammar_knows_drafts() && plan.rows[1].grammar_knows_drafts());
    plan.check_drafts();
    // It refuses the digit and drops what follows it.
    assert_eq!(drafts_of(&plan), [2, 4]);
    assert_eq!(plan.rows[0].tokens.len(), 3);
    assert!(plan.rows[0].grammar_knows_drafts());
}

#[test]
fn a_row_that_fails_after_right_drafts_keeps_their_tokens() {
    let mut asked = request(1, 5, 30);
    asked.prompt = Arc::from([9, 8, 7]);
    let outputs = run_alone(&asked, None);
    let requests = [asked];
    let mut scheduler = scripted(speculating(8, 4), &requests, None, |_, _, _| true);
    let mut executor = MockExecutor::new(MockConfig {
        n_pages: 8,
        broken_logits: Some((9, 3)),
        ..MockConfig::default()
    });
    add_all(&mut scheduler, &requests);
    let results = run(&mut scheduler, &mut executor);
    let (tokens, last) = &results[&1];
    assert_eq!(*tokens, outputs[..3]);
    assert!(matches!(
        last,
        Some(TokenEvent::Failed(Failure::Logits { .. }))
    ));
    assert_eq!(scheduler.stats().n_pages_used, 0);
}
