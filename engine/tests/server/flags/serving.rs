//! Flags of the HTTP side, and of what the program writes.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use super::model::Model;
use crate::client;
use crate::command_line::resolve;
use crate::fixture::{TestConfig, TestServer};
use crate::program::Program;

const PATH: &str = "/v1/completions";

/// A server with the HTTP settings of a launch line, in front of a mock model.
async fn server(line: &str, mut config: TestConfig) -> TestServer {
    config.http = resolve(line).expect(line).http;
    TestServer::start(config).await
}

#[tokio::test]
async fn api_key_is_asked_for() {
    let status = async |line: &str| {
        let server = server(line, TestConfig::default()).await;
        server.get("/v1/models").await.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--api-key s3cret").await, 401);
}

#[tokio::test]
async fn stream_interval_is_the_tokens_of_a_chunk() {
    let n_chunks = async |line: &str| {
        let server = server(line, TestConfig::saying("abcd")).await;
        let body = json!({"prompt": "x", "max_tokens": 12, "stream": true});
        server.post(PATH, body).await.chunks().len()
    };
    assert_eq!(n_chunks("").await, 12);
    assert_eq!(n_chunks("--stream-interval 4").await, 3);
}

#[tokio::test]
async fn max_body_bytes_bounds_a_request() {
    let status = async |line: &str| {
        let server = server(line, TestConfig::default()).await;
        let body = json!({"prompt": "x", "max_tokens": 1, "user": "y".repeat(2000)});
        server.post(PATH, body).await.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--max-body-bytes 1KiB").await, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_stop_strings_bounds_a_request() {
    let model = Model::f16();
    let status = async |flags: &str| {
        let program = Program::start(&model.line(&format!("--port 0 {flags}")), &[]).await;
        let body = json!({"prompt": "x", "max_tokens": 1, "stop": ["1", "2", "3"]});
        client::post(program.address, PATH, &body).await.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--max-stop-strings 2").await, 400);
}

#[tokio::test]
async fn shutdown_grace_s_is_what_requests_get() {
    let ends_in = async |line: &str, limit: Duration| {
        let config = TestConfig::saying("slow").slowly(Duration::from_millis(30));
        let mut server = server(line, config).await;
        let body = json!({"prompt": "x", "max_tokens": 100}).to_string();
        let _connection = client::open(server.address, "POST", PATH, &[], body.as_bytes()).await;
        while server.metric("vllm:num_requests_running").await == 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.stop();
        tokio::time::timeout(limit, server.ended()).await.is_ok()
    };
    // The request takes 3 s.
    assert!(ends_in("--shutdown-grace-s 0", Duration::from_millis(1500)).await);
    assert!(!ends_in("", Duration::from_millis(1500)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_port_are_listened_on() {
    let model = Model::f16();
    let program = Program::start(&model.line("--host 127.0.0.2 --port 0"), &[]).await;
    assert_eq!(program.address.ip().to_string(), "127.0.0.2");
    let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = free.local_addr().expect("bound").port();
    drop(free);
    let program = Program::start(&model.line(&format!("--port {port}")), &[]).await;
    assert_eq!(program.address, ([127, 0, 0, 1], port).into());
}

#[tokio::test(flavor = "multi_thread")]
async fn served_model_name_is_the_models_name() {
    let model = Model::f16();
    let name = async |flags: &str| {
        let program = Program::start(&model.line(&format!("--port 0 {flags}")), &[]).await;
        let models = client::get(program.address, "/v1/models").await.json();
        models["data"][0]["id"].as_str().expect("a name").to_owned()
    };
    assert_eq!(name("--served-model-name tiny").await, "tiny");
    assert_ne!(name("").await, "tiny");
}

#[tokio::test(flavor = "multi_thread")]
async fn decode_log_interval_is_the_steps_between_two_lines() {
    let model = Model::f16();
    let n_lines = async |flags: &str| {
        let program = Program::start(&model.line(&format!("--port 0 {flags}")), &[]).await;
        let body = json!({"prompt": "x", "max_tokens": 21, "ignore_eos": true});
        let answer = client::post(program.address, PATH, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let log = program.log();
        log.lines()
            .filter(|line| line.contains("output_tok_per_s"))
            .count()
    };
    assert_eq!(n_lines("--decode-log-interval 5").await, 4);
    assert_eq!(n_lines("--decode-log-interval 1000").await, 0);
}
