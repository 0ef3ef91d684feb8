use std::collections::HashSet;
use std::time::Duration;

use super::*;
use crate::executor::mock::{MockConfig, MockExecutor};
use crate::request::{Failure, FinishReason, Request, SamplingParams};

fn engine(mock: MockConfig, config: EngineLoopConfig) -> EngineHandle {
    let metrics = Arc::new(Metrics::new("test"));
    start(Box::new(MockExecutor::new(mock)), config, metrics).unwrap()
}

fn slow() -> MockConfig {
    MockConfig {
        step_delay: Duration::from_millis(2),
        ..MockConfig::default()
    }
}

fn request(engine: &EngineHandle, max_new_tokens: usize) -> Request {
    Request {
        id: engine.next_request_id(),
        prompt: Arc::from([1, 2, 3]),
        sampling: Arc::new(SamplingParams::default()),
        max_new_tokens,
        stop_token_ids: Arc::from([]),
        priority: 0,
        prefix_root: 0,
    }
}

async fn drain(mut stream: RequestStream) -> Vec<TokenEvent> {
    let mut events = Vec::new();
    // Nothing may hang: each event must arrive within seconds.
    while let Some(event) = tokio::time::timeout(Duration::from_secs(20), stream.next())
        .await
        .unwrap()
    {
        events.push(event);
    }
    events
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what} did not come true");
}

fn is_failed(events: &[TokenEvent]) -> bool {
    matches!(events.last(), Some(TokenEvent::Failed(_)))
}

#[tokio::test]
async fn a_request_streams_its_tokens_and_ends() {
    let engine = engine(MockConfig::default(), EngineLoopConfig::default());
    let events = drain(engine.submit(request(&engine, 5)).unwrap()).await;
    assert_eq!(events.len(), 6);
    assert!(matches!(
        events[5],
        TokenEvent::Finished { reason: FinishReason::Length, usage } if usage.completion_tokens == 5
    ));
    wait_until("idle", || engine.n_in_flight() == 0).await;
    let metrics = engine.metrics();
    wait_until("gauges", || metrics.kv_pages_used.get() == 0.0).await;
    assert_eq!(metrics.generation_tokens.get(), 5);
    assert_eq!(metrics.prompt_tokens.get(), 3);
    assert_eq!(
        (
            metrics.ttft_s.count(),
            metrics.itl_s.count(),
            metrics.e2e_s.count()
        ),
        (1, 4, 1)
    );
    assert_eq!(
        (metrics.prefill_steps.get(), metrics.decode_steps.get()),
        (1, 4)
    );
}

#[tokio::test]
async fn what_the_executor_counts_continues_after_a_suspension() {
    let engine = engine(MockConfig::default(), EngineLoopConfig::default());
    let sampled = || engine.metrics().host_sampled_tokens.get();
    drain(engine.submit(request(&engine, 7)).unwrap()).await;
    wait_until("the first request's tokens", || sampled() == 7).await;
    engine.sleep(Duration::from_secs(5)).await.unwrap();
    engine.wake().await.unwrap();
    drain(engine.submit(request(&engine, 2)).unwrap()).await;
    wait_until("the second one's", || sampled() == 9).await;
}

#[test]
fn a_stream_can_be_read_without_a_runtime() {
    let engine = engine(MockConfig::default(), EngineLoopConfig::default());
    let mut stream = engine.submit(request(&engine, 3)).unwrap();
    let mut n_events = 0;
    while stream.blocking_next().is_some() {
        n_events += 1;
    }
    assert_eq!(n_events, 4);
}

#[tokio::test]
async fn dropping_a_stream_cancels_its_request() {
    let engine = engine(slow(), EngineLoopConfig::default());
    let mut stream = engine.submit(request(&engine, 10_000)).unwrap();
    assert!(matches!(stream.next().await, Some(TokenEvent::Token(_))));
    assert!(engine.metrics().kv_pages_used.get() >= 0.0);
    drop(stream);
    wait_until("cancelled", || engine.n_in_flight() == 0).await;
    wait_until("pages back", || engine.metrics().kv_pages_used.get() == 0.0).await;
    assert_eq!(engine.metrics().aborted.get(), 1);
}

#[tokio::test]
async fn cancel_by_id_ends_the_stream_with_its_reason() {
    let engine = engine(slow(), EngineLoopConfig::default());
    let stream = engine.submit(request(&engine, 10_000)).unwrap();
    engine.cancel(stream.id());
    let events = drain(stream).await;
    assert!(matches!(
        events.last(),
        Some(TokenEvent::Finished {
            reason: FinishReason::Cancelled,
            ..
        })
    ));
}

#[tokio::test]
async fn a_full_queue_refuses_with_its_limit() {
    let scheduler = SchedulerConfig {
        max_running_requests: 1,
        ..SchedulerConfig::default()
    };
    let config = EngineLoopConfig {
        scheduler,
        max_queued_requests: 2,
        ..Default::default()
    };
    let engine = engine(slow(), config);
    let streams: Vec<_> = (0..3)
        .map(|_| engine.submit(request(&engine, 1000)).unwrap())
        .collect();
    let error = engine.submit(request(&engine, 1)).unwrap_err();
    assert_eq!(error, SubmitError::QueueFull { limit: 3 });
    assert_eq!(
        error.to_string(),
        "the engine holds 3 requests, its limit; try again later"
    );
    drop(streams);
    wait_until("room again", || engine.submit(request(&engine, 1)).is_ok()).await;
}

#[tokio::test]
async fn what_exceeds_the_pool_is_refused_before_it_is_queued() {
    let scheduler = SchedulerConfig {
        max_total_tokens: 64,
        ..SchedulerConfig::default()
    };
    let engine = engine(
        MockConfig::default(),
        EngineLoopConfig {
            scheduler,
            ..Default::default()
        },
    );
    let error = engine.submit(request(&engine, 62)).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("exceed the KV pool of 64 tokens"),
        "{error}"
    );
    assert_eq!(engine.n_in_flight(), 0);
}

#[test]
fn a_pool_larger_than_the_executors_is_refused() {
    let mock = MockExecutor::new(MockConfig {
        n_pages: 2,
        ..MockConfig::default()
    });
    let metrics = Arc::new(Metrics::new("test"));
    let error = start(Box::new(mock), EngineLoopConfig::default(), metrics).unwrap_err();
    assert_eq!(
        error.to_string(),
        "max_total_tokens is 16384, the mock executor's KV pool holds 32"
    );
}

#[tokio::test]
async fn a_failed_step_ends_its_requests_and_the_engine_goes_on() {
    let mock = MockConfig {
        failing_steps: HashSet::from([2]),
        ..MockConfig::default()
    };
    let engine = engine(mock, EngineLoopConfig::default());
    let events = drain(engine.submit(request(&engine, 50)).unwrap()).await;
    assert_eq!(events.len(), 3, "two tokens, then the failure");
    assert!(is_failed(&events));
    assert!(engine.is_healthy());
    let events = drain(engine.submit(request(&engine, 5)).unwrap()).await;
    assert_eq!(events.len(), 6);
    assert_eq!(engine.metrics().failed.get(), 1);
}

#[tokio::test]
async fn repeated_failures_make_the_engine_unhealthy_until_a_step_succeeds() {
    let mock = MockConfig {
        failing_steps: HashSet::from([0, 1, 2]),
        ..MockConfig::default()
    };
    let engine = engine(mock, EngineLoopConfig::default());
    for i in 0..3 {
        assert!(engine.is_healthy(), "after {i} failures");
        assert!(is_failed(
            &drain(engine.submit(request(&engine, 5)).unwrap()).await
        ));
    }
    assert!(!engine.is_healthy());
    assert_eq!(
        drain(engine.submit(request(&engine, 5)).unwrap())
            .await
            .len(),
        6
    );
    assert!(engine.is_healthy());
}

#[tokio::test]
async fn a_row_s_own_failure_is_no_failed_step() {
    let mock = MockConfig {
        broken_logits: Some((2, 1)),
        ..MockConfig::default()
    };
    let engine = engine(mock, EngineLoopConfig::default());
    for _ in 0..5 {
        let events = drain(engine.submit(request(&engine, 50)).unwrap()).await;
        assert_eq!(events.len(), 2, "a token, then the failure");
        let last = events.last();
        assert!(
            matches!(last, Some(TokenEvent::Failed(Failure::Logits { .. }))),
            "{last:?}"
        );
        assert!(engine.is_healthy());
    }
    assert_eq!(engine.metrics().failed_steps.get(), 0);
    assert_eq!(engine.metrics().failed.get(), 5);
    wait_until("pages back", || engine.metrics().kv_pages_used.get() == 0.0).await;
}

#[tokio::test]
async fn parameters_outside_their_limits_never_reach_a_step() {
    let engine = engine(MockConfig::default(), EngineLoopConfig::default());
    let sampling = SamplingParams {
        repetition_penalty: 1e-38,
        ..SamplingParams::default()
    };
    let wrong = Request {
        sampling: Arc::new(sampling),
        ..request(&engine, 5)
    };
    let error = engine.submit(wrong).unwrap_err().to_string();
    assert!(
        error.contains("repetition_penalty") && error.contains("0.01 to 10"),
        "{error}"
    );
    assert_eq!(engine.n_in_flight(), 0);
}

/// A load balancer sends no requests to an engine that reports itself unhealthy.
#[tokio::test]
async fn an_unhealthy_engine_tries_a_step_of_its_own() {
    let mock = MockConfig {
        failing_steps: HashSet::from([0, 1, 2, 3]),
        ..MockConfig::default()
    };
    let engine = engine(mock, EngineLoopConfig::default());
    for _ in 0..3 {
        drain(engine.submit(request(&engine, 5)).unwrap()).await;
    }
    assert!(!engine.is_healthy());
    wait_until("healthy", || engine.is_healthy()).await;
    assert_eq!(
        engine.metrics().failed_steps.get(),
        4,
        "its first one failed, too"
    );
    assert_eq!(engine.n_in_flight(), 0);
    wait_until("pages back", || engine.metrics().kv_pages_used.get() == 0.0).await;
}

#[tokio::test]
async fn a_lost_device_ends_the_engine_and_every_request() {
    let mock = MockConfig {
        losing_step: Some(3),
        ..slow()
    };
    let scheduler = SchedulerConfig {
        max_running_requests: 2,
        ..SchedulerConfig::default()
    };
    let engine = engine(
        mock,
        EngineLoopConfig {
            scheduler,
            ..Default::default()
        },
    );
    let streams: Vec<_> = (0..5)
        .map(|_| engine.submit(request(&engine, 50)).unwrap())
        .collect();
    for stream in streams {
        let events = drain(stream).await;
        let last = events.last();
        assert!(
            matches!(last, Some(TokenEvent::Failed(Failure::DeviceLost { message })) if message.contains("lost")),
            "{last:?}"
        );
    }
    wait_until("stopped", || engine.has_stopped()).await;
    assert!(engine.has_died() && !engine.is_healthy());
}

#[tokio::test]
async fn a_panic_in_the_executor_ends_every_request() {
    let mock = MockConfig {
        panicking_step: Some(3),
        ..slow()
    };
    let scheduler = SchedulerConfig {
        max_running_requests: 2,
        ..SchedulerConfig::default()
    };
    let engine = engine(
        mock,
        EngineLoopConfig {
            scheduler,
            ..Default::default()
        },
    );
    let streams: Vec<_> = (0..5)
        .map(|_| engine.submit(request(&engine, 50)).unwrap())
        .collect();
    for stream in streams {
        assert!(
            is_failed(&drain(stream).await),
            "running and waiting ones alike"
        );
    }
    wait_until("stopped", || engine.has_stopped()).await;
    assert!(!engine.is_healthy());
    assert_eq!(
        engine.submit(request(&engine, 5)).unwrap_err(),
        SubmitError::Stopped
    );
    engine.shutdown(Duration::from_secs(1)).await;
}

#[tokio::test]
async fn shutdown_lets_requests_finish() {
    let engine = engine(slow(), EngineLoopConfig::default());
    let stream = engine.submit(request(&engine, 10)).unwrap();
    let (events, ()) = tokio::join!(drain(stream), engine.shutdown(Duration::from_secs(20)));
    assert_eq!(events.len(), 11);
    assert!(!engine.is_healthy());
    wait_until("stopped", || engine.has_stopped()).await;
    assert_eq!(
        engine.submit(request(&engine, 1)).unwrap_err(),
        SubmitError::ShuttingDown,
        "nothing went wrong"
    );
}

#[tokio::test]
async fn shutdown_fails_what_outlasts_the_drain() {
    let engine = engine(slow(), EngineLoopConfig::default());
    let stream = engine.submit(request(&engine, 10_000)).unwrap();
    let (events, ()) = tokio::join!(drain(stream), engine.shutdown(Duration::from_millis(30)));
    assert_eq!(
        events.last(),
        Some(&TokenEvent::Failed(Failure::ShuttingDown))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_half_of_which_leave_lose_no_page() {
    let scheduler = SchedulerConfig {
        max_total_tokens: 512,
        chunked_prefill_size: Some(8),
        n_continuous_decode_steps: 3,
        ..SchedulerConfig::default()
    };
    let engine = engine(
        MockConfig::default(),
        EngineLoopConfig {
            scheduler,
            ..Default::default()
        },
    );
    let clients: Vec<_> = (0..200)
        .map(|i| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let mut stream = engine.submit(request(&engine, 1 + i % 60)).unwrap();
                if i % 2 == 0 {
                    stream.next().await;
                    return 0;
                }
                drain(stream).await.len() - 1
            })
        })
        .collect();
    for (i, client) in clients.into_iter().enumerate() {
        let n_tokens = client.await.unwrap();
        assert!(
            i % 2 == 0 || n_tokens == 1 + i % 60,
            "client {i} got {n_tokens} tokens"
        );
    }
    wait_until("idle", || engine.n_in_flight() == 0).await;
    wait_until("pages back", || engine.metrics().kv_pages_used.get() == 0.0).await;
}
