//! Responses that are kept: continued, listed, deleted, and left out.

use std::time::Duration;

use engine::config::ResultCachePlace;
use engine::server::stored_responses::{StoreLimits, Stored};
use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::client;
use crate::fixture::{LIMIT, TestConfig, TestServer, until};
use crate::responses::{PATH, body, events, masked, tools};
use crate::tools::{TWO_CALLS, saying, with};

#[tokio::test]
async fn a_call_and_its_result_are_a_conversation() {
    let server = TestServer::start(with(saying(TWO_CALLS), ToolCallFormat::Hermes, false)).await;
    let first = server.ok(PATH, body(json!({"tools": tools()}))).await;
    let calls: Vec<&Value> = first["output"]
        .as_array()
        .expect("items")
        .iter()
        .skip(1)
        .collect();
    let results = json!([
        {"type": "function_call_output", "call_id": calls[0]["call_id"], "output": "맑음"},
        {"type": "function_call_output", "call_id": calls[1]["call_id"],
            "output": [{"type": "input_text", "text": "noon"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "And?"}]},
    ]);
    let by_id = json!({
        "input": results, "previous_response_id": first["id"], "instructions": "Now.",
    });
    let call = |name: &str, arguments: &str| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    let chat = json!({"messages": [
        {"role": "system", "content": "Now."},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Let me look.",
            "tool_calls": [call("weather", "{\"city\": \"서울\"}"), call("time", "{}")]},
        {"role": "tool", "content": "맑음"},
        {"role": "tool", "content": "noon"},
        {"role": "user", "content": "And?"},
    ]});
    let count = server.ok("/tokenize", chat).await["count"].clone();
    let second = server.ok(PATH, body(by_id)).await;
    assert_eq!(second["usage"]["input_tokens"], count);
    assert_eq!(second["previous_response_id"], first["id"]);
    // The same, with every item sent.
    let mut all = vec![json!({"role": "user", "content": "x"})];
    all.extend(first["output"].as_array().expect("items").iter().cloned());
    all.extend(results.as_array().expect("items").iter().cloned());
    let whole = json!({"input": all, "instructions": "Now.", "store": false});
    let third = server.ok(PATH, body(whole)).await;
    assert_eq!(third["usage"]["input_tokens"], count);
    // A third turn continues both; the instructions of the second one are not its own.
    let next = json!({"input": "Bye.", "previous_response_id": second["id"]});
    let next = server.ok(PATH, body(next)).await;
    assert!(next["usage"]["input_tokens"].as_u64() > count.as_u64());
}

#[tokio::test]
async fn what_is_kept_is_listed_and_deleted() {
    let server = TestServer::start(saying("ok")).await;
    let input = json!([
        {"role": "user", "content": "a", "id": "one"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]);
    let id = server.ok(PATH, body(json!({"input": input}))).await["id"].clone();
    let path = format!("{PATH}/{}", id.as_str().expect("an id"));
    let list = async |query: &str| {
        server
            .get(&format!("{path}/input_items{query}"))
            .await
            .json()
    };
    let contents = |list: &Value| -> Vec<Value> {
        let items = list["data"].as_array().expect("items");
        items.iter().map(|item| item["content"].clone()).collect()
    };
    let newest_first = list("").await;
    assert_eq!(contents(&newest_first), ["c", "b", "a"]);
    assert_eq!(
        (&newest_first["last_id"], &newest_first["has_more"]),
        (&json!("one"), &json!(false))
    );
    let page = list("?order=asc&limit=1&after=one").await;
    assert_eq!(
        (contents(&page), &page["has_more"]),
        (vec![json!("b")], &json!(true))
    );
    for (query, said) in [
        ("limit=0", "from 1 to 100"),
        ("after=two", "no item"),
        ("order=x", "order"),
    ] {
        let refused = server.get(&format!("{path}/input_items?{query}")).await;
        assert_eq!(refused.status, 400, "{query}");
        assert!(refused.text().contains(said), "{}", refused.text());
    }
    // It was not in the background.
    assert_eq!(server.get(&format!("{path}?stream=true")).await.status, 404);
    let cancel = server.post(&format!("{path}/cancel"), json!({})).await;
    assert_eq!(cancel.json()["error"]["code"], "unsupported_parameter");
    let delete = || client::send(server.address, "DELETE", &path, &[], b"");
    assert_eq!(
        delete().await.json(),
        json!({"id": id, "object": "response", "deleted": true})
    );
    assert_eq!(delete().await.status, 404);
    for path in [path.clone(), format!("{path}/input_items")] {
        let gone = server.get(&path).await;
        assert_eq!(
            (gone.status, &gone.json()["error"]["code"]),
            (404, &json!("response_not_found"))
        );
    }
    let unstored = server.ok(PATH, body(json!({"store": false}))).await;
    assert_eq!(unstored["store"], false);
    let next = json!({"previous_response_id": unstored["id"]});
    let refused = server.post(PATH, body(next)).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (404, &json!("previous_response_id"))
    );
}

#[tokio::test]
async fn the_memory_of_responses_is_bounded() {
    let server = TestServer::start(saying("ok")).await;
    let used = server.ok(PATH, body(json!({}))).await["id"].clone();
    let unused = server.ok(PATH, body(json!({}))).await["id"].clone();
    let path = |id: &Value| format!("{PATH}/{}", id.as_str().expect("an id"));
    assert_eq!(server.get(&path(&used)).await.status, 200);
    for i in 0..StoreLimits::default().responses - 1 {
        let stored = Stored {
            response: json!({}),
            input: Vec::new(),
            previous: None,
        };
        assert!(server.state.stored_responses.put(&i.to_string(), stored));
    }
    assert_eq!(server.get(&path(&used)).await.status, 200);
    assert_eq!(server.get(&path(&unused)).await.status, 404);
}

#[tokio::test]
async fn a_stream_that_fails_says_so_and_is_not_kept() {
    let mut config = saying("one two three");
    config.mock.failing_steps = (5..6).collect();
    let server = TestServer::start(config).await;
    let events = events(&server, json!({})).await;
    let last = events.last().expect("an event");
    let response = &last["response"];
    assert_eq!(
        (&last["type"], &response["status"]),
        (&json!("response.failed"), &json!("failed"))
    );
    assert_eq!(response["error"]["code"], "step_failed");
    let id = response["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.status, 404);
}

#[tokio::test]
async fn an_abandoned_stream_is_cancelled() {
    let server = TestServer::start(saying("a b c").slowly(Duration::from_millis(5))).await;
    let sent = body(json!({"stream": true}));
    server.assert_cancels_abandoned(PATH, &sent).await;
}

/// The result cache holds what was generated, so a chat finds it too.
#[tokio::test]
async fn a_response_is_cached_like_the_chat_that_it_is() {
    let mut config: TestConfig = saying("반가워요");
    config.http.result_cache.place = ResultCachePlace::Memory;
    let server = TestServer::start(config).await;
    let asked = json!({"temperature": 0, "input": "x", "max_output_tokens": 20});
    let first = server.post(PATH, asked.clone()).await;
    assert_eq!(first.header("x-result-cache"), Some("miss"));
    let chat = json!({
        "temperature": 0, "max_tokens": 20, "messages": [{"role": "user", "content": "x"}],
    });
    // Storing does not delay the answer.
    until("the chat is found", LIMIT, async || {
        let answer = server.post("/v1/chat/completions", chat.clone()).await;
        let message = &answer.json()["choices"][0]["message"];
        assert_eq!(message["content"], "반가워요");
        answer.header("x-result-cache") == Some("hit")
    })
    .await;
    let second = server.post(PATH, asked).await;
    assert_eq!(second.header("x-result-cache"), Some("hit"));
    let (first, second) = (first.json(), second.json());
    assert_ne!(second["id"], first["id"]);
    assert_eq!(masked(second)["output"], masked(first)["output"]);
}
