//! Limits: each is reported with its value, and a refused request does not affect others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, until};

const PATH: &str = "/v1/completions";

/// What a connection says until the server closes it.
async fn read_to_close(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    // A reset is a close, too.
    let _ = tokio::time::timeout(Duration::from_secs(20), reading)
        .await
        .expect("the server closes it");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_connection_too_many_is_told_the_limit() {
    let mut config = TestConfig::default();
    config.http.max_connections = 3;
    let server = TestServer::start(config).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.address).await.expect("a place");
        // An answer shows that the place is taken.
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .expect("sent");
        let mut some = [0; 15];
        stream.read_exact(&mut some).await.expect("an answer");
        assert_eq!(&some, b"HTTP/1.1 200 OK");
        held.push(stream);
    }
    let refused = server.get("/v1/models").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("1"));
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "too_many_connections");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("3 connections"), "{message}");
    drop(held);
    let are_gone = async || server.state.traffic.n_connections() == 0;
    until("no connection is left", LIMIT, are_gone).await;
    let refused = "engine_http_errors_total{code=\"too_many_connections\"}";
    assert_eq!(server.metric(refused).await as u64, 1);
}

/// Strangers who hold every place make no healthy server look dead.
#[tokio::test]
async fn probes_are_answered_when_every_place_is_held() {
    let mut config = TestConfig::default();
    config.http.max_connections = 3;
    let server = TestServer::start(config).await;
    let mut held = Vec::new();
    for _ in 0..30 {
        held.push(TcpStream::connect(server.address).await.expect("connected"));
    }
    let are_taken = async || server.state.traffic.n_connections() >= 3;
    until("every place is taken", LIMIT, are_taken).await;
    for path in ["/health", "/metrics", "/health"] {
        assert_eq!(server.get(path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/v1/models").await.status, 503);
    // A probe's connection may stay open for its next request, but not for long.
    let mut probe = TcpStream::connect(server.address).await.expect("connected");
    let head = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    probe.write_all(head).await.expect("sent");
    let begun = Instant::now();
    let answer = read_to_close(&mut probe).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_client_that_sends_nothing_or_half_a_head_is_dropped() {
    let mut config = TestConfig::default();
    config.http.client_timeout = Duration::from_millis(200);
    let server = TestServer::start(config).await;
    for head in ["", "POST /v1/completions HTTP/1.1\r\nHo"] {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(server.address).await.expect("a place");
        stream.write_all(head.as_bytes()).await.expect("sent");
        assert_eq!(read_to_close(&mut stream).await, "", "{head:?}");
        assert!(begun.elapsed() >= Duration::from_millis(150), "{head:?}");
    }
    let dropped = "engine_http_dropped_total{reason=\"idle\"}";
    assert_eq!(server.metric(dropped).await as u64, 2);
}

/// A new connection has ten seconds for its first byte, however long clients may take otherwise.
#[tokio::test]
async fn a_new_connection_that_says_nothing_does_not_keep_its_place() {
    let server = TestServer::start(TestConfig::default()).await;
    let begun = Instant::now();
    let mut silent = TcpStream::connect(server.address).await.expect("a place");
    let mut begins = TcpStream::connect(server.address).await.expect("a place");
    begins.write_all(b"G").await.expect("sent");
    assert_eq!(read_to_close(&mut silent).await, "");
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9), "{took:?}");
    let mut nothing = [0; 1];
    let reading = begins.read(&mut nothing);
    let closed = tokio::time::timeout(Duration::from_secs(1), reading).await;
    assert!(closed.is_err(), "it has begun: {closed:?}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_408_with_the_limit() {
    let mut config = TestConfig::default();
    config.http.client_timeout = Duration::from_millis(200);
    let server = TestServer::start(config).await;
    let mut stream = TcpStream::connect(server.address).await.expect("a place");
    let head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{\"prompt\"";
    stream.write_all(head.as_bytes()).await.expect("sent");
    let answer = read_to_close(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(
        answer.contains("slow_body") && answer.contains("9 bytes came"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_model_that_takes_long_is_no_slow_client() {
    let mut config = TestConfig::default().slowly(Duration::from_millis(300));
    config.http.client_timeout = Duration::from_millis(100);
    let server = TestServer::start(config).await;
    for stream in [false, true] {
        let body = json!({"prompt": "x", "max_tokens": 3, "stream": stream});
        let answer = server.post(PATH, body).await;
        assert_eq!(answer.status, 200);
        assert!(!answer.body.is_empty());
        if stream {
            assert_eq!(answer.chunks().len(), 3);
        }
    }
}

/// A reader that takes nothing fills the socket's buffers; then its time runs.
#[tokio::test]
async fn a_reader_that_takes_nothing_is_dropped_and_its_requests_end() {
    let mut config = TestConfig::saying("x");
    config.http.client_timeout = Duration::from_millis(1500);
    config.context_length = 4096;
    config.mock.n_pages = 4096;
    let server = TestServer::start(config).await;
    let body = json!({
        "prompt": "x", "max_tokens": 4000, "stream": true, "logprobs": 20, "n": 8,
    });
    let body = body.to_string();
    let connection = client::open(server.address, "POST", PATH, &[], body.as_bytes()).await;
    let dropped = "engine_http_dropped_total{reason=\"slow_reader\"}";
    let is_dropped = async || server.metric(dropped).await as u64 == 1;
    until("the reader is dropped", Duration::from_mins(1), is_dropped).await;
    drop(connection);
    server.assert_empties().await;
}

#[tokio::test]
async fn waiting_too_long_in_the_queue_is_a_503_with_the_limit() {
    let mut config = TestConfig::default().slowly(Duration::from_millis(10));
    config.max_running_requests = 1;
    config.time_limits.queue = Some(Duration::from_millis(200));
    let server = TestServer::start(config).await;
    let address = server.address;
    let running = tokio::spawn(async move {
        client::post(address, PATH, &json!({"prompt": "x", "max_tokens": 120})).await
    });
    server.runs().await;
    let waited = server.post(PATH, json!({"prompt": "y"})).await;
    assert_eq!(waited.status, 503, "{}", waited.text());
    assert_eq!(waited.header("retry-after"), Some("1"));
    let error = &waited.json()["error"];
    assert_eq!(error["code"], "queue_timeout");
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("the limit is 200 ms (--max-queue-s)"),
        "{message}"
    );
    assert_eq!(
        running.await.expect("an answer").status,
        200,
        "admitted in time"
    );
    server.assert_empties().await;
}

#[tokio::test]
async fn taking_too_long_is_a_504_and_frees_the_pages() {
    let mut config = TestConfig::saying("ab").slowly(Duration::from_millis(10));
    config.time_limits.total = Some(Duration::from_millis(200));
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "max_tokens": 400});
    let late = server.post(PATH, body).await;
    assert_eq!(late.status, 504, "{}", late.text());
    assert_eq!(late.json()["error"]["code"], "request_timeout");
    let body = json!({"prompt": "x", "max_tokens": 400, "stream": true});
    let chunks = server.post(PATH, body).await.chunks();
    assert!(chunks.len() > 1, "it had begun");
    assert_eq!(chunks[chunks.len() - 1]["error"]["code"], "request_timeout");
    let timed_out = "engine_timed_out_total{model_name=\"mock\",limit=\"total\"}";
    assert_eq!(server.metric(timed_out).await as u64, 2);
    server.assert_empties().await;
    server
        .ok(PATH, json!({"prompt": "x", "max_tokens": 2}))
        .await;
}

/// What cannot fit, as its bytes tell, is refused before it is tokenized; what may fit is counted.
#[tokio::test]
async fn a_text_that_cannot_fit_is_not_tokenized() {
    let server = TestServer::start(TestConfig::default()).await;
    // 512 tokens of at most 12 bytes, the length of <|im_start|>.
    let most = 512 * 12;
    for (n_bytes, part) in [
        (most + 13, "which are 514 tokens at least"),
        (most, "6144 tokens"),
    ] {
        let text = "x".repeat(n_bytes);
        let chat = json!({"messages": [{"role": "user", "content": text}]});
        for (path, body) in [
            (PATH, json!({"prompt": text})),
            ("/v1/chat/completions", chat.clone()),
        ] {
            let answer = server.post(path, body).await;
            assert_eq!(answer.status, 400, "{path}");
            let error = &answer.json()["error"];
            assert_eq!(error["code"], "context_length_exceeded", "{path}");
            let message = error["message"].as_str().expect("a message");
            assert!(path != PATH || message.contains(part), "{message}");
            // The words that clients look for.
            let words = "this model's maximum context length is 512 tokens";
            assert!(message.contains(words), "{message}");
        }
    }
    let too_long = json!({"prompt": "x".repeat(most + 1)});
    assert_eq!(server.post("/tokenize", too_long).await.status, 400);
    let counted = json!({"prompt": "x".repeat(most)});
    let counted = server.ok("/tokenize", counted).await;
    assert_eq!(counted["count"], most);
}

/// The operator's own limit on prompts is the one that is named.
#[tokio::test]
async fn a_text_beyond_max_prompt_tokens_is_not_tokenized() {
    let mut config = TestConfig::default();
    config.http.max_prompt_tokens = Some(400);
    let server = TestServer::start(config).await;
    let answer = server.post(PATH, json!({"prompt": "x".repeat(5000)})).await;
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "prompt_too_long");
    let message = error["message"].as_str().expect("a message");
    let expected = "417 tokens at least; the limit is 400 tokens (--max-prompt-tokens)";
    assert!(message.contains(expected), "{message}");
}

/// Requests with different salts never see each other's prompts.
#[tokio::test]
async fn salts_share_no_cached_tokens() {
    let server = TestServer::start(TestConfig::default()).await;
    let cached = async |salt: Option<&str>| {
        let mut body = json!({"prompt": "p".repeat(64), "max_tokens": 2});
        if let Some(salt) = salt {
            body["cache_salt"] = json!(salt);
        }
        let usage = server.ok(PATH, body).await["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64()
    };
    for salt in [None, Some("a"), Some("b"), Some("")] {
        if salt == Some("") {
            let body = json!({"prompt": "p", "cache_salt": ""});
            let answer = server.post(PATH, body).await;
            assert_eq!(answer.status, 400);
            assert_eq!(answer.json()["error"]["param"], "cache_salt");
            continue;
        }
        assert_eq!(cached(salt).await.unwrap_or(0), 0, "{salt:?} is new");
        assert_eq!(cached(salt).await, Some(48), "{salt:?} again");
    }
    // All are kept beside each other.
    for salt in [None, Some("a"), Some("b")] {
        assert_eq!(cached(salt).await, Some(48), "{salt:?}");
    }
    let chat = async |salt: Value| {
        let messages = [json!({"role": "user", "content": "q".repeat(64)})];
        let body = json!({"messages": messages, "max_tokens": 2, "cache_salt": salt});
        let usage = server.ok("/v1/chat/completions", body).await["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap_or(0)
    };
    assert_eq!(chat(json!("a")).await, 0);
    assert_eq!(chat(Value::Null).await, 0);
    assert!(chat(json!("a")).await > 48);
}

/// A web page that is open in a browser on the same machine gets nothing done, and reads nothing.
#[tokio::test]
async fn foreign_web_pages_are_refused_where_no_key_is_asked_for() {
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    let status = async |config: TestConfig, host: &str, headers: &[(&str, &str)]| {
        let server = TestServer::start(config).await;
        let headers: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{}Content-Length: \
             {}\r\n\r\n{body}",
            headers.concat(),
            body.len()
        );
        let mut stream = TcpStream::connect(server.address).await.expect("a place");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let answer = read_to_close(&mut stream).await;
        answer.split(' ').nth(1).expect("a status").to_owned()
    };
    let blind = [
        ("Content-Type", "text/plain"),
        ("Origin", "https://evil.example"),
    ];
    let open = TestConfig::default;
    assert_eq!(status(open(), "localhost", &blind).await, "403");
    assert_eq!(status(open(), "rebound.example:30000", &[]).await, "403");
    assert_eq!(status(open(), "localhost:30000", &[]).await, "200");
    assert_eq!(
        status(open(), "127.0.0.1", &[("Origin", "http://localhost:8080")]).await,
        "200"
    );
    // A key keeps pages out by itself, and a reverse proxy may say any Host.
    let mut keyed = TestConfig::default();
    keyed.http.api_key = Some("k3y".to_owned());
    let key = [
        ("Authorization", "Bearer k3y"),
        ("Origin", "https://chat.example"),
    ];
    assert_eq!(status(keyed, "api.example.com", &key).await, "200");
    let mut elsewhere = TestConfig::default();
    elsewhere.http.host = "0.0.0.0".to_owned();
    assert_eq!(status(elsewhere, "gpu.example.com", &[]).await, "200");
}
