//! The error catalogue against its page and against the texts of the server and the program.

use std::path::Path;
use std::process::Command;

use engine::errors::{Class, Code, markdown};
use engine::model::config::Family;
use engine::weights::fixture::{FolderFormat, tiny_config, write_folder};
use serde_json::json;

use crate::client;
use crate::fixture::{TestConfig, TestServer, write_tokenizer};

#[test]
fn the_troubleshooting_page_is_what_the_catalogue_writes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/TROUBLESHOOTING.md");
    let page = std::fs::read_to_string(path).expect("the page");
    assert_eq!(
        page,
        markdown(),
        "write it anew: engine errors --markdown > engine/deploy/TROUBLESHOOTING.md"
    );
}

#[test]
fn the_program_prints_the_page() {
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["errors", "--markdown"])
        .output()
        .expect("the program runs");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), markdown());
}

#[tokio::test]
async fn answers_carry_codes_of_the_catalogue_with_status_and_type() {
    let mut config = TestConfig::default();
    config.http.strict_model_name = true;
    let server = TestServer::start(config).await;
    let large = json!({"prompt": "x", "guided_regex": "x".repeat(5000)}).to_string();
    for (method, path, body, code) in [
        ("POST", "/v1/completions", "{", Code::InvalidJson),
        (
            "POST",
            "/v1/completions",
            "{\"prompt\": 5}",
            Code::InvalidValue,
        ),
        (
            "POST",
            "/v1/completions",
            "{\"prompt\": \"x\", \"suffix\": \"y\"}",
            Code::UnsupportedParameter,
        ),
        (
            "POST",
            "/v1/completions",
            "{\"prompt\": \"x\", \"model\": \"y\"}",
            Code::ModelNotFound,
        ),
        (
            "POST",
            "/v1/completions",
            "{\"prompt\": \"x\", \"max_tokens\": 600}",
            Code::ContextLengthExceeded,
        ),
        (
            "POST",
            "/v1/completions",
            "{\"prompt\": \"x\", \"stop\": [\"1\",\"2\",\"3\",\"4\",\"5\"]}",
            Code::TooManyStopStrings,
        ),
        (
            "POST",
            "/v1/completions",
            large.as_str(),
            Code::SchemaTooLarge,
        ),
        ("GET", "/v1/completions", "", Code::MethodNotAllowed),
        ("POST", "/v1/embeddings", "{}", Code::NotImplemented),
        ("GET", "/nothing", "", Code::UnknownUrl),
    ] {
        let answer = client::send(server.address, method, path, &[], body.as_bytes()).await;
        let entry = code.entry();
        assert_eq!(
            Some(answer.status),
            entry.status,
            "{code}: {}",
            answer.text()
        );
        let error = &answer.json()["error"];
        assert_eq!(error["code"], entry.code, "{}", answer.text());
        assert_eq!(error["type"], entry.kind);
    }
}

#[tokio::test]
async fn the_operators_token_limits_are_errors_of_their_own() {
    let mut config = TestConfig::default();
    config.http.max_prompt_tokens = Some(10);
    config.http.max_output_tokens = Some(5);
    let server = TestServer::start(config).await;
    for (body, code) in [
        (
            json!({"prompt": "x".repeat(11), "max_tokens": 1}),
            "prompt_too_long",
        ),
        (json!({"prompt": "x", "max_tokens": 6}), "output_too_long"),
    ] {
        let answer = server.post("/v1/completions", body).await;
        assert_eq!(answer.json()["error"]["code"], code, "{}", answer.text());
    }
    let fits = json!({"prompt": "x".repeat(10), "max_tokens": 5});
    server.ok("/v1/completions", fits).await;
}

/// A start that fails prints its code, cause and fix, and ends with 1 or 2.
#[test]
fn failed_starts_name_their_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken).expect("a folder");
    std::fs::write(broken.join("config.json"), "{\"architectures\": [\"X\"]}").expect("written");
    std::fs::write(broken.join("model.safetensors"), "no header").expect("written");
    let broken = broken.display().to_string();
    let safetensors = folder.path().join("safetensors");
    write_folder(
        &safetensors,
        &tiny_config(Family::Qwen3),
        FolderFormat::F16,
        1,
        1,
    )
    .expect("written");
    write_tokenizer(&safetensors);
    let safetensors = safetensors.display().to_string();
    let pytorch = folder.path().join("pytorch");
    std::fs::create_dir(&pytorch).expect("a folder");
    std::fs::copy(
        Path::new(&safetensors).join("config.json"),
        pytorch.join("config.json"),
    )
    .expect("copied");
    std::fs::write(pytorch.join("pytorch_model.bin"), "pickled").expect("written");
    write_tokenizer(&pytorch);
    let pytorch = pytorch.display().to_string();
    let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let cases: [(&[&str], Code); 7] = [
        (&["--mem-fraction-static", "2"], Code::BadFlag),
        (&["--model-path", "synthetic:no-such"], Code::ModelName),
        (
            &[
                "--model-path",
                "synthetic:tiny-qwen3",
                "--device",
                "cpu",
                "--context-length",
                "10000000",
            ],
            Code::ContextLength,
        ),
        (
            &["--model-path", &broken, "--device", "cpu"],
            Code::UnsupportedArchitecture,
        ),
        (
            &["--model-path", "synthetic:tiny-qwen3", "--port", &port],
            Code::Address,
        ),
        (
            &["--model-path", &pytorch, "--device", "cpu"],
            Code::NoWeights,
        ),
        (
            &[
                "--model-path",
                &safetensors,
                "--device",
                "cpu",
                "--load-format",
                "gguf",
            ],
            Code::LoadFormat,
        ),
    ];
    for (arguments, code) in cases {
        let output = Command::new(env!("CARGO_BIN_EXE_engine"))
            .args(["serve", "--port", "0"])
            .args(arguments)
            .output()
            .expect("the program runs");
        let message = String::from_utf8_lossy(&output.stderr);
        let exit_code = if code.is_usage() { 2 } else { 1 };
        assert_eq!(
            output.status.code(),
            Some(exit_code),
            "{arguments:?}: {message}"
        );
        assert!(
            message.contains(&format!("error[{code}]: ")),
            "{arguments:?}: {message}"
        );
        assert!(
            message.contains(code.entry().fix),
            "{arguments:?}: {message}"
        );
        assert_eq!(code.entry().class, Class::Start);
    }
}

/// A service without a home folder is told about the folder, not about the network.
#[test]
fn without_a_home_the_cache_folder_is_asked_for() {
    let output = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(["fetch", "default"])
        // Only an absolute path counts as a home.
        .env("HOME", "no-home")
        .env_remove("ENGINE_CACHE")
        .env_remove("XDG_CACHE_HOME")
        .output()
        .expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("error[no_cache_folder]"), "{said}");
    assert!(said.contains("give --cache-dir"), "{said}");
    assert!(!said.contains("network"), "{said}");
}
