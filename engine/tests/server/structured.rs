//! Structured output through both endpoints, with a model whose output is random.

use std::time::Duration;

use engine::model::config::Family;
use engine::weights::fixture::FolderFormat;
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fixture::{TestConfig, TestServer, merged};
use crate::flags::fixture::Model;
use crate::program::Program;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "size": {"enum": ["small", "large"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 20},
        },
        "required": ["name", "size", "count"],
        "additionalProperties": false,
    })
}

fn is_instance(text: &str) -> bool {
    let Ok(Value::Object(object)) = serde_json::from_str(text) else {
        return false;
    };
    object.len() == 3
        && object["name"]
            .as_str()
            .is_some_and(|name| name.chars().count() <= 4)
        && ["small", "large"].contains(&object["size"].as_str().unwrap_or_default())
        && object["count"]
            .as_i64()
            .is_some_and(|count| (0..=20).contains(&count))
}

/// Finished choices match the schema, the others were cut off. Returns how many finished.
fn check_choices<'a>(choices: impl Iterator<Item = (&'a str, &'a str)>) -> usize {
    let mut n_ended = 0;
    for (text, reason) in choices {
        match reason {
            "stop" => {
                assert!(is_instance(text), "{text:?}");
                n_ended += 1;
            }
            "length" => {
                let valid = serde_json::from_str::<Value>(text);
                assert!(
                    valid.is_err_and(|error| error.is_eof()) || is_instance(text),
                    "{text:?}"
                );
            }
            other => panic!("{other}: {text:?}"),
        }
    }
    n_ended
}

pub(crate) fn texts_of(answer: &Value) -> Vec<(String, String)> {
    let choices = answer["choices"].as_array().expect("choices").iter();
    choices
        .map(|choice| {
            let text = choice["message"]["content"]
                .as_str()
                .or(choice["text"].as_str());
            let reason = choice["finish_reason"].as_str().expect("a reason");
            (text.expect("a text").to_owned(), reason.to_owned())
        })
        .collect()
}

/// The same of a stream, by index.
fn streamed_texts(answer: &Answer, n: usize) -> Vec<(String, String)> {
    let mut texts = vec![(String::new(), String::new()); n];
    for chunk in answer.chunks() {
        let choice = &chunk["choices"][0];
        let (text, reason) = &mut texts[choice["index"].as_u64().expect("an index") as usize];
        let new = choice["delta"]["content"]
            .as_str()
            .or(choice["text"].as_str());
        text.push_str(new.unwrap_or_default());
        reason.push_str(choice["finish_reason"].as_str().unwrap_or_default());
    }
    texts
}

fn borrowed(texts: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    texts
        .iter()
        .map(|(text, reason)| (text.as_str(), reason.as_str()))
}

#[tokio::test]
async fn a_schema_holds_greedy_sampled_n_times_and_streamed() {
    let server = TestServer::start(TestConfig::default()).await;
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema()}});
    let mut n_ended = 0;
    for (path, prompt) in [
        (COMPLETIONS, json!({"prompt": "x"})),
        (
            CHAT,
            json!({"messages": [{"role": "user", "content": "x"}]}),
        ),
    ] {
        for (temperature, n) in [(0.0, 1), (1.0, 3)] {
            let mut body = prompt.clone();
            for (name, value) in [
                ("response_format", format.clone()),
                ("temperature", json!(temperature)),
                ("n", json!(n)),
                ("seed", json!(5)),
                ("max_tokens", json!(300)),
            ] {
                body[name] = value;
            }
            let whole = texts_of(&server.ok(path, body.clone()).await);
            n_ended += check_choices(borrowed(&whole));
            body["stream"] = json!(true);
            assert_eq!(streamed_texts(&server.post(path, body).await, n), whole);
        }
    }
    assert!(n_ended >= 4, "{n_ended} of 8 ended");
    server.assert_empties().await;
}

#[tokio::test]
async fn every_field_shapes_the_output() {
    let server = TestServer::start(TestConfig::default()).await;
    let answer_to = async |fields: Value| {
        let body = json!({"prompt": "x", "max_tokens": 200, "seed": 3});
        let body = merged(body, fields);
        texts_of(&server.ok(COMPLETIONS, body).await).remove(0)
    };
    let ended = |text: &str| (text.to_owned(), "stop".to_owned());
    for fields in [
        json!({"guided_choice": ["예"]}),
        json!({"structured_outputs": {"choice": ["예"]}}),
        json!({"guided_regex": "예"}),
        json!({"structured_outputs": {"regex": "예"}}),
        json!({"regex": "예", "ignore_eos": true}),
        json!({"guided_grammar": "start: \"예\""}),
        json!({"structured_outputs": {"grammar": "start: \"예\""}}),
    ] {
        assert_eq!(answer_to(fields.clone()).await, ended("예"), "{fields}");
    }
    for fields in [
        json!({"guided_json": {"const": [1]}}),
        json!({"json_schema": "{\"const\": [1]}"}),
        json!({"structured_outputs": {"json": {"const": [1]}}}),
    ] {
        let (text, reason) = answer_to(fields.clone()).await;
        assert_eq!(reason, "stop");
        assert_eq!(
            serde_json::from_str::<Value>(&text).ok(),
            Some(json!([1])),
            "{fields}"
        );
    }
    for fields in [
        json!({"response_format": {"type": "json_object"}}),
        json!({"structured_outputs": {"json_object": true}}),
    ] {
        assert!(answer_to(fields).await.0.starts_with('{'));
    }
    let (text, _) = answer_to(json!({"response_format": {"type": "text"}})).await;
    assert!(text.bytes().all(|byte| byte.is_ascii_lowercase()), "{text}");
}

#[tokio::test]
async fn max_tokens_cuts_a_form_off_and_a_stop_string_ends_it() {
    let server = TestServer::start(TestConfig::default()).await;
    let mut body = json!({"prompt": "x", "guided_regex": "[a-f]{20}", "max_tokens": 7, "seed": 1});
    let (text, reason) = texts_of(&server.ok(COMPLETIONS, body.clone()).await).remove(0);
    assert_eq!((text.len(), reason.as_str()), (7, "length"));
    body["stop"] = json!(&text[3..5]);
    body["max_tokens"] = json!(30);
    let (stopped, reason) = texts_of(&server.ok(COMPLETIONS, body).await).remove(0);
    assert_eq!(reason, "stop");
    assert!(
        text.starts_with(&stopped) && stopped.len() <= 3,
        "{text} {stopped}"
    );
}

/// Requests with and without a schema, run concurrently, get the same output as alone, whatever the
/// bursts.
#[tokio::test]
async fn neither_bursts_nor_company_nor_preemption_change_a_text() {
    let body = |i: usize| {
        let mut body = json!({"prompt": format!("p{i}"), "seed": i, "max_tokens": 90});
        if i.is_multiple_of(3) {
            body["ignore_eos"] = json!(true);
        } else {
            body["guided_regex"] = json!("([a-z]{5},[0-9]{3} ){8}");
        }
        body
    };
    let alone = {
        let server = TestServer::start(TestConfig::default()).await;
        let mut texts = Vec::new();
        for i in 0..9 {
            texts.push(texts_of(&server.ok(COMPLETIONS, body(i)).await));
        }
        texts
    };
    for n_decode_steps in [1, 4] {
        let mut config = TestConfig {
            n_decode_steps,
            ..TestConfig::default()
        }
        // So that all of them are there at once.
        .slowly(Duration::from_millis(3));
        // 16 tokens a page: less than a third of what all need.
        config.mock.n_pages = 16;
        let server = TestServer::start(config).await;
        let mut answers = tokio::task::JoinSet::new();
        for i in 0..9 {
            let address = server.address;
            answers.spawn(async move { (i, client::post(address, COMPLETIONS, &body(i)).await) });
        }
        while let Some(answer) = answers.join_next().await {
            let (i, answer) = answer.expect("an answer");
            assert_eq!(texts_of(&answer.json()), alone[i], "request {i}");
        }
        let n_preemptions = server.metric("vllm:num_preemptions_total").await;
        assert!(n_preemptions > 0.0);
        // Each of them was a finished request's.
        let of_requests = server.metric("vllm:request_num_preemptions_sum").await;
        assert!(
            (n_preemptions - of_requests).abs() < 0.5,
            "{n_preemptions} {of_requests}"
        );
        server.assert_empties().await;
    }
}

#[tokio::test]
async fn masks_are_ready_when_the_step_is() {
    let mut shares = Vec::new();
    // On a busy machine a worker may be late for a short step; a mask that is started only after
    // the step has ended is late for a long one as well.
    for step_ms in [5, 20, 80] {
        let config = TestConfig::default().slowly(Duration::from_millis(step_ms));
        let server = TestServer::start(config).await;
        let body = json!({"prompt": "x", "guided_json": schema(), "n": 4, "max_tokens": 60});
        server.ok(COMPLETIONS, body).await;
        let masks = server.get("/metrics").await;
        let count = |when: &str| {
            let labels = format!("{{model_name=\"mock\",when=\"{when}\"}}");
            masks.metric(&format!("engine_grammar_masks_total{labels}"))
        };
        let (ready, late) = (count("ready"), count("late"));
        assert!(ready + late >= 100.0, "{ready} {late}");
        shares.push(ready / (ready + late));
        if ready > 9.0 * late {
            return;
        }
    }
    panic!("shares of masks that were ready, by step: {shares:?}");
}

#[tokio::test]
async fn an_abandoned_constraint_leaves_nothing() {
    let config = TestConfig::default().slowly(Duration::from_millis(10));
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "guided_regex": "[a-z]*", "max_tokens": 400, "stream": true});
    let body = body.to_string();
    for _ in 0..4 {
        let connection =
            client::open(server.address, "POST", COMPLETIONS, &[], body.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(connection);
    }
    server.assert_empties().await;
}

/// Types of pydantic and zod whose schemas have keywords that no grammar has.
#[tokio::test]
async fn schemas_of_ordinary_types_are_used() {
    let server = TestServer::start(TestConfig::default()).await;
    for schema in [
        json!({"type": "string", "format": "path"}),
        json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true, "maxItems": 2}),
        json!({"type": "object", "propertyNames": {"type": "string"},
               "additionalProperties": {"type": "null"}, "maxProperties": 1}),
        json!({"type": "object", "propertyNames": {"$ref": "#/$defs/C"},
               "additionalProperties": {"type": "null"},
               "$defs": {"C": {"enum": ["a", "b"], "title": "C", "type": "string"}}}),
        json!({"oneOf": [
            {"type": "object", "properties": {"x": {"type": "null"}}, "additionalProperties": false},
            {"type": "object", "properties": {"y": {"type": "null"}}, "additionalProperties": false},
        ]}),
        json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"type": "boolean"}}}),
        json!({"$ref": "#a", "$defs": {"x": {"$anchor": "a", "type": "boolean"}}}),
    ] {
        let body = json!({
            "prompt": "x", "max_tokens": 200, "seed": 3, "temperature": 1,
            "response_format": {"type": "json_object", "schema": schema},
        });
        let (text, reason) = texts_of(&server.ok(COMPLETIONS, body).await).remove(0);
        assert!(
            reason == "length" || serde_json::from_str::<Value>(&text).is_ok(),
            "{schema}: {text}"
        );
    }
    // A schema given with json_object is followed.
    let body = json!({"prompt": "x", "max_tokens": 60, "response_format": {
        "type": "json_object", "schema": {"const": [42]}}});
    let (text, _) = texts_of(&server.ok(COMPLETIONS, body).await).remove(0);
    assert_eq!(serde_json::from_str::<Value>(&text).ok(), Some(json!([42])));
}

#[tokio::test]
async fn fields_of_other_servers_that_would_change_the_answer_are_refused() {
    let server = TestServer::start(TestConfig::default()).await;
    for (fields, param) in [
        (json!({"grammar": "root ::= \"a\""}), "grammar"),
        (json!({"stop_regex": "a+"}), "stop_regex"),
        (json!({"typical_p": 0.5}), "typical_p"),
        (json!({"mirostat": 2}), "mirostat"),
        (json!({"samplers": ["top_k"]}), "samplers"),
        (json!({"n_probs": 3}), "n_probs"),
        (json!({"dry_multiplier": 0.8}), "dry_multiplier"),
        (json!({"logprob_token_ids": [1]}), "logprob_token_ids"),
    ] {
        let body = merged(json!({"prompt": "x", "max_tokens": 3}), fields);
        let answer = server.post(COMPLETIONS, body).await;
        assert_eq!(answer.status, 400, "{param}");
        assert_eq!(answer.json()["error"]["param"], param, "{}", answer.text());
    }
    let fields = json!({
        "typical_p": 1.0, "mirostat": 0, "n_probs": 0, "stop_regex": null, "grammar": "",
        "dry_multiplier": 0,
    });
    let body = merged(json!({"prompt": "x", "max_tokens": 3}), fields);
    server.ok(COMPLETIONS, body).await;
}

/// The real executor over a tiny model with random weights.
#[tokio::test(flavor = "multi_thread")]
async fn a_random_model_keeps_to_a_schema_with_every_sampler() {
    let model = Model::new(Family::Qwen3, FolderFormat::F16);
    for flags in [
        "",
        "--sampling-backend pytorch",
        "--num-continuous-decode-steps 3",
    ] {
        let program = Program::start(&model.line(&format!("--port 0 {flags}")), &[]).await;
        let mut n_ended = 0;
        let mut schema = schema();
        schema["x-guidance"] = json!({"whitespace_flexible": false});
        for temperature in [0.0, 0.8] {
            let body = json!({
                "prompt": "x", "guided_json": schema, "n": 4, "seed": 2,
                "temperature": temperature, "max_tokens": 100, "logprobs": 2,
            });
            let answer = client::post(program.address, COMPLETIONS, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            n_ended += check_choices(borrowed(&texts_of(&answer.json())));
        }
        assert!(n_ended > 0, "{flags}: none of 8 ended");
    }
}
