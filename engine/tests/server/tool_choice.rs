//! `tool_choice` in all its forms, also together with `response_format`.

use engine::text::ToolCallFormat;
use serde_json::{Value, json};

use crate::fixture::{TestConfig, TestServer};
use crate::tools::{PATH, TWO_CALLS, body, saying, tools, with};

/// With `response_format` and tools the model calls, or answers in the form.
#[tokio::test]
async fn a_form_leaves_the_model_its_calls() {
    let hermes =
        "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"부산\"}}\n</tool_call>";
    let llama = "{\"name\": \"weather\", \"parameters\": {\"city\": \"부산\"}}";
    let answer_text = "{\"degrees\": 21}";
    let form = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "$ref": "#/$defs/Answer",
        "$defs": {"Answer": {
            "type": "object", "properties": {"degrees": {"type": "integer"}},
            "required": ["degrees"], "additionalProperties": false,
        }},
    }}});
    for (format, call) in [
        (ToolCallFormat::Hermes, hermes),
        (ToolCallFormat::Llama3Json, llama),
    ] {
        for fields in [
            json!({"response_format": form}),
            json!({"response_format": {"type": "json_object"}}),
        ] {
            let server = TestServer::start(with(saying(call), format, false)).await;
            let answer = server.ok(PATH, body(fields.clone())).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["finish_reason"], "tool_calls", "{format:?} {answer}");
            let function = &choice["message"]["tool_calls"][0]["function"];
            assert_eq!(function["name"], "weather");
            let server = TestServer::start(with(saying(answer_text), format, false)).await;
            let answer = server.ok(PATH, body(fields)).await;
            let choice = &answer["choices"][0];
            assert_eq!(choice["message"]["content"], answer_text, "{format:?}");
            assert_eq!(choice["finish_reason"], "stop");
        }
        // With random output the model does one of the two.
        let config = TestConfig {
            context_length: 1024,
            ..TestConfig::default()
        };
        let server = TestServer::start(with(config, format, false)).await;
        for seed in 0..6 {
            let fields = json!({"response_format": form, "seed": seed, "temperature": 1.5});
            let answer = server.ok(PATH, body(fields)).await;
            let choice = &answer["choices"][0];
            if choice["finish_reason"] == "stop" {
                let content = choice["message"]["content"].as_str().expect("content");
                let value: Value = serde_json::from_str(content).expect("JSON");
                assert!(value["degrees"].is_number(), "{content}");
            }
        }
        // A forced call is a call, whatever the format.
        let fields = json!({"response_format": form, "tool_choice": "required", "seed": 1});
        let answer = server.ok(PATH, body(fields)).await;
        assert_eq!(
            answer["choices"][0]["finish_reason"], "tool_calls",
            "{answer}"
        );
    }
}

#[tokio::test]
async fn no_choice_of_tools_needs_no_tools() {
    let server = TestServer::start(with(saying(TWO_CALLS), ToolCallFormat::Hermes, false)).await;
    for tools in [json!(null), json!([]), tools()] {
        for choice in [json!("none"), json!({"type": "none"})] {
            let fields = json!({"tools": tools, "tool_choice": choice});
            let answer = server.ok(PATH, body(fields.clone())).await;
            let content = &answer["choices"][0]["message"]["content"];
            assert_eq!(*content, TWO_CALLS, "{fields}");
        }
    }
}

#[tokio::test]
async fn every_way_to_force_a_call_is_read() {
    let config = TestConfig {
        context_length: 1024,
        ..TestConfig::default()
    };
    let server = TestServer::start(with(config, ToolCallFormat::Hermes, false)).await;
    let time = json!({"type": "function", "function": {"name": "time"}});
    let allowed = |tools: Value| json!({"mode": "required", "tools": tools});
    for choice in [
        time.clone(),
        json!({"type": "function", "name": "time"}),
        json!({"type": "tool", "name": "time"}),
        json!({"function": {"name": "time"}}),
        json!({"type": "allowed_tools", "allowed_tools": allowed(json!([time]))}),
        json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}),
    ] {
        let fields = json!({"tool_choice": choice, "seed": 3, "parallel_tool_calls": false});
        let answer = server.ok(PATH, body(fields)).await;
        let calls = &answer["choices"][0]["message"]["tool_calls"];
        assert_eq!(calls[0]["function"]["name"], "time", "{choice}");
    }
    for choice in [json!("required"), json!("any"), json!({"type": "any"})] {
        let fields = json!({"tool_choice": choice, "seed": 3, "parallel_tool_calls": false});
        let answer = server.ok(PATH, body(fields)).await;
        assert_eq!(
            answer["choices"][0]["finish_reason"], "tool_calls",
            "{choice}"
        );
    }
    for choice in [json!("auto"), json!({"type": "auto"}), json!(null)] {
        server.ok(PATH, body(json!({"tool_choice": choice}))).await;
    }
}

#[tokio::test]
async fn wrong_choices_of_tools_are_refused() {
    let server =
        TestServer::start(with(TestConfig::default(), ToolCallFormat::Hermes, false)).await;
    for (fields, param) in [
        (
            json!({"tools": [], "tool_choice": "required"}),
            "tool_choice",
        ),
        (json!({"tool_choice": "sometimes"}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "f"}}}),
            "tool_choice",
        ),
        (
            json!({"tool_choice": {"type": "custom", "name": "time"}}),
            "tool_choice",
        ),
        (
            json!({"tool_choice": {"type": "allowed_tools", "tools": []}}),
            "tool_choice",
        ),
        (
            json!({"tool_choice": {"type": "allowed_tools", "allowed_tools": {
                "mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}}}),
            "tool_choice",
        ),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
        (
            json!({"tool_choice": "required", "tools": [
                {"type": "function", "function": {"name": "f", "parameters": {"type": 1}}}]}),
            "tools",
        ),
    ] {
        let answer = server.post(PATH, body(fields)).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text());
    }
    let server = TestServer::start(TestConfig::default()).await;
    let answer = server
        .post(PATH, body(json!({"tool_choice": "required"})))
        .await;
    assert_eq!(answer.status, 400);
    assert!(
        answer.text().contains("--tool-call-parser"),
        "{}",
        answer.text()
    );
}
