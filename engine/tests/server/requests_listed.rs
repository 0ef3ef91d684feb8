//! `/admin/requests`: the requests one by one, with the reasons of the scheduler.

use std::time::Duration;

use serde_json::{Value, json};

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, until};

async fn listed(server: &TestServer, query: &str, key: &str) -> client::Answer {
    let path = format!("/admin/requests{query}");
    client::send(server.address, "GET", &path, &[("X-Api-Key", key)], b"").await
}

#[tokio::test]
async fn requests_are_listed_with_their_ids_and_reasons() {
    let mut config = TestConfig::default().slowly(Duration::from_millis(20));
    config.max_running_requests = 1;
    config.http.admin_api_key = Some("k".to_owned());
    let server = TestServer::start(config).await;
    let empty = listed(&server, "", "k").await.json();
    assert_eq!(empty["requests"], json!([]));
    let mut streams = Vec::new();
    for (i, rid) in ["first", "second", "third"].into_iter().enumerate() {
        let body = json!({"prompt": "secret text", "max_tokens": 400, "stream": true, "rid": rid});
        let sent = body.to_string();
        let open = client::open(
            server.address,
            "POST",
            "/v1/completions",
            &[],
            sent.as_bytes(),
        );
        streams.push(open.await);
        let has_come = async || {
            let now = listed(&server, "?model=mock", "k").await.json();
            now["n_requests"] == i + 1 && now["requests"][i]["wait"]["reason"] != "new"
        };
        until("the request is planned", LIMIT, has_come).await;
    }
    let answer = listed(&server, "", "k").await;
    assert!(!answer.text().contains("secret"), "{}", answer.text());
    let now = answer.json();
    assert_eq!(now["policy"], "fcfs");
    let of = |key: &str| -> Vec<Value> {
        let requests = now["requests"].as_array().expect("a list");
        requests.iter().map(|one| one[key].clone()).collect()
    };
    assert_eq!(of("id"), ["first", "second", "third"]);
    assert_eq!(of("state"), ["running", "waiting", "waiting"]);
    assert_eq!(of("prompt_tokens"), [11, 11, 11]);
    assert_eq!(of("max_tokens"), [400, 400, 400]);
    let full = json!({"reason": "batch_full", "limit": 1});
    assert_eq!(of("wait"), [Value::Null, full.clone(), full]);
    assert!(now["requests"][0]["age_s"].as_f64() >= now["requests"][2]["age_s"].as_f64());
    drop(streams);
    server.assert_empties().await;
    assert_eq!(listed(&server, "", "wrong").await.status, 401);
    assert_eq!(listed(&server, "?model=unknown", "k").await.status, 404);
}
