//! OpenAI's `/v1/responses`: whole and streamed, and what it refuses.

use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::fixture::{TestServer, merged};
use crate::tools::{TWO_CALLS, saying, with};

pub(crate) const PATH: &str = "/v1/responses";

pub(crate) fn body(fields: Value) -> Value {
    merged(json!({"input": "x", "max_output_tokens": 300}), fields)
}

pub(crate) fn tools() -> Value {
    json!([
        {"type": "function", "name": "weather", "strict": true, "parameters": {
            "type": "object", "properties": {"city": {"enum": ["서울", "부산"]}},
            "required": ["city"], "additionalProperties": false}},
        {"type": "function", "name": "time", "description": "Says it.",
            "parameters": {"type": "object", "additionalProperties": false}},
    ])
}

/// The events of a stream, with their numbers checked.
pub(crate) async fn events(server: &TestServer, fields: Value) -> Vec<Value> {
    let sent = body(merged(fields, json!({"stream": true})));
    let events = server.post(PATH, sent).await.typed_events();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    events
}

fn types(events: &[Value]) -> Vec<&str> {
    let types = events.iter().map(|event| event["type"].as_str());
    types.map(|kind| kind.expect("a type")).collect()
}

/// Replaces what is random, in items and in a response.
pub(crate) fn masked(mut value: Value) -> Value {
    for name in ["id", "call_id", "created_at", "completed_at"] {
        if value.get(name).is_some_and(|value| !value.is_null()) {
            value[name] = json!("*");
        }
    }
    let output = value.get_mut("output").and_then(Value::as_array_mut);
    for item in output.into_iter().flatten() {
        *item = masked(item.take());
    }
    value
}

#[tokio::test]
async fn a_whole_response() {
    let server = TestServer::start(saying("반가워요")).await;
    let fields = json!({
        "model": "gpt", "instructions": "Be kind.", "metadata": {"a": "b"}, "temperature": 0.5,
        "user": "u", "text": {"format": {"type": "text"}}, "include": [],
    });
    let answer = server.ok(PATH, body(fields.clone())).await;
    let id = answer["id"].as_str().expect("an id").to_owned();
    assert!(id.starts_with("resp_"), "{id}");
    let counted = server.ok("/v1/responses/input_tokens", body(fields)).await;
    let n_input = counted["input_tokens"].as_u64().expect("a number");
    let expected = json!({
        "id": "*", "object": "response", "created_at": "*", "completed_at": "*",
        "status": "completed", "background": false, "error": null, "incomplete_details": null,
        "instructions": "Be kind.", "max_output_tokens": 300, "max_tool_calls": null,
        "metadata": {"a": "b"}, "model": "mock", "parallel_tool_calls": true,
        "output": [{
            "type": "message", "id": "*", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "반가워요", "annotations": [], "logprobs": []}],
        }],
        "previous_response_id": null, "prompt_cache_key": null,
        "reasoning": {"effort": null, "summary": null}, "safety_identifier": null,
        "service_tier": "default", "store": true, "temperature": 0.5,
        "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
        "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled", "user": "u",
        "usage": {
            "input_tokens": n_input, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 13, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": n_input + 13,
        },
    });
    assert_eq!(masked(answer.clone()), expected);
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.json(), answer);
    let chat = json!({"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "x"}]});
    assert_eq!(server.ok("/tokenize", chat).await["count"], n_input);
}

#[tokio::test]
async fn a_streamed_response_has_every_event_in_order() {
    let text = format!("<think>hm</think>\n\n{TWO_CALLS}");
    let server = TestServer::start(with(saying(&text), ToolCallFormat::Hermes, true)).await;
    let events = events(&server, json!({"tools": tools()})).await;
    let mut order = types(&events);
    order.dedup();
    let call = [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ];
    let expected = [
        &["response.created", "response.in_progress"][..],
        &[
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ],
        &[
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
        ],
        &call,
        &call,
        &["response.completed"],
    ];
    assert_eq!(order, expected.concat());
    let response = &events.last().expect("an event")["response"];
    let output = response["output"].as_array().expect("items");
    assert_eq!(
        output[0]["content"],
        json!([{"type": "reasoning_text", "text": "hm"}])
    );
    assert_eq!(output[1]["content"][0]["text"], "Let me look.");
    for (i, (name, arguments)) in [("weather", "{\"city\": \"서울\"}"), ("time", "{}")]
        .iter()
        .enumerate()
    {
        let item = &output[i + 2];
        assert_eq!(
            (&item["name"], &item["arguments"]),
            (&json!(name), &json!(arguments))
        );
        assert!(
            item["call_id"]
                .as_str()
                .expect("an id")
                .starts_with("call_")
        );
    }
    // Deltas add up to the items, and every event says which item it is about.
    for (index, item) in output.iter().enumerate() {
        let about = || events.iter().filter(|event| event["output_index"] == index);
        let whole: String = about()
            .filter_map(|event| event["delta"].as_str())
            .collect();
        let text = match item["type"].as_str() {
            Some("function_call") => &item["arguments"],
            _ => &item["content"][0]["text"],
        };
        assert_eq!(*text, whole);
        for event in about() {
            let id = event.get("item_id").unwrap_or(&event["item"]["id"]);
            assert_eq!(*id, item["id"], "{event}");
        }
        assert_eq!(about().next_back().expect("an event")["item"], *item);
        assert_eq!(item["status"], "completed");
    }
    let usage = &response["usage"];
    assert_eq!(usage["output_tokens"], text.len() + 1);
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], 2);
    // It is kept, and equals the whole one.
    let id = response["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.json(), *response);
    let whole = server.ok(PATH, body(json!({"tools": tools()}))).await;
    assert_eq!(masked(whole)["output"], masked(response.clone())["output"]);
}

#[tokio::test]
async fn a_text_follows_a_schema() {
    let server = TestServer::start(saying("{\"n\": 5} and more")).await;
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}},
        "required": ["n"], "additionalProperties": false});
    let named = json!({"type": "json_schema", "name": "n", "strict": true, "schema": schema});
    for format in [named, json!({"type": "json_object"})] {
        let answer = server
            .ok(PATH, body(json!({"text": {"format": format}})))
            .await;
        let text = answer["output"][0]["content"][0]["text"]
            .as_str()
            .expect("a text");
        let value: Value = serde_json::from_str(text).expect("JSON");
        assert!(value.is_object(), "{value}");
        assert_eq!(answer["text"]["format"], format);
    }
}

#[tokio::test]
async fn log_probabilities_are_of_the_texts_tokens_alone() {
    let text = format!("<think>hm</think>\n\n{TWO_CALLS}");
    let server = TestServer::start(with(saying(&text), ToolCallFormat::Hermes, true)).await;
    let fields = json!({
        "tools": tools(), "include": ["message.output_text.logprobs"], "top_logprobs": 2,
    });
    let answer = server.ok(PATH, body(fields.clone())).await;
    let part = &answer["output"][1]["content"][0];
    let tokens = part["logprobs"].as_array().expect("tokens");
    let said: String = tokens
        .iter()
        .filter_map(|token| token["token"].as_str())
        .collect();
    assert_eq!(
        (said.as_str(), &part["text"]),
        ("Let me look.", &json!("Let me look."))
    );
    for token in tokens {
        assert!(token["logprob"].as_f64().expect("a number") <= 0.0);
        assert_eq!(token["top_logprobs"].as_array().map(Vec::len), Some(2));
    }
    let streamed = events(&server, fields).await;
    let deltas = streamed
        .iter()
        .filter(|event| event["type"] == "response.output_text.delta");
    let of_deltas: Vec<&Value> = deltas
        .flat_map(|event| event["logprobs"].as_array().expect("a list"))
        .collect();
    assert_eq!(of_deltas, tokens.iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn what_was_cut_off_is_incomplete() {
    let server = TestServer::start(saying("one two")).await;
    let answer = server.ok(PATH, body(json!({"max_output_tokens": 3}))).await;
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(
        answer["incomplete_details"],
        json!({"reason": "max_output_tokens"})
    );
    assert_eq!(answer["output"][0]["status"], "incomplete");
    assert_eq!(answer["output"][0]["content"][0]["text"], "one");
    let events = events(&server, json!({"max_output_tokens": 3})).await;
    let last = events.last().expect("an event");
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(
        masked(last["response"].clone())["output"],
        masked(answer)["output"]
    );
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let server = TestServer::start(with(saying("x"), ToolCallFormat::Hermes, false)).await;
    let input = |item: Value| json!({"input": [item]});
    let part = json!({"type": "input_image", "image_url": "http://x"});
    let many: Value = (0..17)
        .map(|i| (i.to_string(), json!("x")))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (fields, param, said) in [
        (json!({"input": null}), "input", "missing"),
        (json!({"input": []}), "input", "empty"),
        (json!({"input": 7}), "input", "is 7"),
        (json!({"input": ["x"]}), "input[0]", "an object"),
        (
            input(json!({"role": "tool", "content": "x"})),
            "input[0].role",
            "\"tool\"",
        ),
        (
            input(json!({"role": "user", "content": [part]})),
            "input[0].content[0]",
            "input_image",
        ),
        (
            input(json!({"type": "web_search_call", "id": "x"})),
            "input[0].type",
            "web_search_call",
        ),
        (
            input(json!({"type": "item_reference", "id": "x"})),
            "input[0].type",
            "item_reference",
        ),
        (
            input(json!({"type": "function_call_output", "call_id": "c9", "output": "x"})),
            "input[0].call_id",
            "c9",
        ),
        (
            input(json!({"type": "reasoning", "summary": [], "encrypted_content": "x"})),
            "input[0].encrypted_content",
            "read",
        ),
        (
            json!({"max_output_tokens": 0}),
            "max_output_tokens",
            "from 1 to",
        ),
        (
            json!({"max_output_tokens": 5000}),
            "max_output_tokens",
            "1024 tokens",
        ),
        (
            json!({"input": "x".repeat(2000), "max_output_tokens": null}),
            "input",
            "1024 tokens",
        ),
        (json!({"background": true}), "background", "is true"),
        (json!({"truncation": "auto"}), "truncation", "auto"),
        (json!({"conversation": "conv_1"}), "conversation", "conv_1"),
        (json!({"prompt": {"id": "p"}}), "prompt", "does not support"),
        (json!({"unheard_of": 1}), "unheard_of", "is 1"),
        (
            json!({"tools": [{"type": "web_search"}]}),
            "tools[0].type",
            "web_search",
        ),
        (
            json!({"tools": [{"type": "function"}]}),
            "tools[0].name",
            "missing",
        ),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "name": "f"}}),
            "tool_choice",
            "\"f\"",
        ),
        (
            json!({"text": {"format": {"type": "xml"}}}),
            "text.format.type",
            "xml",
        ),
        (
            json!({"text": {"format": {"type": "json_schema", "name": "x"}}}),
            "text.format.schema",
            "missing",
        ),
        (
            json!({"text": {"verbosity": "low"}}),
            "text.verbosity",
            "low",
        ),
        (
            json!({"reasoning": {"effort": "high"}}),
            "reasoning.effort",
            "high",
        ),
        (
            json!({"reasoning": {"summary": "concise"}}),
            "reasoning.summary",
            "concise",
        ),
        (
            json!({"include": ["file_search_call.results"]}),
            "include[0]",
            "file_search_call",
        ),
        (json!({"top_logprobs": 3}), "top_logprobs", "include"),
        (json!({"metadata": many}), "metadata", "the limit is 16"),
        (json!({"metadata": {"a": 1}}), "metadata", "strings"),
        (json!({"temperature": -1}), "temperature", "is -1"),
    ] {
        let answer = server.post(PATH, body(fields.clone())).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
        let answer = answer.json();
        let error = &answer["error"];
        assert_eq!(error["param"], param, "{fields}: {error}");
        let message = error["message"].as_str().expect("a message");
        assert!(
            message.contains(said) && message.contains(param),
            "{fields}: {message}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_generated_is_not_counted() {
    let server = TestServer::start(saying("ok")).await;
    let messages = json!([{"role": "user", "content": "x"}]);
    for (path, body) in [
        ("/v1/responses/input_tokens", json!({"input": "x"})),
        ("/v1/messages/count_tokens", json!({"messages": messages})),
    ] {
        server.ok(path, body.clone()).await;
        for fields in [
            json!({"top_p": 2}),
            json!({"seed": "x"}),
            json!({"logit_bias": []}),
        ] {
            let refused = server.post(path, merged(body.clone(), fields)).await;
            assert_eq!(refused.status, 400, "{path}: {}", refused.text());
        }
    }
}
