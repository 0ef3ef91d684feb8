//! Forms that would take the process's stack, its memory, or everyone's time.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::client;
use crate::fixture::{TestConfig, TestServer, merged, until};
use crate::structured::texts_of;

const COMPLETIONS: &str = "/v1/completions";

/// Each link of these chains made the compiler call itself, and a few kilobytes of them ended the
/// process.
#[tokio::test]
async fn no_form_ends_the_server() {
    let config = TestConfig {
        max_schema_bytes: 1 << 16,
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let rules = |n: usize| {
        let chain: Vec<String> = (1..n).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
        let chain = chain.concat();
        format!("start: r1\n{chain}r{n}: \"x\"")
    };
    let items = |n: usize| {
        let link = |i: usize| {
            (
                i.to_string(),
                json!({"items": {"$ref": format!("#/$defs/{}", i + 1)}}),
            )
        };
        let mut definitions: Map<String, Value> = (0..n).map(link).collect();
        definitions.insert(n.to_string(), json!({}));
        json!({"$defs": definitions, "$ref": "#/$defs/0"})
    };
    let format = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for n in [400, 1200] {
        for fields in [
            json!({"guided_grammar": rules(n)}),
            json!({"response_format": format(items(n))}),
            json!({"json_schema": items(n).to_string()}),
        ] {
            let body = merged(json!({"prompt": "x", "max_tokens": 3}), fields);
            let answer = server.post(COMPLETIONS, body).await;
            if n < 1000 {
                assert_eq!(answer.status, 200, "{}", answer.text());
                continue;
            }
            assert_eq!(answer.status, 400, "{}", answer.text());
            let message = answer.json()["error"]["message"].to_string();
            assert!(message.contains("levels deep"), "{message}");
            assert!(message.contains("the limit is 1000"), "{message}");
        }
    }
    for (fields, named) in [
        (
            json!({"guided_json": {"type": "integer", "multipleOf": 999_983}}),
            "999983",
        ),
        (json!({"guided_json": {"not": {}}}), "\"not\""),
    ] {
        let body = merged(json!({"prompt": "x", "max_tokens": 3}), fields);
        let answer = server.post(COMPLETIONS, body).await;
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.json()["error"]["param"], "guided_json");
        let message = answer.json()["error"]["message"].clone();
        let message = message.as_str().expect("a message");
        assert!(message.contains(named), "{message}");
    }
    server.assert_empties().await;
}

/// The slowest forms that are accepted, from clients that leave, keep both places for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn abandoned_forms_do_not_keep_others_waiting() {
    let config = TestConfig {
        max_schema_bytes: 1 << 16,
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let number = json!({"type": "integer", "multipleOf": 9973});
    let patterns = (0..100).map(|i| (format!("^n{i}[ab]*$"), number.clone()));
    let slow = json!({"type": "object", "patternProperties": patterns.collect::<Map<_, _>>()});
    let body = json!({"prompt": "x", "guided_json": slow, "max_tokens": 3}).to_string();
    for _ in 0..2 {
        let connection =
            client::open(server.address, "POST", COMPLETIONS, &[], body.as_bytes()).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(connection);
    }
    let begun = Instant::now();
    let body = json!({"prompt": "x", "guided_regex": "[a-z]{3}", "max_tokens": 9});
    let (text, _) = texts_of(&server.ok(COMPLETIONS, body).await).remove(0);
    assert_eq!(text.len(), 3);
    // Without optimisation, on a busy machine; it was minutes.
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
}

/// What a lexer may hold is bounded, over all choices: the one request ends, with its own error.
#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_grows_too_large_ends_alone() {
    let config = TestConfig {
        context_length: 1024,
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let address = server.address;
    let large = tokio::spawn(async move {
        let body = json!({
            "prompt": "hi", "n": 64, "max_tokens": 900, "temperature": 1,
            "guided_regex": ".*[ab].{300}z",
        });
        client::post(address, COMPLETIONS, &body).await
    });
    let small = async {
        let mut n_answers = 0;
        while !large.is_finished() {
            let body = json!({"prompt": "x", "max_tokens": 3});
            assert_eq!(client::post(address, COMPLETIONS, &body).await.status, 200);
            n_answers += 1;
        }
        n_answers
    };
    let n_answers = small.await;
    let answer = large.await.expect("an answer");
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(error["code"], "grammar_failed");
    assert_eq!(error["param"], "guided_regex");
    let message = error["message"].as_str().expect("a message");
    assert!(message.contains("guided_regex: "), "{message}");
    assert!(message.contains("which is the limit"), "{message}");
    assert!(n_answers > 0);
    server.assert_empties().await;
}

/// Masks of a form that takes tens of milliseconds for each of them, for 128 choices at once: they
/// cost the form's own request time, not the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_costly_form_does_not_stop_the_others() {
    let config = TestConfig {
        context_length: 1024,
        ..TestConfig::default()
    };
    let server = TestServer::start(config).await;
    let address = server.address;
    let form = json!({"prompt": "x", "max_tokens": 1, "guided_regex": "[a-z]{3}"});
    // The first form of a model takes longer.
    server.ok(COMPLETIONS, form.clone()).await;
    // One after another, for a limit may end each of them early.
    let costly = tokio::spawn(async move {
        let body = json!({
            "prompt": "hi", "n": 128, "max_tokens": 400, "temperature": 1,
            "guided_regex": ".*[ab].{300}z",
        });
        loop {
            client::post(address, COMPLETIONS, &body).await;
        }
    });
    let plain = json!({"prompt": "x", "max_tokens": 1});
    let mut took = Vec::new();
    for i in 0..20 {
        let begun = Instant::now();
        let body = if i % 2 == 0 { &plain } else { &form };
        // The queue is full for a moment when one costly request ends and the next one comes.
        let is_answered = async || match client::post(address, COMPLETIONS, body).await.status {
            429 => false,
            status => {
                assert_eq!(status, 200);
                true
            }
        };
        until("an answer", Duration::from_mins(1), is_answered).await;
        took.push(begun.elapsed());
    }
    costly.abort();
    let _ = costly.await;
    // One token an answer: a step or two, each of which once took 2 to 5 seconds. Not the slowest,
    // since the tests beside this one may have the processor.
    took.sort_unstable();
    let median = took[took.len() / 2];
    assert!(median < Duration::from_secs(1), "{took:?}");
    server.assert_empties().await;
}
