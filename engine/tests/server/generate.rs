//! `POST /generate`, SGLang's own endpoint.

use serde_json::{Value, json};

use crate::fixture::{IM_END, TestConfig, TestServer, merged};

const PATH: &str = "/generate";

/// A model that outputs this text and then ends.
fn saying(text: &str) -> TestConfig {
    let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
    ids.push(IM_END);
    TestConfig::emitting(ids)
}

/// As SGLang's load generator sends it.
fn benchmark(fields: Value) -> Value {
    let body = json!({
        "text": "hello",
        "sampling_params": {"temperature": 0.0, "max_new_tokens": 4, "ignore_eos": true},
        "stream": false, "lora_path": "", "return_logprob": false,
        "return_routed_experts": false, "logprob_start_len": -1,
    });
    merged(body, fields)
}

#[tokio::test]
async fn generate_answers_in_sglangs_form() {
    let server = TestServer::start(TestConfig::saying("abcdefgh")).await;
    let answer = server.ok(PATH, benchmark(json!({"rid": "mine"}))).await;
    assert_eq!(answer["text"], "abcd");
    assert_eq!(answer["output_ids"], json!([97, 98, 99, 100]));
    let about = &answer["meta_info"];
    assert_eq!(about["id"], "mine");
    assert_eq!(
        about["finish_reason"],
        json!({"type": "length", "length": 4})
    );
    assert_eq!(
        (&about["prompt_tokens"], &about["completion_tokens"]),
        (&json!(5), &json!(4))
    );
    assert_eq!(about["cached_tokens"], 0);
    assert!(about["e2e_latency"].as_f64().expect("seconds") > 0.0);
    let by_ids = benchmark(json!({"text": null, "input_ids": [104, 105]}));
    assert_eq!(
        server.ok(PATH, by_ids).await["meta_info"]["prompt_tokens"],
        2
    );
}

#[tokio::test]
async fn a_streams_events_have_the_text_so_far() {
    let server = TestServer::start(saying("ab")).await;
    let body = benchmark(json!({"stream": true, "sampling_params": {"temperature": 0}}));
    let events = server.post(PATH, body).await.chunks();
    let texts: Vec<&Value> = events.iter().map(|event| &event["text"]).collect();
    assert_eq!(texts, [&json!("a"), &json!("ab"), &json!("ab")]);
    let counts: Vec<&Value> = events
        .iter()
        .map(|event| &event["meta_info"]["completion_tokens"])
        .collect();
    assert_eq!(counts, [&json!(1), &json!(2), &json!(3)]);
    let ends: Vec<&Value> = events
        .iter()
        .map(|event| &event["meta_info"]["finish_reason"])
        .collect();
    assert_eq!(
        ends,
        [
            &Value::Null,
            &Value::Null,
            &json!({"type": "stop", "matched": IM_END})
        ]
    );
}

#[tokio::test]
async fn lists_of_prompts_have_lists_of_answers() {
    let server = TestServer::start(TestConfig::saying("xyz")).await;
    let params = json!([{"max_new_tokens": 1}, {"max_new_tokens": 3, "stop": "z"}]);
    let body = json!({"text": ["a", "bc"], "sampling_params": params, "rid": "r"});
    let answers = server.ok(PATH, body.clone()).await;
    assert_eq!(
        (&answers[0]["text"], &answers[1]["text"]),
        (&json!("x"), &json!("xy"))
    );
    assert_eq!(answers[0]["meta_info"]["id"], "r_0");
    let stopped = json!({"type": "stop", "matched": "z"});
    assert_eq!(answers[1]["meta_info"]["finish_reason"], stopped);
    let events = server
        .post(PATH, merged(body, json!({"stream": true})))
        .await
        .chunks();
    let last = |index: u64| events.iter().rfind(|event| event["index"] == index);
    assert_eq!(last(1).expect("an event")["text"], "xy");
    let several =
        json!({"input_ids": [[1], [2]], "sampling_params": {"n": 2, "max_new_tokens": 1}});
    assert_eq!(
        server.ok(PATH, several).await.as_array().map(Vec::len),
        Some(4)
    );
}

#[tokio::test]
async fn log_probabilities_are_triples() {
    let server = TestServer::start(TestConfig::saying("ab")).await;
    let body = benchmark(json!({
        "return_logprob": true, "top_logprobs_num": 2, "return_text_in_logprobs": true,
        "sampling_params": {"max_new_tokens": 2, "temperature": 0},
    }));
    let about = server.ok(PATH, body).await["meta_info"].clone();
    assert_eq!(about["input_token_logprobs"], json!([]));
    let first = &about["output_token_logprobs"][0];
    assert!(first[0].as_f64().expect("a logarithm") <= 0.0);
    assert_eq!((&first[1], &first[2]), (&json!(97), &json!("a")));
    assert_eq!(
        about["output_top_logprobs"][1].as_array().map(Vec::len),
        Some(2)
    );
}

#[tokio::test]
async fn what_generate_does_not_do_is_refused_in_its_own_names() {
    let server = TestServer::start(TestConfig::default()).await;
    for (fields, param) in [
        (json!({"text": null}), "text"),
        (json!({"input_ids": [1]}), "input_ids"),
        (json!({"text": 5}), "text"),
        (json!({"text": ["a", 5]}), "text[1]"),
        (json!({"text": []}), "text"),
        (json!({"text": null, "input_ids": [999]}), "input_ids[0]"),
        (json!({"sampling_params": 5}), "sampling_params"),
        (json!({"sampling_params": [{}, {}]}), "sampling_params"),
        (
            json!({"sampling_params": {"max_new_tokens": -1}}),
            "sampling_params.max_new_tokens",
        ),
        (
            json!({"sampling_params": {"max_new_tokens": 9999}}),
            "sampling_params.max_new_tokens",
        ),
        (
            json!({"sampling_params": {"max_tokens": 5}}),
            "sampling_params.max_tokens",
        ),
        (
            json!({"sampling_params": {"top_p": 7}}),
            "sampling_params.top_p",
        ),
        (
            json!({"sampling_params": {"stop_regex": "a"}}),
            "sampling_params.stop_regex",
        ),
        (
            json!({"sampling_params": {"sampling_seed": "a"}}),
            "sampling_params.sampling_seed",
        ),
        (
            json!({"return_logprob": true, "logprob_start_len": 0}),
            "logprob_start_len",
        ),
        (
            json!({"return_hidden_states": true}),
            "return_hidden_states",
        ),
        (json!({"image_data": "x"}), "image_data"),
        (json!({"lora_path": "x"}), "lora_path"),
        (json!({"extra_key": "x"}), "extra_key"),
        (json!({"priority": 3}), "priority"),
        (json!({"rid": ""}), "rid"),
        (json!({"rid": ["a", "b"]}), "rid"),
    ] {
        let refused = server.post(PATH, benchmark(fields.clone())).await;
        assert_eq!(refused.status, 400, "{fields}: {}", refused.text());
        assert_eq!(
            refused.json()["error"]["param"],
            param,
            "{fields}: {}",
            refused.text()
        );
    }
    server.assert_empties().await;
}
