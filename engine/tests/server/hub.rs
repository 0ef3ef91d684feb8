//! The program itself on a model of the hub: a hub on the loopback interface that writes down
//! what it was asked for.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use engine::model::config::Family;
use engine::weights::fixture::{FolderFormat, tiny_config, write_folder};
use serde_json::json;
use tokio::net::TcpListener;

use crate::client;
use crate::fixture::write_tokenizer;
use crate::flags::fixture::Model;
use crate::program::Program;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone)]
pub struct Hub {
    /// `org/name`
    repo: String,
    files: Arc<HashMap<String, Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// `Authorization` of every request for a file.
    pub keys: Arc<Mutex<HashSet<String>>>,
}

impl Hub {
    /// `repo` with the files of a folder.
    pub fn of(repo: &str, folder: &Path) -> Self {
        let files = std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path.file_name().expect("a name").to_string_lossy();
                (name.into_owned(), std::fs::read(&path).expect("a file"))
            })
            .collect();
        Self {
            repo: repo.to_owned(),
            files: Arc::new(files),
            asked: Arc::default(),
            keys: Arc::default(),
        }
    }

    pub async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("bound");
        let routes = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async { axum::serve(listener, routes).await });
        address
    }
}

async fn answer(State(hub): State<Hub>, headers: HeaderMap, request: Request) -> Response {
    let path = request.uri().path();
    let repo = &hub.repo;
    if path.starts_with(&format!("/api/models/{repo}/revision/")) {
        let names = hub.files.keys();
        let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        return axum::Json(json!({ "sha": COMMIT, "siblings": siblings })).into_response();
    }
    let name = path
        .strip_prefix(&format!("/{repo}/resolve/{COMMIT}/"))
        .unwrap_or(path);
    hub.asked.lock().expect("no panic").push(name.to_owned());
    if let Some(key) = headers.get(AUTHORIZATION) {
        let key = key.to_str().expect("text").to_owned();
        hub.keys.lock().expect("no panic").insert(key);
    }
    let Some(bytes) = hub.files.get(name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let first_only = headers.get(RANGE).is_some_and(|range| range == "bytes=0-0");
    let last = if first_only { 0 } else { bytes.len() - 1 };
    let headers = [
        (CONTENT_RANGE, format!("bytes 0-{last}/{}", bytes.len())),
        (ETAG, format!("\"{name}\"")),
    ];
    let commit = [("x-repo-commit", COMMIT)];
    let body = bytes[..=last].to_vec();
    (StatusCode::PARTIAL_CONTENT, headers, commit, body).into_response()
}

/// Variables that make the program ask this hub and keep what it got below `folder`.
pub fn hub_environment(endpoint: SocketAddr, folder: &Path) -> [(&'static str, String); 3] {
    [
        ("HF_ENDPOINT", format!("http://{endpoint}")),
        ("HF_HOME", folder.join("hf").display().to_string()),
        ("HF_HUB_CACHE", folder.join("hf/hub").display().to_string()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn dummy_weights_of_a_hub_model_fetch_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    write_folder(&model, &tiny_config(Family::Qwen3), FolderFormat::F16, 1, 2).expect("written");
    write_tokenizer(&model);
    let hub = Hub::of("org/name", &model);
    let endpoint = hub.start().await;

    let cache = folder.path().join("cache");
    let line = format!(
        "--host 127.0.0.1 --port 0 --device cpu --n-threads 1 --max-total-tokens 256 \
         --load-format dummy --model-path org/name --cache-dir {}",
        cache.display()
    );
    let program = Program::start(&line, &hub_environment(endpoint, folder.path())).await;
    let address = program.address;

    let body = json!({"prompt": "x", "max_tokens": 3, "ignore_eos": true});
    let answer = client::post(address, "/v1/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    let info = client::get(address, "/server_info").await.json();
    assert_eq!(info["loaded_model"]["requested"], "org/name");
    assert_eq!(info["loaded_model"]["format"], "dummy f16 seed 0");
    // What SGLang's routers take from it; they stop reading at a `model` that is no text.
    assert_eq!(info["model_path"], "org/name");
    assert_eq!(info["served_model_name"], "org/name");
    assert_eq!((&info["tp_size"], &info["dp_size"]), (&json!(1), &json!(1)));
    assert_eq!(info["max_total_tokens"], info["executor"]["kv_pool_tokens"]);
    assert_eq!(info["context_length"], info["max_sequence_tokens"]);
    assert!(info.get("model").is_none());

    let asked = hub.asked.lock().expect("no panic").clone();
    assert!(asked.iter().any(|name| name == "config.json"), "{asked:?}");
    let weights: Vec<_> = asked
        .iter()
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    assert!(weights.is_empty(), "fetched {weights:?}");
}

/// What the program says of `arguments`, which it refuses.
fn refused(arguments: &[&str], environment: &[(&str, String)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
    command
        .args(arguments)
        .env_remove("HF_HUB_OFFLINE")
        .envs(environment.iter().map(|(name, value)| (name, value)));
    let output = tokio::task::block_in_place(|| command.output().expect("the program runs"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?}: {said}");
    said
}

/// The configuration, the tokenizer and the flags are judged before the first byte of weights.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_cannot_be_served_costs_no_download() {
    let folder = tempfile::tempdir().expect("a folder");
    for (i, (file, edit, flags, code)) in [
        (
            "config.json",
            ("Qwen3ForCausalLM", "Qwen3NextForCausalLM"),
            "",
            "unsupported_architecture",
        ),
        (
            "config.json",
            (
                "\"hidden_act\"",
                "\"quantization_config\": {\"quant_method\": \"bitsandbytes\"}, \"hidden_act\"",
            ),
            "",
            "unsupported_quantization",
        ),
        ("tokenizer.json", ("{", "["), "", "tokenizer"),
        (
            "generation_config.json",
            ("{", "{\"temperature\": \"hot\","),
            "",
            "model_config",
        ),
        (
            "config.json",
            ("", ""),
            "--context-length 1000000",
            "context_length",
        ),
        (
            "config.json",
            ("", ""),
            "--quantization awq",
            "quantization_mismatch",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let model = Model::f16();
        let path = model.path().join(file);
        let text = std::fs::read_to_string(&path).expect(file);
        std::fs::write(&path, text.replacen(edit.0, edit.1, 1)).expect("written");
        let hub = Hub::of("org/name", &model.path());
        let place = folder.path().join(i.to_string());
        let environment = hub_environment(hub.start().await, &place);
        let cache = place.join("cache").display().to_string();
        let mut line = vec![
            "serve",
            "--port",
            "0",
            "--device",
            "cpu",
            "--model-path",
            "org/name",
        ];
        line.extend(["--cache-dir", &cache]);
        line.extend(flags.split_whitespace());
        let said = refused(&line, &environment);
        let asked = hub.asked.lock().expect("no panic").clone();
        assert!(said.contains(&format!("error[{code}]")), "{said}");
        let weights = asked.iter().find(|name| name.ends_with(".safetensors"));
        assert_eq!(weights, None, "fetched for {code}");
        assert!(asked.iter().any(|name| name == "config.json"), "{asked:?}");
    }
}

/// A folder of the user's is not hashed for a configuration that is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_model_that_cannot_be_served_is_not_read() {
    let model = Model::f16();
    let config = model.path().join("config.json");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    std::fs::write(
        &config,
        text.replace("Qwen3ForCausalLM", "Qwen3NextForCausalLM"),
    )
    .expect("written");
    // Reading it would never end.
    let weights = model.path().join("model.safetensors");
    std::fs::remove_file(&weights).expect("removed");
    let made = Command::new("mkfifo").arg(&weights).status();
    assert!(made.expect("mkfifo runs").success());
    let path = model.path().display().to_string();
    let cache = model.path().with_file_name("cache").display().to_string();
    for subcommand in ["inspect", "fetch"] {
        let said = refused(&[subcommand, &path, "--cache-dir", &cache], &[]);
        assert!(said.contains("error[unsupported_architecture]"), "{said}");
        assert_eq!(said.matches("Qwen3NextForCausalLM").count(), 1, "{said}");
    }
}

/// The repository is there: the fix is to name what is in it, and no other network.
#[tokio::test(flavor = "multi_thread")]
async fn a_choice_that_is_left_open_is_no_failed_download() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("made");
    for file in ["a-Q4_K_M.gguf", "a-Q8_0.gguf"] {
        std::fs::write(model.join(file), "GGUF").expect("written");
    }
    let hub = Hub::of("org/name", &model);
    let environment = hub_environment(hub.start().await, folder.path());
    let cache = folder.path().join("cache").display().to_string();
    for (asked, part) in [
        ("org/name", "several GGUF models"),
        ("org/name:Q6_K", "has no Q6_K; it has a-Q4_K_M.gguf"),
        ("org/name/b.gguf", "has no b.gguf; it has a-Q4_K_M.gguf"),
    ] {
        let said = refused(&["inspect", asked, "--cache-dir", &cache], &environment);
        assert!(said.contains("error[model_choice]"), "{said}");
        assert!(said.contains(part), "{said}");
        assert!(!said.contains("network"), "{said}");
    }
}
