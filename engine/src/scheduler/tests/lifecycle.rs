//! How a request begins and ends other than by its last token: refused, preempted, cancelled, failed.

use super::*;

#[test]
fn what_could_never_run_is_refused_with_the_limit() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_total_tokens: 100,
        ..SchedulerConfig::default()
    });
    let error = scheduler.add(request(1, 90, 7), T0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "90 prompt tokens and 7 output tokens exceed the KV pool of 96 tokens"
    );
    assert_eq!(
        scheduler.add(request(1, 0, 7), T0),
        Err(AddError::EmptyPrompt)
    );
    assert_eq!(scheduler.add(request(1, 4, 0), T0), Err(AddError::NoOutput));
    assert!(scheduler.add(request(1, 4, usize::MAX), T0).is_err());
    scheduler.add(request(1, 90, 6), T0).unwrap();
    assert_eq!(
        scheduler.add(request(1, 9, 6), T0),
        Err(AddError::Duplicate(RequestId(1)))
    );
}

#[test]
fn preemption_changes_no_token() {
    // 6 requests of up to 4 pages each on 7 pages.
    let requests: Vec<_> = (0..6).map(|id| request(id, 20 + id as usize, 40)).collect();
    let mut scheduler = Scheduler::new(config(7));
    let mut executor = mock(7);
    for request in &requests {
        scheduler.add(request.clone(), T0).unwrap();
    }
    let results = run(&mut scheduler, &mut executor);
    assert!(scheduler.stats().n_preemptions > 0);
    assert_eq!(scheduler.stats().n_pages_used, 0);
    for request in &requests {
        assert_eq!(
            results[&request.id.0].0,
            run_alone(request, None),
            "request {}",
            request.id
        );
    }
}

#[test]
fn cancel_frees_pages_at_once_wherever_the_request_is() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 2,
        ..config(16)
    });
    let mut executor = mock(16);
    for id in 1..=3 {
        scheduler.add(request(id, 20, 10), T0).unwrap();
    }
    step(&mut scheduler, &mut executor);
    let plan = scheduler.plan(T0);
    let used_before = scheduler.stats().n_pages_used;
    // Running, with a step under way.
    let usage = Usage {
        prompt_tokens: 20,
        completion_tokens: 1,
        cached_tokens: 0,
    };
    let last = TokenEvent::Finished {
        reason: FinishReason::Cancelled,
        usage,
    };
    assert_eq!(scheduler.cancel(RequestId(1)), Some(last));
    assert_eq!(scheduler.stats().n_pages_used, used_before - 2);
    assert_eq!(scheduler.cancel(RequestId(1)), None);
    // Waiting.
    assert!(scheduler.cancel(RequestId(3)).is_some());
    let output = executor.execute(&plan).unwrap();
    let events = scheduler.commit(&plan, output);
    assert_eq!(events.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), [2]);
    scheduler.cancel(RequestId(2));
    assert!(scheduler.is_idle());
    scheduler.check_integrity().unwrap();
    assert_eq!(scheduler.stats().n_pages_used, 0);
    assert!(scheduler.plan(T0).rows.is_empty());
}

#[test]
fn a_failed_step_ends_its_requests_only() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        max_running_requests: 1,
        ..config(16)
    });
    let mut executor = mock(16);
    scheduler.add(request(1, 20, 10), T0).unwrap();
    scheduler.add(request(2, 20, 3), T0).unwrap();
    let plan = scheduler.plan(T0);
    let events = scheduler.fail(&plan, "broken");
    assert_eq!(
        events,
        [(
            RequestId(1),
            TokenEvent::Failed {
                message: "broken".into()
            }
        )]
    );
    scheduler.check_integrity().unwrap();
    let results = run(&mut scheduler, &mut executor);
    assert_eq!(results[&2].0, run_alone(&request(2, 20, 3), None));
}

#[test]
fn an_executor_that_returns_too_little_or_too_much_does_no_harm() {
    let mut scheduler = Scheduler::new(config(16));
    scheduler.add(request(1, 5, 10), T0).unwrap();
    scheduler.add(request(2, 5, 10), T0).unwrap();
    let plan = scheduler.plan(T0);
    let token = SampledToken {
        token: 3,
        logprob: None,
        top_logprobs: Vec::new(),
    };
    let output = StepOutput {
        rows: vec![vec![token.clone(), token.clone()]],
    };
    let events = scheduler.commit(&plan, output);
    assert_eq!(events[0], (RequestId(1), TokenEvent::Token(token)));
    assert!(matches!(
        events[1],
        (RequestId(2), TokenEvent::Failed { .. })
    ));
    assert_eq!(events.len(), 2);
    scheduler.check_integrity().unwrap();
}
