//! What routers and schedulers ask: load, readiness, liveness, and how a server is drained.

use std::time::Duration;

use engine::speculation::{Algorithm, NgramConfig, SpeculationConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, model, until};

const COMPLETIONS: &str = "/v1/completions";

/// One request runs, two wait: 40, 50 and 60 tokens of prompt.
async fn one_runs_and_two_wait() -> (TestServer, Vec<TcpStream>) {
    let config = TestConfig {
        max_running_requests: 1,
        ..TestConfig::saying("slow").slowly(Duration::from_millis(20))
    };
    let server = TestServer::start(config).await;
    let mut held = Vec::new();
    for (i, letter) in ["a", "b", "c"].into_iter().enumerate() {
        let prompt = letter.repeat(40 + 10 * i);
        let body = json!({"prompt": prompt, "max_tokens": 300}).to_string();
        let sent = client::open(server.address, "POST", COMPLETIONS, &[], body.as_bytes());
        held.push(sent.await);
        let is_there = async || server.get("/load").await.json()["server_load"] == i + 1;
        until("the request is in the engine", LIMIT, is_there).await;
        server.runs().await;
    }
    let wait = async || server.metric("vllm:num_requests_waiting").await > 1.5;
    until("two requests wait", LIMIT, wait).await;
    (server, held)
}

#[tokio::test]
async fn the_load_is_told_in_each_programs_form() {
    let (server, held) = one_runs_and_two_wait().await;
    // As smg asks.
    let path = "/v1/loads?include=core,disagg,queues,memory";
    let answer = server.get(path).await.json();
    assert_eq!(answer["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(answer["dp_rank_count"], 1);
    assert_eq!(answer["accelerator"], Value::Null);
    let timestamp = answer["timestamp"].as_str().expect("a text");
    assert!(timestamp.starts_with("20") && timestamp.ends_with('Z'));
    let loads = answer["loads"].as_array().expect("a list");
    assert_eq!(loads.len(), 1);
    let load = &loads[0];
    for (field, expected) in [
        ("dp_rank", json!(0)),
        ("model", json!("mock")),
        ("num_running_reqs", json!(1)),
        ("num_waiting_reqs", json!(2)),
        ("num_total_reqs", json!(3)),
        ("num_waiting_uncached_tokens", json!(50 + 60)),
        ("max_total_num_tokens", json!(64 * 16)),
        ("max_running_requests", json!(1)),
    ] {
        assert_eq!(load[field], expected, "{field}: {load}");
    }
    let used = load["num_used_tokens"].as_u64().expect("a count");
    assert!(used >= 48 && used % 16 == 0, "whole pages: {used}");
    assert_eq!(load["num_total_tokens"], used + 110);
    let usage = load["token_usage"].as_f64().expect("a share");
    assert!((usage - used as f64 / 1024.0).abs() < 1e-9, "{usage}");
    assert_eq!(load["memory"]["token_capacity"], 1024);
    for section in ["speculative", "lora", "disaggregation", "queues"] {
        assert_eq!(load[section], Value::Null, "{section}");
    }
    let core = server.get("/v1/loads?include=core&dp_rank=0").await.json();
    assert_eq!(core["loads"][0]["memory"], Value::Null);
    let load = server.get("/get_load").await.json();
    assert_eq!(
        (&load[0]["num_reqs"], &load[0]["num_waiting_reqs"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(
        server.get("/load").await.json(),
        json!({"server_load": 3}),
        "vLLM's form"
    );
    drop(held);
    server.assert_empties().await;
    let load = server.get("/v1/loads").await.json()["loads"][0].clone();
    assert_eq!(load["num_total_tokens"], 0, "{load}");
}

#[tokio::test]
async fn what_speculation_accepts_is_part_of_the_load() {
    let config = TestConfig {
        speculation: Some(SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig::default()),
            n_draft_tokens: 5,
        }),
        ..TestConfig::saying("abcd")
    };
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "abcdabcdabcd", "max_tokens": 60});
    server.ok(COMPLETIONS, body).await;
    let page = server.get("/metrics").await;
    let of = |name: &str| page.metric(&format!("vllm:spec_decode_num_{name}_total"));
    let spec = server.get("/v1/loads?include=spec").await.json()["loads"][0]["speculative"].clone();
    let is = |field: &str, expected: f64| {
        let found = spec[field].as_f64().expect("a number");
        assert!((found - expected).abs() < 1e-9, "{field}: {found}");
    };
    assert!(of("accepted_tokens") > 0.0);
    is("accept_length", 1.0 + of("accepted_tokens") / of("drafts"));
    is("accept_rate", of("accepted_tokens") / of("draft_tokens"));
}

#[tokio::test]
async fn what_the_load_cannot_be_asked_is_refused_by_name() {
    let server = TestServer::start(TestConfig::default()).await;
    for (query, param, says) in [
        ("include=core,gpu", "include", "all, core, disagg"),
        ("dp_rank=1", "dp_rank", "less than 1"),
        ("dp_rank=-1", "dp_rank", "less than 1"),
        ("format=prometheus", "format", "/metrics"),
    ] {
        let refused = server.get(&format!("/v1/loads?{query}")).await;
        assert_eq!(refused.status, 400, "{query}");
        let error = refused.json()["error"].clone();
        assert_eq!(error["param"], param);
        let message = error["message"].as_str().expect("a text");
        assert!(message.contains(says), "{message}");
    }
    for (query, code) in [
        ("reset_running_requests=true", "unsupported_parameter"),
        ("reset_external=maybe", "invalid_value"),
    ] {
        let path = format!("/reset_prefix_cache?{query}");
        let refused = client::send(server.address, "POST", &path, &[], b"").await;
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (400, &json!(code))
        );
    }
    let path = "/reset_prefix_cache?reset_running_requests=false&reset_external=true";
    let reset = client::send(server.address, "POST", path, &[], b"").await;
    assert_eq!(
        (reset.status, reset.json()),
        (200, json!({"success": true}))
    );
}

#[tokio::test]
async fn readiness_follows_the_model_and_liveness_the_process() {
    let config = TestConfig::default();
    let mut http = config.http.clone();
    http.api_key = Some("s3cret".to_owned());
    let server = TestServer::start_unloaded(http).await;
    assert_eq!(
        server.get("/liveness").await.json(),
        json!({"status": "alive"})
    );
    let early = server.get("/readiness").await;
    assert_eq!(early.status, 503);
    assert_eq!(early.json()["error"]["code"], "model_loading");
    assert_eq!(early.header("retry-after"), Some("1"));
    // Both are probes and need no key; what tells of the models needs it.
    for path in ["/v1/loads", "/load", "/get_load"] {
        assert_eq!(server.get(path).await.status, 401, "{path}");
        let headers = [("Authorization", "Bearer s3cret")];
        let early = client::send(server.address, "GET", path, &headers, b"").await;
        assert_eq!(early.status, 503, "{path}: {}", early.text());
    }
    assert!(server.state.set_model(model(config)).is_ok());
    let ready = server.get("/readiness").await;
    assert_eq!(
        (ready.status, ready.json()),
        (200, json!({"status": "ready"}))
    );
}

#[tokio::test]
async fn steps_that_fail_end_the_readiness_and_not_the_liveness() {
    let mut config = TestConfig::saying("ok");
    config.mock.failing_steps = (0..1000).collect();
    let server = TestServer::start(config).await;
    for _ in 0..3 {
        let body = json!({"prompt": "x", "max_tokens": 1});
        assert_eq!(server.post(COMPLETIONS, body).await.status, 500);
    }
    let is_unready = async || server.get("/readiness").await.status == 503;
    until("the server is not ready", LIMIT, is_unready).await;
    assert_eq!(server.get("/liveness").await.status, 200);
}

#[tokio::test]
async fn a_dead_engine_is_not_alive() {
    let mut config = TestConfig::saying("ok");
    config.mock.panicking_step = Some(1);
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "max_tokens": 8});
    assert_eq!(server.post(COMPLETIONS, body).await.status, 500);
    // The server ends a second later.
    let is_dead = async || server.get("/liveness").await.status == 503;
    until("the engine's end is told", LIMIT, is_dead).await;
    assert_eq!(server.get("/readiness").await.status, 503);
}

/// The head and body of one response on a connection that stays open.
async fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut text = String::new();
    let mut some = [0; 2048];
    loop {
        let n = stream.read(&mut some).await.expect("an answer");
        text.push_str(std::str::from_utf8(&some[..n]).expect("a text"));
        let length = text.to_lowercase();
        let length = length.split_once("content-length: ").and_then(|(_, rest)| {
            let (number, _) = rest.split_once("\r\n")?;
            number.parse::<usize>().ok()
        });
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
        if n == 0 || (length.is_some() && body == length) {
            return text;
        }
    }
}

#[tokio::test]
async fn a_server_that_drains_finishes_streams_and_sends_requests_elsewhere() {
    let config = TestConfig::saying("done").slowly(Duration::from_millis(20));
    let mut server = TestServer::start(config).await;
    let address = server.address;
    let body = json!({"prompt": "x", "max_tokens": 60, "stream": true});
    let running = tokio::spawn(async move { client::post(address, COMPLETIONS, &body).await });
    server.runs().await;
    // A connection that a client keeps for its next request.
    let mut kept = TcpStream::connect(address).await.expect("a connection");
    let health = "GET /readiness HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let before = exchange(&mut kept, health).await;
    assert!(before.starts_with("HTTP/1.1 200"), "{before}");
    assert!(!before.to_lowercase().contains("connection: close"));
    server.stop();
    let is_draining = async || server.get("/readiness").await.status == 503;
    until("readiness ends", LIMIT, is_draining).await;
    let refused = server.post(COMPLETIONS, json!({"prompt": "y"})).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "shutting_down");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(server.get("/health").await.status, 503);
    assert_eq!(server.get("/liveness").await.status, 200);
    assert_eq!(server.get("/load").await.json()["server_load"], 1);
    let last = exchange(&mut kept, health).await;
    assert!(last.starts_with("HTTP/1.1 503"), "{last}");
    assert!(last.to_lowercase().contains("connection: close"), "{last}");
    assert_eq!(kept.read(&mut [0; 8]).await.expect("the end"), 0);
    let answer = running.await.expect("no panic");
    assert_eq!(
        (answer.status, answer.chunks().len()),
        (200, 60),
        "all of it"
    );
    server.ended().await;
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nothing listens"
    );
}

/// A drain ends with its engine, not with the grace.
#[tokio::test]
async fn a_drain_does_not_wait_for_a_dead_engine() {
    let mut config = TestConfig::saying("slow").slowly(Duration::from_millis(20));
    config.mock.panicking_step = Some(50);
    config.http.shutdown_grace = Duration::from_mins(5);
    let mut server = TestServer::start(config).await;
    let address = server.address;
    let body = json!({"prompt": "x", "max_tokens": 200});
    let running = tokio::spawn(async move { client::post(address, COMPLETIONS, &body).await });
    server.runs().await;
    server.stop();
    assert_eq!(running.await.expect("no panic").status, 500);
    let ended = tokio::time::timeout(LIMIT, server.ended()).await;
    assert!(ended.is_ok(), "the server still drains");
}

/// With the admin key alone, for what changes the state of others.
#[tokio::test]
async fn operators_paths_need_the_admin_key() {
    let mut config = TestConfig::saying("slow").slowly(Duration::from_millis(20));
    config.http.api_key = Some("s3cret".to_owned());
    config.http.admin_api_key = Some("adm1n".to_owned());
    let server = TestServer::start(config).await;
    let send = async |path: &str, key: &str, body: &[u8]| {
        let key = format!("Bearer {key}");
        let headers = [("Authorization", key.as_str())];
        client::send(server.address, "POST", path, &headers, body).await
    };
    let abort = br#"{"abort_all": true}"#.as_slice();
    for (path, body) in [
        ("/flush_cache", b"".as_slice()),
        ("/reset_prefix_cache", b""),
        ("/abort_request", abort),
    ] {
        let refused = send(path, "s3cret", body).await;
        assert_eq!(refused.status, 401, "{path}");
        assert!(refused.text().contains("admin key"), "{}", refused.text());
        assert_eq!(send(path, "adm1n", body).await.status, 200, "{path}");
    }
}
