//! Tool calls and reasoning in chats.

use engine::config::ResultCachePlace;
use engine::served_model::OutputParsers;
use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::fixture::{LIMIT, TestConfig, TestServer, assert_answer, merged, until};

pub(crate) const PATH: &str = "/v1/chat/completions";

pub(crate) fn with(mut config: TestConfig, format: ToolCallFormat, reasoning: bool) -> TestConfig {
    config.parsers = OutputParsers {
        tool_calls: Some(format),
        reasoning,
    };
    config
}

/// A model that outputs this text and then ends.
pub(crate) fn saying(text: &str) -> TestConfig {
    let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
    ids.push(crate::fixture::IM_END);
    let mut config = TestConfig::emitting(ids);
    config.context_length = 1024;
    config
}

pub(crate) fn tools() -> Value {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let city = json!({"enum": ["서울", "부산"]});
    json!([
        tool(
            "weather",
            json!({
                "type": "object", "properties": {"city": city}, "required": ["city"],
                "additionalProperties": false,
            })
        ),
        tool(
            "time",
            json!({"type": "object", "additionalProperties": false})
        ),
    ])
}

pub(crate) fn body(fields: Value) -> Value {
    let messages = json!([{"role": "user", "content": "x"}]);
    let body = json!({"messages": messages, "tools": tools(), "max_tokens": 300});
    merged(body, fields)
}

/// The message that a stream's deltas add up to.
fn accumulated(chunks: &[Value]) -> Value {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    for chunk in chunks {
        let delta = &chunk["choices"][0]["delta"];
        for key in ["content", "reasoning_content"] {
            let text = message[key].as_str().expect("a text").to_owned();
            message[key] = json!(text + delta[key].as_str().unwrap_or_default());
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().expect("an array");
            let index = call["index"].as_u64().expect("an index") as usize;
            if index == calls.len() {
                assert!(call["id"].as_str().expect("an id").starts_with("call_"));
                calls.push(json!({"name": call["function"]["name"], "arguments": ""}));
            }
            let so_far = calls[index]["arguments"]
                .as_str()
                .expect("a text")
                .to_owned();
            let new = call["function"]["arguments"].as_str().expect("arguments");
            calls[index]["arguments"] = json!(so_far + new);
        }
    }
    message
}

pub(crate) const TWO_CALLS: &str = "Let me look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                         {\"city\": \"서울\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"time\", \
                         \"arguments\": {}}\n</tool_call>";

#[tokio::test]
async fn calls_in_qwens_format_are_fields_of_the_message() {
    let server = TestServer::start(with(saying(TWO_CALLS), ToolCallFormat::Hermes, false)).await;
    let mut answer = server.ok(PATH, body(json!({}))).await;
    for call in answer["choices"][0]["message"]["tool_calls"]
        .as_array_mut()
        .expect("calls")
    {
        assert_eq!(
            call["id"].as_str().expect("an id").len(),
            "call_".len() + 24
        );
        call["id"] = json!("[id]");
    }
    assert_answer!("tool_calls", answer);
    let answer = server
        .ok(PATH, body(json!({"parallel_tool_calls": false})))
        .await;
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    assert_eq!(calls.as_array().map(Vec::len), Some(1));
    assert_eq!(calls[0]["function"]["name"], "weather");
    // Without tools, or with none to be used, the same text is content.
    for fields in [json!({"tools": []}), json!({"tool_choice": "none"})] {
        let answer = server.ok(PATH, body(fields)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], TWO_CALLS);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn calls_are_streamed_as_their_arguments_are_written() {
    let server = TestServer::start(with(saying(TWO_CALLS), ToolCallFormat::Hermes, false)).await;
    let chunks = server
        .post(PATH, body(json!({"stream": true})))
        .await
        .chunks();
    let expected = json!({
        "content": "Let me look.",
        "reasoning_content": "",
        "tool_calls": [
            {"name": "weather", "arguments": "{\"city\": \"서울\"}"},
            {"name": "time", "arguments": "{}"},
        ],
    });
    assert_eq!(accumulated(&chunks), expected);
    let n_parts = chunks
        .iter()
        .filter(|chunk| chunk["choices"][0]["delta"]["tool_calls"][0]["index"] == 0)
        .count();
    assert!(n_parts > 10, "{n_parts} deltas");
    let last = chunks.last().expect("a chunk");
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn calls_in_llamas_format_are_read_too() {
    let text = "{\"name\": \"weather\", \"parameters\": {\"city\": \"부산\"}}";
    let server = TestServer::start(with(saying(text), ToolCallFormat::Llama3Json, false)).await;
    let chunks = server
        .post(PATH, body(json!({"stream": true})))
        .await
        .chunks();
    let calls = json!([{"name": "weather", "arguments": "{\"city\": \"부산\"}"}]);
    assert_eq!(accumulated(&chunks)["tool_calls"], calls);
    let answer = server.ok(PATH, body(json!({}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn calls_in_qwen3_coders_format_are_typed_and_streamed() {
    let text = "<think>hm\n<tool_call>\n<function=place>\n<parameter=city>\n서울\n</parameter>\n\
                <parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let place = json!({"type": "function", "function": {"name": "place", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city", "days"],
    }}});
    let server = TestServer::start(with(saying(text), ToolCallFormat::Qwen3Coder, true)).await;
    let fields = json!({"tools": [place], "stream": true});
    let chunks = server.post(PATH, body(fields)).await.chunks();
    let expected = json!({
        "content": "", "reasoning_content": "hm",
        "tool_calls": [{"name": "place", "arguments": "{\"city\": \"서울\", \"days\": 3}"}],
    });
    assert_eq!(accumulated(&chunks), expected);
    // Forced, whatever the model says.
    let config = TestConfig {
        context_length: 1024,
        ..TestConfig::default()
    };
    let server = TestServer::start(with(config, ToolCallFormat::Qwen3Coder, false)).await;
    for seed in 0..4 {
        let fields = json!({"tool_choice": "required", "seed": seed, "parallel_tool_calls": false});
        let answer = server.ok(PATH, body(fields)).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let call = &choice["message"]["tool_calls"][0]["function"];
        let arguments: Value =
            serde_json::from_str(call["arguments"].as_str().expect("a text")).expect("JSON");
        if call["name"] == "weather" {
            let city = arguments["city"].as_str().expect("a city");
            assert!(["서울", "부산"].contains(&city), "{city}");
        } else {
            assert_eq!((&call["name"], arguments), (&json!("time"), json!({})));
        }
    }
}

/// With a model whose output is random.
#[tokio::test]
async fn a_forced_call_is_one_whatever_the_model_says() {
    for format in [ToolCallFormat::Hermes, ToolCallFormat::Llama3Json] {
        let config = TestConfig {
            context_length: 1024,
            ..TestConfig::default()
        };
        let server = TestServer::start(with(config, format, false)).await;
        let named = json!({"type": "function", "function": {"name": "weather"}});
        for (choice, names) in [
            (json!("required"), &["weather", "time"][..]),
            (named, &["weather"][..]),
        ] {
            for seed in 0..4 {
                let fields = json!({
                    "tool_choice": choice, "seed": seed, "parallel_tool_calls": false,
                });
                let answer = server.ok(PATH, body(fields)).await;
                let choice = &answer["choices"][0];
                assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
                let calls = choice["message"]["tool_calls"].as_array().expect("calls");
                assert_eq!(calls.len(), 1);
                let name = calls[0]["function"]["name"].as_str().expect("a name");
                assert!(names.contains(&name), "{name}");
                let arguments = calls[0]["function"]["arguments"].as_str().expect("a text");
                let arguments: Value = serde_json::from_str(arguments).expect("JSON");
                if name == "weather" {
                    let city = arguments["city"].as_str().expect("a city");
                    assert!(["서울", "부산"].contains(&city), "{city}");
                } else {
                    assert_eq!(arguments, json!({}));
                }
            }
        }
    }
}

/// Some outputs look like a call but are not.
#[tokio::test]
async fn what_only_looks_like_a_call_is_content() {
    let call = "{\"name\": \"weather\", \"parameters\": {\"city\": \"부산\"}}";
    for (text, fields) in [
        // The form says what the output is, and is not that of an answer beside calls.
        (call, json!({"guided_json": {"type": "object"}})),
        (call, json!({"tool_choice": "none"})),
        // No arguments; no such tool.
        ("{\"name\": \"Bob\", \"age\": 3}", json!({})),
        ("{\"name\": \"weather\"}", json!({})),
        ("{\"name\": \"Bob\", \"parameters\": {\"x\": 1}}", json!({})),
        (
            call,
            json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {
                "mode": "auto", "tools": [{"type": "function", "function": {"name": "time"}}]}}}),
        ),
    ] {
        let server = TestServer::start(with(saying(text), ToolCallFormat::Llama3Json, false)).await;
        let answer = server.ok(PATH, body(fields.clone())).await;
        assert_eq!(answer["choices"][0]["message"]["content"], text, "{fields}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    // White space around text that is not a call, whole and streamed.
    let text = "The tag <tool_call> is used to call.\n\n<tool_call>\n x";
    let server = TestServer::start(with(saying(text), ToolCallFormat::Hermes, false)).await;
    let answer = server.ok(PATH, body(json!({}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    let chunks = server
        .post(PATH, body(json!({"stream": true})))
        .await
        .chunks();
    assert_eq!(accumulated(&chunks)["content"], text);
}

#[tokio::test]
async fn a_call_ends_a_thought_that_is_never_closed() {
    let call = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let text = format!("<think>\nplan\n{call}");
    let server = TestServer::start(with(saying(&text), ToolCallFormat::Hermes, true)).await;
    let chunks = server
        .post(PATH, body(json!({"stream": true})))
        .await
        .chunks();
    let expected = json!({
        "content": "", "reasoning_content": "plan",
        "tool_calls": [{"name": "weather", "arguments": "{\"a\": 1}"}],
    });
    assert_eq!(accumulated(&chunks), expected);
    let answer = server.ok(PATH, body(json!({}))).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["reasoning_content"], "plan");
    assert_eq!(choice["message"]["content"], Value::Null);
    // Inside reasoning that is closed, it is reasoning.
    let text = format!("<think>{call}</think>no");
    let server = TestServer::start(with(saying(&text), ToolCallFormat::Hermes, true)).await;
    let message = &server.ok(PATH, body(json!({}))).await["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], call);
    assert_eq!(message["content"], "no");
}

#[tokio::test]
async fn a_conversation_with_calls_and_results_goes_to_the_template() {
    let server = TestServer::start(TestConfig::default()).await;
    let conversation = json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [{
            "id": "call_1", "type": "function",
            "function": {"name": "weather", "arguments": "{\"city\": \"서울\"}"},
        }]},
        {"role": "tool", "tool_call_id": "call_1", "content": "맑음"},
    ]});
    let ids = server.ok("/tokenize", conversation.clone()).await["tokens"].clone();
    let text = server.ok("/detokenize", json!({"tokens": ids})).await;
    assert_eq!(
        text["prompt"],
        "<|im_start|>user\nx<|im_end|>\n\
         <|im_start|>assistant\n<call>weather {\"city\": \"서울\"}</call><|im_end|>\n\
         <|im_start|>tool\n맑음<|im_end|>\n<|im_start|>assistant\n"
    );
    server.ok(PATH, conversation).await;
}

const THOUGHT: &str = "<think>\n음… <b>\n</think>\n\n네.";

#[tokio::test]
async fn thoughts_come_in_a_field_of_their_own() {
    let server = TestServer::start(with(saying(THOUGHT), ToolCallFormat::Hermes, true)).await;
    let answer = server.ok(PATH, body(json!({"tools": null}))).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "음… <b>");
    assert_eq!(message["content"], "네.");
    let chunks = server
        .post(PATH, body(json!({"stream": true})))
        .await
        .chunks();
    let expected = json!({"content": "네.", "reasoning_content": "음… <b>", "tool_calls": []});
    assert_eq!(accumulated(&chunks), expected);
    for fields in [
        json!({"separate_reasoning": false}),
        // The prompt has closed the thought, so what comes is content.
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
    ] {
        let answer = server.ok(PATH, body(fields)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], THOUGHT);
    }
    let server = TestServer::start(saying(THOUGHT)).await;
    let message = &server.ok(PATH, body(json!({}))).await["choices"][0]["message"];
    assert_eq!(message["content"], THOUGHT);
    assert!(message.get("reasoning_content").is_none());
}

#[tokio::test]
async fn a_call_may_follow_reasoning() {
    let text = format!("<think>a</think>\n\n{TWO_CALLS}");
    let server = TestServer::start(with(saying(&text), ToolCallFormat::Hermes, true)).await;
    let chunks = server
        .post(PATH, body(json!({"stream": true})))
        .await
        .chunks();
    let message = accumulated(&chunks);
    assert_eq!(message["reasoning_content"], "a");
    assert_eq!(message["tool_calls"][1]["name"], "time");
}

/// The reasoning is unconstrained; the response after it has the required format.
#[tokio::test]
async fn a_format_applies_after_reasoning() {
    let text = "<think>{not JSON</think>\n\nno JSON either";
    let server = TestServer::start(with(saying(text), ToolCallFormat::Hermes, true)).await;
    let fields = json!({"tools": null, "structured_outputs": {"choice": ["예", "아니요"]}});
    let answer = server.ok(PATH, body(fields.clone())).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["reasoning_content"], "{not JSON");
    assert!(["예", "아니요"].contains(&message["content"].as_str().expect("a text")));
    let mut unthinking = fields;
    unthinking["chat_template_kwargs"] = json!({"enable_thinking": false});
    let answer = server.ok(PATH, body(unthinking)).await;
    let content = &answer["choices"][0]["message"]["content"];
    assert!(
        ["예", "아니요"].contains(&content.as_str().expect("a text")),
        "{content}"
    );
}

/// Calls and structured outputs are cached like other responses, each only for a request that asks
/// for the same.
#[tokio::test]
async fn kept_answers_are_those_of_one_form() {
    let mut config = with(saying(TWO_CALLS), ToolCallFormat::Hermes, false);
    config.http.result_cache.place = ResultCachePlace::Memory;
    let server = TestServer::start(config).await;
    let ask = async |fields: &Value| {
        let body = merged(body(json!({"temperature": 0})), fields.clone());
        let answer = server.post(PATH, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let word = answer.header("x-result-cache").map(str::to_owned);
        let mut message = answer.json()["choices"][0]["message"].clone();
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            call["id"] = Value::Null;
        }
        (word, message)
    };
    let form = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    for fields in [
        json!({}),
        json!({"tool_choice": "required"}),
        json!({"tool_choice": {"type": "function", "function": {"name": "time"}}}),
        json!({"parallel_tool_calls": false}),
        json!({"tools": []}),
        form(json!({"enum": ["one", "two"]})),
        form(json!({"enum": ["three"]})),
        json!({"guided_regex": "a{3}"}),
        json!({"guided_choice": ["a{3}"]}),
    ] {
        let (word, first) = ask(&fields).await;
        assert_eq!(word.as_deref(), Some("miss"), "{fields}");
        let is_hit = async || {
            let (word, again) = ask(&fields).await;
            assert_eq!(again, first, "{fields}");
            word.as_deref() == Some("hit")
        };
        until("a hit", LIMIT, is_hit).await;
    }
}
