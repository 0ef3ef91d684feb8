//! The program itself on a model of the hub: a hub on the loopback interface that writes down
//! what it was asked for.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
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
