//! Fields that contradict each other: refused by name, never cut or dropped.

use std::time::Duration;

use engine::served_model::OutputParsers;
use serde_json::{Map, Value, json};

use crate::client::Answer;
use crate::fixture::{IM_END, TestConfig, TestServer, merged};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const GENERATE: &str = "/generate";

/// A 400 about `param` whose message holds all of `parts`.
fn assert_refused(answer: &Answer, code: &str, param: &str, parts: &[&str]) {
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], code, "{error}");
    assert_eq!(error["param"], param, "{error}");
    let message = error["message"].as_str().expect("a message");
    for part in parts {
        assert!(message.contains(part), "{part}: {message}");
    }
}

fn chat(fields: Value) -> Value {
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 9});
    merged(body, fields)
}

/// Tokens are bytes: `a` is 97.
#[tokio::test]
async fn allowed_tokens_that_no_form_begins_with_are_refused_with_both_names() {
    let server = TestServer::start(TestConfig::default()).await;
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}}});
    for is_streamed in [false, true] {
        for (path, body, param) in [
            (
                COMPLETIONS,
                json!({"prompt": "x", "guided_regex": "a{3}", "allowed_token_ids": [98, 99]}),
                "guided_regex",
            ),
            (
                CHAT,
                chat(json!({"response_format": schema, "allowed_token_ids": [98, IM_END]})),
                "response_format.json_schema.schema",
            ),
        ] {
            let body = merged(body, json!({"stream": is_streamed}));
            let answer = server.post(path, body).await;
            let parts = [param, "allowed_token_ids"];
            assert_refused(&answer, "grammar_failed", param, &parts);
        }
    }
    server.assert_empties().await;
}

#[tokio::test]
async fn a_form_that_excluded_tokens_cut_off_later_ends_with_both_names() {
    let server = TestServer::start(TestConfig::default()).await;
    let param = "guided_regex";
    for (fields, name) in [
        // The form's end is not among them.
        (json!({"allowed_token_ids": [97]}), "allowed_token_ids"),
        (json!({"bad_words": ["aa"]}), "bad_words"),
    ] {
        let body = json!({"prompt": "x", "guided_regex": "a{3}", "max_tokens": 9});
        let body = merged(body, fields);
        let answer = server.post(COMPLETIONS, body.clone()).await;
        assert_refused(&answer, "grammar_failed", param, &[param, name]);
        let streamed = merged(body, json!({"stream": true}));
        let chunks = server.post(COMPLETIONS, streamed).await.chunks();
        assert!(chunks.len() > 1, "it had begun: {chunks:?}");
        let error = &chunks[chunks.len() - 1]["error"];
        assert_eq!(error["code"], "grammar_failed", "{error}");
        assert_eq!(error["param"], param);
    }
    // Met by all that it asks for.
    let body = json!({"prompt": "x", "guided_regex": "a{3}", "allowed_token_ids": [97, IM_END]});
    let answer = server.ok(COMPLETIONS, body).await;
    assert_eq!(answer["choices"][0]["text"], "aaa");
    // Without a form.
    let body = json!({"prompt": "x", "allowed_token_ids": [97], "bad_words": ["a"]});
    let answer = server.post(COMPLETIONS, body).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "sampling_failed");
    let message = error["message"].as_str().expect("a message");
    let names = "allowed_token_ids and bad_words";
    assert!(message.contains(names), "{message}");
    server.assert_empties().await;
}

#[tokio::test]
async fn a_minimum_above_what_may_come_is_refused_with_both_values() {
    let server = TestServer::start(TestConfig::default()).await;
    let refusal = async |path: &str, body: Value, param: &str, parts: &[&str]| {
        let answer = server.post(path, body).await;
        assert_refused(&answer, "invalid_value", param, parts);
    };
    let body = json!({"prompt": "x", "min_tokens": 17});
    let parts = ["min_tokens is 17", "max_tokens is 16", "not given"];
    refusal(COMPLETIONS, body, "min_tokens", &parts).await;
    let body = json!({"prompt": "x", "min_tokens": 1, "max_tokens": 0});
    let parts = ["min_tokens is 1", "max_tokens is 0"];
    refusal(COMPLETIONS, body, "min_tokens", &parts).await;
    let mut body = chat(json!({"min_tokens": 600}));
    body["max_tokens"] = Value::Null;
    let parts = ["min_tokens is 600", "max_tokens is", "not given"];
    refusal(CHAT, body, "min_tokens", &parts).await;
    let body = json!({"text": "x", "sampling_params": {"min_new_tokens": 129}});
    let param = "sampling_params.min_new_tokens";
    let parts = ["min_new_tokens is 129", "max_new_tokens is 128"];
    refusal(GENERATE, body, param, &parts).await;
    let body = json!({"prompt": "x", "min_tokens": 16});
    let answer = server.ok(COMPLETIONS, body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
    server.assert_empties().await;
    // What is cut leaves too little for it.
    let config = TestConfig {
        allow_auto_truncate: true,
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x".repeat(500), "min_tokens": 13, "max_tokens": 20});
    let answer = server.post(COMPLETIONS, body).await;
    let parts = ["min_tokens is 13", "max_tokens is 12"];
    assert_refused(&answer, "invalid_value", "min_tokens", &parts);
}

#[tokio::test]
async fn two_names_of_one_thing_may_not_disagree() {
    let server = TestServer::start(TestConfig::default()).await;
    let parts = ["max_tokens", "max_completion_tokens", "5"];
    for max_tokens in [0, 4] {
        let body = json!({"prompt": "x", "max_tokens": max_tokens, "max_completion_tokens": 5});
        let answer = server.post(COMPLETIONS, body).await;
        assert_refused(&answer, "invalid_value", "max_completion_tokens", &parts);
    }
    let body = json!({"prompt": "x", "max_tokens": 5, "max_completion_tokens": 5});
    let answer = server.ok(COMPLETIONS, body).await;
    assert_eq!(answer["usage"]["completion_tokens"], 5);
    let body = json!({"prompt": "x", "min_tokens": 1, "min_new_tokens": 2});
    let answer = server.post(COMPLETIONS, body).await;
    assert_refused(&answer, "invalid_value", "min_new_tokens", &["min_tokens"]);
    let body = json!({"prompt": "x", "rid": "a", "request_id": "b"});
    let answer = server.post(COMPLETIONS, body).await;
    assert_refused(&answer, "invalid_value", "request_id", &["rid"]);
    let body = chat(json!({"prompt": "x"}));
    let answer = server.post("/tokenize", body).await;
    assert_refused(&answer, "invalid_value", "messages", &["prompt"]);
    let body = json!({"text": "x", "top_logprobs_num": 2});
    let answer = server.post(GENERATE, body).await;
    let parts = ["return_logprob"];
    assert_refused(&answer, "invalid_value", "top_logprobs_num", &parts);
}

/// Fields of other servers that would change the output.
#[tokio::test]
async fn fields_that_change_the_answer_are_done_or_refused() {
    let server = TestServer::start(TestConfig::default()).await;
    for (fields, param) in [
        (json!({"include_reasoning": false}), "include_reasoning"),
        (json!({"stream_reasoning": false}), "stream_reasoning"),
        (json!({"no_stop_trim": true}), "no_stop_trim"),
        (json!({"extra_key": "tenant"}), "extra_key"),
        (
            json!({"guided_regex": "a", "guided_whitespace_pattern": ""}),
            "",
        ),
        (
            json!({"guided_json": {}, "guided_whitespace_pattern": "[ ]?"}),
            "guided_whitespace_pattern",
        ),
        (
            json!({"structured_outputs": {"json": {}, "whitespace_pattern": "[ ]?"}}),
            "structured_outputs.whitespace_pattern",
        ),
        (
            json!({"structured_outputs": {"json": {}, "disable_any_whitespace": true}}),
            "structured_outputs.disable_any_whitespace",
        ),
    ] {
        let answer = server.post(CHAT, chat(fields)).await;
        if param.is_empty() {
            assert_eq!(answer.status, 200, "{}", answer.text());
        } else {
            assert_refused(&answer, "unsupported_parameter", param, &[param]);
        }
    }
    let ids = json!([97, IM_END, 98]);
    for (skips, text) in [(false, "a<|im_end|>b"), (true, "ab")] {
        let body = json!({"tokens": ids, "skip_special_tokens": skips});
        let answer = server.ok("/detokenize", body).await;
        assert_eq!(answer["prompt"], text);
    }
}

/// KV is shared only with requests of the same salt, here as at OpenAI's endpoints.
#[tokio::test]
async fn a_salt_counts_at_sglangs_endpoint() {
    let server = TestServer::start(TestConfig::default()).await;
    let cached = async |salt: &str| {
        let body = json!({"text": "x".repeat(100), "cache_salt": salt,
            "sampling_params": {"max_new_tokens": 2}});
        let answer = server.ok(GENERATE, body).await;
        answer["meta_info"]["cached_tokens"].as_u64()
    };
    assert_eq!(cached("a").await, Some(0));
    assert!(cached("a").await > Some(0));
    assert_eq!(cached("b").await, Some(0));
}

/// The compile time of a grammar counts towards the request.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_a_form_ends_with_the_requests_time() {
    let mut config = TestConfig {
        max_schema_bytes: 1 << 16,
        parsers: OutputParsers::default(),
        ..TestConfig::default()
    };
    config.time_limits.total = Some(Duration::from_millis(50));
    let server = TestServer::start(config).await;
    let number = json!({"type": "integer", "multipleOf": 9973});
    let patterns = (0..100).map(|i| (format!("^n{i}[ab]*$"), number.clone()));
    let slow = json!({"type": "object", "patternProperties": patterns.collect::<Map<_, _>>()});
    let body = json!({"prompt": "x", "guided_json": slow, "max_tokens": 3});
    let answer = server.post(COMPLETIONS, body).await;
    assert_eq!(answer.status, 504, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "request_timeout");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("--max-request-s"), "{message}");
    server.assert_empties().await;
}
