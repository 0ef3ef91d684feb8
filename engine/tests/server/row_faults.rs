//! A fault of one request fails that request alone: others in its step keep their text, steps are
//! not counted as failed, and `/health` does not change.

use std::time::Duration;

use engine::server::ServeError;
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fixture::{LIMIT, TestConfig, TestServer, until};

const PATH: &str = "/v1/completions";
const FAILED_STEPS: &str = "engine_steps_total{model_name=\"mock\",kind=\"failed\"}";
/// A sequence that holds this token has a NaN among the logits of its fourth output token.
const POISON: u32 = 1;

fn config() -> TestConfig {
    let mut config = TestConfig::default().slowly(Duration::from_millis(1));
    config.mock.broken_logits = Some((POISON, 3));
    config.max_queued_requests = 1000;
    config
}

fn body(i: u32) -> Value {
    json!({"prompt": [5, 6, 7, 100 + i], "max_tokens": 24, "seed": i, "stream": i.is_multiple_of(2)})
}

/// Of a streamed or a whole answer.
fn text(answer: &Answer) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let is_stream = answer.header("content-type") == Some("text/event-stream");
    let of = |value: &Value| {
        assert!(value.get("error").is_none(), "{value}");
        value["choices"][0]["text"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    if is_stream {
        answer.chunks().iter().map(of).collect()
    } else {
        of(&answer.json())
    }
}

async fn texts(server: &TestServer) -> Vec<String> {
    let mut texts = Vec::new();
    for i in 0..8 {
        texts.push(text(&server.post(PATH, body(i)).await));
    }
    texts
}

/// Unaffected requests together with poisoned ones, repeatedly.
async fn innocents_are_unharmed(config: TestConfig) {
    let server = TestServer::start(config).await;
    let expected = texts(&server).await;
    let mut clients = tokio::task::JoinSet::new();
    for round in 0..5u32 {
        for i in 0..8u32 {
            let address = server.address;
            clients.spawn(async move {
                tokio::time::sleep(Duration::from_millis(u64::from(7 * round))).await;
                let poison = json!({"prompt": [POISON, i], "max_tokens": 9, "n": 1 + i % 3});
                let (innocent, poisoned) = tokio::join!(
                    async { client::post(address, PATH, &body(i)).await },
                    async { client::post(address, PATH, &poison).await }
                );
                (i, innocent, poisoned)
            });
        }
    }
    let mut n_seen = 0;
    while let Some(done) = clients.join_next().await {
        let (i, innocent, poisoned) = done.expect("answers");
        assert_eq!(text(&innocent), expected[i as usize], "innocent {i}");
        assert_eq!(poisoned.status, 500, "{}", poisoned.text());
        let error = &poisoned.json()["error"];
        assert_eq!(error["code"], "logits_not_finite", "{error}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("NaN"), "{message}");
        assert_eq!(client::get(server.address, "/health").await.status, 200);
        n_seen += 1;
    }
    assert_eq!(n_seen, 40);
    server.assert_empties().await;
    assert!(server.metric(FAILED_STEPS).await < 0.5);
    assert_eq!(texts(&server).await, expected, "and afterwards");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_numbers_fails_alone() {
    innocents_are_unharmed(config()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_numbers_fails_alone_beside_prompts() {
    let config = TestConfig {
        mixed_chunk: true,
        ..config()
    };
    innocents_are_unharmed(config).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_without_numbers_fails_alone_within_a_burst() {
    let config = TestConfig {
        n_decode_steps: 4,
        ..config()
    };
    innocents_are_unharmed(config).await;
}

/// Output before the fault has been streamed; then the error ends the stream.
#[tokio::test]
async fn a_stream_shows_its_tokens_and_then_its_own_error() {
    let server = TestServer::start(config()).await;
    let body = json!({"prompt": [POISON], "max_tokens": 9, "stream": true});
    let chunks = server.post(PATH, body).await.chunks();
    assert_eq!(chunks.len(), 4, "three tokens and an error: {chunks:?}");
    assert_eq!(chunks[3]["error"]["code"], "logits_not_finite");
    server.assert_empties().await;
}

/// Values at and beyond the limits of sampling parameters: each is served or refused by name, and
/// none affects another request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_parameters_are_served_or_refused_by_name_and_affect_no_other_request() {
    let server = TestServer::start(config()).await;
    let expected = texts(&server).await;
    let served = [
        json!({"top_p": 0}),
        json!({"top_p": 1e-300}),
        json!({"top_p": 1e-50}),
        json!({"temperature": 1e-46}),
        json!({"temperature": 3.5}),
        json!({"temperature": 1e38}),
        json!({"min_p": 1e-300}),
        json!({"repetition_penalty": 0.01}),
        json!({"repetition_penalty": 10}),
        json!({"presence_penalty": -2}),
    ];
    let refused = [
        json!({"top_p": 1.000_001}),
        json!({"temperature": 1e300}),
        json!({"temperature": -1e-300}),
        json!({"repetition_penalty": 1e-38}),
        json!({"repetition_penalty": 1e-45}),
        json!({"repetition_penalty": 1e30}),
        json!({"min_p": 1.5}),
    ];
    let mut clients = tokio::task::JoinSet::new();
    let cases = served
        .iter()
        .map(|c| (c, 200))
        .chain(refused.iter().map(|c| (c, 400)));
    for (i, (fields, status)) in cases.enumerate() {
        let address = server.address;
        let body =
            crate::fixture::merged(json!({"prompt": [9, 9], "max_tokens": 6}), fields.clone());
        let (fields, i) = (fields.clone(), i as u32 % 8);
        clients.spawn(async move {
            let (odd, innocent) =
                tokio::join!(async { client::post(address, PATH, &body).await }, async {
                    client::post(address, PATH, &self::body(i)).await
                });
            assert_eq!(odd.status, status, "{fields}: {}", odd.text());
            if status == 400 {
                let name = fields.as_object().and_then(|f| f.keys().next());
                assert_eq!(odd.json()["error"]["param"], *name.expect("a field"));
            }
            (i, text(&innocent))
        });
    }
    while let Some(done) = clients.join_next().await {
        let (i, text) = done.expect("answers");
        assert_eq!(text, expected[i as usize]);
    }
    assert!(server.metric(FAILED_STEPS).await < 0.5);
    assert_eq!(server.get("/health").await.status, 200);
}

/// An engine whose steps failed reports it and retries by itself: no request has to come first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_recovers_without_a_request() {
    let mut config = TestConfig::saying("ok");
    config.mock.failing_steps = [0, 1, 2, 3].into();
    let server = TestServer::start(config).await;
    for _ in 0..3 {
        let answer = server.post(PATH, json!({"prompt": "x"})).await;
        assert_eq!(answer.json()["error"]["code"], "step_failed");
    }
    assert_eq!(server.get("/health").await.status, 503);
    let is_healthy = async || server.get("/health").await.status == 200;
    until("the engine is healthy again", LIMIT, is_healthy).await;
    server.assert_empties().await;
    let text = server
        .ok(PATH, json!({"prompt": "x", "max_tokens": 2}))
        .await;
    assert_eq!(text["choices"][0]["text"], "ok");
}

/// If the device no longer responds, the program ends at once, so that a supervisor restarts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_device_ends_the_server() {
    let mut config = TestConfig::saying("ok").slowly(Duration::from_millis(2));
    config.mock.losing_step = Some(8);
    config.max_running_requests = 2;
    let server = TestServer::start(config).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let address = server.address;
        clients.spawn(async move {
            client::post(address, PATH, &json!({"prompt": "x", "max_tokens": 200})).await
        });
    }
    while let Some(answer) = clients.join_next().await {
        let answer = answer.expect("an answer");
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert_eq!(answer.json()["error"]["code"], "device_lost");
    }
    let outcome = tokio::time::timeout(LIMIT, server.outcome()).await;
    let error = outcome.expect("it ends").expect_err("and not well");
    assert!(matches!(error, ServeError::EngineStopped), "{error}");
}
