//! `/openapi.json` against the server: its paths and methods, the ranges of its fields, the keys of
//! its answers.

use engine::server::routes::operations;
use serde_json::{Map, Value, json};

use crate::client::{self, Answer};
use crate::fixture::{TestConfig, TestServer, merged};

/// A server with both keys, and its document.
async fn server() -> (TestServer, Value) {
    let mut config = TestConfig::saying("ok");
    config.context_length = 128;
    config.http.api_key = Some("k".to_owned());
    config.http.admin_api_key = Some("k".to_owned());
    let server = TestServer::start(config).await;
    let document = ask(&server, "GET", "/openapi.json", &Value::Null)
        .await
        .json();
    (server, document)
}

async fn ask(server: &TestServer, method: &str, path: &str, body: &Value) -> Answer {
    let (key, body) = ([("X-Api-Key", "k")], body.to_string());
    client::send(server.address, method, path, &key, body.as_bytes()).await
}

fn members(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("an object")
}

/// Follows references.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    let Some(place) = schema["$ref"].as_str() else {
        return schema;
    };
    let found = document.pointer(place.trim_start_matches('#'));
    resolved(
        document,
        found.unwrap_or_else(|| panic!("nothing at {place}")),
    )
}

#[tokio::test]
async fn every_path_answers_to_the_documented_methods_and_no_others() {
    let (server, document) = server().await;
    let mut n_documented = 0;
    for (path, item) in members(&document["paths"]) {
        let place = path.replace("{id}", "x").replace("{name}", "mock");
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let answer = ask(&server, method, &place, &json!({})).await;
            let Some(operation) = item.get(method.to_lowercase()) else {
                assert_eq!(answer.status, 405, "{method} {path}");
                continue;
            };
            n_documented += 1;
            let response = operation["responses"].get(answer.status.to_string());
            assert!(response.is_some(), "{method} {path}: {}", answer.status);
            let bare = client::send(server.address, method, &place, &[], b"{}").await;
            assert_eq!(
                bare.status == 401,
                operation.get("security").is_some(),
                "{path}"
            );
        }
    }
    // The router is made from this table alone.
    let n_operations: usize = operations().iter().map(|op| op.paths().count()).sum();
    assert_eq!(n_documented, n_operations);
    let router = include_str!("../../src/server/mod.rs");
    assert!(!router.contains(".route("));
}

/// Requests that are answered, their schemas, and more fields.
fn bodies() -> [(&'static str, &'static str, Value, Value); 5] {
    let messages = json!([{"role": "user", "content": "x"}]);
    [
        (
            "/v1/completions",
            "CompletionRequest",
            json!({"prompt": "x"}),
            json!({"logprobs": 2, "return_token_ids": true}),
        ),
        (
            "/v1/chat/completions",
            "ChatRequest",
            json!({"messages": messages}),
            json!({"logprobs": true, "top_logprobs": 2, "return_token_ids": true, "n": 2}),
        ),
        (
            "/v1/messages",
            "MessageRequest",
            json!({"messages": messages, "max_tokens": 5}),
            json!({}),
        ),
        (
            "/v1/responses",
            "ResponseRequest",
            json!({"input": "x"}),
            json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1}),
        ),
        (
            "/generate",
            "GenerateRequest",
            json!({"text": "x"}),
            json!({"return_logprob": true, "top_logprobs_num": 2}),
        ),
    ]
}

fn refuses(answer: &Answer, name: &str) -> bool {
    let param = &answer.json()["error"]["param"];
    answer.status == 400 && param.as_str().is_some_and(|param| param.starts_with(name))
}

#[tokio::test]
async fn every_field_has_the_type_and_range_that_the_server_enforces() {
    // In the range, and refused beside the other fields.
    const CROSSED: [&str; 5] = [
        "but max_tokens",
        "top_logprobs is",
        "only the value of n",
        "--schedule-policy",
        "context length",
    ];
    let (server, document) = server().await;
    let mut n_checked = 0;
    for (path, component, body, _) in bodies() {
        let schema = &document["components"]["schemas"][component];
        for (name, field) in members(&schema["properties"]) {
            let field = resolved(&document, field);
            let post = async |value: Value| {
                let body = merged(body.clone(), json!({name.as_str(): value}));
                ask(&server, "POST", path, &body).await
            };
            let odd = post(json!([{"odd": [[]]}])).await;
            assert!(refuses(&odd, name), "{path} {name}: {}", odd.text());
            for (bound, step) in [("minimum", -1.0), ("maximum", 1.0)] {
                let Some(limit) = field[bound].as_f64() else {
                    continue;
                };
                let at = post(field[bound].clone()).await;
                let is_crossed = CROSSED.iter().any(|said| at.text().contains(said));
                assert!(!refuses(&at, name) || is_crossed, "{name}: {}", at.text());
                let past = post(json!(limit + step * limit.abs().max(1.0))).await;
                assert!(refuses(&past, name), "{path} {name}: {}", past.text());
                n_checked += 1;
            }
            if field["description"] == "not supported" {
                for value in field["enum"].as_array().expect("values") {
                    let harmless = post(value.clone()).await;
                    assert_eq!(harmless.status, 200, "{name}: {}", harmless.text());
                }
            }
        }
    }
    assert!(n_checked > 40, "{n_checked}");
}

/// Every key of an answer is in its schema, and every required one in the answer.
fn check(document: &Value, schema: &Value, value: &Value, place: &str) {
    let mut schema = resolved(document, schema);
    if let Some(branches) = schema["anyOf"].as_array() {
        let is_of = |kind: &Value| match value {
            Value::Null => kind == "null",
            Value::Object(_) => kind == "object",
            Value::Array(_) => kind == "array",
            _ => !["null", "object", "array"]
                .iter()
                .any(|other| kind == other),
        };
        let mut branches = branches.iter().map(|branch| resolved(document, branch));
        schema = branches.find(|branch| is_of(&branch["type"])).expect(place);
    }
    if let Some(values) = schema["enum"].as_array() {
        assert!(
            values.contains(value),
            "{place} is {value}, not of {schema}"
        );
    }
    if let (Value::Object(fields), Some(known)) = (value, schema["properties"].as_object()) {
        for (name, value) in fields {
            let place = format!("{place}.{name}");
            check(document, known.get(name).expect(&place), value, &place);
        }
        for name in schema["required"].as_array().into_iter().flatten() {
            let name = name.as_str().expect("a name");
            assert!(fields.contains_key(name), "{place}: no {name}");
        }
    }
    for item in value.as_array().into_iter().flatten() {
        check(document, &schema["items"], item, &format!("{place}[]"));
    }
}

#[tokio::test]
async fn answers_have_the_documented_keys() {
    let (server, document) = server().await;
    let schema_of = |method: &str, path: &str, status: u16, kind: &str| {
        let response = &document["paths"][path][method]["responses"][status.to_string()];
        resolved(&document, response)["content"][kind]["schema"].clone()
    };
    let json = "application/json";
    for (path, _, body, more) in bodies() {
        for body in [body.clone(), merged(body.clone(), more)] {
            let answer = ask(&server, "POST", path, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            check(
                &document,
                &schema_of("post", path, 200, json),
                &answer.json(),
                path,
            );
            let streamed = merged(body, json!({"stream": true}));
            let streamed = ask(&server, "POST", path, &streamed).await;
            let event = schema_of("post", path, 200, "text/event-stream");
            let schema = &event["properties"]["data"]["contentSchema"];
            let lines = streamed.text().lines();
            let data = lines.filter_map(|line| line.strip_prefix("data: "));
            for data in data.filter(|data| *data != "[DONE]") {
                check(
                    &document,
                    schema,
                    &serde_json::from_str(data).expect("JSON"),
                    path,
                );
            }
        }
    }
    let mut n_answers = 0;
    for path in members(&document["paths"]).keys() {
        let place = path.replace("{id}", "x").replace("{name}", "mock");
        let answer = ask(&server, "GET", &place, &Value::Null).await;
        let schema = schema_of("get", path, answer.status, json);
        if !schema.is_null() {
            check(&document, &schema, &answer.json(), path);
            n_answers += 1;
        }
    }
    assert!(n_answers > 20, "{n_answers}");
}

/// What axum refuses by itself would be plain text.
#[tokio::test]
async fn queries_and_paths_that_cannot_be_read_are_refused_like_fields() {
    let (server, _) = server().await;
    for (path, param) in [
        ("/v1/loads?include=core&include=spec", "query"),
        ("/flush_cache?timeout=1&timeout=2", "query"),
        ("/v1/models/%ff", "path"),
    ] {
        let refused = ask(&server, "GET", path, &Value::Null).await;
        assert!(refuses(&refused, param), "{}", refused.text());
    }
}

#[tokio::test]
async fn fields_of_a_chat_are_refused_beside_a_prompt() {
    let (server, document) = server().await;
    let schema = &document["components"]["schemas"]["TokenizeRequest"]["properties"];
    let own = ["model", "prompt", "add_special_tokens", "return_token_strs"];
    let names = members(schema).keys();
    for name in names.filter(|name| !own.contains(&name.as_str())) {
        let body = json!({"prompt": "x", name.as_str(): true});
        let refused = ask(&server, "POST", "/v1/tokenize", &body).await;
        assert!(refuses(&refused, name), "{name}");
    }
}
