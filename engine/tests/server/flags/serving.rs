//! Flags of the HTTP side, and of what the program writes.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use super::fixture::Model;
use crate::client;
use crate::command_line::resolve;
use crate::fixture::{LIMIT, TestConfig, TestServer, until};
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
async fn api_key_file_and_admin_api_key_file_hold_the_keys() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, key: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, key).expect("written");
        path.display().to_string()
    };
    let line = format!(
        "--api-key-file {} --admin-api-key-file {}",
        write("api-key", "s3cret\n"),
        write("admin-api-key", "adm1n\n")
    );
    let server = server(&line, TestConfig::default()).await;
    for (path, key, status) in [
        ("/v1/models", "s3cret", 200),
        ("/v1/models", "adm1n", 401),
        ("/admin/models", "adm1n", 200),
        ("/admin/models", "s3cret", 401),
    ] {
        let bearer = format!("Bearer {key}");
        let headers = [("Authorization", bearer.as_str())];
        let answer = client::send(server.address, "GET", path, &headers, b"").await;
        assert_eq!(answer.status, status, "{path} with {key}");
    }
}

#[tokio::test]
async fn strict_model_name_refuses_a_name_that_no_model_has() {
    let status = async |line: &str| {
        let server = server(line, TestConfig::default()).await;
        let body = json!({"model": "gpt-4o", "prompt": "x", "max_tokens": 1});
        server.post(PATH, body).await.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--strict-model-name").await, 404);
}

#[tokio::test]
async fn allowed_origins_lets_pages_read_answers() {
    let allowed = async |line: &str| {
        let server = server(line, TestConfig::default()).await;
        let headers = [("Origin", "https://chat.example")];
        let answer = client::send(server.address, "GET", "/v1/models", &headers, b"").await;
        answer
            .header("access-control-allow-origin")
            .map(str::to_owned)
    };
    let page = Some("https://chat.example".to_owned());
    assert_eq!(allowed("").await, None);
    assert_eq!(allowed("--api-key s3cret").await.as_deref(), Some("*"));
    assert_eq!(
        allowed("--api-key s3cret --allowed-origins none").await,
        None
    );
    assert_eq!(allowed("--allowed-origins *").await.as_deref(), Some("*"));
    assert_eq!(
        allowed("--allowed-origins https://chat.example").await,
        page
    );
    assert_eq!(
        allowed("--allowed-origins https://other.example").await,
        None
    );
}

#[tokio::test]
async fn disable_web_ui_leaves_no_page() {
    for (line, status) in [("", 200), ("--disable-web-ui", 404)] {
        let server = server(line, TestConfig::default()).await;
        for path in ["/", "/assets/page.js"] {
            let answer = client::get(server.address, path).await;
            assert_eq!(answer.status, status, "{line} {path}");
        }
    }
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
        server.runs().await;
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

#[tokio::test]
async fn max_queue_s_bounds_the_wait() {
    let status = async |line: &str| {
        let mut config = TestConfig::default().slowly(Duration::from_millis(10));
        config.max_running_requests = 1;
        config.time_limits = resolve(line).expect(line).engine.time_limits;
        let server = TestServer::start(config).await;
        let address = server.address;
        let body = json!({"prompt": "x", "max_tokens": 150});
        let first = tokio::spawn(async move { client::post(address, PATH, &body).await });
        server.runs().await;
        let second = server
            .post(PATH, json!({"prompt": "y", "max_tokens": 1}))
            .await;
        assert_eq!(first.await.expect("an answer").status, 200);
        second.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--max-queue-s 1").await, 503);
    let limit = |line: &str| resolve(line).expect(line).engine.time_limits.queue;
    assert_eq!(limit(""), Some(Duration::from_mins(10)));
    assert_eq!(limit("--max-queue-s 0"), None);
}

#[tokio::test]
async fn max_request_s_bounds_a_request() {
    let status = async |line: &str| {
        let mut config = TestConfig::default().slowly(Duration::from_millis(10));
        config.time_limits = resolve(line).expect(line).engine.time_limits;
        let server = TestServer::start(config).await;
        let body = json!({"prompt": "x", "max_tokens": 150});
        server.post(PATH, body).await.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--max-request-s 1").await, 504);
}

#[tokio::test(flavor = "multi_thread")]
async fn max_prompt_tokens_and_max_output_tokens_bound_a_request() {
    let model = Model::f16();
    let flags = "--port 0 --max-prompt-tokens 8 --max-output-tokens 3";
    let program = Program::start(&model.line(flags), &[]).await;
    for (prompt, max_tokens, status) in [("123456789", 1, 400), ("12345678", 4, 400), ("1", 3, 200)]
    {
        let body = json!({"prompt": prompt, "max_tokens": max_tokens});
        let answer = client::post(program.address, PATH, &body).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}

#[tokio::test]
async fn max_connections_bounds_who_is_listened_to() {
    let status = async |line: &str| {
        let server = server(line, TestConfig::default()).await;
        let _held = tokio::net::TcpStream::connect(server.address)
            .await
            .expect("a place");
        let is_taken = async || server.state.traffic.n_connections() > 0;
        until("the place is taken", LIMIT, is_taken).await;
        server.get("/v1/models").await.status
    };
    assert_eq!(status("").await, 200);
    assert_eq!(status("--max-connections 1").await, 503);
}

#[tokio::test]
async fn client_timeout_s_is_what_a_client_gets() {
    use tokio::io::AsyncReadExt;
    let is_dropped = async |line: &str| {
        let server = server(line, TestConfig::default()).await;
        let mut silent = tokio::net::TcpStream::connect(server.address)
            .await
            .expect("a place");
        let mut nothing = [0; 1];
        let closed = tokio::time::timeout(Duration::from_secs(2), silent.read(&mut nothing)).await;
        closed.is_ok()
    };
    assert!(!is_dropped("").await);
    assert!(is_dropped("--client-timeout-s 1").await);
}

#[test]
fn result_cache_flags_bound_time_and_size() {
    let cache = resolve("--result-cache memory")
        .expect("a place")
        .http
        .result_cache;
    assert_eq!(
        (cache.ttl, cache.max_bytes),
        (Duration::from_hours(1), 64 << 20)
    );
    let line = "--result-cache memory --result-cache-ttl-s 2 --result-cache-max-bytes 2KiB";
    let cache = resolve(line).expect("in range").http.result_cache;
    assert_eq!((cache.ttl, cache.max_bytes), (Duration::from_secs(2), 2048));
    for (line, part) in [
        ("--result-cache disk", "redis://"),
        ("--result-cache redis://:pw@", "--result-cache"),
        ("--result-cache redis://:pw?@host", "redis://(withheld)"),
        ("--result-cache redis://:pw", "redis://(withheld)"),
        ("--result-cache-max-bytes 3", "1KiB"),
        ("--result-cache-ttl-s 0", "1.."),
    ] {
        let message = resolve(line).expect_err(line);
        assert!(
            message.contains(part) && !message.contains("pw"),
            "{line}: {message}"
        );
    }
}

#[tokio::test]
async fn kept_stream_flags_bound_number_bytes_and_time() {
    let limits = |line: &str| resolve(line).map(|config| config.http.kept_streams);
    let period = limits("--kept-stream-s 2").map(|limits| limits.period);
    assert_eq!(period, Ok(Duration::from_secs(2)));
    for (line, part) in [
        ("--max-kept-streams 2000000", "1048576"),
        ("--max-kept-stream-bytes 3", "1KiB"),
        ("--kept-stream-s 0", "1.."),
    ] {
        let message = limits(line).expect_err(line);
        assert!(message.contains(part), "{line}: {message}");
    }
    // The status of a stream, and that of reading it again from its start.
    let statuses = async |line: &str| {
        let server = server(line, TestConfig::saying("abcd")).await;
        let body = json!({"prompt": "x", "max_tokens": 40, "ignore_eos": true, "stream": true});
        let (body, id) = (body.to_string(), [("X-Conversation-Id", "a")]);
        let first = client::send(server.address, "POST", PATH, &id, body.as_bytes()).await;
        (first.status, server.get("/v1/stream/a").await.status)
    };
    assert_eq!(statuses("").await, (200, 200));
    assert_eq!(statuses("--max-kept-streams 0").await, (400, 404));
    assert_eq!(statuses("--max-kept-stream-bytes 1KiB").await, (200, 404));
}
