//! What `engine/deploy` asks of the engine is there: flags, paths, metrics, and time for shutdown.
//!
//! The manifests are read line by line. `cargo xtask kubernetes` validates their form.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::command_line::resolve;
use crate::fixture::{TestConfig, TestServer};

const DEPLOYMENT: &str = "kubernetes/base/deployment.yaml";
const SCALED_OBJECT: &str = "kubernetes/autoscaled/scaled-object.yaml";
/// What the endpoint picker exports, and not the engine.
const OF_THE_PICKER: [&str; 1] = ["inference_extension_flow_control_queue_size"];

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file's lines without comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().map(str::trim);
    lines.filter(|line| !line.starts_with('#'))
}

/// The number after the only occurrence of `before`.
fn number(text: &str, before: &str) -> u64 {
    let mut found = text.split(before).skip(1);
    let after = found.next().unwrap_or_else(|| panic!("no {before}"));
    assert!(found.next().is_none(), "{before} is there twice");
    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|error| panic!("{before}{digits}: {error}"))
}

/// The engine's flags in a list of arguments; a key is read from `key`.
fn listed_flags(text: &str, key: &str) -> String {
    let flags: Vec<String> = lines(text)
        .filter_map(|line| line.strip_prefix("- --"))
        .map(|flag| match flag.split_once('=') {
            Some(("api-key-file", _)) => format!("--api-key-file={key}"),
            // Compose's default of a variable.
            Some((name, value)) => match value.split_once(":-") {
                Some((_, default)) => format!("--{name}={}", default.trim_end_matches('}')),
                None => format!("--{name}={value}"),
            },
            None => format!("--{flag}"),
        })
        .collect();
    flags.join(" ")
}

#[test]
fn launch_lines_are_accepted_and_shutdown_has_its_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = folder.path().join("api-key");
    std::fs::write(&key, "s3cret\n").expect("written");
    let key = key.to_str().expect("UTF-8");

    let deployment = file(DEPLOYMENT);
    let flags = listed_flags(&deployment, key);
    assert!(flags.contains("--shutdown-grace-s"), "{flags}");
    let config = resolve(&flags).unwrap_or_else(|error| panic!("{flags}: {error}"));
    let needed = number(&deployment, "sleep: {seconds: ") + config.http.shutdown_grace.as_secs();
    let given = number(&deployment, "terminationGracePeriodSeconds: ");
    assert!(given > needed, "{given} s for {needed} s");
    let picker = number(
        &file("kubernetes/base/picker.yaml"),
        "terminationGracePeriodSeconds: ",
    );
    assert!(
        picker >= given,
        "the picker ends after {picker} s, the engine after {given}"
    );

    let compose = file("compose.yml");
    let flags = listed_flags(&compose, key);
    let config = resolve(&flags).unwrap_or_else(|error| panic!("{flags}: {error}"));
    let given = number(&compose, "stop_grace_period: ");
    assert!(given > config.http.shutdown_grace.as_secs(), "{given}");

    let unit = file("engine.service");
    let start =
        lines(&unit).find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/engine serve "));
    let start = start.expect("a start").replace("%d/api-key", key);
    let config = resolve(start.trim_end_matches(" $ENGINE_FLAGS")).expect("accepted");
    let given = number(&unit, "TimeoutStopSec=");
    assert!(given > config.http.shutdown_grace.as_secs(), "{given}");
}

#[tokio::test]
async fn probed_and_scraped_paths_answer() {
    let server = TestServer::start(TestConfig::saying("a")).await;
    for (name, n_paths) in [(DEPLOYMENT, 3), ("kubernetes/base/monitors.yaml", 2)] {
        let text = file(name);
        let paths: Vec<&str> = lines(&text)
            .filter_map(|line| line.split_once("path: /"))
            .map(|(_, path)| path.split([',', '}', ' ']).next().unwrap_or_default())
            .collect();
        assert_eq!(paths.len(), n_paths, "{name}: {paths:?}");
        for path in paths {
            let answer = server.get(&format!("/{path}")).await;
            assert_eq!(answer.status, 200, "{name}: /{path}");
        }
    }
    let gateway = file("kubernetes/base/gateway.yaml");
    assert!(gateway.contains("value: /v1}"), "routes /v1");
    assert_eq!(server.get("/v1/models").await.status, 200);
}

/// The names of metrics in a query.
fn names(query: &str) -> impl Iterator<Item = &str> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    query.split(move |c| !is_of_name(c)).filter(|name| {
        [
            "vllm:",
            "sglang:",
            "engine_",
            "process_",
            "inference_extension_",
        ]
        .iter()
        .any(|start| name.starts_with(start))
    })
}

fn panels() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&file("grafana/engine.json")).expect("JSON");
    let targets = dashboard["panels"].as_array().expect("panels").iter();
    let targets = targets
        .filter_map(|panel| panel["targets"].as_array())
        .flatten();
    targets
        .map(|target| target["expr"].as_str().expect("a query").to_owned())
        .collect()
}

#[tokio::test]
async fn every_metric_that_is_asked_for_is_exported() {
    let server = TestServer::start(TestConfig::saying("abcabc")).await;
    server
        .ok("/v1/completions", json!({"prompt": "abc", "max_tokens": 5}))
        .await;
    let page = server.get("/metrics").await;
    let described = page
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let described: BTreeSet<&str> = described
        .filter_map(|line| line.split(' ').next())
        .collect();
    let samples = page.text().lines().filter(|line| !line.starts_with('#'));
    let samples: BTreeSet<&str> = samples
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();

    let (alerts, scaled_object) = (file("prometheus/alerts.yml"), file(SCALED_OBJECT));
    let mut asked: Vec<(&str, String)> = panels()
        .into_iter()
        .map(|query| ("Grafana", query))
        .collect();
    let alerts = lines(&alerts).filter_map(|line| line.strip_prefix("expr: "));
    asked.extend(alerts.map(|query| ("alerts", query.to_owned())));
    asked.extend(lines(&scaled_object).map(|line| (SCALED_OBJECT, line.to_owned())));
    let mut n_found = 0;
    for (place, query) in &asked {
        for name in names(query) {
            let is_there = samples.contains(name) || described.contains(name);
            assert!(
                is_there || OF_THE_PICKER.contains(&name),
                "{place}: no {name} in {query}"
            );
            n_found += 1;
        }
    }
    assert!(n_found > 30, "{n_found}");
    assert_eq!(
        names(&scaled_object).count(),
        4,
        "queue, two of the engine's and first tokens"
    );
}
