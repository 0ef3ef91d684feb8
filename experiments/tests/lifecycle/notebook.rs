//! A notebook of its own with a stand-in engine, and the processes that a run in it starts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use records::run_folder::read_json;
use records::status::Status;
use rustix::process::{Pid, test_kill_process};
use serde_json::Value;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_experiments");
/// Generous: the machine may be busy with other tests.
const LIMIT: Duration = Duration::from_mins(1);

pub fn fake_engine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_engine.py")
}

/// A repository with one experiment, and the processes that a run in it started.
pub struct Notebook {
    pub dir: tempfile::TempDir,
}

impl Notebook {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        write("Cargo.toml", "");
        write("Cargo.lock", "locked");
        write("kernels/src/lib.rs", "// kernels");
        write(
            "data/prompts/p.jsonl",
            "{\"id\":\"p1\",\"text\":\"hello\"}\n{\"id\":\"p2\",\"text\":\"안녕\"}\n",
        );
        write(
            "experiments/01-tiny/experiment.toml",
            r#"
            name = "01-tiny"
            title = "A test"
            model = "fake"
            seed = 1
            replicates = 1
            [flags]
            schedule-policy = "fcfs"
            [workload]
            endpoint = "completions"
            prompts = ["p"]
            temperature = 0.0
            ignore_eos = true
            request_timeout_s = 30.0
            [workload.warmup]
            n_requests = 1
            output_tokens = 2
            [workload.latency]
            n_requests = 3
            output_tokens = 4
            [workload.users]
            n_users = [1, 2]
            output_tokens = 3
            n_requests_per_user = 2
            "#,
        );
        Self { dir }
    }

    pub fn start(&self, mode: &str, token_s: &str, arguments: &[&str]) -> Child {
        self.start_as(Command::new(PROGRAM), mode, token_s, arguments)
    }

    /// `command` is the program, or what becomes it.
    pub fn start_as(
        &self,
        mut command: Command,
        mode: &str,
        token_s: &str,
        arguments: &[&str],
    ) -> Child {
        command
            .args(["run", "tiny", "--engine-bin"])
            .arg(fake_engine())
            .args(arguments)
            .current_dir(self.dir.path())
            .env("ENGINE_CACHE", self.cache())
            .env("FAKE_ENGINE_MODE", mode)
            .env("FAKE_ENGINE_TOKEN_S", token_s)
            .env("FAKE_ENGINE_PIDS", self.pids_file())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started")
    }

    /// Runs to the end: (exit status, stdout, stderr).
    pub fn run(&self, mode: &str, arguments: &[&str]) -> (ExitStatus, String, String) {
        let output = self
            .start(mode, "0.001", arguments)
            .wait_with_output()
            .expect("ended");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status, text(&output.stdout), text(&output.stderr))
    }

    pub fn list(&self) -> String {
        self.list_beside(&fake_engine())
    }

    pub fn list_beside(&self, engine: &Path) -> String {
        let output = Command::new(PROGRAM)
            .args(["list", "--engine-bin"])
            .arg(engine)
            .current_dir(self.dir.path())
            .env("ENGINE_CACHE", self.cache())
            .output()
            .expect("ran");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Of its own, so that tests that run side by side do not lock each other out.
    pub fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Runs the program with these words to its end: (exit code, stdout and stderr).
    pub fn call(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(PROGRAM)
            .args(words)
            .current_dir(self.dir.path())
            .env("ENGINE_CACHE", self.cache())
            .output()
            .expect("ran");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    pub fn pids_file(&self) -> PathBuf {
        self.dir.path().join("pids")
    }

    /// The engine's process and its child's.
    pub fn pids(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.pids_file()).unwrap_or_default();
        text.split_whitespace()
            .filter_map(|word| Pid::from_raw(word.parse().ok()?))
            .collect()
    }

    pub fn runs(&self) -> Vec<PathBuf> {
        let mut runs: Vec<PathBuf> = fs::read_dir(self.dir.path().join("data/runs"))
            .map(|entries| {
                entries
                    .filter_map(Result::ok)
                    .map(|entry| entry.path())
                    .collect()
            })
            .unwrap_or_default();
        runs.sort();
        runs
    }

    pub fn only_run(&self) -> PathBuf {
        let runs = self.runs();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.into_iter().next().expect("one run")
    }

    pub fn status(&self) -> Status {
        read_json(&self.only_run().join("status.json")).expect("a status")
    }

    /// Waits until the run has sent some requests.
    pub fn wait_for_rows(&self) {
        wait_until("the first rows", || {
            self.runs().first().is_some_and(|run| rows(run).len() >= 2)
        });
    }

    pub fn assert_no_process_is_left(&self) {
        let pids = self.pids();
        assert_eq!(pids.len(), 2, "the engine did not start");
        wait_until("the end of all processes", || {
            pids.iter().all(|&pid| !is_alive(pid))
        });
    }
}

pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A zombie waits for its parent to look at it; it runs no more.
pub fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    let is_zombie = stat
        .rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    test_kill_process(pid).is_ok() && !is_zombie
}

pub fn parent_of(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).expect("alive");
    let parent = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1))
        .expect("a parent");
    Pid::from_raw(parent.parse().expect("a number")).expect("a pid")
}

pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).expect("a pid")
}

pub fn rows(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("requests.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a whole row"))
        .collect()
}
