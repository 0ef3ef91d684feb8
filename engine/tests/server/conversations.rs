//! Messages as clients write them: roles, contents, and prefilled assistant messages.

use engine::served_model::OutputParsers;
use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::fixture::{IM_END, TestConfig, TestServer, merged};

const PATH: &str = "/v1/chat/completions";

/// Drops roles that it does not know, as Qwen3's does.
const DROPPING: &str = "{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}\
    <|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A model that outputs this text and then ends.
fn saying(text: &str) -> TestConfig {
    let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
    ids.push(IM_END);
    TestConfig::emitting(ids)
}

/// The prompt's text, by `/tokenize`.
async fn prompt(server: &TestServer, body: Value) -> String {
    let ids = server.ok("/tokenize", body).await["tokens"].clone();
    let text = server.ok("/detokenize", json!({"tokens": ids})).await;
    text["prompt"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn the_developers_message_is_the_systems_and_no_other_is_lost() {
    let config = TestConfig {
        chat_template: Some(DROPPING),
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let with = |role: &str| json!({"messages": [{"role": role, "content": "DEVTEXT"}, {"role": "user", "content": "hi"}]});
    assert_eq!(
        prompt(&server, with("developer")).await,
        "<|im_start|>system\nDEVTEXT<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    for path in ["/tokenize", PATH] {
        let refused = server.post(path, with("function")).await;
        let error = &refused.json()["error"];
        assert_eq!(
            (refused.status, &error["param"]),
            (400, &json!("messages[0].role"))
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("\"function\""), "{message}");
    }
}

#[tokio::test]
async fn a_content_of_null_is_an_empty_text() {
    let server = TestServer::start(TestConfig::default()).await;
    let call =
        json!([{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
    for messages in [
        json!([{"role": "assistant", "content": null, "tool_calls": call},
            {"role": "tool", "tool_call_id": "c1", "content": null}]),
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": null},
            {"role": "user", "content": "b"}]),
        json!([{"role": "assistant", "content": null, "reasoning_content": "thought"},
            {"role": "user", "content": null}]),
    ] {
        let body = json!({"messages": messages, "max_tokens": 1});
        server.ok(PATH, body.clone()).await;
        server.ok("/tokenize", body).await;
    }
    let empty = prompt(
        &server,
        json!({"messages": [{"role": "user", "content": null}]}),
    )
    .await;
    assert_eq!(
        empty,
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[tokio::test]
async fn special_tokens_in_a_content_are_the_tokens() {
    let server = TestServer::start(TestConfig::default()).await;
    let body = json!({"messages": [{"role": "user", "content": "<|im_end|>"}]});
    let ids = server.ok("/tokenize", body).await["tokens"].clone();
    let n_ends = ids
        .as_array()
        .expect("ids")
        .iter()
        .filter(|id| **id == json!(IM_END));
    assert_eq!(n_ends.count(), 2, "as docs/api.md says");
}

fn prefilled(content: &str, fields: Value) -> Value {
    let body = json!({
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}],
        "add_generation_prompt": false, "continue_final_message": true, "max_tokens": 200,
    });
    merged(body, fields)
}

#[tokio::test]
async fn an_answer_that_has_begun_is_continued() {
    let server = TestServer::start(saying("a tale.")).await;
    let text = prompt(&server, prefilled("Sure, ", json!({}))).await;
    assert_eq!(
        text,
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSure, "
    );
    let answer = server.ok(PATH, prefilled("Sure, ", json!({}))).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "a tale.");
    let ids = server.ok("/tokenize", prefilled("Sure, ", json!({}))).await;
    assert_eq!(answer["usage"]["prompt_tokens"], ids["count"]);
    let closed = json!({"continue_final_message": false});
    let closed = prompt(&server, prefilled("Sure, ", closed)).await;
    assert!(closed.ends_with("Sure, <|im_end|>\n"), "{closed}");
}

#[tokio::test]
async fn what_cannot_be_continued_is_refused_by_both_endpoints() {
    let server = TestServer::start(TestConfig::default()).await;
    for (fields, param) in [
        (
            json!({"add_generation_prompt": true}),
            "continue_final_message",
        ),
        (
            json!({"messages": [{"role": "user", "content": "x"}]}),
            "continue_final_message",
        ),
        (
            json!({"continue_final_message": "yes"}),
            "continue_final_message",
        ),
        (json!({"chat_template": "{{ x }}"}), "chat_template"),
        (json!({"documents": [{"text": "x"}]}), "documents"),
        (json!({"reasoning_effort": "high"}), "reasoning_effort"),
    ] {
        for path in [PATH, "/tokenize"] {
            let refused = server.post(path, prefilled("a", fields.clone())).await;
            assert_eq!(refused.status, 400, "{path}: {fields}");
            assert_eq!(refused.json()["error"]["param"], param, "{path}: {fields}");
        }
    }
}

#[tokio::test]
async fn effort_and_thinking_reach_a_template_that_knows_them() {
    let server = TestServer::start(TestConfig::default()).await;
    let body = |fields: Value| {
        merged(
            json!({"messages": [{"role": "user", "content": "x"}]}),
            fields,
        )
    };
    for (fields, thinks) in [
        (json!({}), true),
        (json!({"reasoning_effort": "medium"}), true),
        (json!({"reasoning_effort": "none"}), false),
        (json!({"enable_thinking": false}), false),
        (json!({"enable_thinking": true}), true),
        (
            json!({"chat_template_kwargs": {"enable_thinking": false}}),
            false,
        ),
    ] {
        let text = prompt(&server, body(fields.clone())).await;
        assert_eq!(text.ends_with("<think></think>"), !thinks, "{fields}");
    }
    let config = TestConfig {
        chat_template: Some("{{ reasoning_effort }}!{{ messages[0].content }}"),
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let text = prompt(&server, body(json!({"reasoning_effort": "low"}))).await;
    assert_eq!(text, "low!x");
}

#[tokio::test]
async fn thoughts_and_calls_that_the_prompt_has_begun_are_read_on() {
    let config = |text: &str| {
        let mut config = saying(text);
        config.parsers = OutputParsers {
            tool_calls: Some(ToolCallFormat::Hermes),
            reasoning: true,
        };
        config
    };
    let server = TestServer::start(config("hm\n</think>\n\nYes.")).await;
    let answer = server.ok(PATH, prefilled("<think>\nSo,", json!({}))).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["reasoning_content"], &message["content"]),
        (&json!("hm"), &json!("Yes."))
    );

    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let server = TestServer::start(config("\"f\", \"arguments\": {\"a\": 1}}\n</tool_call>")).await;
    let body = prefilled("Well.\n<tool_call>\n{\"name\": ", json!({"tools": tools}));
    let answer = server.ok(PATH, body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
    let call = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(
        (&call["name"], &call["arguments"]),
        (&json!("f"), &json!("{\"a\": 1}"))
    );
    assert_eq!(choice["message"]["content"], Value::Null);

    let server = TestServer::start(config(" is 2.")).await;
    let body = prefilled("One and one\n", json!({"tools": tools}));
    let answer = server.ok(PATH, body.clone()).await;
    assert_eq!(answer["choices"][0]["message"]["content"], " is 2.");
    let chunks = server
        .post(PATH, merged(body, json!({"stream": true})))
        .await
        .chunks();
    let text: String = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, " is 2.");
}
