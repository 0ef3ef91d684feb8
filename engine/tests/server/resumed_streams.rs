//! Streams that clients resume: after every event, several times, within limits, with their key.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::client::{self, Answer};
use crate::fixture::{LIMIT, TestConfig, TestServer, merged, until};

const ID: &str = "x-conversation-id";
const PATH: &str = "/v1/completions";

fn body(max_tokens: usize) -> Value {
    json!({"prompt": "x", "max_tokens": max_tokens, "ignore_eos": true})
}

/// A short stream of each endpoint.
fn endpoints() -> [(&'static str, Value); 5] {
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 3});
    [
        (PATH, merged(body(3), json!({"n": 2}))),
        ("/v1/chat/completions", chat.clone()),
        ("/v1/messages", chat),
        (
            "/v1/responses",
            json!({"input": "x", "max_output_tokens": 3}),
        ),
        (
            "/generate",
            json!({"text": "x", "sampling_params": {"max_new_tokens": 3}}),
        ),
    ]
}

fn sent(body: &Value) -> Vec<u8> {
    let body = merged(body.clone(), json!({"stream": true}));
    body.to_string().into_bytes()
}

async fn start(server: &TestServer, id: &str, path: &str, body: &Value) -> Answer {
    client::send(server.address, "POST", path, &[(ID, id)], &sent(body)).await
}

async fn resume(server: &TestServer, id: &str, after: &str) -> Answer {
    let headers = [("Last-Event-ID", after)];
    let path = format!("/v1/stream/{id}");
    client::send(server.address, "GET", &path, &headers, b"").await
}

async fn count(server: &TestServer, series: &str) -> u64 {
    server.metric(series).await as u64
}

/// The events of a stream, each with its empty line.
fn events(text: &str) -> Vec<&str> {
    text.split_inclusive("\n\n").collect()
}

/// Reads this many events and leaves.
async fn leave_after(server: &TestServer, id: &str, n: usize, path: &str, body: &Value) -> String {
    let mut stream = client::open(server.address, "POST", path, &[(ID, id)], &sent(body)).await;
    let mut text = String::new();
    while text.matches("\n\n").count() < n {
        text.push(char::from(stream.read_u8().await.expect("a stream")));
    }
    let body = text.split_once("\r\n\r\n").expect("a head").1;
    // A chunk of the transfer stands between its size and an empty line.
    let chunks = body.split("\r\n");
    chunks.filter(|chunk| chunk.ends_with("\n\n")).collect()
}

#[tokio::test]
async fn a_stream_is_read_on_after_every_event() {
    let server = TestServer::start(TestConfig::saying("반가워요")).await;
    for (i, (path, body)) in endpoints().iter().enumerate() {
        let id = i.to_string();
        let whole = start(&server, &id, path, body).await;
        let all = events(whole.text());
        assert!(all.len() > 3, "{path}: {}", whole.text());
        for (number, event) in all.iter().enumerate() {
            assert!(event.ends_with(&format!("\nid: {number}\n\n")), "{event:?}");
            let rest = resume(&server, &id, &number.to_string()).await;
            assert_eq!(events(rest.text()), all[number + 1..], "{path} {number}");
        }
        let path = format!("/v1/stream/{id}?starting_after=1");
        assert_eq!(events(server.get(&path).await.text()), all[2..]);
        assert_eq!(resume(&server, &id, "").await.body, whole.body);
    }
    assert!(count(&server, "engine_stream_resumptions_total").await > 20);
    assert_eq!(count(&server, "engine_kept_streams").await, 5);
    server.assert_empties().await;
}

#[tokio::test]
async fn a_client_that_is_cut_off_gets_the_rest_twice_at_once() {
    let config = TestConfig::saying("abcdef").slowly(Duration::from_millis(5));
    let server = TestServer::start(config).await;
    for (path, body) in endpoints() {
        for n_read in 1..4 {
            let id = format!("{}-{n_read}", path.replace('/', "-"));
            let begin = leave_after(&server, &id, n_read, path, &body).await;
            let last = (events(&begin).len() - 1).to_string();
            let (rest, again) =
                tokio::join!(resume(&server, &id, &last), resume(&server, &id, &last));
            let whole = resume(&server, &id, "").await;
            for rest in [rest, again] {
                assert_eq!(format!("{begin}{}", rest.text()), whole.text());
            }
        }
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let server = TestServer::start(TestConfig::saying("abc")).await;
    let n_events = events(start(&server, "one", PATH, &body(4)).await.text()).len();
    let beyond = resume(&server, "one", "17").await;
    let said = format!(
        "Last-Event-ID is 17, but the stream has no event after {}",
        n_events - 1
    );
    let error = beyond.json()["error"].clone();
    assert_eq!((beyond.status, &error["message"]), (400, &json!(said)));
    for (query, param) in [("starting_after=-1", "starting_after"), ("from=0", "from")] {
        let refused = server.get(&format!("/v1/stream/one?{query}")).await;
        assert_eq!(refused.json()["error"]["param"], param);
    }
    let unknown = resume(&server, "two", "").await;
    assert_eq!(
        (unknown.status, &unknown.json()["error"]["code"]),
        (404, &json!("stream_not_found"))
    );
    let delete = || client::send(server.address, "DELETE", "/v1/stream/one", &[], b"");
    assert_eq!((delete().await.status, delete().await.status), (200, 404));
    // Whole answers are not kept, nor streams that do not ask for it.
    server
        .post(PATH, merged(body(2), json!({"stream": true})))
        .await;
    let whole = body(2).to_string();
    client::send(
        server.address,
        "POST",
        PATH,
        &[(ID, "whole")],
        whole.as_bytes(),
    )
    .await;
    assert_eq!(count(&server, "engine_kept_streams").await, 0);
}

#[tokio::test]
async fn an_abandoned_stream_goes_on_and_then_is_cancelled() {
    let slowly = || TestConfig::saying("abc").slowly(Duration::from_millis(5));
    let server = TestServer::start(slowly()).await;
    leave_after(&server, "short", 2, PATH, &body(6)).await;
    let has_ended = async || count(&server, "vllm:request_success_total").await == 1;
    until("it has ended by itself", LIMIT, has_ended).await;
    assert!(resume(&server, "short", "").await.text().contains("[DONE]"));
    let mut config = slowly();
    config.http.kept_streams.period = Duration::from_millis(50);
    let server = TestServer::start(config).await;
    start(&server, "short", PATH, &body(2)).await;
    leave_after(&server, "long", 2, PATH, &body(400)).await;
    let is_cancelled = async || count(&server, "engine_kept_streams_abandoned_total").await == 1;
    until("it is cancelled", LIMIT, is_cancelled).await;
    server.assert_empties().await;
    assert_eq!(resume(&server, "long", "").await.status, 404);
    let is_forgotten = async || count(&server, "engine_kept_streams").await == 0;
    until("the other is forgotten", LIMIT, is_forgotten).await;
    assert_eq!(count(&server, "engine_kept_stream_bytes").await, 0);
}

#[tokio::test]
async fn the_number_of_streams_is_bounded() {
    let mut config = TestConfig::saying("abc").slowly(Duration::from_millis(20));
    config.http.kept_streams.streams = 2;
    let server = TestServer::start(config).await;
    for id in ["a", "b", "c"] {
        assert_eq!(start(&server, id, PATH, &body(1)).await.status, 200);
    }
    let status = async |id: &str| resume(&server, id, "").await.status;
    assert_eq!((status("a").await, status("b").await), (404, 200));
    // Those that run stay.
    for id in ["d", "e"] {
        leave_after(&server, id, 1, PATH, &body(400)).await;
    }
    let refused = start(&server, "f", PATH, &body(1)).await;
    assert_eq!(refused.json()["error"]["code"], "too_many_kept_streams");
    // The same client's next stream takes the place of the one before.
    let next = start(&server, "d", PATH, &body(1)).await;
    assert_eq!(resume(&server, "d", "").await.body, next.body);
    client::send(server.address, "DELETE", "/v1/stream/e", &[], b"").await;
    server.assert_empties().await;
}

#[tokio::test]
async fn only_the_key_that_began_a_stream_reads_on() {
    let server = TestServer::start(TestConfig::saying("abc")).await;
    let ask = async |method: &str, path: &str, key: &[(&str, &str)]| {
        let headers = [key, &[(ID, "mine")]].concat();
        client::send(server.address, method, path, &headers, &sent(&body(2)))
            .await
            .status
    };
    let (mine, stream) = ([("Authorization", "Bearer mine")], "/v1/stream/mine");
    assert_eq!(ask("POST", PATH, &mine).await, 200);
    for key in [&[("Authorization", "Bearer other")][..], &[]] {
        assert_eq!(ask("GET", stream, key).await, 404);
        assert_eq!(ask("DELETE", stream, key).await, 404);
        assert_eq!(ask("POST", PATH, key).await, 400);
    }
    assert_eq!(ask("GET", stream, &[("X-Api-Key", "mine")]).await, 200);
    assert_eq!(ask("DELETE", stream, &mine).await, 200);
}

#[tokio::test]
async fn a_response_in_the_background_is_a_stream_to_resume() {
    let config = TestConfig::saying("abc").slowly(Duration::from_millis(20));
    let server = TestServer::start(config).await;
    let path = "/v1/responses";
    let asked = |n: usize| json!({"input": "x", "background": true, "max_output_tokens": n});
    let whole = server
        .post(path, merged(asked(4), json!({"stream": true})))
        .await;
    let all = events(whole.text());
    let data: Vec<Value> = all
        .iter()
        .filter_map(|event| event.lines().find_map(|line| line.strip_prefix("data: ")))
        .map(|data| serde_json::from_str(data).expect("JSON"))
        .collect();
    for (number, data) in data.iter().enumerate() {
        assert_eq!(data["sequence_number"], json!(number));
    }
    let one = |id: &Value| format!("{path}/{}", id.as_str().expect("an id"));
    let place = one(&data[0]["response"]["id"]);
    let rest = server
        .get(&format!("{place}?stream=true&starting_after=2"))
        .await;
    assert_eq!(events(rest.text()), all[3..]);
    let response = server.get(&place).await.json();
    assert_eq!(Some(&response), data.last().map(|data| &data["response"]));
    assert_eq!(response["background"], true);
    assert_eq!(
        server
            .get(&format!("{place}?starting_after=2"))
            .await
            .status,
        400
    );
    for (fields, param) in [
        (json!({}), "background"),
        (json!({"stream": true, "store": false}), "store"),
    ] {
        let refused = server.post(path, merged(asked(4), fields)).await;
        assert_eq!(refused.json()["error"]["param"], param);
    }
    let begin = leave_after(&server, "unused", 1, path, &asked(400)).await;
    let data = begin.lines().find_map(|line| line.strip_prefix("data: "));
    let created: Value = serde_json::from_str(data.expect("data")).expect("JSON");
    let place = one(&created["response"]["id"]);
    assert_eq!(server.get(&place).await.json()["status"], "in_progress");
    let cancelled = server.post(&format!("{place}/cancel"), json!({})).await;
    assert_eq!(cancelled.json()["status"], "cancelled");
    server.assert_empties().await;
    assert_eq!(
        server.get(&format!("{place}?stream=true")).await.status,
        404
    );
}
