//! Loading, going away in the middle, failing, and stopping in order.

use std::time::Duration;

use engine::model::config::{Family, ModelConfig};
use engine::server::ServeError;
use engine::weights::fixture::{FolderFormat, tiny_config};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, model, until};
use crate::flags::fixture::Model;
use crate::program::Program;

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
async fn a_dead_engine_is_unhealthy_and_ends_every_request() {
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

/// A step that takes longer than the grace is given up: nothing waits for its end.
#[tokio::test]
async fn a_step_under_way_is_given_up_when_the_grace_is_over() {
    let mut config = TestConfig::saying("slow").slowly(Duration::from_mins(1));
    config.http.shutdown_grace = Duration::from_millis(300);
    let mut server = TestServer::start(config).await;
    let address = server.address;
    let asked = tokio::spawn(async move {
        let body = json!({"prompt": "x", "max_tokens": 4});
        client::post(address, PATH, &body).await
    });
    let is_there = async || {
        server.metric("vllm:num_requests_running").await > 0.0
            || server.metric("vllm:num_requests_waiting").await > 0.0
    };
    until("the request is in the engine", LIMIT, is_there).await;
    server.stop();
    tokio::time::timeout(Duration::from_millis(2300), server.ended())
        .await
        .expect("the grace and two seconds");
    let answer = asked.await.expect("an answer");
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], "shutting_down");
}

/// The program with a model on the CPU, in the middle of a step of many long prompts.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_among_long_prompts_ends_the_program_within_the_grace() {
    let config = ModelConfig {
        context_length: 8192,
        ..tiny_config(Family::Qwen3)
    };
    let model = Model::of(&config, FolderFormat::F16);
    let line = model.line(
        "--port 0 --shutdown-grace-s 1 --max-total-tokens 131072 --max-prefill-tokens 131072 \
         --chunked-prefill-size -1 --disable-radix-cache",
    );
    let mut program = Program::start(&line, &[]).await;
    let prompts: Vec<String> = (0..10).map(|i| i.to_string().repeat(8000 / 2)).collect();
    let body = json!({"prompt": prompts, "max_tokens": 3000, "ignore_eos": true}).to_string();
    let address = program.address;
    let _held = client::open(address, "POST", PATH, &[], body.as_bytes()).await;
    let runs = async || client::metric(address, "vllm:num_requests_running").await > 0.0;
    until("a request runs", LIMIT, runs).await;
    let begun = std::time::Instant::now();
    let status = program.terminate(Duration::from_mins(2)).await;
    let took = begun.elapsed();
    assert!(status.success(), "{status}: {}", program.log());
    let log = program.log();
    assert!(took < Duration::from_secs(10), "{took:?}: {log}");
    assert!(
        log.contains("are cut off"),
        "the requests outlast the grace, and on a slow machine one step does: {log}"
    );
}

/// A shell that sets limits of open files becomes the program.
async fn with_open_files(limits: &str, flags: &str) -> (Program, Model) {
    let model = Model::f16();
    let mut shell = std::process::Command::new("sh");
    let engine = env!("CARGO_BIN_EXE_engine");
    shell.args([
        "-c",
        &format!("ulimit {limits} && exec {engine} \"$@\""),
        "sh",
    ]);
    let line = model.line(&format!("--port 0 {flags}"));
    (Program::spawn(shell, &line, &[], None).await, model)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_of_open_files_is_raised() {
    let (program, _model) = with_open_files("-Sn 64", "").await;
    let limits = format!("/proc/{}/limits", program.id());
    let limits = std::fs::read_to_string(limits).expect("limits");
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let fields: Vec<&str> = files.expect("a line").split_whitespace().collect();
    assert_eq!(fields[3], fields[4], "soft is hard: {fields:?}");
}

/// More idle connections than files: they are refused, and probes are answered.
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_fewer_than_open_files() {
    let (program, _model) = with_open_files("-n 200", "").await;
    let log = program.log();
    assert!(
        log.contains("--max-connections 4096 is cut to 100"),
        "{log}"
    );
    let mut held = Vec::new();
    for _ in 0..260 {
        held.push(tokio::net::TcpStream::connect(program.address).await);
    }
    let answer = client::get(program.address, "/health").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop(held);
    let answers = async || client::try_get(program.address, "/v1/models").await;
    let is_free = async || answers().await.is_some_and(|answer| answer.status == 200);
    until("places are free again", LIMIT, is_free).await;
}

/// Where there are too few files even to refuse, the log says so once, and the server goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_lack_of_files_is_logged_once() {
    let (program, _model) = with_open_files("-n 40", "").await;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(tokio::net::TcpStream::connect(program.address).await);
    }
    let is_logged = async || program.log().contains("a connection cannot be accepted");
    until("the lack is logged", LIMIT, is_logged).await;
    drop(held);
    let answers = async || client::try_get(program.address, "/v1/models").await;
    let is_free = async || answers().await.is_some_and(|answer| answer.status == 200);
    until("files are free again", LIMIT, is_free).await;
    let log = program.log();
    assert_eq!(log.matches("cannot be accepted").count(), 1, "{log}");
    assert!(log.contains("max_open_files=Some(40)"), "{log}");
}
