//! Many clients at once, half of which disconnect, some of which send bad requests.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::client;
use crate::fixture::{TestConfig, TestServer};

const N_REQUESTS: usize = 200;

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Outcome {
    Answered,
    WentAway,
    TooLong,
    Malformed,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once() {
    // Few pages, so that requests are preempted as well.
    let mut config = TestConfig::default().slowly(Duration::from_millis(1));
    config.mock.n_pages = 33;
    config.max_queued_requests = N_REQUESTS;
    config.n_decode_steps = 2;
    let server = TestServer::start(config).await;
    for _ in 0..2 {
        let mut clients = JoinSet::new();
        for i in 0..N_REQUESTS {
            clients.spawn(run_client(server.address, i));
        }
        let mut outcomes = Vec::new();
        while let Some(outcome) = clients.join_next().await {
            outcomes.push(outcome.expect("no client failed"));
        }
        let count = |wanted| {
            outcomes
                .iter()
                .filter(|outcome| **outcome == wanted)
                .count()
        };
        assert_eq!(count(Outcome::WentAway), 100);
        assert_eq!(count(Outcome::TooLong), 20);
        assert_eq!(count(Outcome::Malformed), 20);
        assert_eq!(count(Outcome::Answered), 60);
        server.assert_empties().await;
    }
    assert!(
        server.metric("vllm:num_preemptions_total").await > 0.0,
        "the pool was too large"
    );
    assert_eq!(server.get("/health").await.status, 200);
    server.ok("/v1/completions", json!({"prompt": "x"})).await;
}

async fn run_client(address: SocketAddr, i: usize) -> Outcome {
    let path = "/v1/completions";
    let n_prompt = 1 + i * 7 % 90;
    let n_output = 1 + i * 13 % 160;
    match i % 10 {
        0 => {
            let body = json!({"prompt": "x".repeat(600)});
            let answer = client::post(address, path, &body).await;
            assert_eq!(answer.status, 400);
            assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
            Outcome::TooLong
        }
        2 => {
            let answer = client::send(address, "POST", path, &[], b"{\"prompt\": ").await;
            assert_eq!(answer.status, 400);
            Outcome::Malformed
        }
        4 | 6 | 8 => {
            let stream = i.is_multiple_of(4);
            let body = json!({
                "prompt": prompt(i, n_prompt), "max_tokens": n_output, "stream": stream,
                "stream_options": if stream { json!({"include_usage": true}) } else { json!(null) },
            });
            let answer = client::post(address, path, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let last = if stream {
                answer.chunks().pop().expect("a chunk")
            } else {
                answer.json()
            };
            assert_eq!(last["usage"]["completion_tokens"], n_output);
            assert_eq!(last["usage"]["prompt_tokens"], n_prompt);
            Outcome::Answered
        }
        _ => {
            let stream = i % 4 == 1;
            let body = json!({
                "prompt": prompt(i, n_prompt), "max_tokens": 400, "stream": stream,
            });
            let body = body.to_string();
            let mut connection = client::open(address, "POST", path, &[], body.as_bytes()).await;
            if stream {
                let mut some = [0; 300];
                // Long before the end: the answer is some 400 chunks.
                connection
                    .read_exact(&mut some)
                    .await
                    .expect("the answer has begun");
            } else {
                tokio::time::sleep(Duration::from_millis(i as u64)).await;
            }
            Outcome::WentAway
        }
    }
}

/// `n_tokens` letters with a unique beginning, so that no pages are shared.
fn prompt(client: usize, n_tokens: usize) -> String {
    (0..n_tokens)
        .map(|i| char::from(b'a' + ((client + i * (client / 26 + 1)) % 26) as u8))
        .collect()
}
