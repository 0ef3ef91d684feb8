//! Every prompt token except the first is scored once, before the output; a request may ask for no
//! output.

use super::*;
use crate::step::RowOutput;

fn scored(id: u64, n_prompt: usize, max_new_tokens: usize) -> Request {
    let sampling = SamplingParams {
        n_prompt_logprobs: Some(2),
        ..SamplingParams::default()
    };
    Request {
        sampling: Arc::new(sampling),
        ..request(id, n_prompt, max_new_tokens)
    }
}

#[test]
fn chunks_score_every_token_once_before_the_output() {
    for (chunk, mixed_chunk, n_continuous_decode_steps) in [
        (None, false, 1),
        (Some(1), false, 1),
        (Some(7), true, 1),
        (Some(16), false, 4),
    ] {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            chunked_prefill_size: chunk,
            mixed_chunk,
            n_continuous_decode_steps,
            ..config(64)
        });
        let mut executor = mock(64);
        scheduler.add(request(7, 12, 20), T0).unwrap();
        let requests = [
            scored(1, 300, 3),
            scored(2, 33, 0),
            scored(3, 1, 2),
            scored(4, 1, 0),
        ];
        for request in &requests {
            scheduler.add(request.clone(), T0).unwrap();
        }
        let mut told: HashMap<u64, Vec<TokenEvent>> = HashMap::new();
        while !scheduler.is_idle() {
            let (plan, events) = step(&mut scheduler, &mut executor);
            for spec in &plan.scores {
                assert!(plan.rows[spec.row].tokens.len() <= SCORED_CHUNK);
            }
            for (id, event) in events {
                told.entry(id.0).or_default().push(event);
            }
        }
        for request in &requests {
            let events = &told[&request.id.0];
            let n_scores = request.prompt.len() - 1;
            let mut rest = events.as_slice();
            if n_scores > 0 {
                let [TokenEvent::PromptLogprobs(scores), others @ ..] = rest else {
                    panic!("{rest:?}");
                };
                let found: Vec<u32> = scores.iter().map(|score| score.token).collect();
                assert_eq!(found, request.prompt[1..]);
                rest = others;
            }
            assert_eq!(rest.len(), request.max_new_tokens + 1, "{rest:?}");
            let usage = Usage {
                prompt_tokens: request.prompt.len(),
                completion_tokens: request.max_new_tokens,
                cached_tokens: 0,
                ..Usage::default()
            };
            let reason = FinishReason::Length;
            assert_eq!(rest.last(), Some(&TokenEvent::Finished { reason, usage }));
        }
        assert_eq!(scheduler.stats().n_pages_used, 0);
    }
}

#[test]
fn an_executor_that_scores_too_few_tokens_fails_the_request() {
    let mut scheduler = Scheduler::new(config(16));
    scheduler.add(scored(1, 5, 10), T0).unwrap();
    let plan = scheduler.plan(T0);
    assert_eq!(plan.scores.len(), 1);
    let token = SampledToken {
        token: 3,
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let output = StepOutput {
        rows: vec![RowOutput::from(vec![token])],
    };
    let events = scheduler.commit(&plan, output);
    assert!(matches!(
        events[..],
        [(_, TokenEvent::Failed(Failure::Step { .. }))]
    ));
    scheduler.check_integrity().unwrap();
}
