//! Several models in one server: routing by name, the admin API, and sharing a device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::config::ResultCachePlace;
use engine::engine_loop::device_arbiter::DeviceArbiter;
use engine::model::config::Family;
use engine::server::models::{LoadModel, ModelEntry};
use engine::weights::fixture::FolderFormat;
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fixture::{LIMIT, TestConfig, TestServer, model, model_of_many, until};
use crate::flags::fixture::Model;
use crate::program::Program;

const PATH: &str = "/v1/completions";
const ADMIN_KEY: &str = "adm1n";

/// A server with models `a` (which says "aaa…") and `b`, loaded, on one device.
async fn two_models(a: TestConfig, b: TestConfig) -> TestServer {
    let mut http = a.http.clone();
    http.admin_api_key = Some(ADMIN_KEY.to_owned());
    let server = TestServer::start_unloaded(http).await;
    let arbiter = Arc::new(DeviceArbiter::default());
    for (name, config) in [("a", a), ("b", b)] {
        let model = model_of_many(config, &[name], &arbiter);
        let entry = server.state.models.add(ModelEntry::ready(Arc::new(model)));
        assert!(entry.is_ok(), "two names");
    }
    server.state.set_started();
    server
}

/// A server with models `a` and `b` that can be loaded again.
async fn two_loadable_models(step_delay: Duration) -> TestServer {
    let config = TestConfig::default();
    let mut http = config.http.clone();
    http.admin_api_key = Some(ADMIN_KEY.to_owned());
    let server = TestServer::start_unloaded(http).await;
    let arbiter = Arc::new(DeviceArbiter::default());
    for name in ["a", "b"] {
        let arbiter = Arc::clone(&arbiter);
        let load: LoadModel = Box::new(move || {
            let config = TestConfig::saying(name).slowly(step_delay);
            Ok(model_of_many(config, &[name], &arbiter))
        });
        let entry = ModelEntry::new(vec![name.to_owned()], load);
        let entry = server.state.models.add(entry).expect("two names");
        entry.load().expect("loaded");
    }
    server.state.set_started();
    server
}

async fn admin(server: &TestServer, action: &str, body: Value) -> Answer {
    client::admin(server.address, ADMIN_KEY, action, &body).await
}

fn code(answer: &Answer) -> String {
    answer.json()["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn requests_go_to_the_model_that_they_name() {
    let server = two_models(TestConfig::saying("a"), TestConfig::saying("b")).await;
    for name in ["a", "b"] {
        let body = json!({"model": name, "prompt": "x", "max_tokens": 3});
        let answer = server.ok(PATH, body).await;
        assert_eq!(answer["choices"][0]["text"], name.repeat(3));
        assert_eq!(answer["model"], name);
        let messages = json!([{"role": "user", "content": "x"}]);
        let body = json!({"model": name, "messages": messages, "max_tokens": 2});
        let answer = server.ok("/v1/chat/completions", body).await;
        assert_eq!(answer["choices"][0]["message"]["content"], name.repeat(2));
        let body = json!({"model": name, "prompt": "x"});
        assert_eq!(server.ok("/tokenize", body).await["count"], 1);
    }
    let unknown = server
        .post(PATH, json!({"model": "c", "prompt": "x"}))
        .await;
    assert_eq!(
        (unknown.status, code(&unknown).as_str()),
        (404, "model_not_found")
    );
    assert!(
        unknown.text().contains("this server has: a, b"),
        "{}",
        unknown.text()
    );
    let unnamed = server.post(PATH, json!({"prompt": "x"})).await;
    assert_eq!(unnamed.status, 400);
    assert!(
        unnamed.text().contains("model is missing"),
        "{}",
        unnamed.text()
    );
}

/// Each model has a short name besides the given one, and the short names collide.
#[tokio::test]
async fn a_configured_name_precedes_a_short_one_and_an_ambiguous_short_one_is_unknown() {
    let server = TestServer::start_unloaded(TestConfig::default().http).await;
    let arbiter = Arc::new(DeviceArbiter::default());
    let models: [(&'static [&'static str], &str); 4] = [
        (&["org/b", "b"], "1"),
        (&["b"], "2"),
        (&["org/c", "c", "d"], "3"),
        (&["other/c", "c"], "4"),
    ];
    for (names, text) in models {
        let arbiter = Arc::clone(&arbiter);
        let load: LoadModel =
            Box::new(move || Ok(model_of_many(TestConfig::saying(text), names, &arbiter)));
        let entry = ModelEntry::new(vec![names[0].to_owned()], load);
        let entry = server.state.models.add(entry).expect("given names differ");
        entry.load().expect("loaded");
    }
    server.state.set_started();
    for (name, text) in [
        ("org/b", "1"),
        ("b", "2"),
        ("org/c", "3"),
        ("d", "3"),
        ("other/c", "4"),
    ] {
        let body = json!({"model": name, "prompt": "x", "max_tokens": 1});
        let answer = server.ok(PATH, body).await;
        assert_eq!(answer["choices"][0]["text"], text, "{name}");
    }
    let body = json!({"model": "c", "prompt": "x"});
    let refused = server.post(PATH, body).await;
    assert_eq!(code(&refused), "model_not_found", "two call themselves c");
    let known = ["org/b", "b", "org/c", "d", "other/c"];
    let text = format!("this server has: {}", known.join(", "));
    assert!(refused.text().contains(&text), "{}", refused.text());
    let listed = server.get("/v1/models").await.json();
    let ids = listed["data"].as_array().expect("a list").iter();
    assert!(ids.map(|card| &card["id"]).eq(known), "{listed}");
}

#[tokio::test]
async fn health_is_that_of_the_only_model_and_of_several_one_has_to_serve() {
    let mut http = TestConfig::default().http;
    http.admin_api_key = Some(ADMIN_KEY.to_owned());
    let server = TestServer::start_unloaded(http).await;
    assert!(server.state.set_model(model(TestConfig::default())).is_ok());
    assert_eq!(server.get("/health").await.status, 200);
    for (action, expected) in [
        ("sleep", "model_asleep"),
        ("unload", "model_unloaded"),
        ("load", "model_failed"),
    ] {
        admin(&server, action, json!({"model": "mock"})).await;
        let health = server.get("/health").await;
        assert_eq!((health.status, code(&health).as_str()), (503, expected));
    }
    let server = two_models(TestConfig::saying("a"), TestConfig::saying("b")).await;
    for (name, status) in [("a", 200), ("b", 503)] {
        let slept = admin(&server, "sleep", json!({"model": name})).await;
        assert_eq!(slept.status, 200, "{}", slept.text());
        let health = server.get("/health").await;
        assert_eq!(health.status, status, "{}", health.text());
    }
    admin(&server, "wake", json!({"model": "b"})).await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn what_the_server_says_of_itself_covers_all_models() {
    let server = two_models(TestConfig::saying("a"), TestConfig::saying("b")).await;
    server
        .ok(PATH, json!({"model": "b", "prompt": "x", "max_tokens": 3}))
        .await;
    let models = server.get("/v1/models").await.json();
    let ids: Vec<&Value> = models["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|m| &m["id"])
        .collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(server.get("/v1/models/b").await.json()["id"], "b");
    assert_eq!(server.get("/v1/models/c").await.status, 404);
    let health = server.get("/health").await.json();
    assert_eq!(
        health,
        json!({"status": "ok", "models": {"a": "ready", "b": "ready"}})
    );
    let info = server.get("/server_info").await.json();
    assert_eq!(info["models"].as_array().map(Vec::len), Some(2));
    assert_eq!(info["models"][1]["state"], "ready");
    let metrics = server.get("/metrics").await;
    let n_of = |line: &str| metrics.text().lines().filter(|l| *l == line).count();
    assert_eq!(
        n_of("vllm:generation_tokens_total{engine=\"0\",model_name=\"a\"} 0"),
        1
    );
    assert_eq!(
        n_of("vllm:generation_tokens_total{engine=\"0\",model_name=\"b\"} 3"),
        1
    );
    assert_eq!(n_of("# TYPE vllm:generation_tokens_total counter"), 1);
}

/// A probe has no key: it gets the state, but no names.
#[tokio::test]
async fn health_names_no_models_to_who_brings_no_key() {
    let mut config = TestConfig::saying("a");
    config.http.api_key = Some("us3r".to_owned());
    let server = two_models(config, TestConfig::saying("b")).await;
    let health = async |key: &str| {
        let key = format!("Bearer {key}");
        let headers = [("Authorization", key.as_str())];
        let answer = client::send(server.address, "GET", "/health", &headers, b"").await;
        (answer.status, answer.text().to_owned())
    };
    let all = json!({"status": "ok", "models": {"a": "ready", "b": "ready"}});
    for key in ["us3r", ADMIN_KEY] {
        let (status, text) = health(key).await;
        assert_eq!(
            (status, text.parse::<Value>().expect("JSON")),
            (200, all.clone())
        );
    }
    for key in ["", "other"] {
        let (status, text) = health(key).await;
        let found = text.parse::<Value>().expect("JSON");
        assert_eq!((status, found), (200, json!({"status": "ok"})));
    }
    for name in ["a", "b"] {
        let answer = admin(&server, "sleep", json!({"model": name})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let (status, text) = health("").await;
    let code = text.parse::<Value>().expect("JSON")["error"]["code"].clone();
    assert_eq!((status, code), (503, json!("model_asleep")));
    assert!(!text.contains("the model \\\""), "{text}");
}

#[tokio::test]
async fn the_admin_api_has_a_key_of_its_own() {
    let mut config = TestConfig::saying("a");
    config.http.api_key = Some("us3r".to_owned());
    let server = two_models(config, TestConfig::saying("b")).await;
    let status = async |path: &str, key: &str| {
        let key = format!("Bearer {key}");
        let headers = [("Authorization", key.as_str())];
        client::send(server.address, "GET", path, &headers, b"")
            .await
            .status
    };
    assert_eq!(status("/admin/models", ADMIN_KEY).await, 200);
    assert_eq!(status("/admin/models", "us3r").await, 401);
    assert_eq!(status("/admin/models", "").await, 401);
    assert_eq!(status("/v1/models", ADMIN_KEY).await, 401);
    assert_eq!(status("/v1/models", "us3r").await, 200);
    let without = TestServer::start(TestConfig::default()).await;
    let answer = admin(&without, "sleep", json!({"model": "mock"})).await;
    assert_eq!(
        (answer.status, code(&answer).as_str()),
        (404, "unknown_url")
    );
}

#[tokio::test]
async fn a_sleeping_model_says_so_and_answers_alike_when_it_is_awake_again() {
    let server = two_models(TestConfig::default(), TestConfig::saying("b")).await;
    let body = json!({"model": "a", "prompt": "what", "max_tokens": 40, "temperature": 0});
    let before = server.ok(PATH, body.clone()).await;
    let slept = admin(&server, "sleep", json!({"model": "a"})).await;
    assert_eq!(slept.status, 200, "{}", slept.text());
    assert_eq!(slept.json()["state"], "asleep");
    let refused = server.post(PATH, body.clone()).await;
    assert_eq!(
        (refused.status, code(&refused).as_str()),
        (503, "model_asleep")
    );
    assert_eq!(server.get("/health").await.json()["models"]["a"], "asleep");
    assert_eq!(
        server.get("/v1/models").await.json()["data"][0]["state"],
        "asleep"
    );
    // The other one goes on.
    server.ok(PATH, json!({"model": "b", "prompt": "x"})).await;
    let again = admin(&server, "sleep", json!({"model": "a"})).await;
    assert_eq!(
        (again.status, code(&again).as_str()),
        (409, "wrong_model_state")
    );
    let woken = admin(&server, "wake", json!({"model": "a"})).await;
    assert_eq!(woken.json()["state"], "ready", "{}", woken.text());
    // Its pages are gone: a prompt that was cached is computed again.
    let after = server.ok(PATH, body).await;
    assert_eq!(after["choices"], before["choices"]);
    assert_eq!(after["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    server.assert_empties().await;
}

#[tokio::test]
async fn running_requests_are_finished_before_a_model_sleeps_or_goes() {
    let server = two_loadable_models(Duration::from_millis(10)).await;
    for (action, back, state) in [("sleep", "wake", "asleep"), ("unload", "load", "unloaded")] {
        let (address, body) = (
            server.address,
            json!({"model": "a", "prompt": "x", "max_tokens": 30}),
        );
        let running = tokio::spawn(async move { client::post(address, PATH, &body).await });
        server.runs().await;
        let changed = admin(&server, action, json!({"model": "a"})).await;
        assert_eq!(changed.json()["state"], state, "{}", changed.text());
        let answer = running.await.expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["usage"]["completion_tokens"], 30);
        let refused = server
            .post(PATH, json!({"model": "a", "prompt": "x"}))
            .await;
        assert_eq!(
            (refused.status, code(&refused)),
            (503, format!("model_{state}"))
        );
        let answer = admin(&server, back, json!({"model": "a"})).await;
        assert_eq!(answer.json()["state"], "ready", "{}", answer.text());
        server
            .ok(PATH, json!({"model": "a", "prompt": "x", "max_tokens": 2}))
            .await;
    }
}

#[tokio::test]
async fn what_runs_longer_than_the_grace_is_failed_clearly() {
    let server = two_loadable_models(Duration::from_millis(20)).await;
    for (action, back) in [("sleep", "wake"), ("unload", "load")] {
        let (address, body) = (
            server.address,
            json!({"model": "b", "prompt": "x", "max_tokens": 400}),
        );
        let running = tokio::spawn(async move { client::post(address, PATH, &body).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        let asked = Instant::now();
        let changed = admin(&server, action, json!({"model": "b", "grace_s": 0.1})).await;
        assert_eq!(changed.status, 200, "{}", changed.text());
        assert!(
            asked.elapsed() < Duration::from_secs(4),
            "the request takes 8 s"
        );
        let answer = running.await.expect("an answer");
        assert_eq!(answer.status, 503, "{}", answer.text());
        let (expected, part) = match action {
            "sleep" => ("model_asleep", "put to sleep"),
            _ => ("shutting_down", "unloading this model"),
        };
        assert_eq!(code(&answer), expected);
        assert!(answer.text().contains(part), "{}", answer.text());
        assert_eq!(
            admin(&server, back, json!({"model": "b"})).await.status,
            200
        );
    }
}

#[tokio::test]
async fn what_is_asked_wrongly_of_the_admin_api_is_named() {
    let server = two_models(TestConfig::saying("a"), TestConfig::saying("b")).await;
    for (action, body, status, expected) in [
        ("sleep", json!({"model": "c"}), 404, "this server has: a, b"),
        ("sleep", json!({}), 400, "model is missing"),
        (
            "sleep",
            json!({"model": "a", "grace_s": -1}),
            400,
            "grace_s is -1",
        ),
        ("sleep", json!({"model": "a", "gracc": 1}), 400, "gracc"),
        ("wake", json!({"model": "a"}), 409, "it must be asleep"),
        (
            "load",
            json!({"model": "a"}),
            409,
            "it must be unloaded or failed",
        ),
        ("load", json!({"model-path": "x"}), 400, "no further models"),
        ("load", json!([1]), 400, "must be a JSON object"),
    ] {
        let answer = admin(&server, action, body.clone()).await;
        assert_eq!(answer.status, status, "{action} {body}: {}", answer.text());
        assert!(
            answer.text().contains(expected),
            "{action} {body}: {}",
            answer.text()
        );
    }
}

/// Deterministic requests to two otherwise identical models with one cache.
#[tokio::test]
async fn kept_answers_are_one_models_own() {
    let mut a = TestConfig::saying("a");
    a.http.result_cache.place = ResultCachePlace::Memory;
    let server = two_models(a, TestConfig::saying("b")).await;
    let ask = async |name: &str| {
        let body = json!({"model": name, "prompt": "x", "max_tokens": 4, "temperature": 0});
        let answer = server.post(PATH, body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["choices"][0]["text"], name.repeat(4));
        answer.header("x-result-cache").map(str::to_owned)
    };
    let until_hit = async |name: &str| {
        let is_hit = async || ask(name).await.as_deref() == Some("hit");
        until("a hit", LIMIT, is_hit).await;
    };
    assert_eq!(ask("a").await.as_deref(), Some("miss"));
    until_hit("a").await;
    assert_eq!(ask("b").await.as_deref(), Some("miss"), "not what a said");
    until_hit("b").await;
    until_hit("a").await;
    let metrics = server.get("/metrics").await;
    for name in ["a", "b"] {
        let stored =
            format!("engine_result_cache_total{{model_name=\"{name}\",outcome=\"stored\"}}");
        assert!(metrics.metric(&stored) > 0.0, "{}", metrics.text());
    }
    assert_eq!(
        metrics
            .text()
            .matches("# TYPE engine_http_connections gauge")
            .count(),
        1
    );
    // A cached response does not wake the model.
    assert_eq!(
        admin(&server, "sleep", json!({"model": "a"})).await.status,
        200
    );
    let body = json!({"model": "a", "prompt": "x", "max_tokens": 4, "temperature": 0});
    assert_eq!(code(&server.post(PATH, body).await), "model_asleep");
}

/// If a model's engine dies, the process ends; unloading a model does not end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_panics_ends_the_server_and_one_that_is_unloaded_does_not() {
    let mut panicking = TestConfig::saying("b");
    panicking.mock.panicking_step = Some(3);
    let server = two_models(TestConfig::saying("a"), panicking).await;
    let gone = admin(&server, "unload", json!({"model": "a"})).await;
    assert_eq!(gone.json()["state"], "unloaded", "{}", gone.text());
    // Longer than it takes to notice a dead one and to say so.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let body = json!({"model": "b", "prompt": "x", "max_tokens": 20});
    assert_eq!(code(&server.post(PATH, body).await), "step_failed");
    let outcome = tokio::time::timeout(Duration::from_secs(20), server.outcome())
        .await
        .expect("it ends");
    assert!(outcome.is_err(), "and not well");
}

/// Steps that a model has made.
fn n_steps(metrics: &Answer, name: &str) -> u64 {
    let start = format!("engine_steps_total{{model_name=\"{name}\"");
    let of_model = metrics
        .text()
        .lines()
        .filter(|line| line.starts_with(&start));
    of_model
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test]
async fn a_flooded_model_holds_another_up_by_one_of_its_steps_at_a_time() {
    const N_TOKENS: u64 = 12;
    let mut flooded = TestConfig::saying("a").slowly(Duration::from_millis(20));
    flooded.max_queued_requests = 500;
    let quick = TestConfig::saying("b").slowly(Duration::from_millis(1));
    let server = two_models(flooded, quick).await;
    let alone = Instant::now();
    let body = json!({"model": "b", "prompt": "x", "max_tokens": N_TOKENS});
    server.ok(PATH, body.clone()).await;
    let alone = alone.elapsed();
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let address = server.address;
            let body = json!({"model": "a", "prompt": "x", "max_tokens": 200});
            tokio::spawn(async move { client::post(address, PATH, &body).await })
        })
        .collect();
    let are_many = async || server.metric("vllm:num_requests_waiting").await >= 50.0;
    until("fifty wait", LIMIT, are_many).await;
    let before = server.get("/metrics").await;
    let started = Instant::now();
    server.ok(PATH, body).await;
    let beside = started.elapsed();
    let after = server.get("/metrics").await;
    let n_flooded = n_steps(&after, "a") - n_steps(&before, "a");
    let n_quick = n_steps(&after, "b") - n_steps(&before, "b");
    // At most one of the other's steps before each of its own, and two while the counts were read.
    assert_eq!(n_quick, N_TOKENS);
    assert!(
        n_flooded <= N_TOKENS + 2,
        "{n_flooded} steps of the flooded model went before"
    );
    assert!(
        beside < alone + Duration::from_millis(20 * (N_TOKENS + 2) + 500),
        "{alone:?} alone, {beside:?}"
    );
    // The flooded one was not starved either.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(n_steps(&server.get("/metrics").await, "a") > n_steps(&after, "a"));
    for client in clients {
        client.abort();
    }
}

/// The program with two real models on the CPU, from a file.
#[tokio::test(flavor = "multi_thread")]
async fn config_names_the_models_of_a_server() {
    let models = [Model::f16(), Model::new(Family::Llama, FolderFormat::F16)];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("serve.toml");
    let mut text = "port = 0\ndevice = \"cpu\"\nn-threads = 1\nadmin-api-key = \"adm1n\"\n\
        device-memory-limit = \"64MiB\"\nmax-total-tokens = 512\n"
        .to_owned();
    let tables = ["x", "y"].into_iter().zip(&models).map(|(name, model)| {
        let path = model.path();
        let path = path.display();
        format!(
            "[[model]]\nmodel-path = \"{path}\"\nserved-model-name = \"{name}\"\n\
             mem-fraction-static = 0.3\n"
        )
    });
    text.extend(tables);
    std::fs::write(&path, text).expect("written");
    let program = Program::start(&format!("--config {}", path.display()), &[]).await;
    let complete = async |name: &str| {
        let body = json!({"model": name, "prompt": "hello", "max_tokens": 12, "ignore_eos": true, "temperature": 0});
        let answer = client::post(program.address, PATH, &body).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        answer.json()["choices"][0]["text"].clone()
    };
    let texts = [complete("x").await, complete("y").await];
    assert_ne!(texts[0], texts[1], "two models");
    let post = async |action: &str, body: Value| {
        client::admin(program.address, ADMIN_KEY, action, &body).await
    };
    // While a model sleeps, others may use its share; a model that needs more is refused with the arithmetic.
    for (name, text) in ["x", "y"].into_iter().zip(&texts) {
        assert_eq!(post("sleep", json!({"model": name})).await.status, 200);
        assert_eq!(post("wake", json!({"model": name})).await.status, 200);
        assert_eq!(complete(name).await, *text, "sleeping changes no token");
    }
    let third = json!({
        "model-path": models[0].path(), "served-model-name": "z", "device": "cpu", "n-threads": 1,
        "device-memory-limit": "64MiB", "mem-fraction-static": 0.4, "max-total-tokens": 1_000_000,
    });
    let refused = post("load", third.clone()).await;
    assert_eq!(
        (refused.status, code(&refused).as_str()),
        (409, "model_load_failed")
    );
    for part in [
        "64.000 MiB",
        "in use by other models",
        "--mem-fraction-static 0.4",
        "1000000 asked",
    ] {
        assert!(refused.text().contains(part), "{part}: {}", refused.text());
    }
    let mut third = third;
    third["max-total-tokens"] = json!(512);
    let loaded = post("load", third).await;
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(
        complete("z").await,
        texts[0],
        "the same model under another name"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn start_unloaded_leaves_a_model_to_the_admin_api() {
    let models = [Model::f16(), Model::f16()];
    let common = "--port 0 --device cpu --n-threads 1 --max-total-tokens 512 --admin-api-key adm1n";
    let line = format!(
        "{common} --model-path {} --served-model-name x --model-path {} --served-model-name y --start-unloaded",
        models[0].path().display(),
        models[1].path().display(),
    );
    let program = Program::start(&line, &[]).await;
    let body = json!({"model": "y", "prompt": "hello", "max_tokens": 2});
    let refused = client::post(program.address, PATH, &body).await;
    assert_eq!(
        (refused.status, code(&refused).as_str()),
        (503, "model_unloaded")
    );
    let load = json!({"model": "y"});
    let loaded = client::admin(program.address, ADMIN_KEY, "load", &load).await;
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(client::post(program.address, PATH, &body).await.status, 200);
}
