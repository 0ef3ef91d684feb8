//! The program as shells and scripts use it: pipes, variables, completion, help, JSON.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::flags::fixture::Model;

/// Result of a run: exit code, standard output, standard error.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_engine"))
        .args(arguments)
        .envs(environment.iter().copied())
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

fn well(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> String {
    let ended = run(arguments, environment, input);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
    ended.stdout
}

/// `generate` with the arguments that a tiny model of its own needs.
fn generate<'a>(path: &'a str, prompt: &[&'a str]) -> Vec<&'a str> {
    let flags = [
        "--device",
        "cpu",
        "--n-threads",
        "1",
        "--max-total-tokens",
        "512",
    ];
    let tail = ["--model-path", path, "--max-tokens", "4", "--ignore-eos"];
    [&["generate"], prompt, &flags, &tail].concat()
}

#[test]
fn generate_reads_its_prompt_from_a_pipe() {
    let model = Model::f16();
    let path = model.path().display().to_string();
    let typed = well(&generate(&path, &["12"]), &[], "");
    assert!(!typed.is_empty());
    assert_eq!(well(&generate(&path, &[]), &[], "12\n"), typed);
    assert_eq!(well(&generate(&path, &["-"]), &[], "12"), typed);
    assert_ne!(
        well(&generate(&path, &["-"]), &[], "12\n\n"),
        typed,
        "one newline alone"
    );
    let empty = run(&generate(&path, &[]), &[], "");
    assert_eq!(empty.code, Some(1));
    assert!(empty.stderr.contains("no tokens"), "{}", empty.stderr);
}

#[test]
fn inspect_writes_json() {
    let model = Model::f16();
    let path = model.path().display().to_string();
    let text = well(&["inspect", "--json", &path], &[], "");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert!(report["weight_bytes"].as_u64() > Some(0), "{report}");
    assert!(report["config"]["n_layers"].as_u64() > Some(0), "{report}");
    let plain = well(&["inspect", &path], &[], "");
    assert!(
        plain.contains("kv per token") && plain.contains("architecture"),
        "{plain}"
    );
}

#[test]
fn shells_can_complete_the_flags() {
    for shell in ["bash", "zsh", "fish"] {
        let script = well(&["completions", shell], &[], "");
        assert!(script.contains("max-total-tokens"), "{shell}");
        assert!(!script.contains("no-effect"), "{shell}");
    }
}

#[test]
fn every_command_has_a_version_and_help_in_groups() {
    for command in ["serve", "generate", "bench", "fetch"] {
        let version = well(&[command, "--version"], &[], "");
        assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    }
    let help = well(&["serve", "--help"], &[], "");
    for part in [
        "\nModel:",
        "\nMemory:",
        "\nScheduling:",
        "\nKeys:",
        "\nLimits of requests:",
    ] {
        assert!(help.contains(part), "{part:?} is not in {help}");
    }
    // Every flag of ours has a group; what is left is clap's.
    let left: Vec<&str> = help
        .split("\nOptions:\n")
        .nth(1)
        .unwrap_or_default()
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| line.trim_start().starts_with('-') && line.contains("--"))
        .filter(|line| !line.contains("--help") && !line.contains("--version"))
        .collect();
    assert!(left.is_empty(), "in no group: {left:?}");
    assert!(!help.contains("--no-effect"));
}

#[test]
fn the_environment_says_flags_and_the_line_overrides_them() {
    let refused = |environment: &[(&str, &str)], arguments: &[&str]| {
        let ended = run(arguments, environment, "");
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        ended.stderr
    };
    let wrong = [("ENGINE_ARG_MEM_FRACTION_STATIC", "7")];
    let message = refused(&wrong, &["serve"]);
    assert!(message.contains("--mem-fraction-static 7"), "{message}");
    let message = refused(&wrong, &["serve", "--mem-fraction-static", "8"]);
    assert!(message.contains("--mem-fraction-static 8"), "{message}");
    let message = refused(&[("ENGINE_ARG_PROT", "1")], &["serve"]);
    assert!(message.contains("ENGINE_ARG_PROT"), "{message}");
    // A line that names its model uses no other one.
    let environment = [
        ("ENGINE_ARG_MODEL_PATH", "./no/such/a"),
        ("ENGINE_ARG_PORT", "0"),
    ];
    let ended = run(&["serve", "--model-path", "./no/such/b"], &environment, "");
    assert!(ended.stderr.contains("no/such/b"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("no/such/a"), "{}", ended.stderr);
    // One environment serves all commands.
    let model = Model::f16();
    let path = model.path().display().to_string();
    well(&generate(&path, &["1"]), &[("ENGINE_ARG_PORT", "1")], "");
}

#[test]
fn all_unknown_flags_are_named_at_once() {
    let ended = run(
        &["serve", "--tpx", "2", "--max-totl-tokens", "64", "--frob"],
        &[],
        "",
    );
    assert_eq!(ended.code, Some(2));
    for part in [
        "error[bad_flag]",
        "--tpx",
        "--frob",
        "did you mean --max-total-tokens?",
    ] {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let ended = run(&["generate", "x", "--tp", "2"], &[], "");
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--tp 2"), "{}", ended.stderr);
}

/// A file's contents are not interpreted by the terminal.
#[test]
fn errors_have_no_escapes_from_outside() {
    let ended = run(&["inspect", "./no\u{1b}]0;title\u{7}such"], &[], "");
    assert_eq!(ended.code, Some(2));
    assert!(
        !ended.stderr.contains(['\u{1b}', '\u{7}']),
        "{:?}",
        ended.stderr
    );
    assert!(ended.stderr.contains("\\u{1b}"), "{:?}", ended.stderr);
}
