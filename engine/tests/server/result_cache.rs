//! Cached responses: in memory, and in a real Redis that stops and restarts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::command_line::resolve;
use crate::fixture::{LIMIT, TestConfig, TestServer, merged, until};
use crate::flags::fixture::Model;
use crate::program::Program;
use crate::redis_server::RedisServer;

const PATH: &str = "/v1/completions";

async fn server(line: &str, mut config: TestConfig) -> TestServer {
    config.http.result_cache = resolve(line).expect(line).http.result_cache;
    TestServer::start(config).await
}

fn word(answer: &Answer) -> Option<&str> {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-result-cache")
}

/// The response without the parts that differ each time.
fn content(answer: &Answer) -> Value {
    let mut body = answer.json();
    for name in ["id", "created"] {
        body[name] = Value::Null;
    }
    body
}

/// Sends the request until it is a hit: responses are stored after they are sent.
async fn hit(server: &TestServer, path: &str, body: &Value) -> Answer {
    let is_hit = async || word(&server.post(path, body.clone()).await) == Some("hit");
    until("a hit", LIMIT, is_hit).await;
    server.post(path, body.clone()).await
}

fn greedy() -> Value {
    json!({"prompt": "hello", "max_tokens": 12, "temperature": 0, "logprobs": 2, "n": 2})
}

#[tokio::test]
async fn a_hit_is_the_same_answer_with_its_usage_and_takes_no_step() {
    let server = server("--result-cache memory", TestConfig::default()).await;
    let first = server.post(PATH, greedy()).await;
    assert_eq!(word(&first), Some("miss"));
    let again = hit(&server, PATH, &greedy()).await;
    assert_eq!(content(&again), content(&first));
    assert_eq!(again.json()["usage"]["completion_tokens"], 24);
    let generated = server.metric("vllm:generation_tokens_total").await;
    hit(&server, PATH, &greedy()).await;
    let now = server.metric("vllm:generation_tokens_total").await;
    assert_eq!(now.to_bits(), generated.to_bits(), "no token was computed");
}

#[tokio::test]
async fn streams_and_chats_replay_what_was_kept() {
    let server = server("--result-cache memory", TestConfig::default()).await;
    let path = "/v1/chat/completions";
    let mut body = json!({
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9, "seed": 4,
        "temperature": 1.0, "stream": true, "stream_options": {"include_usage": true},
    });
    let first = server.post(path, body.clone()).await;
    assert_eq!(word(&first), Some("miss"));
    let again = hit(&server, path, &body).await;
    let text = |answer: &Answer| -> (String, Value) {
        let chunks = answer.chunks();
        let deltas = chunks.iter().filter_map(|chunk| {
            chunk["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        });
        (deltas.collect(), chunks[chunks.len() - 1]["usage"].clone())
    };
    assert_eq!(text(&again), text(&first));
    assert_eq!(again.chunks().len(), first.chunks().len());
    // The unstreamed response is the same.
    for name in ["stream", "stream_options"] {
        body[name] = Value::Null;
    }
    let whole = hit(&server, path, &body).await;
    assert_eq!(
        whole.json()["choices"][0]["message"]["content"],
        text(&first).0.as_str()
    );
}

#[tokio::test]
async fn what_is_not_deterministic_or_not_the_same_is_computed() {
    let server = server("--result-cache memory", TestConfig::default()).await;
    for random in [json!({"temperature": 1.0}), json!({})] {
        let body = merged(json!({"prompt": "x", "max_tokens": 3}), random);
        for _ in 0..2 {
            assert_eq!(word(&server.post(PATH, body.clone()).await), None);
        }
    }
    let base = json!({"prompt": "x", "max_tokens": 3, "temperature": 0});
    server.post(PATH, base.clone()).await;
    hit(&server, PATH, &base).await;
    for (name, value) in [
        ("prompt", json!("y")),
        ("max_tokens", json!(4)),
        ("seed", json!(1)),
    ] {
        let mut other = base.clone();
        other[name] = value;
        assert_eq!(
            word(&server.post(PATH, other).await),
            Some("miss"),
            "{name}"
        );
    }
}

/// One cache and two servers whose default output differs.
#[tokio::test]
async fn answers_of_another_length_are_not_shared() {
    let redis = RedisServer::start().await;
    let line = format!("--result-cache {}", redis.url());
    let body = json!({"prompt": "x", "temperature": 0});
    for max_output_tokens in [None, Some(5)] {
        let mut config = TestConfig::default();
        config.http.max_output_tokens = max_output_tokens;
        let server = server(&line, config).await;
        let answer = server.post(PATH, body.clone()).await;
        assert_eq!(word(&answer), Some("miss"), "{max_output_tokens:?}");
        assert_eq!(
            answer.json()["usage"]["completion_tokens"],
            max_output_tokens.unwrap_or(16)
        );
        hit(&server, PATH, &body).await;
    }
}

#[tokio::test]
async fn a_failed_answer_is_not_kept() {
    let mut config = TestConfig::default();
    config.mock.failing_steps = [2].into();
    let server = server("--result-cache memory", config).await;
    let body = json!({"prompt": "x", "max_tokens": 8, "temperature": 0});
    assert_eq!(server.post(PATH, body.clone()).await.status, 500);
    assert_eq!(word(&server.post(PATH, body).await), Some("miss"));
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_comes_and_goes_and_answers_go_on() {
    let mut redis = RedisServer::start().await;
    let model = Model::f16();
    let flags = format!(
        "--port 0 --result-cache {} --result-cache-ttl-s 2",
        redis.url()
    );
    let program = Program::start(&model.line(&flags), &[]).await;
    let body = json!({"prompt": "1", "max_tokens": 4, "temperature": 0});
    let ask = async || crate::client::post(program.address, PATH, &body).await;
    let until_hit = async || {
        let begun = Instant::now();
        loop {
            let answer = ask().await;
            if word(&answer) == Some("hit") {
                return answer;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(15),
                "never a hit: {}",
                program.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let first = ask().await;
    assert_eq!(word(&first), Some("miss"));
    assert_eq!(content(&until_hit().await), content(&first));
    // Its time runs out.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(word(&ask().await), Some("miss"));
    until_hit().await;

    redis.kill();
    for _ in 0..20 {
        assert_eq!(word(&ask().await), Some("miss"));
    }
    let n_warnings = |log: &str| log.matches("the result cache cannot be reached").count();
    assert_eq!(n_warnings(&program.log()), 1, "{}", program.log());

    redis.restart().await;
    assert_eq!(
        content(&until_hit().await)["choices"],
        content(&first)["choices"]
    );
    assert_eq!(n_warnings(&program.log()), 1, "{}", program.log());
    assert!(
        program.log().contains("reconnected to the result cache"),
        "{}",
        program.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_never_there_is_one_warning() {
    let model = Model::f16();
    let flags = "--port 0 --result-cache redis://:s3cret@127.0.0.1:1";
    let program = Program::start(&model.line(flags), &[]).await;
    for _ in 0..5 {
        let body = json!({"prompt": "1", "max_tokens": 2, "temperature": 0});
        let answer = crate::client::post(program.address, PATH, &body).await;
        assert_eq!(word(&answer), Some("miss"));
    }
    let log = program.log();
    assert_eq!(
        log.matches("the result cache cannot be reached").count(),
        1,
        "{log}"
    );
}

/// Sends one line of Redis's protocol and returns the first line of the reply.
async fn redis_says(redis: &RedisServer, line: &str) -> String {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let address = ("127.0.0.1", redis.port);
    let mut stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("Redis is there");
    stream
        .write_all(format!("{line}\r\n").as_bytes())
        .await
        .expect("sent");
    let mut reply = String::new();
    BufReader::new(stream)
        .read_line(&mut reply)
        .await
        .expect("a reply");
    reply.trim().to_owned()
}

#[tokio::test]
async fn flushing_empties_redis_of_answers_alone_and_says_where_it_cannot() {
    let mut redis = RedisServer::start().await;
    let line = format!("--result-cache {}", redis.url());
    let server = server(&line, TestConfig::default()).await;
    assert_eq!(redis_says(&redis, "SET another 1").await, "+OK");
    for i in 0..30 {
        let body = json!({"prompt": format!("p{i}"), "max_tokens": 2, "temperature": 0});
        hit(&server, PATH, &body).await;
    }
    assert_eq!(redis_says(&redis, "DBSIZE").await, ":31");
    let flush = async || server.post("/flush_cache", json!({})).await;
    until("no request is left", LIMIT, async || {
        flush().await.status == 200
    })
    .await;
    assert_eq!(redis_says(&redis, "DBSIZE").await, ":1", "another's key");
    redis.kill();
    let failed = flush().await;
    assert_eq!(failed.status, 503);
    assert_eq!(failed.json()["error"]["code"], "cache_unreachable");
}

/// The recommendations of the model's generation_config.json are part of the key of requests that
/// use defaults.
#[tokio::test(flavor = "multi_thread")]
async fn answers_under_other_sampling_defaults_are_not_shared() {
    let redis = RedisServer::start().await;
    let model = Model::f16();
    let file = model.path().join("generation_config.json");
    let line = model.line(&format!("--port 0 --result-cache {}", redis.url()));
    let body = json!({"prompt": "x", "max_tokens": 3, "temperature": 0});
    let mut words = Vec::new();
    for (penalty, n_kept) in [(1.0, ":1"), (1.3, ":2"), (1.0, ":2")] {
        let recommended = json!({"eos_token_id": 2, "repetition_penalty": penalty});
        std::fs::write(&file, recommended.to_string()).expect("written");
        let program = Program::start(&line, &[]).await;
        let answer = client::post(program.address, PATH, &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        words.push(word(&answer).map(str::to_owned));
        // A response is stored after it has been sent; the program ends here.
        until("the answer is kept", LIMIT, async || {
            redis_says(&redis, "DBSIZE").await == n_kept
        })
        .await;
    }
    let words: Vec<&str> = words.iter().flatten().map(String::as_str).collect();
    assert_eq!(words, ["miss", "miss", "hit"]);
}
