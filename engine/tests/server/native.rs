//! SGLang's and vLLM's own endpoints, and those of their fields that affect responses.

use std::time::Duration;

use engine::config::ResultCachePlace;
use engine::scheduler::PolicyName;
use engine::served_model::OutputParsers;
use serde_json::{Value, json};

use crate::client;
use crate::fixture::{IM_END, LIMIT, TestConfig, TestServer, merged, until};

const GENERATE: &str = "/generate";
const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A model that outputs this text and then ends.
fn saying(text: &str) -> TestConfig {
    let mut ids: Vec<u32> = text.bytes().map(u32::from).collect();
    ids.push(IM_END);
    TestConfig::emitting(ids)
}

#[tokio::test]
async fn flushing_gives_up_prefixes_and_answers() {
    let mut config = TestConfig::saying("abc");
    config.http.result_cache.place = ResultCachePlace::Memory;
    let server = TestServer::start(config).await;
    let prompt = "p".repeat(200);
    let ask = async |n: u32| {
        let body = json!({"prompt": prompt, "max_tokens": n, "temperature": 0});
        let answer = server.post(COMPLETIONS, body).await;
        let cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
        (
            cached.as_u64().expect("a count"),
            answer.header("x-result-cache").map(str::to_owned),
        )
    };
    for method in ["POST", "GET"] {
        assert_eq!(ask(3).await, (0, Some("miss".to_owned())), "{method}");
        until("the answer is kept", LIMIT, async || {
            ask(3).await.1.as_deref() == Some("hit")
        })
        .await;
        assert!(ask(2).await.0 > 100, "the prefix is shared");
        let flushed = client::send(server.address, method, "/flush_cache", &[], b"").await;
        assert_eq!(flushed.status, 200, "{}", flushed.text());
        assert!(server.metric("engine_kv_pages_cached").await.abs() < 0.5);
    }
    assert_eq!(ask(3).await.0, 0);
    let reset = client::send(server.address, "POST", "/reset_prefix_cache", &[], b"").await;
    assert_eq!(reset.status, 200);
    assert_eq!(ask(2).await, (0, Some("miss".to_owned())));
}

#[tokio::test]
async fn nothing_is_flushed_while_requests_run() {
    let config = TestConfig::saying("slow").slowly(Duration::from_millis(20));
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "max_tokens": 40}).to_string();
    let running = client::open(server.address, "POST", COMPLETIONS, &[], body.as_bytes()).await;
    server.runs().await;
    let refused = client::send(server.address, "POST", "/flush_cache", &[], b"").await;
    assert_eq!(refused.status, 400, "{}", refused.text());
    let error = &refused.json()["error"];
    assert_eq!(error["code"], "cache_busy");
    assert!(
        error["message"]
            .as_str()
            .expect("a text")
            .contains("1 requests run")
    );
    let path = "/flush_cache?timeout=60";
    let waited = client::send(server.address, "POST", path, &[], b"").await;
    assert_eq!(waited.status, 200, "{}", waited.text());
    drop(running);
    for wrong in ["-1", "x", "1e9"] {
        let path = format!("/flush_cache?timeout={wrong}");
        let refused = client::send(server.address, "POST", &path, &[], b"").await;
        assert_eq!(refused.json()["error"]["param"], "timeout", "{wrong}");
    }
}

#[tokio::test]
async fn a_request_is_aborted_by_its_id() {
    let config = TestConfig::saying("slow").slowly(Duration::from_millis(20));
    let server = TestServer::start(config).await;
    for (path, id, body) in [
        (
            GENERATE,
            "mine",
            json!({"text": "x", "rid": "mine", "sampling_params": {"max_new_tokens": 300}}),
        ),
        (
            COMPLETIONS,
            "theirs",
            json!({"prompt": "x", "rid": "theirs", "max_tokens": 300}),
        ),
        (
            CHAT,
            "chatcmpl-7",
            json!({"messages": [{"role": "user", "content": "x"}],
            "request_id": "7", "max_tokens": 300, "n": 2}),
        ),
    ] {
        let address = server.address;
        let n = body["n"].as_u64().unwrap_or(1);
        let task = tokio::spawn(async move { client::post(address, path, &body).await });
        server.runs().await;
        let unknown = server.ok("/abort_request", json!({"rid": "another"})).await;
        assert_eq!(unknown["n_aborted"], 0);
        let aborted = server.ok("/abort_request", json!({"rid": id})).await;
        assert_eq!(aborted["n_aborted"], n, "{path}");
        let answer = task.await.expect("no panic").json();
        if path == GENERATE {
            assert_eq!(answer["meta_info"]["finish_reason"]["type"], "abort");
        } else {
            assert_eq!(answer["choices"][0]["finish_reason"], "abort");
            assert_eq!(answer["id"], id);
        }
        server.assert_empties().await;
    }
    assert_eq!(server.post("/abort_request", json!({})).await.status, 400);
    assert_eq!(
        server
            .ok("/abort_request", json!({"abort_all": true}))
            .await["n_aborted"],
        0
    );
}

#[tokio::test]
async fn an_id_that_runs_is_not_taken_twice() {
    let config = TestConfig::saying("slow").slowly(Duration::from_millis(20));
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x", "rid": "one", "max_tokens": 40});
    let sent = body.to_string();
    let first = client::open(server.address, "POST", COMPLETIONS, &[], sent.as_bytes()).await;
    server.runs().await;
    let second = server.post(COMPLETIONS, body).await;
    assert_eq!(
        (second.status, &second.json()["error"]["param"]),
        (400, &json!("rid"))
    );
    drop(first);
    server.assert_empties().await;
}

#[tokio::test]
async fn what_routers_and_probes_ask() {
    let server = TestServer::start(TestConfig::default()).await;
    for path in ["/model_info", "/get_model_info"] {
        let info = server.get(path).await.json();
        assert_eq!(info["is_generation"], true, "{path}");
        assert_eq!(info["served_model_name"], "mock");
    }
    let load = server.get("/get_load").await.json();
    assert_eq!(load[0]["num_reqs"], 0);
    assert_eq!(load[0]["num_tokens"], 0);
    let before = server.metric("vllm:generation_tokens_total").await;
    assert_eq!(server.get("/health_generate").await.status, 200);
    let made = server.metric("vllm:generation_tokens_total").await - before;
    assert!((made - 1.0).abs() < 0.5, "{made}");
    let tokenizer = server.get("/tokenizer_info").await.json();
    assert_eq!(tokenizer["eos_token"], "<|im_end|>");
    let template = tokenizer["chat_template"].as_str().expect("a template");
    assert!(template.contains("add_generation_prompt"));
}

#[tokio::test]
async fn a_probe_sees_a_model_that_generates_nothing() {
    let mut config = TestConfig::default();
    config.mock.failing_steps = [0].into();
    let server = TestServer::start(config).await;
    let answer = server.get("/health_generate").await;
    assert_eq!(answer.status, 500, "{}", answer.text());
}

#[tokio::test]
async fn token_ids_are_told_where_they_are_asked_for() {
    let server = TestServer::start(saying("ab")).await;
    let ids = json!({"return_token_ids": true});
    let body = merged(json!({"prompt": "xy", "max_tokens": 9}), ids.clone());
    let answer = server.ok(COMPLETIONS, body.clone()).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["prompt_token_ids"], json!([120, 121]));
    assert_eq!(choice["token_ids"], json!([97, 98, IM_END]));
    let chunks = server
        .post(COMPLETIONS, merged(body, json!({"stream": true})))
        .await
        .chunks();
    assert_eq!(
        chunks[0]["choices"][0]["prompt_token_ids"],
        json!([120, 121])
    );
    assert_eq!(chunks[1]["choices"][0]["prompt_token_ids"], Value::Null);
    assert_eq!(chunks[1]["choices"][0]["token_ids"], json!([98]));
    let body = merged(json!({"messages": [{"role": "user", "content": "x"}]}), ids);
    let answer = server.ok(CHAT, body.clone()).await;
    let prompt = server.ok("/tokenize", body.clone()).await["tokens"].clone();
    assert_eq!(answer["prompt_token_ids"], prompt);
    assert_eq!(answer["choices"][0]["token_ids"], json!([97, 98, IM_END]));
    let chunks = server
        .post(CHAT, merged(body, json!({"stream": true})))
        .await
        .chunks();
    assert_eq!(chunks[0]["prompt_token_ids"], prompt);
    assert!(chunks[1].get("prompt_token_ids").is_none());
    assert_eq!(chunks[1]["choices"][0]["token_ids"], json!([97]));
    let without = server
        .ok(COMPLETIONS, json!({"prompt": "x", "max_tokens": 1}))
        .await;
    assert!(without["choices"][0].get("token_ids").is_none());
}

#[tokio::test]
async fn tokens_can_be_named_by_their_ids() {
    let server = TestServer::start(saying("é")).await;
    let fields = json!({"return_tokens_as_token_ids": true, "max_tokens": 2});
    let body = merged(json!({"prompt": "x", "logprobs": 1}), fields.clone());
    let logprobs = server.ok(COMPLETIONS, body).await["choices"][0]["logprobs"].clone();
    assert_eq!(logprobs["tokens"], json!(["token_id:195", "token_id:169"]));
    assert!(logprobs["top_logprobs"][0].get("token_id:195").is_some());
    // Both are parts of one character.
    assert_eq!(logprobs["text_offset"], json!([0, 0]));
    let body = json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true, "top_logprobs": 1});
    let answer = server.ok(CHAT, merged(body, fields)).await;
    let first = &answer["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["token"], "token_id:195");
    assert_eq!(first["bytes"], json!([195]));
}

#[tokio::test]
async fn each_chunk_can_say_the_usage_so_far() {
    let server = TestServer::start(saying("abc")).await;
    let body = |continuous: bool| {
        json!({
            "prompt": "xy", "max_tokens": 3, "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": continuous},
        })
    };
    let chunks = server.post(COMPLETIONS, body(true)).await.chunks();
    let counts: Vec<&Value> = chunks
        .iter()
        .map(|c| &c["usage"]["completion_tokens"])
        .collect();
    assert_eq!(counts, [&json!(1), &json!(2), &json!(3), &json!(3)]);
    assert_eq!(chunks[0]["usage"]["prompt_tokens"], 2);
    assert_eq!(chunks[0]["usage"]["total_tokens"], 3);
    let chunks = server.post(COMPLETIONS, body(false)).await.chunks();
    assert_eq!(chunks[0]["usage"], Value::Null);
    let chat = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "n": 2});
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let chunks = server.post(CHAT, merged(chat, streamed)).await.chunks();
    assert_eq!(chunks[0]["usage"]["completion_tokens"], 0);
    let usage = chunks.last().expect("a chunk")["usage"].clone();
    assert_eq!(usage["completion_tokens"], 4);
}

#[tokio::test]
async fn thoughts_are_counted_in_the_usage() {
    let config = |reasoning: bool| {
        let mut config = saying("<think>abc</think>de");
        config.parsers = OutputParsers {
            tool_calls: None,
            reasoning,
        };
        config
    };
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 100});
    let server = TestServer::start(config(true)).await;
    let details = json!({"reasoning_tokens": 3});
    let answer = server.ok(CHAT, body.clone()).await;
    assert_eq!(answer["usage"]["completion_tokens_details"], details);
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = server
        .post(CHAT, merged(body.clone(), streamed))
        .await
        .chunks();
    let usage = &chunks.last().expect("a chunk")["usage"];
    assert_eq!(usage["completion_tokens_details"], details);
    let server = TestServer::start(config(false)).await;
    let answer = server.ok(CHAT, body).await;
    assert!(answer["usage"].get("completion_tokens_details").is_none());
}

#[tokio::test]
async fn a_priority_reaches_its_policy_or_is_refused() {
    let body = |priority: i32| json!({"prompt": "x", "max_tokens": 1, "priority": priority});
    let server = TestServer::start(TestConfig::default()).await;
    server.ok(COMPLETIONS, body(0)).await;
    let refused = server.post(COMPLETIONS, body(1)).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["param"]),
        (400, &json!("priority"))
    );
    let config = TestConfig {
        policy: PolicyName::Priority,
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    server.ok(COMPLETIONS, body(1)).await;
}

#[tokio::test]
async fn fields_that_would_change_the_answer_are_refused_by_both_endpoints() {
    let server = TestServer::start(TestConfig::default()).await;
    let fields = json!({
        "logprob_token_ids": [1], "return_hidden_states": true, "stop_regex": "a+",
        "typical_p": 0.5, "mirostat": 2, "samplers": ["top_k"], "n_probs": 3,
        "custom_logit_processor": "x", "kv_transfer_params": {"a": 1},
    });
    for (name, value) in fields.as_object().expect("an object") {
        for (path, body) in [
            (COMPLETIONS, json!({"prompt": "x", "max_tokens": 1})),
            (
                CHAT,
                json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
            ),
        ] {
            let refused = server.post(path, merged(body, json!({name: value}))).await;
            assert_eq!(refused.status, 400, "{path}: {name}");
            assert_eq!(refused.json()["error"]["param"], name.as_str(), "{path}");
        }
    }
    let harmless = json!({"prompt": "x", "max_tokens": 1, "user": "u", "store": false,
        "typical_p": 1.0, "mirostat": 0, "safety_identifier": "x", "prompt_cache_key": "x"});
    server.ok(COMPLETIONS, harmless).await;
}

#[tokio::test]
async fn sglangs_metric_names_have_the_same_figures() {
    let config = TestConfig::saying("abcdefgh").slowly(Duration::from_millis(10));
    let server = TestServer::start(config).await;
    let body = json!({"prompt": "x".repeat(40), "max_tokens": 150, "n": 2});
    let address = server.address;
    let task = tokio::spawn(async move { client::post(address, COMPLETIONS, &body).await });
    let is_measured = async || server.metric("sglang:gen_throughput").await > 0.0;
    until("a rate is shown", LIMIT, is_measured).await;
    assert!(server.metric("sglang:num_running_reqs").await > 0.0);
    assert_eq!(task.await.expect("no panic").status, 200);
    server.assert_empties().await;
    let page = server.get("/metrics").await;
    for (theirs, ours) in [
        ("sglang:prompt_tokens_total", "vllm:prompt_tokens_total"),
        (
            "sglang:generation_tokens_total",
            "vllm:generation_tokens_total",
        ),
        ("sglang:num_queue_reqs", "vllm:num_requests_waiting"),
        ("sglang:token_usage", "vllm:kv_cache_usage_perc"),
        (
            "sglang:e2e_request_latency_seconds_count",
            "vllm:e2e_request_latency_seconds_count",
        ),
        (
            "sglang:time_to_first_token_seconds_sum",
            "vllm:time_to_first_token_seconds_sum",
        ),
        (
            "sglang:inter_token_latency_seconds_count",
            "vllm:inter_token_latency_seconds_count",
        ),
    ] {
        let (theirs, ours) = (page.metric(theirs), page.metric(ours));
        assert!((theirs - ours).abs() < 1e-9, "{theirs} {ours}");
    }
    let is = |series: &str, value: f64| {
        let found = page.metric(series);
        assert!(
            (found - value).abs() < 1e-9,
            "{series}: {found}, not {value}"
        );
    };
    is("sglang:num_requests_total", 2.0);
    is("sglang:gen_throughput", 0.0);
    is("vllm:request_params_n_sum", 2.0);
    is("vllm:request_max_num_generation_tokens_sum", 150.0);
    is("vllm:admission_rejections_total", 0.0);
    assert!(
        page.text().contains(
            "vllm:cache_config_info{engine=\"0\",model_name=\"mock\",block_size=\"16\",num_gpu_blocks=\"64\"} 1"
        ),
        "{}",
        page.text()
    );
}

/// vLLM counts the prompt's tokens and every token made, the first one too.
#[tokio::test]
async fn a_steps_tokens_are_the_prompts_and_all_that_were_made() {
    let server = TestServer::start(TestConfig::saying("abc")).await;
    for i in 0..10 {
        let body = json!({"prompt": format!("{i}12345678"), "max_tokens": 10});
        server.ok(COMPLETIONS, body).await;
    }
    let sum = server.metric("vllm:iteration_tokens_total_sum").await;
    assert!((sum - 190.0).abs() < 0.5, "10 × (9 + 10), not {sum}");
}
