//! A failed row ends its own request; the others continue unaffected.

use super::*;
use crate::sampler::SamplerError;
use crate::step::{RowError, RowOutput};

/// Contains token `5`, whose rows fail at their third output token.
fn poisoned(id: u64, n_prompt: usize) -> Request {
    let mut prompt: Vec<u32> = (0..n_prompt as u32).map(|i| 40_000 + i).collect();
    prompt[0] = 5;
    Request {
        prompt: prompt.into(),
        ..request(id, n_prompt, 12)
    }
}

fn breaking(n_pages: usize) -> MockExecutor {
    MockExecutor::new(MockConfig {
        n_pages,
        tokens: 100..32_000,
        broken_logits: Some((5, 2)),
        ..MockConfig::default()
    })
}

fn alone(request: &Request) -> Vec<u32> {
    let mut scheduler = Scheduler::new(config(16));
    scheduler.add(request.clone(), T0).unwrap();
    run(&mut scheduler, &mut breaking(16))[&request.id.0]
        .0
        .clone()
}

#[test]
fn others_keep_their_text_and_the_pages_come_back() {
    for (mixed_chunk, n_continuous_decode_steps) in [(false, 1), (true, 1), (false, 4), (true, 3)] {
        let mut scheduler = Scheduler::new(SchedulerConfig {
            mixed_chunk,
            n_continuous_decode_steps,
            chunked_prefill_size: Some(8),
            ..config(32)
        });
        let mut executor = breaking(32);
        let innocents: Vec<Request> = (1..5).map(|id| request(id, 9 + id as usize, 10)).collect();
        for request in &innocents {
            scheduler.add(request.clone(), T0).unwrap();
        }
        for id in 10..13 {
            scheduler.add(poisoned(id, 20), T0).unwrap();
        }
        let results = run(&mut scheduler, &mut executor);
        for request in &innocents {
            let (tokens, last) = &results[&request.id.0];
            assert_eq!(*tokens, alone(request));
            assert!(
                matches!(last, Some(TokenEvent::Finished { .. })),
                "{last:?}"
            );
        }
        for id in 10..13 {
            let (tokens, last) = &results[&id];
            assert_eq!(tokens.len(), 2, "what came before the fault");
            assert!(
                matches!(last, Some(TokenEvent::Failed(Failure::Logits { message })) if message.contains("NaN")),
                "{last:?}"
            );
        }
        assert_eq!(scheduler.stats().n_pages_used, 0);
    }
}

#[test]
fn a_stop_before_the_fault_is_an_ordinary_end() {
    let mut scheduler = Scheduler::new(config(16));
    let request = Request {
        stop_token_ids: Arc::from([8]),
        ..request(1, 5, 10)
    };
    scheduler.add(request, T0).unwrap();
    let plan = scheduler.plan(T0);
    let token = SampledToken {
        token: 8,
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let error = Some(RowError::Sampler(SamplerError::AllMasked));
    let output = StepOutput {
        rows: vec![RowOutput {
            error,
            ..vec![token].into()
        }],
    };
    let events = scheduler.commit(&plan, output);
    assert!(matches!(
        events[..],
        [
            (_, TokenEvent::Token(_)),
            (
                _,
                TokenEvent::Finished {
                    reason: FinishReason::Stop,
                    ..
                }
            )
        ]
    ));
}

#[test]
fn what_a_failed_row_computed_is_not_shared() {
    let mut scheduler = Scheduler::new(config(16));
    scheduler.add(request(1, 40, 10), T0).unwrap();
    let plan = scheduler.plan(T0);
    let output = StepOutput {
        rows: vec![RowOutput {
            error: Some(RowError::Sampler(SamplerError::AllMasked)),
            ..RowOutput::default()
        }],
    };
    let events = scheduler.commit(&plan, output);
    assert!(matches!(
        events[..],
        [(_, TokenEvent::Failed(Failure::Logits { .. }))]
    ));
    scheduler.check_integrity().unwrap();
    let stats = scheduler.stats();
    assert_eq!((stats.n_pages_used, stats.n_pages_cached), (0, 0));
}
