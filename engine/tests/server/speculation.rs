//! Speculation over HTTP: the same answers with and without, and what is said about the drafts.

use std::time::Duration;

use engine::model::config::{Family, ModelConfig};
use engine::speculation::{Algorithm, NgramConfig, SpeculationConfig, SuffixConfig};
use engine::text::ToolCallFormat;
use engine::weights::fixture::eagle::{HeadShape, write_head};
use engine::weights::fixture::{FolderFormat, tiny_config};
use serde_json::{Value, json};

use crate::client;
use crate::fixture::{TestConfig, TestServer, merged};
use crate::flags::fixture::Model;
use crate::program::Program;
use crate::tools;

const COMPLETIONS: &str = "/v1/completions";
/// Repeats itself, so that most of it can be looked up.
const TEXT: &str = "the cat sat on the mat and the cat sat on the hat; ";

fn config(algorithm: Option<Algorithm>) -> TestConfig {
    TestConfig {
        speculation: algorithm.map(|algorithm| SpeculationConfig {
            algorithm,
            n_draft_tokens: 5,
        }),
        ..TestConfig::saying(TEXT)
    }
}

fn ngram() -> Algorithm {
    Algorithm::Ngram(NgramConfig::default())
}

fn suffix() -> Algorithm {
    Algorithm::Suffix(SuffixConfig::default())
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
    for algorithm in [ngram(), suffix()] {
        answers_are_those_without(algorithm).await;
    }
}

async fn answers_are_those_without(algorithm: Algorithm) {
    let with = TestServer::start(config(Some(algorithm))).await;
    let without = TestServer::start(config(None)).await;
    let mut n_accepted = 0.0;
    for body in bodies() {
        let found = with.ok(COMPLETIONS, body.clone()).await;
        let details = &found["usage"]["completion_tokens_details"];
        let accepted = details["accepted_prediction_tokens"].as_f64();
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

/// Schemas, choices, expressions, grammars and forced calls, greedy and sampled.
fn guided_bodies() -> Vec<(&'static str, Value)> {
    let schema = json!({
        "type": "object",
        "properties": {
            "the_name_of_the_thing": {"type": "string", "maxLength": 4},
            "its_size": {"enum": ["small", "large", "unknown"]},
            "parts": {"type": "array", "maxItems": 3, "items": {
                "type": "object",
                "properties": {"number_of_the_part": {"type": "integer"}, "is_there": {"type": "boolean"}},
                "required": ["number_of_the_part", "is_there"], "additionalProperties": false,
            }},
        },
        "required": ["the_name_of_the_thing", "its_size", "parts"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let lark = "start: (\"first \" | \"second \")~2..9 /[0-9]/";
    let completions = [
        json!({"response_format": format.clone()}),
        json!({"response_format": {"type": "json_object"}, "max_tokens": 60}),
        json!({"guided_choice": ["a long answer that is the only one", "a long answer", "no"]}),
        json!({"guided_regex": "(abc|abd|xyz){3,20}"}),
        json!({"guided_regex": "[a-z ]{30}", "presence_penalty": 0.5, "logprobs": 2}),
        json!({"guided_grammar": lark, "logit_bias": {"102": 3}}),
        json!({"guided_regex": "(yes|no)( and (yes|no)){4}", "stop": "no and"}),
        json!({"guided_regex": "same( same)*", "bad_words": ["same same same"], "max_tokens": 40}),
    ];
    let calls = [
        json!({"tool_choice": "required", "parallel_tool_calls": false}),
        json!({"tool_choice": {"type": "function", "function": {"name": "time"}}}),
        json!({"tool_choice": "auto", "response_format": format}),
    ];
    let completions = completions.map(|fields| {
        let body = json!({"prompt": TEXT, "max_tokens": 150});
        (COMPLETIONS, merged(body, fields))
    });
    let calls = calls.map(|fields| (tools::PATH, tools::body(fields)));
    let with_seeds = |(path, body): &(&'static str, Value)| {
        let sampled = (0..4).map(|seed| json!({"temperature": 1, "seed": seed}));
        let fields = [json!({"temperature": 0})].into_iter().chain(sampled);
        let bodies = fields.map(|fields| (*path, merged(body.clone(), fields)));
        bodies.collect::<Vec<_>>()
    };
    completions
        .iter()
        .chain(&calls)
        .flat_map(with_seeds)
        .collect()
}

#[tokio::test]
async fn what_follows_a_grammar_is_drafted_and_stays_the_same() {
    // With drafts a step takes a while, or nothing would pay.
    let served = |algorithm: Option<Algorithm>, says: bool| {
        let step_ms = u64::from(algorithm.is_some());
        let base = TestConfig {
            speculation: config(algorithm).speculation,
            context_length: 1024,
            ..if says {
                TestConfig::saying(TEXT)
            } else {
                TestConfig::default()
            }
        };
        let base = base.slowly(Duration::from_millis(step_ms));
        TestServer::start(tools::with(base, ToolCallFormat::Hermes, false))
    };
    // What a model says that knows nothing, and one that would rather say something else.
    for says in [false, true] {
        for algorithm in [ngram(), suffix()] {
            let without = served(None, says).await;
            let with = served(Some(algorithm), says).await;
            let (mut n_accepted, mut n_tokens) = (0, 0);
            for (path, body) in guided_bodies() {
                let found = with.post(path, body.clone()).await;
                let expected = without.post(path, body.clone()).await;
                assert_eq!(found.status, expected.status, "{body}");
                let (found, expected) = (found.json(), expected.json());
                let usage = &found["usage"];
                let accepted = &usage["completion_tokens_details"]["accepted_prediction_tokens"];
                n_accepted += accepted.as_u64().unwrap_or(0);
                n_tokens += usage["completion_tokens"].as_u64().unwrap_or(0);
                assert_eq!(
                    unnamed(compared(found)),
                    unnamed(compared(expected)),
                    "{body}"
                );
            }
            // Keys, brackets and choices are forced.
            assert!(3 * n_accepted > n_tokens, "{n_accepted} of {n_tokens}");
            with.assert_empties().await;
        }
    }
}

/// Without the ids of calls, which are drawn.
fn unnamed(mut answer: Value) -> Value {
    for choice in answer["choices"].as_array_mut().into_iter().flatten() {
        for call in choice["message"]["tool_calls"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            call["id"] = Value::Null;
        }
    }
    answer
}

#[tokio::test]
async fn streams_say_the_same() {
    let with = TestServer::start(config(Some(ngram()))).await;
    let without = TestServer::start(config(None)).await;
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
    let ngram = json!({"algorithm": "NGRAM", "min_match": 1, "max_match": 12, "n_draft_tokens": 4});
    let suffix = json!({
        "algorithm": "SUFFIX",
        "max_tree_depth": 24,
        "max_cached_requests": 100,
        "max_spec_factor": 2.0,
        "min_token_prob": 0.1,
        "n_draft_tokens": 6,
    });
    let sglang_suffix = "--speculative-algorithm SUFFIX --speculative-num-draft-tokens 6 \
                         --speculative-suffix-max-spec-factor 2 \
                         --speculative-suffix-max-cached-requests 100";
    let vllm_suffix = r#"--speculative-config {"method":"suffix","num_speculative_tokens":6,"suffix_decoding_max_spec_factor":2,"suffix_decoding_max_cached_requests":100}"#;
    for (flags, expected) in [
        (sglang, &ngram),
        (vllm, &ngram),
        (sglang_suffix, &suffix),
        (vllm_suffix, &suffix),
    ] {
        let with = start(flags).await;
        let info = client::get(with.address, "/server_info").await.json();
        let said = &info["engine"]["scheduler"]["speculation"];
        assert_eq!(said, expected);
        answers_are_equal(&with, &without).await;
        let drafted = client::metric(with.address, "vllm:spec_decode_num_drafts_total").await;
        assert!(drafted > 0.0, "{flags}");
    }
}

async fn answers_are_equal(with: &Program, without: &Program) {
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_guesses_and_changes_no_text() {
    let model = Model::new(Family::Qwen3, FolderFormat::F16);
    let other = Model::new(Family::Llama, FolderFormat::F16);
    let start = async |flags: &str| {
        let line = model.line(&format!("--port 0 {flags}"));
        Program::start(&line, &[]).await
    };
    let without = start("").await;
    // The model itself, which guesses its own greedy tokens, and one that knows nothing of it.
    for (draft, is_itself) in [(model.path(), true), (other.path(), false)] {
        let path = draft.display();
        let sglang = format!(
            "--speculative-algorithm STANDALONE --speculative-draft-model-path {path} \
             --speculative-num-draft-tokens 4"
        );
        let vllm = format!(
            r#"--speculative-config {{"method":"draft_model","model":"{path}","num_speculative_tokens":4}}"#
        );
        for flags in [sglang, vllm] {
            let with = start(&flags).await;
            let info = client::get(with.address, "/server_info").await.json();
            let said = &info["engine"]["scheduler"]["speculation"];
            let expected = json!({"algorithm": "STANDALONE", "n_draft_tokens": 4});
            assert_eq!(*said, expected);
            for prompt in ["abc", "the cat", "1, 2, 3", "x"] {
                let body = json!({"prompt": prompt, "temperature": 0, "max_tokens": 40, "ignore_eos": true});
                let found = client::post(with.address, COMPLETIONS, &body).await.json();
                let expected = client::post(without.address, COMPLETIONS, &body)
                    .await
                    .json();
                assert_eq!(compared(found), compared(expected), "{body}");
            }
            let metric = async |name: &str| {
                client::metric(with.address, &format!("vllm:spec_decode_{name}")).await
            };
            let drafted = metric("num_draft_tokens_total").await;
            let accepted = metric("num_accepted_tokens_total").await;
            // A draft as long as a step does not pay, so few are made once times are known.
            assert!(drafted > 0.0, "{flags}: {drafted}");
            let is_right = accepted > 0.9 * drafted;
            assert_eq!(is_right, is_itself, "{accepted} of {drafted}");
            answers_are_equal(&with, &without).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_head_guesses_and_changes_no_text() {
    let model = Model::new(Family::Qwen3, FolderFormat::F16);
    let dir = tempfile::tempdir().expect("a folder");
    let config = tiny_config(Family::Qwen3);
    write_head(dir.path(), &config, HeadShape::like(&config), 7).expect("written");
    let path = dir.path().display();
    let start = async |flags: &str| {
        let line = model.line(&format!("--port 0 {flags}"));
        Program::start(&line, &[]).await
    };
    let without = start("").await;
    let sglang = format!(
        "--speculative-algorithm EAGLE3 --speculative-draft-model-path {path} \
         --speculative-num-draft-tokens 4"
    );
    let vllm = format!(
        r#"--speculative-config {{"method":"eagle3","model":"{path}","num_speculative_tokens":4}}"#
    );
    for flags in [sglang, vllm] {
        let with = start(&flags).await;
        let info = client::get(with.address, "/server_info").await.json();
        let said = &info["engine"]["scheduler"]["speculation"];
        assert_eq!(*said, json!({"algorithm": "EAGLE3", "n_draft_tokens": 4}));
        let kernels = info["executor"]["kernels"].to_string();
        assert!(
            kernels.contains("eagle3, states before layers 0, 1, 2"),
            "{kernels}"
        );
        answers_are_equal(&with, &without).await;
        let drafted = client::metric(with.address, "vllm:spec_decode_num_draft_tokens_total").await;
        assert!(drafted > 0.0, "{flags}");
    }
}

#[test]
fn a_head_that_does_not_fit_ends_the_start_with_its_name() {
    let model = Model::new(Family::Qwen3, FolderFormat::F16);
    let dir = tempfile::tempdir().expect("a folder");
    let other = ModelConfig {
        hidden: 96,
        ..tiny_config(Family::Qwen3)
    };
    write_head(dir.path(), &other, HeadShape::like(&other), 7).expect("written");
    for (path, said) in [
        (
            dir.path().to_owned(),
            "target_hidden_size is 96; it must be 64",
        ),
        (model.path(), "architectures is Qwen3ForCausalLM"),
    ] {
        let flags = format!(
            "--speculative-algorithm EAGLE3 --speculative-draft-model-path {}",
            path.display()
        );
        let error = model.launched(&flags).err().expect("refused").to_string();
        assert!(
            error.contains("--speculative-draft-model-path") && error.contains(said),
            "{error}"
        );
    }
}
