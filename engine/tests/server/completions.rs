//! `/v1/completions`, `/tokenize`, `/detokenize`.

use serde_json::{Value, json};

use crate::fixture::{IM_END, TestConfig, TestServer, assert_answer};

const PATH: &str = "/v1/completions";

#[tokio::test]
async fn a_whole_answer() {
    let server = TestServer::start(TestConfig::saying("Hello, world")).await;
    let answer = server
        .ok(
            PATH,
            json!({"model": "mock", "prompt": "Say hello", "max_tokens": 5}),
        )
        .await;
    assert_answer!("completion", answer);
}

#[tokio::test]
async fn max_tokens_is_16_by_default() {
    let server = TestServer::start(TestConfig::saying("Hello, world")).await;
    let answer = server.ok(PATH, json!({"prompt": "x"})).await;
    assert_eq!(answer["choices"][0]["text"], "Hello, worldHell");
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn all_four_forms_of_a_prompt() {
    let server = TestServer::start(TestConfig::default()).await;
    let text = server
        .ok(PATH, json!({"prompt": "ab", "temperature": 0}))
        .await;
    let ids = server
        .ok(PATH, json!({"prompt": [97, 98], "temperature": 0}))
        .await;
    assert_eq!(text["choices"], ids["choices"]);
    let texts = server
        .ok(PATH, json!({"prompt": ["zz", "ab"], "temperature": 0}))
        .await;
    let lists = server
        .ok(
            PATH,
            json!({"prompt": [[122, 122], [97, 98]], "temperature": 0}),
        )
        .await;
    assert_eq!(texts["choices"], lists["choices"]);
    assert_eq!(texts["choices"][1]["text"], text["choices"][0]["text"]);
    assert_eq!(texts["choices"][1]["index"], 1);
    assert_eq!(texts["usage"]["prompt_tokens"], 4);
    assert_eq!(texts["usage"]["total_tokens"], 4 + 32);
}

#[tokio::test]
async fn n_choices_differ_and_a_seed_repeats_them() {
    let server = TestServer::start(TestConfig::default()).await;
    let body = json!({"prompt": ["a", "b"], "n": 3, "seed": 11, "max_tokens": 8});
    let first = server.ok(PATH, body.clone()).await;
    let choices = first["choices"].as_array().expect("choices");
    let indices: Vec<u64> = choices.iter().filter_map(|c| c["index"].as_u64()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    assert_ne!(choices[0]["text"], choices[1]["text"]);
    assert_eq!(
        first["usage"]["prompt_tokens"], 2,
        "a shared prompt counts once"
    );
    assert_eq!(first["usage"]["completion_tokens"], 48);
    let second = server.ok(PATH, body).await;
    assert_eq!(first["choices"], second["choices"]);
    let unseeded = json!({"prompt": "a", "max_tokens": 24});
    let (one, other) = (
        server.ok(PATH, unseeded.clone()).await,
        server.ok(PATH, unseeded).await,
    );
    assert_ne!(one["choices"], other["choices"]);
}

#[tokio::test]
async fn echo_puts_the_prompt_first() {
    let server = TestServer::start(TestConfig::saying("123")).await;
    let body = json!({"prompt": "하나 ", "echo": true, "max_tokens": 3});
    assert_eq!(
        server.ok(PATH, body.clone()).await["choices"][0]["text"],
        "하나 123"
    );
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let chunks = server.post(PATH, streamed).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["text"], "하나 1");
    assert_eq!(chunks[1]["choices"][0]["text"], "2");
}

#[tokio::test]
async fn logprobs_have_openais_shape() {
    let server = TestServer::start(TestConfig::saying("Hi")).await;
    let answer = server
        .ok(PATH, json!({"prompt": "x", "max_tokens": 2, "logprobs": 2}))
        .await;
    assert_answer!("completion_logprobs", answer);
}

#[tokio::test]
async fn a_stop_string_may_cross_tokens() {
    for n_decode_steps in [1, 4] {
        let mut config = TestConfig::saying("abcSTOPxyz");
        config.n_decode_steps = n_decode_steps;
        let server = TestServer::start(config).await;
        let body = json!({"prompt": "x", "max_tokens": 50, "stop": ["none", "STOP"]});
        let answer = server.ok(PATH, body.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["text"], "abc");
        assert_eq!(choice["finish_reason"], "stop");
        assert_eq!(choice["stop_reason"], "STOP");
        assert_eq!(
            answer["usage"]["completion_tokens"], 7,
            "up to the stop string's end"
        );

        let mut streamed = body.clone();
        streamed["stream"] = json!(true);
        let chunks = server.post(PATH, streamed).await.chunks();
        assert_eq!(
            text_of(&chunks),
            "abc",
            "nothing of a stop string is ever shown"
        );

        let mut included = body;
        included["include_stop_str_in_output"] = json!(true);
        assert_eq!(
            server.ok(PATH, included).await["choices"][0]["text"],
            "abcSTOP"
        );
        server.assert_empties().await;
    }
}

#[tokio::test]
async fn a_held_back_beginning_is_shown_at_the_end() {
    let server = TestServer::start(TestConfig::saying("abcST")).await;
    let answer = server
        .ok(
            PATH,
            json!({"prompt": "x", "max_tokens": 5, "stop": "STOP"}),
        )
        .await;
    assert_eq!(answer["choices"][0]["text"], "abcST");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn end_of_sequence_and_stop_ids() {
    let ids = vec![65, 66, IM_END, 67];
    let server = TestServer::start(TestConfig::emitting(ids)).await;
    let answer = server
        .ok(PATH, json!({"prompt": "x", "max_tokens": 4}))
        .await;
    assert_eq!(answer["choices"][0]["text"], "AB");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["choices"][0]["stop_reason"], Value::Null);
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let body = json!({"prompt": "x", "max_tokens": 4, "ignore_eos": true});
    assert_eq!(server.ok(PATH, body).await["choices"][0]["text"], "ABC");
    let body = json!({"prompt": "x", "max_tokens": 4, "stop_token_ids": [66]});
    let answer = server.ok(PATH, body).await;
    assert_eq!(answer["choices"][0]["text"], "A");
    assert_eq!(answer["choices"][0]["stop_reason"], 66);
}

#[tokio::test]
async fn characters_are_never_torn() {
    let text = "안녕하세요 👩‍🚀 세계! é";
    for stream_interval in [1, 2, 5] {
        let mut config = TestConfig::saying(text);
        config.http.stream_interval = stream_interval;
        let server = TestServer::start(config).await;
        let body = json!({"prompt": "x", "max_tokens": text.len(), "stream": true});
        let chunks = server.post(PATH, body).await.chunks();
        assert_eq!(text_of(&chunks), text);
        assert_eq!(chunks.len(), text.len().div_ceil(stream_interval));
        assert!(chunks.iter().all(|chunk| {
            let piece = chunk["choices"][0]["text"].as_str().expect("text");
            !piece.contains(char::REPLACEMENT_CHARACTER)
        }));
        // Cut in the middle of a character: the rest of it is marked, nothing is lost.
        let body = json!({"prompt": "x", "max_tokens": 4, "stream": true});
        let chunks = server.post(PATH, body).await.chunks();
        assert_eq!(text_of(&chunks), "안\u{fffd}");
    }
}

#[tokio::test]
async fn an_over_long_prompt_keeps_its_first_tokens_where_allowed() {
    let mut config = TestConfig::saying("ok");
    config.context_length = 100;
    config.allow_auto_truncate = true;
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "y".repeat(500), "max_tokens": 20});
    let answer = server.ok(PATH, body).await;
    assert_eq!(answer["usage"]["prompt_tokens"], 80);
    assert_eq!(answer["usage"]["completion_tokens"], 20);
}

#[tokio::test]
async fn text_to_tokens_and_back() {
    let server = TestServer::start(TestConfig::default()).await;
    let body = json!({"prompt": "가<|im_end|>", "return_token_strs": true});
    let answer = server.ok("/tokenize", body).await;
    assert_eq!(answer["tokens"], json!([0xea, 0xb0, 0x80, IM_END]));
    assert_eq!(answer["count"], 4);
    assert_eq!(answer["max_model_len"], 512);
    assert_eq!(answer["token_strs"][3], "<|im_end|>");
    let back = server
        .ok("/detokenize", json!({"tokens": answer["tokens"]}))
        .await;
    assert_eq!(back, json!({"prompt": "가<|im_end|>"}));
}

/// Text of all chunks of a completion with one choice.
pub fn text_of(chunks: &[Value]) -> String {
    chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["text"].as_str())
        .collect()
}
