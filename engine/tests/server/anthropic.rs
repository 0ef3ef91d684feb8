//! Anthropic's `/v1/messages`: whole and streamed, with tools and thoughts.

use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::fixture::{TestConfig, TestServer, merged};
use crate::tools::{TWO_CALLS, saying, with};

pub(crate) const PATH: &str = "/v1/messages";
pub(crate) const COUNT: &str = "/v1/messages/count_tokens";

pub(crate) fn body(fields: Value) -> Value {
    let messages = json!([{"role": "user", "content": "x"}]);
    merged(json!({"messages": messages, "max_tokens": 300}), fields)
}

pub(crate) fn tools() -> Value {
    json!([
        {"name": "weather", "description": "Says it.", "input_schema": {
            "type": "object", "properties": {"city": {"enum": ["서울", "부산"]}},
            "required": ["city"], "additionalProperties": false}},
        {"type": "custom", "name": "time", "cache_control": {"type": "ephemeral"},
            "input_schema": {"type": "object", "additionalProperties": false}},
    ])
}

pub(crate) fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().map(|event| event["type"].as_str());
    types.map(|kind| kind.expect("a type")).collect()
}

/// The prompt's text of a chat, by `/tokenize`.
async fn chat_prompt(server: &TestServer, chat: Value) -> (String, Value) {
    let tokenized = server.ok("/tokenize", chat).await;
    let text = server
        .ok("/detokenize", json!({"tokens": tokenized["tokens"]}))
        .await;
    let text = text["prompt"].as_str().expect("a text").to_owned();
    (text, tokenized["count"].clone())
}

#[tokio::test]
async fn a_whole_message() {
    let server = TestServer::start(saying("반가워요")).await;
    let fields = json!({"model": "claude", "system": "Be kind.", "metadata": {"user_id": "u"}});
    let mut answer = server.ok(PATH, body(fields.clone())).await;
    let id = answer["id"].take();
    assert!(id.as_str().expect("an id").starts_with("msg_"));
    let count = server.ok(COUNT, body(fields.clone())).await["input_tokens"].clone();
    let usage = json!({
        "input_tokens": count, "output_tokens": 13,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
    });
    let expected = json!({
        "id": null, "type": "message", "role": "assistant", "model": "mock",
        "content": [{"type": "text", "text": "반가워요"}],
        "stop_reason": "end_turn", "stop_sequence": null, "usage": usage,
    });
    assert_eq!(answer, expected);
    // What is cached is no input, in Anthropic's terms.
    let usage = server.ok(PATH, body(fields)).await["usage"].clone();
    let cached = usage["cache_read_input_tokens"].as_u64().expect("a number");
    assert!(cached >= 16 && cached.is_multiple_of(16), "{usage}");
    assert_eq!(
        Some(cached + usage["input_tokens"].as_u64().expect("a number")),
        count.as_u64()
    );
}

#[tokio::test]
async fn a_streamed_message_has_every_event_in_order() {
    let text = format!("<think>hm</think>\n\n{TWO_CALLS}");
    let server = TestServer::start(with(saying(&text), ToolCallFormat::Hermes, true)).await;
    let fields = json!({
        "tools": tools(), "thinking": {"type": "enabled", "budget_tokens": 100}, "stream": true,
    });
    let answer = server.post(PATH, body(fields.clone())).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let events = answer.typed_events();
    let mut order = types(&events);
    order.dedup();
    let block = [
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
    ];
    let expected = [
        &["message_start", "ping"][..],
        &block,
        &block,
        &block,
        &block,
        &["message_delta", "message_stop"],
    ];
    assert_eq!(order, expected.concat());
    let start = &events[0]["message"];
    assert_eq!(
        (&start["content"], &start["stop_reason"]),
        (&json!([]), &Value::Null)
    );
    let blocks = content_of(&events);
    assert_eq!(blocks[0]["thinking"], "hm");
    assert_eq!(blocks[1], json!({"type": "text", "text": "Let me look."}));
    assert_eq!(
        (&blocks[2]["name"], &blocks[2]["input"]),
        (&json!("weather"), &json!({"city": "서울"}))
    );
    assert_eq!(
        (&blocks[3]["name"], &blocks[3]["input"]),
        (&json!("time"), &json!({}))
    );
    let n_deltas = events
        .iter()
        .filter(|e| e["type"] == "content_block_delta" && e["index"] == 2);
    assert!(n_deltas.count() > 10, "arguments come as they are written");
    let last = &events[events.len() - 2];
    assert_eq!(
        last["delta"],
        json!({"stop_reason": "tool_use", "stop_sequence": null})
    );
    assert_eq!(last["usage"]["output_tokens"], text.len() + 1);
    // The whole message is the same.
    let mut whole = server
        .ok(PATH, body(merged(fields, json!({"stream": false}))))
        .await;
    assert_eq!(whole["stop_reason"], "tool_use");
    for (i, block) in blocks.iter().enumerate() {
        if block["type"] == "tool_use" {
            assert!(block["id"].as_str().expect("an id").starts_with("toolu_"));
            whole["content"][i]["id"] = block["id"].clone();
        }
    }
    assert_eq!(whole["content"], json!(blocks));
    let signature = blocks[0]["signature"].as_str().expect("a signature");
    assert_eq!(signature.len(), 64);
}

/// The blocks that a stream's events add up to, each begun, extended and ended.
fn content_of(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut input = String::new();
    for event in events {
        let index = event["index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().expect("a type") {
            "content_block_start" => {
                assert_eq!(index, blocks.len());
                blocks.push(event["content_block"].clone());
                input.clear();
            }
            "content_block_delta" => {
                assert_eq!(index + 1, blocks.len());
                let (kind, delta) = (&event["delta"]["type"], &event["delta"]);
                for (delta_kind, name) in [
                    ("text_delta", "text"),
                    ("thinking_delta", "thinking"),
                    ("signature_delta", "signature"),
                ] {
                    if kind == delta_kind {
                        let so_far = blocks[index][name].as_str().expect("a text").to_owned();
                        let new = delta[name].as_str().expect("a text");
                        blocks[index][name] = json!(so_far + new);
                    }
                }
                input.push_str(delta["partial_json"].as_str().unwrap_or_default());
            }
            "content_block_stop" if blocks[index]["type"] == "tool_use" => {
                blocks[index]["input"] = serde_json::from_str(&input).expect("JSON");
            }
            _ => {}
        }
    }
    blocks
}

#[tokio::test]
async fn a_conversation_is_that_of_a_chat() {
    let server = TestServer::start(saying("x")).await;
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b",
            "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "서울"}},
            {"type": "tool_use", "id": "t2", "name": "time", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": "맑음"},
            {"type": "tool_result", "tool_use_id": "t2", "is_error": true,
                "content": [{"type": "text", "text": "no clock"}]},
            {"type": "text", "text": "And?"}]},
    ]);
    let system = json!([{"type": "text", "text": "S1"}, {"type": "text", "text": "S2"}]);
    let ours = json!({"messages": messages, "system": system, "tools": tools(), "max_tokens": 1});
    let call = |name: &str, arguments: &str| json!({"type": "function", "function": {"name": name, "arguments": arguments}});
    let function = |i: usize, description: Option<&str>| {
        let tool = tools()[i].clone();
        let mut function = json!({"name": tool["name"], "parameters": tool["input_schema"]});
        if let Some(description) = description {
            function["description"] = json!(description);
        }
        json!({"type": "function", "function": function})
    };
    let chat = json!({"enable_thinking": false, "messages": [
        {"role": "system", "content": "S1\nS2"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm",
            "tool_calls": [call("weather", "{\"city\": \"서울\"}"), call("time", "{}")]},
        {"role": "tool", "content": "맑음"},
        {"role": "tool", "content": "Error:\nno clock"},
        {"role": "user", "content": "And?"},
    ], "tools": [function(0, Some("Says it.")), function(1, None)]});
    let (text, count) = chat_prompt(&server, chat).await;
    assert!(
        text.contains("<call>weather {\"city\": \"서울\"}</call>"),
        "{text}"
    );
    assert!(
        text.contains("<|im_start|>tool\nError:\nno clock<|im_end|>"),
        "{text}"
    );
    let counted = server.ok(COUNT, ours.clone()).await;
    assert_eq!(counted, json!({"input_tokens": count}));
    // The second one finds the whole prompt of the first one, to the last full page.
    server.ok(PATH, ours.clone()).await;
    let usage = server.ok(PATH, ours).await["usage"].clone();
    let number = |name: &str| usage[name].as_u64().expect("a number");
    assert!(number("input_tokens") <= 16, "{usage}");
    assert_eq!(
        Some(number("input_tokens") + number("cache_read_input_tokens")),
        count.as_u64()
    );
}

#[tokio::test]
async fn thinking_is_off_unless_asked_for() {
    let server = TestServer::start(TestConfig::default()).await;
    let count = async |fields: Value| server.ok(COUNT, body(fields)).await["input_tokens"].clone();
    let thinks = count(json!({"thinking": {"type": "adaptive"}})).await;
    let closed = json!(thinks.as_u64().expect("a number") + "<think></think>".len() as u64);
    for (fields, expected) in [
        (json!({}), &closed),
        (json!({"thinking": {"type": "disabled"}}), &closed),
        (
            json!({"thinking": {"type": "enabled", "budget_tokens": 1024}, "max_tokens": 2000}),
            &thinks,
        ),
        (
            json!({"chat_template_kwargs": {"enable_thinking": true}}),
            &thinks,
        ),
    ] {
        assert_eq!(&count(fields.clone()).await, expected, "{fields}");
    }
}

#[tokio::test]
async fn every_reason_to_stop_is_told() {
    let server = TestServer::start(saying("one two three")).await;
    for (fields, reason, sequence, text) in [
        (json!({}), "end_turn", json!(null), "one two three"),
        (
            json!({"stop_sequences": ["zz", " th"]}),
            "stop_sequence",
            json!(" th"),
            "one two",
        ),
        (json!({"max_tokens": 3}), "max_tokens", json!(null), "one"),
    ] {
        let answer = server.ok(PATH, body(fields.clone())).await;
        assert_eq!(answer["stop_reason"], reason, "{fields}");
        assert_eq!(answer["stop_sequence"], sequence, "{fields}");
        assert_eq!(answer["content"][0]["text"], text, "{fields}");
        let streamed = body(merged(fields, json!({"stream": true})));
        let events = server.post(PATH, streamed).await.typed_events();
        let delta = &events[events.len() - 2]["delta"];
        assert_eq!(
            *delta,
            json!({"stop_reason": reason, "stop_sequence": sequence})
        );
    }
}

#[tokio::test]
async fn a_forced_tool_is_called() {
    let config = TestConfig {
        context_length: 1024,
        ..TestConfig::default()
    };
    let server = TestServer::start(with(config, ToolCallFormat::Hermes, false)).await;
    for (choice, name) in [
        (
            json!({"type": "tool", "name": "weather", "disable_parallel_tool_use": true}),
            Some("weather"),
        ),
        (
            json!({"type": "any", "disable_parallel_tool_use": true}),
            None,
        ),
    ] {
        let fields = json!({"tools": tools(), "tool_choice": choice, "seed": 1});
        let answer = server.ok(PATH, body(fields)).await;
        let content = answer["content"].as_array().expect("blocks");
        assert_eq!(
            (content.len(), &answer["stop_reason"]),
            (1, &json!("tool_use"))
        );
        let called = content[0]["name"].as_str().expect("a name");
        assert!(name.is_none_or(|name| name == called), "{called}");
        assert!(content[0]["input"].is_object(), "{answer}");
    }
    let server = TestServer::start(with(saying(TWO_CALLS), ToolCallFormat::Hermes, false)).await;
    let none = json!({"tools": tools(), "tool_choice": {"type": "none"}});
    let answer = server.ok(PATH, body(none)).await;
    assert_eq!(
        answer["content"],
        json!([{"type": "text", "text": TWO_CALLS}])
    );
}

#[tokio::test]
async fn a_message_follows_a_schema_or_what_was_begun() {
    let server = TestServer::start(saying("{\"n\": 5} and more")).await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}},
        "required": ["n"], "additionalProperties": false});
    let format = json!({"format": {"type": "json_schema", "schema": schema}});
    let answer = server
        .ok(PATH, body(json!({"output_config": format})))
        .await;
    let text = answer["content"][0]["text"].as_str().expect("a text");
    let value: Value = serde_json::from_str(text).expect("JSON");
    assert!(value["n"].is_i64(), "{value}");

    let server = TestServer::start(saying("a tale.")).await;
    let messages =
        json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "Sure, "}]);
    let begun = body(json!({"messages": messages, "thinking": {"type": "adaptive"}}));
    let chat = json!({"messages": messages, "continue_final_message": true});
    let (text, count) = chat_prompt(&server, chat).await;
    assert!(text.ends_with("Sure, "), "{text}");
    assert_eq!(server.ok(COUNT, begun.clone()).await["input_tokens"], count);
    assert_eq!(
        server.ok(PATH, begun).await["content"][0]["text"],
        "a tale."
    );
}
