//! Bad requests: each gets an OpenAI-shaped error that names the field, the value and the limit,
//! and leaves the server unchanged.

use std::fmt::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fixture::{TestConfig, TestServer, merged};

fn line(label: &str, answer: &Answer) -> String {
    let body = answer.json();
    let error = &body["error"];
    let fields = ["type", "param", "code"].map(|key| {
        assert!(error.get(key).is_some(), "{label}: an error has {key}");
        error[key].as_str().unwrap_or("-").to_owned()
    });
    let message = error["message"].as_str().expect("a message");
    format!(
        "{label}\n  {} {}\n  {message}\n",
        answer.status,
        fields.join(" ")
    )
}

/// Body of a valid completion request, except for `fields`.
fn completion(fields: Value) -> Value {
    merged(json!({"prompt": "x", "max_tokens": 2}), fields)
}

fn chat(fields: Value) -> Value {
    merged(
        json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}),
        fields,
    )
}

#[tokio::test]
async fn wrong_fields() {
    let mut config = TestConfig::default();
    config.http.strict_model_name = true;
    let server = TestServer::start(config).await;
    let completions = [
        json!({"prompt": null}),
        json!({"prompt": 5}),
        json!({"prompt": ""}),
        json!({"prompt": []}),
        json!({"prompt": ["a", 5]}),
        json!({"prompt": [1, 258]}),
        json!({"prompt": [[1], [-1]]}),
        json!({"prompt": vec!["x"; 129]}),
        json!({"prompt": ["a", "b"], "n": 100}),
        json!({"prompt": "x".repeat(600)}),
        json!({"prompt": "x".repeat(500), "max_tokens": 13}),
        json!({"prompt": ["a", "x".repeat(600)]}),
        json!({"model": "gpt-5"}),
        json!({"model": 5}),
        json!({"max_tokens": -1}),
        json!({"max_tokens": 1.5}),
        json!({"max_tokens": "many"}),
        json!({"max_tokens": 99_999_999_999_u64}),
        json!({"temperature": -0.1}),
        json!({"temperature": 1e39}),
        json!({"temperature": "hot"}),
        json!({"top_p": -0.1}),
        json!({"top_k": -2}),
        json!({"min_p": 1.1}),
        json!({"repetition_penalty": 0}),
        json!({"repetition_penalty": 1e-38}),
        json!({"presence_penalty": 3}),
        json!({"frequency_penalty": -2.5}),
        json!({"n": 0}),
        json!({"n": 129}),
        json!({"best_of": 3}),
        json!({"seed": 1.5}),
        json!({"stop": 5}),
        json!({"stop": [""]}),
        json!({"stop": ["a", 5]}),
        json!({"stop": ["a", "b", "c", "d", "e"]}),
        json!({"stop": "x".repeat(2000)}),
        json!({"stop_token_ids": [300]}),
        json!({"stop_token_ids": 3}),
        json!({"logit_bias": {"abc": 1}}),
        json!({"logit_bias": {"999": 1}}),
        json!({"logit_bias": {"5": 101}}),
        json!({"logit_bias": [1]}),
        json!({"logprobs": 21}),
        json!({"logprobs": true}),
        json!({"stream": "yes"}),
        json!({"stream_options": {"include_usage": true}}),
        json!({"stream": true, "stream_options": {"include_usage": 1}}),
        json!({"ignore_eos": 1}),
        json!({"suffix": "end"}),
        json!({"response_format": {"type": "xml"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
        json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}),
        json!({"guided_json": "{"}),
        json!({"guided_json": {"type": "strin"}}),
        json!({"guided_json": {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}}),
        json!({"guided_json": {"description": "x".repeat(5000)}}),
        json!({"guided_regex": "("}),
        json!({"guided_choice": []}),
        json!({"guided_choice": [""]}),
        json!({"guided_grammar": "start: \"a\" start"}),
        json!({"structured_outputs": {"structural_tag": {}}}),
        json!({"ebnf": "root ::= \"a\""}),
        json!({"min_tokens": 4}),
        json!({"min_tokens": 1, "guided_regex": "a"}),
        json!({"allowed_token_ids": []}),
        json!({"bad_words": ["a", ""]}),
        json!({"prompt_logprobs": 1, "stream": true}),
        json!({"use_beam_search": true}),
    ];
    let chats = [
        json!({"messages": null}),
        json!({"messages": "hello"}),
        json!({"messages": []}),
        json!({"messages": [{"role": 5, "content": "x"}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        json!({"messages": [{"role": "user", "content": "x".repeat(600)}]}),
        json!({"max_completion_tokens": 0}),
        json!({"logprobs": 3}),
        json!({"logprobs": true, "top_logprobs": 21}),
        json!({"top_logprobs": 2}),
        json!({"tools": [{"type": "function"}]}),
        json!({"tool_choice": "required"}),
        json!({"chat_template_kwargs": "x"}),
        json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
        json!({"modalities": ["text", "audio"]}),
    ];
    let mut shown = String::new();
    for (path, bodies) in [
        (
            "/v1/completions",
            completions
                .map(|fields| (fields.clone(), completion(fields)))
                .to_vec(),
        ),
        (
            "/v1/chat/completions",
            chats.map(|fields| (fields.clone(), chat(fields))).to_vec(),
        ),
    ] {
        for (fields, body) in bodies {
            let answer = server.post(path, body).await;
            let mut label: String = fields.to_string().chars().take(100).collect();
            label.insert_str(
                0,
                if path.contains("chat") {
                    "chat "
                } else {
                    "completion "
                },
            );
            assert!(
                (400..500).contains(&answer.status),
                "{label}: {}",
                answer.text()
            );
            writeln!(shown, "{}", line(&label, &answer)).expect("a string grows");
        }
    }
    insta::with_settings!({omit_expression => true}, {
        insta::assert_snapshot!("wrong_fields", shown);
    });
    server.ok("/v1/completions", completion(json!({}))).await;
    server
        .ok(
            "/v1/chat/completions",
            chat(json!({"an_unknown_field": {"is": "ignored"}})),
        )
        .await;
    server.assert_empties().await;
}

#[tokio::test]
async fn wrong_bodies_paths_and_methods() {
    let server = TestServer::start(TestConfig::default()).await;
    let path = "/v1/completions";
    let too_large = format!("{{\"prompt\": \"{}\"}}", "x".repeat(70_000));
    let deep = "[".repeat(5000);
    let mut shown = String::new();
    for (label, method, path, body) in [
        ("no body", "POST", path, ""),
        ("not JSON", "POST", path, "{\"prompt\": \"x\""),
        ("not an object", "POST", path, "[1, 2]"),
        ("too deep", "POST", path, deep.as_str()),
        ("lone surrogate", "POST", path, "{\"prompt\": \"\\ud800\"}"),
        ("too large", "POST", path, too_large.as_str()),
        ("unknown path", "GET", "/v2/models", ""),
        ("wrong method", "GET", path, ""),
        ("wrong method", "POST", "/health", ""),
        ("no prompt", "POST", "/tokenize", "{}"),
        ("no tokens", "POST", "/detokenize", "{}"),
        (
            "wrong token",
            "POST",
            "/detokenize",
            "{\"tokens\": [1, 9999]}",
        ),
    ] {
        let answer = client::send(server.address, method, path, &[], body.as_bytes()).await;
        writeln!(shown, "{}", line(label, &answer)).expect("a string grows");
    }
    let answer = client::send(server.address, "POST", path, &[], b"{\"prompt\": \"\xff\"}").await;
    writeln!(shown, "{}", line("not UTF-8", &answer)).expect("a string grows");
    insta::with_settings!({omit_expression => true}, {
        insta::assert_snapshot!("wrong_bodies", shown);
    });
}

#[tokio::test]
async fn the_key_is_asked_for() {
    let mut config = TestConfig::default();
    config.http.api_key = Some("s3cret".to_owned());
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x"}).to_string();
    let with = |key: &'static str| {
        let headers = [("Authorization", key)];
        let (address, body) = (server.address, body.clone());
        async move {
            client::send(
                address,
                "POST",
                "/v1/completions",
                &headers,
                body.as_bytes(),
            )
            .await
        }
    };
    for wrong in [
        "Bearer wrong",
        "Bearer s3cre",
        "Bearer s3cret ",
        "Basic s3cret",
        "Bearer",
        "",
    ] {
        // Spaces at a header's end belong to no value, so that one is right.
        let expected = if wrong.trim_end() == "Bearer s3cret" {
            200
        } else {
            401
        };
        assert_eq!(with(wrong).await.status, expected, "{wrong:?}");
    }
    let refused = server.post("/v1/completions", json!({"prompt": "x"})).await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
    assert_eq!(server.get("/v1/models").await.status, 401);
    assert_eq!(with("Bearer s3cret").await.status, 200);
    assert_eq!(server.get("/health").await.status, 200);
    assert_eq!(server.get("/metrics").await.status, 200);
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let mut config = TestConfig::default().slowly(Duration::from_millis(20));
    config.max_running_requests = 2;
    config.max_queued_requests = 3;
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "max_tokens": 20});
    let mut answers = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let (address, body) = (server.address, body.clone());
        answers.spawn(async move { client::post(address, "/v1/completions", &body).await });
    }
    let (mut n_ok, mut n_refused) = (0, 0);
    while let Some(answer) = answers.join_next().await {
        let answer = answer.expect("an answer");
        match answer.status {
            200 => n_ok += 1,
            429 => {
                n_refused += 1;
                assert_eq!(answer.header("retry-after"), Some("1"));
                assert_eq!(answer.json()["error"]["code"], "queue_full");
            }
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert_eq!((n_ok, n_refused), (5, 7));
    server.assert_empties().await;
}
