//! Requests that score texts: log-probabilities of the prompt, no output, and restricted tokens.

use serde_json::{Value, json};

use crate::fixture::{IM_END, TestConfig, TestServer};

const PATH: &str = "/v1/completions";

/// The mock's log-probability of a prompt token.
fn logprob(token: u32) -> f64 {
    f64::from(-((token % 7 + 1) as f32) * std::f32::consts::LN_2)
}

fn assert_close(found: &Value, expected: f64) {
    let found = found
        .as_f64()
        .unwrap_or_else(|| panic!("{found} is no number"));
    assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
}

/// Checks the prompt's part of `logprobs`, and that its four arrays are `n` long.
fn assert_prompt(logprobs: &Value, prompt: &[u32], names: &[&str], offsets: &[usize], n: usize) {
    for array in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(
            logprobs[array].as_array().map(Vec::len),
            Some(n),
            "{array}: {logprobs}"
        );
    }
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    for (i, (token, name)) in prompt.iter().zip(names).enumerate() {
        assert_eq!(logprobs["tokens"][i], *name);
        assert_eq!(logprobs["text_offset"][i], offsets[i]);
        if i > 0 {
            assert_close(&logprobs["token_logprobs"][i], logprob(*token));
            let own = &logprobs["top_logprobs"][i][name];
            assert_eq!(*own, logprobs["token_logprobs"][i]);
        }
    }
}

/// As lm-evaluation-harness asks: lists of ids, an echo, one log-probability and one token.
#[tokio::test]
async fn echo_with_logprobs_scores_the_prompt() {
    let server = TestServer::start(TestConfig::saying("xyz")).await;
    // "a한b": the character in the middle is three tokens.
    let prompt = [97, 0xed, 0x95, 0x9c, 98];
    let names = ["a", "bytes:\\xed", "bytes:\\x95", "bytes:\\x9c", "b"];
    let offsets = [0, 1, 1, 1, 2];
    for max_tokens in [0, 1, 3] {
        let body = json!({
            "prompt": [prompt, [98, 99, 0, 0, 0]], "echo": true, "logprobs": 1,
            "max_tokens": max_tokens, "temperature": 0, "seed": 1234,
        });
        let answer = server.ok(PATH, body).await;
        let choice = &answer["choices"][0];
        let output = &"xyz"[..max_tokens];
        assert_eq!(choice["text"], format!("a한b{output}"));
        assert_eq!(choice["finish_reason"], "length");
        assert_prompt(
            &choice["logprobs"],
            &prompt,
            &names,
            &offsets,
            5 + max_tokens,
        );
        if max_tokens > 0 {
            assert_eq!(choice["logprobs"]["tokens"][5], "x");
            assert_eq!(choice["logprobs"]["text_offset"][5], 3);
        }
        let usage = &answer["usage"];
        assert_eq!(usage["prompt_tokens"], 10);
        assert_eq!(usage["completion_tokens"], 2 * max_tokens);
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    }
    server.assert_empties().await;
}

#[tokio::test]
async fn a_streamed_echo_has_its_scores_in_the_first_chunk() {
    let server = TestServer::start(TestConfig::saying("xy")).await;
    let prompt = [98, 97, 98];
    let body = json!({
        "prompt": prompt, "echo": true, "logprobs": 2, "max_tokens": 2, "stream": true,
    });
    let chunks = server.post(PATH, body.clone()).await.chunks();
    let first = &chunks[0]["choices"][0];
    assert_eq!(first["text"], "babx");
    assert_prompt(&first["logprobs"], &prompt, &["b", "a", "b"], &[0, 1, 2], 4);
    let second = &chunks[1]["choices"][0];
    assert_eq!(second["text"], "y");
    assert_eq!(second["logprobs"]["text_offset"], json!([4]));
    // Without output there is one chunk.
    let nothing = crate::fixture::merged(body, json!({"max_tokens": 0}));
    let chunks = server.post(PATH, nothing).await.chunks();
    assert_eq!(chunks.len(), 1, "{chunks:?}");
    assert_eq!(chunks[0]["choices"][0]["finish_reason"], "length");
    assert_prompt(
        &chunks[0]["choices"][0]["logprobs"],
        &prompt,
        &["b", "a", "b"],
        &[0, 1, 2],
        3,
    );
}

#[tokio::test]
async fn prompt_logprobs_have_vllms_shape() {
    let server = TestServer::start(TestConfig::saying("xyz")).await;
    let body = json!({"prompt": [97, 98, 99], "prompt_logprobs": 2, "max_tokens": 1, "n": 2});
    let answer = server.ok(PATH, body.clone()).await;
    for i in 0..2 {
        let choice = &answer["choices"][i];
        assert_eq!(choice["text"], "x");
        assert!(choice["logprobs"].is_null());
        let scores = choice["prompt_logprobs"].as_array().expect("a list");
        assert_eq!(scores.len(), 3);
        assert!(scores[0].is_null());
        let own = &scores[1]["98"];
        assert_close(&own["logprob"], logprob(98));
        assert_eq!(own["rank"], 1, "98 is a multiple of 7");
        assert_eq!(own["decoded_token"], "b");
    }
    let without = server
        .ok(PATH, json!({"prompt": "abc", "max_tokens": 1}))
        .await;
    assert!(without["choices"][0].get("prompt_logprobs").is_none());
    let streamed = crate::fixture::merged(body, json!({"stream": true}));
    let refused = server.post(PATH, streamed).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.json()["error"]["param"], "prompt_logprobs");
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 1});
    let refused = server.post("/v1/chat/completions", chat).await;
    assert_eq!(refused.json()["error"]["param"], "prompt_logprobs");
}

/// A prompt as long as the context can be scored, though no token could follow it.
#[tokio::test]
async fn no_output_needs_no_room() {
    let server = TestServer::start(TestConfig::saying("xyz")).await;
    let prompt = vec![97; 512];
    let body = |max_tokens: usize| json!({"prompt": prompt, "max_tokens": max_tokens});
    assert_eq!(server.post(PATH, body(1)).await.status, 400);
    let answer = server.ok(PATH, body(0)).await;
    assert_eq!(answer["choices"][0]["text"], "");
    assert_eq!(answer["usage"]["total_tokens"], 512);
    let one = server
        .ok(
            PATH,
            json!({"prompt": [97], "max_tokens": 0, "echo": true, "logprobs": 0}),
        )
        .await;
    let logprobs = &one["choices"][0]["logprobs"];
    assert_eq!(logprobs["token_logprobs"], json!([null]));
    assert_eq!(logprobs["tokens"], json!(["a"]));
    server.assert_empties().await;
}

/// Fields of other servers that change sampling are not ignored; values that switch them off are
/// accepted.
#[tokio::test]
async fn other_servers_samplers_are_refused_by_name() {
    let server = TestServer::start(TestConfig::saying("xyz")).await;
    for (name, off, on) in [
        ("repeat_penalty", json!(1.0), json!(1.1)),
        ("typical_p", json!(1), json!(0.9)),
        ("mirostat", json!(0), json!(2)),
        ("n_probs", json!(0), json!(5)),
        ("dry_multiplier", json!(0.0), json!(0.8)),
        ("xtc_probability", json!(0), json!(0.5)),
        ("dynatemp_range", json!(0), json!(0.5)),
        ("top_n_sigma", json!(-1.0), json!(1)),
        ("stop_regex", json!([]), json!("a+")),
        ("custom_logit_processor", json!(""), json!("x")),
        ("logprob_token_ids", json!([]), json!([1])),
        ("return_hidden_states", json!(false), json!(true)),
    ] {
        for path in [PATH, "/v1/chat/completions"] {
            let body = |value: &Value| {
                let messages = json!([{"role": "user", "content": "x"}]);
                json!({"prompt": "x", "messages": messages, "max_tokens": 1, name: value})
            };
            server.ok(path, body(&off)).await;
            let refused = server.post(path, body(&on)).await;
            assert_eq!(refused.status, 400, "{name}: {}", refused.text());
            let error = &refused.json()["error"];
            assert_eq!(
                (&error["param"], &error["code"]),
                (&json!(name), &json!("unsupported_parameter"))
            );
        }
    }
}

#[tokio::test]
async fn nothing_ends_an_output_before_its_least_length() {
    let mut ids: Vec<u32> = b"abSTOPcd".iter().map(|byte| u32::from(*byte)).collect();
    ids.insert(1, IM_END);
    let server = TestServer::start(TestConfig::emitting(ids)).await;
    let text = async |fields: Value| {
        let body = crate::fixture::merged(json!({"prompt": "x", "max_tokens": 9}), fields);
        let answer = server.ok(PATH, body).await;
        let n = answer["usage"]["completion_tokens"]
            .as_u64()
            .expect("a count");
        let text = answer["choices"][0]["text"]
            .as_str()
            .expect("a text")
            .to_owned();
        (n, text)
    };
    assert_eq!(text(json!({})).await, (2, "a".to_owned()));
    // The end's token is not chosen, so another one is.
    for name in ["min_tokens", "min_new_tokens"] {
        let (n, found) = text(json!({name: 3})).await;
        assert_eq!(n, 9, "{found}");
        assert!(
            found.starts_with('a') && found.ends_with("bSTOPcd"),
            "{found}"
        );
    }
    // A stop string is looked for in what comes later.
    let (n, _) = text(json!({"min_tokens": 2, "stop": "STOP"})).await;
    assert_eq!(n, 7);
    let (n, found) = text(json!({"min_tokens": 7, "stop": "STOP"})).await;
    assert_eq!((n, found.contains("STOP")), (9, true));
    let (n, _) =
        text(json!({"min_tokens": 5, "stop_token_ids": [u32::from(b'T'), u32::from(b'P')]})).await;
    assert_eq!(n, 7, "the first stop id came too early");
    // Nothing but the length ends this one in any case.
    let (n, _) = text(json!({"min_tokens": 9, "ignore_eos": true})).await;
    assert_eq!(n, 9);
    for (fields, part) in [
        (json!({"min_tokens": 10}), "max_tokens allows 9"),
        (
            json!({"min_tokens": 2, "guided_regex": "a+"}),
            "form of the output",
        ),
    ] {
        let body = crate::fixture::merged(json!({"prompt": "x", "max_tokens": 9}), fields);
        let answer = server.post(PATH, body).await;
        assert_eq!(answer.status, 400);
        assert_eq!(answer.json()["error"]["param"], "min_tokens");
        assert!(answer.text().contains(part), "{}", answer.text());
    }
}

#[tokio::test]
async fn only_allowed_tokens_come_and_no_bad_words() {
    for n_decode_steps in [1, 4] {
        let mut config = TestConfig {
            n_decode_steps,
            ..TestConfig::default()
        };
        config.mock.tokens = 97..103;
        let server = TestServer::start(config).await;
        let text = async |fields: Value| {
            let body = crate::fixture::merged(
                json!({"prompt": "x", "max_tokens": 200, "temperature": 1, "seed": 3}),
                fields,
            );
            let answer = server.ok(PATH, body).await;
            answer["choices"][0]["text"]
                .as_str()
                .expect("a text")
                .to_owned()
        };
        let free = text(json!({})).await;
        assert!(free.contains('b') && free.contains("ad"), "{free}");
        let allowed = text(json!({"allowed_token_ids": [97, 100]})).await;
        assert_eq!(allowed.len(), 200);
        assert!(allowed.chars().all(|c| c == 'a' || c == 'd'), "{allowed}");
        let clean = text(json!({"bad_words": ["b", "ad", "cafe"]})).await;
        assert_eq!(clean.len(), 200);
        for word in ["b", "ad", "cafe"] {
            assert!(!clean.contains(word), "{word} in {clean}");
        }
        assert!(clean.contains('a') && clean.contains('d'), "{clean}");
    }
    let server = TestServer::start(TestConfig::default()).await;
    for (fields, param) in [
        (json!({"allowed_token_ids": []}), "allowed_token_ids"),
        (json!({"allowed_token_ids": [999]}), "allowed_token_ids[0]"),
        (json!({"bad_words": ["a", ""]}), "bad_words[1]"),
        (json!({"bad_words": [5]}), "bad_words[0]"),
        (json!({"bad_words": "a"}), "bad_words"),
    ] {
        let body = crate::fixture::merged(json!({"prompt": "x", "max_tokens": 2}), fields);
        let answer = server.post(PATH, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.json()["error"]["param"], param);
    }
    // What leaves nothing is the request's own fault.
    let body =
        json!({"prompt": "x", "max_tokens": 2, "allowed_token_ids": [97], "bad_words": ["a"]});
    let answer = server.post(PATH, body).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].clone()),
        (400, json!("sampling_failed"))
    );
    assert_eq!(server.get("/health").await.status, 200);
}
