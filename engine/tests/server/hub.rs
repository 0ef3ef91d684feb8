//! The program itself on a model of the hub: a hub on the loopback interface that writes down
//! what it was asked for.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_RANGE, ETAG, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use engine::model::config::Family;
use engine::weights::fixture::{FolderFormat, tiny_config, write_folder};
use serde_json::json;
use tokio::net::TcpListener;

use crate::client;
use crate::fixture::write_tokenizer;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone)]
struct Hub {
    files: Arc<HashMap<String, Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// `org/name` with the files of a folder.
    fn of(folder: &Path) -> Self {
        let files = std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| {
                let path = entry.expect("an entry").path();
                let name = path.file_name().expect("a name").to_string_lossy();
                (name.into_owned(), std::fs::read(&path).expect("a file"))
            })
            .collect();
        Self {
            files: Arc::new(files),
            asked: Arc::default(),
        }
    }

    async fn start(&self) -> SocketAddr {
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
    if path.starts_with("/api/models/org/name/revision/") {
        let names = hub.files.keys();
        let siblings: Vec<_> = names.map(|name| json!({ "rfilename": name })).collect();
        return axum::Json(json!({ "sha": COMMIT, "siblings": siblings })).into_response();
    }
    let name = path
        .strip_prefix(&format!("/org/name/resolve/{COMMIT}/"))
        .unwrap_or(path);
    hub.asked.lock().expect("no panic").push(name.to_owned());
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

/// Ended with the test, however it goes.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself, which the test then says.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dummy_weights_of_a_hub_model_fetch_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    write_folder(&model, &tiny_config(Family::Qwen3), FolderFormat::F16, 1, 2).expect("written");
    write_tokenizer(&model);
    let hub = Hub::of(&model);
    let endpoint = hub.start().await;

    let mut program = Command::new(env!("CARGO_BIN_EXE_engine"));
    program
        .args("serve --host 127.0.0.1 --port 0 --device cpu --n-threads 1".split(' '))
        .args("--max-total-tokens 256 --load-format dummy --model-path org/name".split(' '))
        .arg("--cache-dir")
        .arg(folder.path().join("cache"))
        .env("HF_ENDPOINT", format!("http://{endpoint}"))
        .env("HF_HOME", folder.path().join("hf"))
        .env_remove("HF_HUB_CACHE")
        .env_remove("HF_HUB_OFFLINE")
        .stdout(Stdio::piped());
    let mut program = Program(program.spawn().expect("the program starts"));
    let mut stdout = BufReader::new(program.0.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    let address: SocketAddr = line
        .trim()
        .strip_prefix("listening on http://")
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("no address in {line:?}"));
    while client::get(address, "/health").await.status != 200 {
        let ended = program.0.try_wait().expect("a child");
        assert_eq!(ended, None, "the server gave up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let body = json!({"prompt": "x", "max_tokens": 3, "ignore_eos": true});
    let answer = client::post(address, "/v1/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    let info = client::get(address, "/server_info").await.json();
    assert_eq!(info["model"]["requested"], "org/name");
    assert_eq!(info["model"]["format"], "dummy f16 seed 0");

    let asked = hub.asked.lock().expect("no panic").clone();
    assert!(asked.iter().any(|name| name == "config.json"), "{asked:?}");
    let weights: Vec<_> = asked
        .iter()
        .filter(|name| name.ends_with(".safetensors"))
        .collect();
    assert!(weights.is_empty(), "fetched {weights:?}");
}
