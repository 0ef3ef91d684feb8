//! Servers that the runner did not start, and measurements beside each other.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use records::manifest::Manifest;
use records::run_folder::read_json;
use records::status::RunStatus;
use rustix::process::{Signal, kill_process};

use crate::notebook::{Notebook, fake_engine, pid_of};

/// A stand-in that was started by hand; ended with its child when dropped.
struct Server<'n> {
    notebook: &'n Notebook,
    process: Child,
    url: String,
}

impl<'n> Server<'n> {
    fn start(notebook: &'n Notebook, mode: &str, models: &str) -> Self {
        let mut process = Command::new(fake_engine())
            .args(["serve", "--port", "0"])
            .env("FAKE_ENGINE_MODE", mode)
            .env("FAKE_ENGINE_MODELS", models)
            .env("FAKE_ENGINE_PIDS", notebook.pids_file())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a line");
        let url = line.trim().rsplit(' ').next().expect("an address");
        Self {
            notebook,
            process,
            url: url.into(),
        }
    }

    fn measure(&self, words: &[&str]) -> (Option<i32>, String) {
        let call = [
            "run",
            "tiny",
            "--start-limit-s",
            "5",
            "--base-url",
            &self.url,
        ];
        self.notebook.call(&[&call, words].concat())
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        for pid in self.notebook.pids() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.process.wait();
    }
}

/// Another engine's server: no `/health`, and a `/server_info` that says other things.
#[test]
fn a_foreign_server_is_measured_under_the_name_that_it_lists() {
    let notebook = Notebook::new();
    let server = Server::start(&notebook, "foreign", "fake-7b");
    let (code, text) = server.measure(&[]);
    assert_eq!(code, Some(0), "{text}");
    let manifest: Manifest =
        read_json(&notebook.only_run().join("manifest.json")).expect("a manifest");
    assert_eq!(manifest.model.requested, "fake");
    assert_eq!(manifest.model.used, "fake-7b");
    assert_eq!(notebook.status().status, RunStatus::Complete);
}

#[test]
fn one_of_a_servers_models_is_chosen_by_its_name() {
    for mode in ["foreign", "good"] {
        let notebook = Notebook::new();
        let server = Server::start(&notebook, mode, "first second");
        let (code, text) = server.measure(&["--model", "third"]);
        assert_eq!(code, Some(1), "{text}");
        let problem = format!(
            "--model third: the server at {}/v1 has no such model; it lists: first, second",
            server.url
        );
        assert!(text.contains(&problem), "{text}");
        assert!(notebook.runs().is_empty());

        let (code, text) = server.measure(&["--model", "second"]);
        assert_eq!(code, Some(0), "{text}");
        let manifest: Manifest =
            read_json(&notebook.only_run().join("manifest.json")).expect("a manifest");
        let model = manifest.model;
        assert_eq!((&*model.requested, &*model.used), ("second", "second"));
    }
}

#[test]
fn a_server_that_is_not_there_is_said_within_seconds() {
    let notebook = Notebook::new();
    // Of the discard service, which no machine has.
    let url = "http://127.0.0.1:9/v1";
    let started = Instant::now();
    let (code, text) = notebook.call(&["run", "tiny", "--base-url", url]);
    assert_eq!(code, Some(1), "{text}");
    assert!(started.elapsed() < Duration::from_secs(30));
    for part in [
        "no server is started",
        "cannot be reached: Connection refused",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert!(notebook.runs().is_empty());
}

#[test]
fn addresses_that_lead_nowhere_are_refused_at_once() {
    let notebook = Notebook::new();
    for (url, problem) in [
        (
            "http://127.0.0.1:99999/v1",
            "port `99999`: must be 1 to 65535",
        ),
        ("http://user:secret@127.0.0.1:1/v1", "it names a user"),
    ] {
        let (code, text) = notebook.call(&["run", "tiny", "--base-url", url]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(problem) && !text.contains("secret"), "{text}");
    }
}

#[test]
fn two_measurements_at_once_are_refused_or_wait() {
    let notebook = Notebook::new();
    let mut first = notebook.start("good", "0.2", &["--replicates", "5"]);
    notebook.wait_for_rows();
    let n_before = notebook.runs().len();
    let (status, _, stderr) = notebook.run("good", &[]);
    assert_eq!(status.code(), Some(1), "{stderr}");
    let holder = format!("process {} (\"experiments run tiny", first.id());
    assert!(
        stderr.contains(&holder) && stderr.contains("--wait"),
        "{stderr}"
    );
    assert_eq!(notebook.runs().len(), n_before);

    let waiting = notebook.start("good", "0.001", &["--wait"]);
    std::thread::sleep(Duration::from_millis(500));
    kill_process(pid_of(&first), Signal::INT).expect("signalled");
    first.wait().expect("ended");
    let output = waiting.wait_with_output().expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("waiting: process "), "{stderr}");
}
