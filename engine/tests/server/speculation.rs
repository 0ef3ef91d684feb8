//! Speculation over HTTP: the same answers with and without, and what is said about the drafts.

use engine::model::config::Family;
use engine::speculation::{Algorithm, NgramConfig, SpeculationConfig};
use engine::weights::fixture::FolderFormat;
use serde_json::{Value, json};

use crate::client;
use crate::fixture::{TestConfig, TestServer, merged};
use crate::flags::model::Model;
use crate::program::Program;

const COMPLETIONS: &str = "/v1/completions";
/// Repeats itself, so that most of it can be looked up.
const TEXT: &str = "the cat sat on the mat and the cat sat on the hat; ";

fn config(is_on: bool) -> TestConfig {
    TestConfig {
        speculation: is_on.then_some(SpeculationConfig {
            algorithm: Algorithm::Ngram(NgramConfig::default()),
            n_draft_tokens: 5,
        }),
        ..TestConfig::saying(TEXT)
    }
}

/// The answer without what differs from call to call, and without what is said about drafts.
fn compared(mut answer: Value) -> Value {
    for field in ["id", "created"] {
        answer[field] = Value::Null;
    }
    if let Some(usage) = answer["usage"].as_object_mut() {
        usage.remove("completion_tokens_details");
    }
    answer
}

fn bodies() -> Vec<Value> {
    let asked = [
        json!({}),
        json!({"max_tokens": 1}),
        json!({"max_tokens": 2}),
        json!({"max_tokens": 13}),
        json!({"stop": "on the hat"}),
        json!({"stop": ["at; the", "sat on the h"], "include_stop_str_in_output": true}),
        json!({"n": 3, "temperature": 0.9, "seed": 4}),
        json!({"logprobs": 3, "presence_penalty": 0.5}),
        json!({"min_tokens": 20, "stop_token_ids": [b'm']}),
        json!({"guided_regex": "[a-z ]{30}"}),
        json!({"prompt": [TEXT, "the cat"], "echo": true}),
    ];
    let plain = json!({"prompt": TEXT, "max_tokens": 90});
    asked
        .into_iter()
        .map(|fields| merged(plain.clone(), fields))
        .collect()
}

#[tokio::test]
async fn answers_are_those_without_and_drafts_are_counted() {
    let with = TestServer::start(config(true)).await;
    let without = TestServer::start(config(false)).await;
    let mut n_accepted = 0.0;
    for body in bodies() {
        let found = with.ok(COMPLETIONS, body.clone()).await;
        let details = &found["usage"]["completion_tokens_details"];
        let accepted = details["accepted_prediction_tokens"].as_f64();
        if body.get("guided_regex").is_some() {
            assert_eq!(*details, Value::Null, "a grammar gets no drafts: {body}");
        }
        n_accepted += accepted.unwrap_or(0.0);
        let expected = without.ok(COMPLETIONS, body.clone()).await;
        assert_eq!(expected["usage"]["completion_tokens_details"], Value::Null);
        assert_eq!(compared(found), compared(expected), "{body}");
    }
    assert!(n_accepted > 20.0, "{n_accepted}");
    let metric = async |name: &str| with.metric(&format!("vllm:spec_decode_{name}")).await;
    let n_counted = metric("num_accepted_tokens_total").await;
    assert!(n_counted >= n_accepted, "{n_counted} of {n_accepted}");
    assert!(metric("num_draft_tokens_total").await >= n_counted);
    assert!(metric("num_drafts_total").await > 0.0);
    // One series for each place.
    let by_place = metric("num_accepted_tokens_per_pos_total").await;
    assert!(
        (by_place - n_counted).abs() < 0.5,
        "{by_place}, not {n_counted}"
    );
    with.assert_empties().await;
}

#[tokio::test]
async fn streams_say_the_same() {
    let with = TestServer::start(config(true)).await;
    let without = TestServer::start(config(false)).await;
    let texts = async |server: &TestServer, body: &Value| {
        let body = merged(body.clone(), json!({"stream": true}));
        let answer = server.post(COMPLETIONS, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let mut texts = vec![String::new(); 3];
        let mut ends = vec![Value::Null; 3];
        for chunk in answer.chunks() {
            for choice in chunk["choices"].as_array().into_iter().flatten() {
                let i = choice["index"].as_u64().expect("an index") as usize;
                texts[i] += choice["text"].as_str().expect("text");
                if !choice["finish_reason"].is_null() {
                    ends[i] = choice["finish_reason"].clone();
                }
            }
        }
        (texts, ends)
    };
    for body in bodies() {
        let expected = texts(&without, &body).await;
        assert_eq!(texts(&with, &body).await, expected, "{body}");
    }
}

/// The program, with the real executor over a tiny model with random weights.
#[tokio::test(flavor = "multi_thread")]
async fn a_random_model_answers_the_same_with_both_forms_of_the_flags() {
    let model = Model::new(Family::Qwen3, FolderFormat::F16);
    let start = async |flags: &str| {
        let line = model.line(&format!("--port 0 {flags}"));
        Program::start(&line, &[]).await
    };
    let without = start("").await;
    let sglang = "--speculative-algorithm NGRAM --speculative-num-draft-tokens 4 \
                  --speculative-ngram-min-match-window-size 1";
    let vllm = r#"--speculative-config {"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":1,"prompt_lookup_max":12}"#;
    for flags in [sglang, vllm] {
        let with = start(flags).await;
        let info = client::get(with.address, "/server_info").await.json();
        let said = &info["engine"]["scheduler"]["speculation"];
        let expected =
            json!({"algorithm": "NGRAM", "min_match": 1, "max_match": 12, "n_draft_tokens": 4});
        assert_eq!(*said, expected);
        for fields in [
            json!({}),
            json!({"temperature": 0.7, "seed": 5, "n": 3}),
            json!({"repetition_penalty": 1.1, "logprobs": 2}),
            json!({"guided_regex": "[0-9]{20}", "temperature": 1, "seed": 1}),
            json!({"min_p": 0.1, "temperature": 1.2, "seed": 2, "min_tokens": 30}),
        ] {
            let body = merged(
                json!({"prompt": "abcabcabcabc", "max_tokens": 60, "seed": 9, "ignore_eos": true}),
                fields,
            );
            let found = client::post(with.address, COMPLETIONS, &body).await.json();
            let expected = client::post(without.address, COMPLETIONS, &body).await;
            assert_eq!(expected.status, 200, "{}", expected.text());
            assert_eq!(compared(found), compared(expected.json()), "{body}");
        }
        let drafted = client::metric(with.address, "vllm:spec_decode_num_drafts_total").await;
        assert!(drafted > 0.0, "{flags}");
    }
}
