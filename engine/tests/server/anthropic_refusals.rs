//! What `/v1/messages` refuses, and how its errors look.

use std::time::Duration;

use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::anthropic::{COUNT, PATH, body, tools, types};
use crate::client;
use crate::fixture::TestServer;
use crate::tools::{saying, with};

#[tokio::test]
async fn wrong_requests_are_refused_in_anthropics_form() {
    let server = TestServer::start(with(saying("x"), ToolCallFormat::Hermes, false)).await;
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let image = json!([{"type": "image", "source": {"type": "url", "url": "http://x"}}]);
    let result = json!([{"type": "tool_result", "tool_use_id": "t9", "content": "x"}]);
    for (fields, param, said) in [
        (json!({"max_tokens": null}), "max_tokens", "missing"),
        (json!({"max_tokens": 0}), "max_tokens", "from 1 to"),
        (json!({"max_tokens": 5000}), "max_tokens", "1024 tokens"),
        (json!({"messages": []}), "messages", "at least one"),
        (json!({"temperature": -1}), "temperature", "is -1"),
        (
            json!({"stop_sequences": ["a", "b", "c", "d", "e"]}),
            "stop_sequences",
            "5",
        ),
        (json!({"unheard_of": 1}), "unheard_of", "is 1"),
        (
            json!({"mcp_servers": [{"url": "x"}]}),
            "mcp_servers",
            "does not support",
        ),
        (
            json!({"service_tier": "priority"}),
            "service_tier",
            "priority",
        ),
        (
            json!({"metadata": {"name": "x"}}),
            "metadata.name",
            "does not know",
        ),
        (user(image), "messages[0].content[0].type", "\"image\""),
        (user(json!(7)), "messages[0].content", "is 7"),
        (user(result), "messages[0].content[0].tool_use_id", "t9"),
        (
            json!({"messages": [{"role": "system", "content": "x"}]}),
            "messages[0].role",
            "system",
        ),
        (
            json!({"system": [{"type": "image"}]}),
            "system[0].type",
            "image",
        ),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "w"}]}),
            "tools[0].type",
            "web_search",
        ),
        (
            json!({"tools": [{"name": "w"}]}),
            "tools[0].input_schema",
            "missing",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "tool", "name": "f"}}),
            "tool_choice",
            "\"f\"",
        ),
        (
            json!({"tool_choice": {"type": "some"}}),
            "tool_choice.type",
            "some",
        ),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 300}}),
            "thinking.budget_tokens",
            "less than max_tokens",
        ),
        (json!({"thinking": {"type": "on"}}), "thinking.type", "on"),
        (
            json!({"output_config": {"effort": "max"}}),
            "output_config.effort",
            "max",
        ),
        (
            json!({"output_config": {"format": {"type": "json_schema", "schema": {"type": 1}}}}),
            "output_config.format.schema",
            "schema",
        ),
        (
            json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}),
            "context_management.edits",
            "clear_tool_uses",
        ),
    ] {
        let answer = server.post(PATH, body(fields.clone())).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
        let answer = answer.json();
        assert_eq!(answer["type"], "error");
        let error = &answer["error"];
        assert_eq!(error["type"], "invalid_request_error", "{fields}");
        assert_eq!(error["param"], param, "{fields}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.contains(said) && message.contains(param),
            "{fields}: {message}"
        );
    }
}

#[tokio::test]
async fn errors_of_every_layer_are_in_anthropics_form() {
    let mut config = saying("x");
    config.http.api_key = Some("secret".to_owned());
    config.http.strict_model_name = true;
    let server = TestServer::start(config).await;
    let sent = body(json!({})).to_string();
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(70 << 10));
    let unknown = body(json!({"model": "claude"})).to_string();
    let (sent, key) = (sent.as_str(), ("x-api-key", "secret"));
    let (large, unknown) = (large.as_str(), unknown.as_str());
    for (method, path, headers, text, status, kind) in [
        ("POST", PATH, None, sent, 401, "authentication_error"),
        (
            "POST",
            COUNT,
            Some(("x-api-key", "other")),
            sent,
            401,
            "authentication_error",
        ),
        ("POST", PATH, Some(key), large, 413, "request_too_large"),
        ("POST", PATH, Some(key), "{", 400, "invalid_request_error"),
        ("POST", PATH, Some(key), unknown, 404, "not_found_error"),
        (
            "POST",
            "/messages/batches",
            Some(key),
            sent,
            404,
            "not_found_error",
        ),
        ("GET", PATH, Some(key), "", 405, "invalid_request_error"),
    ] {
        let (headers, text) = (headers.as_slice(), text.as_bytes());
        let answer = client::send(server.address, method, path, headers, text).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert_eq!(answer.json()["type"], "error", "{}", answer.text());
        assert_eq!(answer.json()["error"]["type"], kind);
    }
    for header in [key, ("authorization", "Bearer secret")] {
        let answer = client::send(server.address, "POST", PATH, &[header], sent.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Other paths keep OpenAI's form.
    let other = server.post("/v1/chat/completions", body(json!({}))).await;
    assert!(other.json().get("type").is_none(), "{}", other.text());
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_its_error() {
    let mut config = saying("one two three");
    config.mock.failing_steps = (5..6).collect();
    let server = TestServer::start(config).await;
    let answer = server.post(PATH, body(json!({"stream": true}))).await;
    assert_eq!(answer.status, 200);
    let events = answer.typed_events();
    let last = events.last().expect("an event");
    assert_eq!(
        (&last["type"], &last["error"]["type"]),
        (&json!("error"), &json!("api_error"))
    );
    assert!(types(&events).contains(&"content_block_delta"));
    assert!(!types(&events).contains(&"message_stop"));
}

#[tokio::test]
async fn an_abandoned_stream_is_cancelled() {
    let server = TestServer::start(saying("a b c").slowly(Duration::from_millis(5))).await;
    let sent = body(json!({"stream": true}));
    server.assert_cancels_abandoned(PATH, &sent).await;
}
