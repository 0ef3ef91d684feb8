//! `/v1/chat/completions` and the model list.

use serde_json::json;

use crate::fixture::{IM_END, TestConfig, TestServer, assert_answer};

const PATH: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_whole_answer() {
    let mut ids: Vec<u32> = "반가워요".bytes().map(u32::from).collect();
    ids.push(IM_END);
    let server = TestServer::start(TestConfig::emitting(ids)).await;
    let body = json!({"model": "org/mock", "messages": [{"role": "user", "content": "안녕"}]});
    assert_answer!("chat", server.ok(PATH, body).await);
}

#[tokio::test]
async fn a_streamed_answer_with_usage() {
    let server = TestServer::start(TestConfig::saying("네!")).await;
    let body = json!({
        "messages": [{"role": "user", "content": "x"}],
        "max_completion_tokens": 4,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let answer = server.post(PATH, body).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_answer!("chat_stream", answer.chunks());
}

#[tokio::test]
async fn streamed_choices_have_one_role_and_one_end_each() {
    let server = TestServer::start(TestConfig::default()).await;
    let body = json!({
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 6, "n": 3, "seed": 1, "stream": true,
    });
    let chunks = server.post(PATH, body.clone()).await.chunks();
    let mut whole_body = body;
    whole_body["stream"] = json!(false);
    let whole = server.ok(PATH, whole_body).await;
    for index in 0..3 {
        let mine = || {
            chunks
                .iter()
                .map(|c| &c["choices"][0])
                .filter(|choice| choice["index"] == index)
        };
        assert_eq!(
            mine()
                .filter(|choice| choice["delta"]["role"] == "assistant")
                .count(),
            1
        );
        assert_eq!(
            mine()
                .filter(|choice| !choice["finish_reason"].is_null())
                .count(),
            1
        );
        let text: String = mine()
            .filter_map(|choice| choice["delta"]["content"].as_str())
            .collect();
        assert_eq!(whole["choices"][index]["message"]["content"], text);
    }
}

#[tokio::test]
async fn logprobs_have_openais_shape() {
    let server = TestServer::start(TestConfig::saying("é")).await;
    let body = json!({
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2, "logprobs": true, "top_logprobs": 1,
    });
    let answer = server.ok(PATH, body).await;
    assert_answer!("chat_logprobs", answer["choices"][0]);
}

#[tokio::test]
async fn output_fills_the_context_by_default() {
    let mut config = TestConfig::saying("la");
    config.context_length = 64;
    let server = TestServer::start(config).await;
    let answer = server
        .ok(
            PATH,
            json!({"messages": [{"role": "user", "content": "x"}]}),
        )
        .await;
    assert_eq!(answer["usage"]["total_tokens"], 64);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn tools_and_template_arguments_reach_the_template() {
    let server = TestServer::start(TestConfig::default()).await;
    let tool = json!({"type": "function", "function": {"name": "날씨"}});
    let body = json!({
        "messages": [{"role": "user", "content": "x"}],
        "tools": [tool],
        "chat_template_kwargs": {"enable_thinking": false},
    });
    let ids = server.ok("/tokenize", body.clone()).await["tokens"].clone();
    let text = server.ok("/detokenize", json!({"tokens": ids})).await;
    assert_eq!(
        text["prompt"],
        "tools [{\"type\": \"function\", \"function\": {\"name\": \"날씨\"}}]\n\
         <|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n<think></think>"
    );
    let mut untooled = body;
    untooled["tool_choice"] = json!("none");
    let ids = server.ok("/tokenize", untooled.clone()).await["tokens"].clone();
    let text = server.ok("/detokenize", json!({"tokens": ids})).await;
    assert!(
        text["prompt"]
            .as_str()
            .expect("text")
            .starts_with("<|im_start|>user")
    );
    untooled["max_tokens"] = json!(1);
    server.ok(PATH, untooled).await;
}

#[tokio::test]
async fn the_list_of_models() {
    let server = TestServer::start(TestConfig::default()).await;
    assert_answer!("models", server.get("/v1/models").await.json());
    let card = server.get("/v1/models/org/mock").await;
    assert_eq!((card.status, &card.json()["id"]), (200, &json!("org/mock")));
    assert_eq!(server.get("/v1/models/gpt-5").await.status, 404);
}
