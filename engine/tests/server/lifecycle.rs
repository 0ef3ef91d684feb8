//! Loading, going away in the middle, failing, and stopping in order.

use std::time::Duration;

use engine::server::ServeError;
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, model, until};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn not_ready_until_the_model_is_there() {
    let config = TestConfig::default();
    let server = TestServer::start_unloaded(config.http.clone()).await;
    for path in ["/health", "/v1/models", "/server_info"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, 503, "{path}");
        assert_eq!(answer.json()["error"]["type"], "service_unavailable_error");
    }
    assert_eq!(server.post(PATH, json!({"prompt": "x"})).await.status, 503);
    // The process is there, and what it refuses is counted.
    assert!(server.metric("process_start_time_seconds").await > 0.0);
    let refused = "engine_http_errors_total{code=\"model_loading\"}";
    assert!((server.metric(refused).await - 4.0).abs() < 0.5);
    assert!(server.state.set_model(model(config)).is_ok());
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(
        server.get("/get_server_info").await.json(),
        json!({"version": "test"})
    );
    server.ok(PATH, json!({"prompt": "x"})).await;
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_pages() {
    let config = TestConfig::default().slowly(Duration::from_millis(10));
    let server = TestServer::start(config).await;
    for stream in [true, false] {
        let body = json!({"prompt": "x", "max_tokens": 400, "stream": stream, "n": 2});
        let body = body.to_string();
        let mut connection = client::open(server.address, "POST", PATH, &[], body.as_bytes()).await;
        if stream {
            let mut some = [0; 200];
            connection
                .read_exact(&mut some)
                .await
                .expect("the answer has begun");
        } else {
            let has_pages = async || server.metric("engine_kv_pages_used").await > 0.0;
            until("the request has pages", LIMIT, has_pages).await;
        }
        drop(connection);
        server.assert_empties().await;
    }
    assert_eq!(
        server.metric("vllm:generation_tokens_total").await as u64 / 400,
        0
    );
}

#[tokio::test]
async fn a_failed_step_fails_its_requests_only() {
    let mut config = TestConfig::saying("ok");
    config.mock.failing_steps = [2].into();
    let server = TestServer::start(config).await;
    let failed = server
        .post(PATH, json!({"prompt": "x", "max_tokens": 8}))
        .await;
    assert_eq!(failed.status, 500);
    assert_eq!(failed.json()["error"]["type"], "server_error");
    assert_eq!(server.get("/health").await.status, 200);
    server
        .ok(PATH, json!({"prompt": "x", "max_tokens": 8}))
        .await;
    server.assert_empties().await;
}

#[tokio::test]
async fn a_streamed_answer_ends_with_its_error() {
    let mut config = TestConfig::saying("ok");
    config.mock.failing_steps = [2].into();
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "max_tokens": 8, "stream": true});
    let chunks = server.post(PATH, body).await.chunks();
    assert_eq!(chunks.len(), 3);
    assert_eq!(chunks[1]["choices"][0]["text"], "k");
    assert_eq!(chunks[2]["error"]["type"], "server_error");
    let counted = "engine_http_errors_total{code=\"step_failed\"}";
    assert!((server.metric(counted).await - 1.0).abs() < 0.5);
}

#[tokio::test]
async fn a_dead_engine_is_unhealthy_and_hangs_nobody() {
    let mut config = TestConfig::saying("ok");
    config.mock.panicking_step = Some(3);
    let server = TestServer::start(config).await;
    let failed = server
        .post(PATH, json!({"prompt": "x", "max_tokens": 8}))
        .await;
    assert_eq!(failed.status, 500);
    assert_eq!(server.get("/health").await.status, 503);
    // Until the thread is gone a request may still get in, and then fails; later it is refused.
    for _ in 0..500 {
        match server.post(PATH, json!({"prompt": "x"})).await.status {
            503 => {
                let outcome = tokio::time::timeout(Duration::from_secs(10), server.outcome());
                let error = outcome
                    .await
                    .expect("the server ends")
                    .expect_err("not well");
                assert!(matches!(error, ServeError::EngineStopped), "{error}");
                return;
            }
            500 => tokio::time::sleep(Duration::from_millis(10)).await,
            other => panic!("{other} from a dead engine"),
        }
    }
    panic!("the engine's end goes unnoticed");
}

#[tokio::test]
async fn running_requests_finish_after_the_stop_signal() {
    let config = TestConfig::saying("done").slowly(Duration::from_millis(10));
    let mut server = TestServer::start(config).await;
    let address = server.address;
    let body = json!({"prompt": "x", "max_tokens": 40, "stream": true});
    let running = tokio::spawn(async move { client::post(address, PATH, &body).await });
    server.runs().await;
    server.stop();
    let answer = running.await.expect("an answer");
    assert_eq!(answer.status, 200);
    assert_eq!(answer.chunks().len(), 40, "all of it");
    server.ended().await;
    let refused = tokio::net::TcpStream::connect(address).await;
    assert!(refused.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn what_runs_too_long_is_cut_off() {
    let mut config = TestConfig::saying("slow").slowly(Duration::from_millis(50));
    config.http.shutdown_grace = Duration::from_millis(200);
    let mut server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "max_tokens": 400}).to_string();
    let _connection = client::open(server.address, "POST", PATH, &[], body.as_bytes()).await;
    server.runs().await;
    server.stop();
    tokio::time::timeout(Duration::from_secs(5), server.ended())
        .await
        .expect("the grace period is kept");
}
