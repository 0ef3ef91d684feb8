//! Internal faults and broken input: errors with a code, before memory is allocated, and a server
//! that continues or ends, but never hangs.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use engine::model::config::Family;
use engine::weights::fixture::{FolderFormat, tiny_config, write_folder};
use serde_json::{Value, json};

use crate::client;
use crate::fixture::{TestConfig, TestServer, write_tokenizer};

const PATH: &str = "/v1/completions";

/// Requests before, in and after a failed step: those in it get its message, all others their text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_requests_of_a_failed_step_fail_and_say_why() {
    let mut config = TestConfig::saying("ok").slowly(Duration::from_millis(2));
    config.max_running_requests = 4;
    config.mock.failing_steps = (10..200).step_by(10).collect();
    let server = TestServer::start(config).await;
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..60 {
        let address = server.address;
        clients.spawn(async move {
            let body = json!({"prompt": format!("{i:03}"), "max_tokens": 6, "stream": i % 2 == 0});
            client::post(address, PATH, &body).await
        });
    }
    let (mut n_whole, mut n_failed) = (0, 0);
    while let Some(answer) = clients.join_next().await {
        let answer = answer.expect("an answer");
        let text = answer.text();
        if text.contains("\"error\"") {
            n_failed += 1;
            assert!(
                text.contains("step_failed") && text.contains("was told to fail"),
                "{text}"
            );
            assert!(answer.status == 500 || answer.status == 200, "{text}");
        } else {
            n_whole += 1;
            assert_eq!(answer.status, 200, "{text}");
        }
    }
    assert_eq!(n_whole + n_failed, 60, "none is lost");
    assert!(
        n_failed >= 10 && n_whole >= 10,
        "{n_whole} whole, {n_failed} failed"
    );
    server.assert_empties().await;
    assert_eq!(server.get("/health").await.status, 200);
}

/// A panic ends every request with an error, including streams, and then the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_answers_every_request_and_ends_the_server() {
    let mut config = TestConfig::saying("ok").slowly(Duration::from_millis(5));
    config.max_running_requests = 2;
    config.mock.panicking_step = Some(20);
    let server = TestServer::start(config).await;
    let mut clients = tokio::task::JoinSet::new();
    for i in 0..12 {
        let address = server.address;
        clients.spawn(async move {
            let body = json!({"prompt": "x", "max_tokens": 100, "stream": i % 2 == 0});
            client::post(address, PATH, &body).await
        });
    }
    let answers = async {
        while let Some(answer) = clients.join_next().await {
            let answer = answer.expect("an answer");
            let text = answer.text();
            assert!(
                text.contains("engine_stopped") || text.contains("step_failed"),
                "{text}"
            );
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, answers)
        .await
        .expect("no request hangs");
    let outcome = tokio::time::timeout(limit, server.outcome())
        .await
        .expect("it ends");
    assert!(outcome.is_err(), "and not well");
}

/// A folder with a tiny model, to be broken.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tiny_config(Family::Qwen3);
    write_folder(folder.path(), &config, FolderFormat::F16, 1, 1).expect("written");
    write_tokenizer(folder.path());
    folder
}

/// The program on a model, with an address space in which an absurd allocation fails: its exit
/// status and its log.
fn serve(model: &Path) -> (ExitStatus, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let script = "ulimit -v 4194304; exec \"$0\" serve --device cpu --n-threads 1 --port 0 \
                  --max-total-tokens 512 --model-path \"$1\"";
    let mut child = Command::new("bash")
        .args(["-c", script, env!("CARGO_BIN_EXE_engine")])
        .arg(model)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).expect("a file"))
        .spawn()
        .expect("bash runs");
    let said = || String::from_utf8_lossy(&std::fs::read(&log).expect("a file")).into_owned();
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return (status, said());
        }
        if begun.elapsed() > Duration::from_mins(1) {
            child.kill().expect("it runs");
            child.wait().expect("it ends");
            panic!("it hangs: {}", said());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn assert_refused(model: &Path, code: &str, parts: &[&str]) {
    let (status, message) = serve(model);
    assert!(
        matches!(status.code(), Some(1 | 2)),
        "{status:?}: {message}"
    );
    assert!(
        message.contains(&format!("error[{code}]")),
        "{code}: {message}"
    );
    for part in parts {
        assert!(message.contains(part), "{part:?}: {message}");
    }
    assert!(
        !message.contains("panicked") && !message.contains("memory allocation"),
        "{message}"
    );
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let text = std::fs::read_to_string(path).expect("a file");
    let mut value = serde_json::from_str(&text).expect("JSON");
    edit(&mut value);
    std::fs::write(path, value.to_string()).expect("written");
}

#[test]
fn absurd_configurations_are_refused_with_value_and_limit() {
    for (key, value, name, limit) in [
        (
            "vocab_size",
            json!(4_000_000_000_000_u64),
            "vocabulary size",
            "1 to 4194304",
        ),
        (
            "hidden_size",
            json!(1_u64 << 40),
            "hidden size",
            "1 to 131072",
        ),
        (
            "num_hidden_layers",
            json!(1_000_000_000),
            "number of layers",
            "1 to 1024",
        ),
        (
            "num_attention_heads",
            json!(0),
            "number of attention heads",
            "1 to 4096",
        ),
        (
            "max_position_embeddings",
            json!(-1),
            "max_position_embeddings",
            "at least 0",
        ),
        ("rms_norm_eps", json!("tiny"), "rms_norm_eps", "a number"),
    ] {
        let folder = folder();
        edit_json(&folder.path().join("config.json"), |config| {
            config[key] = value.clone();
        });
        let what = format!("{name} is {value}; it must be ");
        assert_refused(folder.path(), "model_config", &[&what, limit]);
    }
}

#[test]
fn broken_weights_are_refused_by_name() {
    let cut = folder();
    let path = cut.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    std::fs::write(&path, &bytes[..bytes.len() - 100]).expect("written");
    assert_refused(cut.path(), "weights_file", &["model.safetensors"]);
    // A header that claims eight exabytes.
    let mut lying = bytes.clone();
    lying[..8].copy_from_slice(&(1_u64 << 63).to_le_bytes());
    std::fs::write(&path, lying).expect("written");
    assert_refused(cut.path(), "weights_file", &["model.safetensors"]);
    // Valid files of another model.
    let other = folder();
    edit_json(&other.path().join("config.json"), |config| {
        config["intermediate_size"] = json!(config["intermediate_size"].as_u64().expect("one") * 2);
    });
    assert_refused(other.path(), "weights_shape", &[]);
}

#[test]
fn a_gguf_file_with_lying_sizes_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    for (n_tensors, n_metadata) in [(u64::MAX, 0), (0, u64::MAX), (1 << 50, 1 << 50)] {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend(n_tensors.to_le_bytes());
        bytes.extend(n_metadata.to_le_bytes());
        bytes.extend([0; 64]);
        std::fs::write(&path, bytes).expect("written");
        assert_refused(&path, "weights_file", &["model.gguf"]);
    }
}

#[test]
fn a_broken_tokenizer_is_refused() {
    let cut = folder();
    let path = cut.path().join("tokenizer.json");
    let text = std::fs::read(&path).expect("a tokenizer");
    std::fs::write(&path, &text[..text.len() / 2]).expect("written");
    assert_refused(cut.path(), "tokenizer", &["tokenizer.json"]);
}

/// The tokenizer of another model: ids without embeddings in the model fail the request, and other
/// requests continue.
#[tokio::test(flavor = "multi_thread")]
async fn ids_beyond_the_model_are_refused_one_by_one() {
    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    edit_json(&path, |tokenizer| {
        tokenizer["model"]["vocab"]["z"] = json!(100_000);
    });
    let line = format!(
        "--device cpu --n-threads 1 --port 0 --max-total-tokens 512 --model-path {}",
        folder.path().display()
    );
    let program = crate::program::Program::start(&line, &[]).await;
    for (prompt, status) in [("azb", 400), ("ab", 200)] {
        let body = json!({"prompt": prompt, "max_tokens": 2});
        let answer = client::post(program.address, PATH, &body).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}

/// A template that never ends runs out of fuel; the server answers other requests meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_chat_template_is_an_error_of_its_requests() {
    let folder = folder();
    edit_json(&folder.path().join("tokenizer_config.json"), |config| {
        let endless =
            "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
        config["chat_template"] = json!(endless);
    });
    let line = format!(
        "--device cpu --n-threads 1 --port 0 --max-total-tokens 512 --model-path {}",
        folder.path().display()
    );
    let program = crate::program::Program::start(&line, &[]).await;
    let chat = json!({"messages": [{"role": "user", "content": "x"}]});
    let begun = Instant::now();
    let answer = client::post(program.address, "/v1/chat/completions", &chat).await;
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("limit"), "{}", answer.text());
    let body = json!({"prompt": "x", "max_tokens": 2});
    assert_eq!(client::post(program.address, PATH, &body).await.status, 200);
}
