//! Whole runs of the real program with a stand-in engine: what a good one records, how every
//! kind of failure is labelled, and that no process is left whoever is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use experiments::record::{Manifest, RunStatus, ServerSample, Status, read_json};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_experiments");
/// Generous: the machine may be busy with other tests.
const LIMIT: Duration = Duration::from_mins(1);

fn fake_engine() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_engine.py")
}

/// A repository with one experiment, and the processes that a run in it started.
struct Notebook {
    dir: tempfile::TempDir,
}

impl Notebook {
    fn new() -> Self {
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

    fn start(&self, mode: &str, token_s: &str, arguments: &[&str]) -> Child {
        self.start_as(Command::new(PROGRAM), mode, token_s, arguments)
    }

    /// `command` is the program, or what becomes it.
    fn start_as(
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
            .env("FAKE_ENGINE_MODE", mode)
            .env("FAKE_ENGINE_TOKEN_S", token_s)
            .env("FAKE_ENGINE_PIDS", self.pids_file())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started")
    }

    /// Runs to the end: (exit status, stdout, stderr).
    fn run(&self, mode: &str, arguments: &[&str]) -> (ExitStatus, String, String) {
        let output = self
            .start(mode, "0.001", arguments)
            .wait_with_output()
            .expect("ended");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status, text(&output.stdout), text(&output.stderr))
    }

    fn list(&self) -> String {
        self.list_beside(&fake_engine())
    }

    fn list_beside(&self, engine: &Path) -> String {
        let output = Command::new(PROGRAM)
            .args(["list", "--engine-bin"])
            .arg(engine)
            .current_dir(self.dir.path())
            .output()
            .expect("ran");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn pids_file(&self) -> PathBuf {
        self.dir.path().join("pids")
    }

    /// The engine's process and its child's.
    fn pids(&self) -> Vec<Pid> {
        let text = fs::read_to_string(self.pids_file()).unwrap_or_default();
        text.split_whitespace()
            .filter_map(|word| Pid::from_raw(word.parse().ok()?))
            .collect()
    }

    fn runs(&self) -> Vec<PathBuf> {
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

    fn only_run(&self) -> PathBuf {
        let runs = self.runs();
        assert_eq!(runs.len(), 1, "{runs:?}");
        runs.into_iter().next().expect("one run")
    }

    fn status(&self) -> Status {
        read_json(&self.only_run().join("status.json")).expect("a status")
    }

    /// Waits until the run has sent some requests.
    fn wait_for_rows(&self) {
        wait_until("the first rows", || {
            self.runs().first().is_some_and(|run| rows(run).len() >= 2)
        });
    }

    fn assert_no_process_is_left(&self) {
        let pids = self.pids();
        assert_eq!(pids.len(), 2, "the engine did not start");
        wait_until("the end of all processes", || {
            pids.iter().all(|&pid| !is_alive(pid))
        });
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(20));
    }
}

/// A zombie waits for its parent to look at it; it runs no more.
fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    let is_zombie = stat
        .rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    test_kill_process(pid).is_ok() && !is_zombie
}

fn parent_of(pid: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).expect("alive");
    let parent = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(1))
        .expect("a parent");
    Pid::from_raw(parent.parse().expect("a number")).expect("a pid")
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id() as i32).expect("a pid")
}

fn rows(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("requests.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a whole row"))
        .collect()
}

#[test]
fn a_good_run_records_everything_and_leaves_no_process() {
    let notebook = Notebook::new();
    let (status, stdout, stderr) = notebook.run(
        "good",
        &["--", "--schedule-policy", "lof", "--max-running-requests=4"],
    );
    assert!(status.success(), "{stderr}");
    notebook.assert_no_process_is_left();

    let run = notebook.only_run();
    let mut files: Vec<String> = fs::read_dir(&run)
        .expect("readable")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "config.resolved.toml",
            "environment.json",
            "manifest.json",
            "requests.jsonl",
            "server.log",
            "server_info.json",
            "server_metrics.jsonl",
            "status.json",
            "summary.json"
        ]
    );
    let manifest: Manifest = read_json(&run.join("manifest.json")).expect("a manifest");
    assert_eq!(
        run.file_name().and_then(|name| name.to_str()),
        Some(manifest.run_id.as_str())
    );
    assert_eq!(
        (
            manifest.model.requested.as_str(),
            manifest.model.used.as_str()
        ),
        ("fake", "fake-7b")
    );
    let command = manifest.command.join(" ");
    assert!(
        command.contains("serve --model-path fake --host 127.0.0.1 --port "),
        "{command}"
    );
    assert!(
        command.ends_with("--max-running-requests 4 --schedule-policy lof"),
        "{command}"
    );
    assert!(
        manifest.sha256.prompts.is_some()
            && manifest.sha256.engine_binary.is_some()
            && manifest.sha256.kernels.is_some()
    );
    assert_eq!(
        manifest.extra_flags,
        ["--schedule-policy", "lof", "--max-running-requests=4"]
    );

    let rows = rows(&run);
    let count = |case: &str| rows.iter().filter(|row| row["case"] == case).count();
    assert_eq!(
        (
            count("warmup"),
            count("latency-4"),
            count("users-1"),
            count("users-2")
        ),
        (1, 3, 2, 4)
    );
    assert!(
        rows.iter()
            .all(|row| row["error"].is_null() && row["output_tokens"] == row["max_tokens"])
    );
    assert!(
        rows.iter()
            .all(|row| row["warmup"] == (row["case"] == "warmup"))
    );

    let metrics = fs::read_to_string(run.join("server_metrics.jsonl")).expect("samples");
    let sample: ServerSample =
        serde_json::from_str(metrics.lines().next().expect("a sample")).expect("a sample");
    assert!(
        sample.rss_bytes.is_some_and(|bytes| bytes > 1 << 20),
        "{sample:?}"
    );
    assert_eq!(sample.running, Some(1));

    let summary: Value = read_json(&run.join("summary.json")).expect("a summary");
    let names: Vec<&str> = summary["cases"]
        .as_array()
        .expect("cases")
        .iter()
        .filter_map(|case| case["case"].as_str())
        .collect();
    assert_eq!(names, ["latency-4", "users-1", "users-2"]);
    assert_eq!(summary["cases"][0]["total_output_tokens"], 12);
    assert!(
        summary["cases"][0]["median_ttft_ms"]
            .as_f64()
            .is_some_and(|ms| ms > 0.5)
    );
    assert!(
        stdout.contains("Successful requests:") && stdout.contains("tpot p50"),
        "{stdout}"
    );
    assert!(
        fs::read_to_string(run.join("server.log"))
            .expect("a log")
            .contains("fake engine listens")
    );
    assert_eq!(
        (notebook.status().status, notebook.status().reason),
        (RunStatus::Complete, None)
    );
    assert!(notebook.list().contains("complete"));
}

/// A limit on the size of files stands in for a full disk: a write beyond it fails alike.
#[test]
fn a_disk_that_takes_no_more_fails_the_run_with_the_reason() {
    let notebook = Notebook::new();
    let experiment = notebook
        .dir
        .path()
        .join("experiments/01-tiny/experiment.toml");
    let text = fs::read_to_string(&experiment).expect("readable");
    // A row has the time of every token.
    let text = text.replace("output_tokens = 4", "output_tokens = 3000");
    fs::write(&experiment, text).expect("written");
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"",
        PROGRAM,
    ]);
    let output = notebook
        .start_as(command, "good", "0", &[])
        .wait_with_output()
        .expect("ended");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    notebook.assert_no_process_is_left();

    let Status { status, reason, .. } = notebook.status();
    let reason = reason.unwrap_or_default();
    assert_eq!(status, RunStatus::Failed, "{reason}");
    for part in ["requests.jsonl", "File too large"] {
        assert!(
            reason.contains(part) && stderr.contains(part),
            "{reason}\n{stderr}"
        );
    }
    let run = notebook.only_run();
    assert!(
        !rows(&run).is_empty(),
        "the rows before are kept, each whole"
    );
    assert!(
        !run.join("summary.json").exists(),
        "half a run has no figures"
    );
}

#[test]
fn a_run_that_today_would_be_another_is_marked() {
    let notebook = Notebook::new();
    let (status, _, stderr) = notebook.run("good", &["--", "--schedule-policy", "lof"]);
    assert!(status.success(), "{stderr}");
    let list = notebook.list();
    assert!(
        list.contains("no verdicts yet") && !list.contains('≠'),
        "{list}"
    );

    let other_engine = notebook.dir.path().join("other_engine");
    fs::write(&other_engine, "another build").expect("written");
    let list = notebook.list_beside(&other_engine);
    assert!(
        list.contains("≠ binary") && !list.contains("≠ experiment.toml"),
        "{list}"
    );

    let file = notebook
        .dir
        .path()
        .join("experiments/01-tiny/experiment.toml");
    let edit = |from: &str, to: &str| {
        let text = fs::read_to_string(&file).expect("read");
        assert!(text.contains(from), "{from}");
        fs::write(&file, text.replace(from, to)).expect("written");
    };
    // Neither changes what a start measures: one flag was typed over, and starts are counted.
    edit("replicates = 1", "replicates = 3");
    edit("schedule-policy = \"fcfs\"", "schedule-policy = \"lpm\"");
    assert!(!notebook.list().contains('≠'), "{}", notebook.list());
    edit("n_requests = 3", "n_requests = 4");
    let list = notebook.list();
    assert!(
        list.contains("≠ experiment.toml") && !list.contains("≠ binary"),
        "{list}"
    );
    assert!(list.contains("≠ 1 of 1 runs"), "{list}");
}

#[test]
fn replicates_are_runs_of_their_own_and_share_a_campaign() {
    let notebook = Notebook::new();
    let (status, _, stderr) = notebook.run("good", &["--replicates", "2"]);
    assert!(status.success(), "{stderr}");
    let manifests: Vec<Manifest> = notebook
        .runs()
        .iter()
        .map(|run| read_json(&run.join("manifest.json")).expect("a manifest"))
        .collect();
    let mut replicates: Vec<u32> = manifests
        .iter()
        .map(|manifest| manifest.replicate)
        .collect();
    replicates.sort_unstable();
    assert_eq!(replicates, [0, 1]);
    assert_eq!(manifests[0].campaign, manifests[1].campaign);
    assert_ne!(manifests[0].seed, manifests[1].seed);
}

#[test]
fn failures_are_kept_and_labelled() {
    for (mode, reason) in [
        ("fails-to-start", "cannot bind: all is lost"),
        ("dies", "the server ended during the run (exit status: 7)"),
        (
            "refuses",
            "no request of case latency-4 succeeded: status 400",
        ),
    ] {
        let notebook = Notebook::new();
        let (status, _, stderr) = notebook.run(mode, &[]);
        assert_eq!(status.code(), Some(1), "{mode}: {stderr}");
        let record = notebook.status();
        assert_eq!(record.status, RunStatus::Failed, "{mode}");
        assert!(
            record
                .reason
                .as_deref()
                .is_some_and(|text| text.contains(reason)),
            "{mode}: {record:?}"
        );
        notebook.assert_no_process_is_left();
    }
}

#[test]
fn a_server_that_never_gets_healthy_is_given_up() {
    let notebook = Notebook::new();
    let (status, _, _) = notebook.run("never-healthy", &["--start-limit-s", "1"]);
    assert_eq!(status.code(), Some(1));
    assert!(
        notebook
            .status()
            .reason
            .is_some_and(|reason| reason.contains("not healthy after 1 s: status 503"))
    );
    notebook.assert_no_process_is_left();
}

#[test]
fn a_model_that_cannot_be_fetched_stops_before_any_record() {
    let notebook = Notebook::new();
    let (status, _, stderr) = notebook.run("no-model", &[]);
    assert_eq!(status.code(), Some(1));
    assert!(
        stderr.contains("the model fake cannot be fetched (exit status: 3)"),
        "{stderr}"
    );
    assert!(notebook.runs().is_empty());
}

#[test]
fn bad_calls_are_refused_with_the_choices() {
    let notebook = Notebook::new();
    let output = Command::new(PROGRAM)
        .args(["run", "tinny"])
        .current_dir(notebook.dir.path())
        .output()
        .expect("ran");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && stderr.contains("`tinny`; there are: 01-tiny"),
        "{stderr}"
    );
}

#[test]
fn ctrl_c_and_sigterm_end_a_run_in_order() {
    for (signal, name) in [(Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM")] {
        let notebook = Notebook::new();
        let mut runner = notebook.start("good", "0.2", &["--replicates", "5"]);
        notebook.wait_for_rows();
        kill_process(pid_of(&runner), signal).expect("signalled");
        let status = runner.wait().expect("ended");
        assert_eq!(status.code(), Some(130));
        // In order: when the program has ended, so has everything else, and the record says so.
        assert!(notebook.pids().iter().all(|&pid| !is_alive(pid)));
        let record = notebook.status();
        assert_eq!(record.status, RunStatus::Failed);
        assert_eq!(record.reason, Some(format!("interrupted ({name})")));
        assert!(rows(&notebook.only_run()).len() >= 2);
    }
}

#[test]
fn a_killed_runner_leaves_no_server_and_a_failed_record() {
    let notebook = Notebook::new();
    let mut runner = notebook.start("good", "0.2", &[]);
    notebook.wait_for_rows();
    runner.kill().expect("killed");
    runner.wait().expect("ended");
    notebook.assert_no_process_is_left();
    wait_until("the label", || {
        notebook.status().status == RunStatus::Failed
    });
    assert_eq!(
        notebook.status().reason.as_deref(),
        Some("the runner was killed")
    );
    assert!(notebook.list().contains("failed (the runner was killed)"));
}

#[test]
fn a_killed_supervisor_ends_server_and_run() {
    let notebook = Notebook::new();
    let runner = notebook.start("good", "0.2", &[]);
    notebook.wait_for_rows();
    let supervisor = parent_of(notebook.pids()[0]);
    assert_ne!(supervisor, pid_of(&runner));
    kill_process(supervisor, Signal::KILL).expect("killed");
    let output = runner.wait_with_output().expect("ended");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        notebook
            .status()
            .reason
            .is_some_and(|reason| reason.contains("the server ended during the run"))
    );
    notebook.assert_no_process_is_left();
}

#[test]
fn with_runner_and_supervisor_killed_the_server_still_ends_and_the_next_call_labels_the_run() {
    let notebook = Notebook::new();
    let mut runner = notebook.start("good", "0.2", &[]);
    notebook.wait_for_rows();
    let engine = notebook.pids()[0];
    let supervisor = parent_of(engine);
    // The supervisor first and stopped, so that it cannot react to the runner's end.
    kill_process(supervisor, Signal::STOP).expect("stopped");
    runner.kill().expect("killed");
    runner.wait().expect("ended");
    kill_process(supervisor, Signal::KILL).expect("killed");
    wait_until("the end of the engine", || !is_alive(engine));
    assert_eq!(notebook.status().status, RunStatus::Running);
    assert!(notebook.list().contains("failed (the runner was killed)"));
    assert_eq!(notebook.status().status, RunStatus::Failed);
    // Nobody was left to end the engine's own child; this test does.
    for pid in notebook.pids() {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Another engine's server: no `/health`, and a `/server_info` that says other things.
#[test]
fn a_foreign_server_is_measured_under_the_name_that_it_lists() {
    let notebook = Notebook::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let mut server = Command::new(fake_engine())
        .args(["serve", "--port", &port.to_string()])
        .env("FAKE_ENGINE_MODE", "foreign")
        .env("FAKE_ENGINE_PIDS", notebook.pids_file())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    wait_until("the server", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    let url = format!("http://127.0.0.1:{port}");
    let output = Command::new(PROGRAM)
        .args(["run", "tiny", "--start-limit-s", "5", "--base-url", &url])
        .current_dir(notebook.dir.path())
        .output()
        .expect("ran");
    for pid in notebook.pids() {
        let _ = kill_process(pid, Signal::KILL);
    }
    server.wait().expect("ended");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let manifest: Manifest =
        read_json(&notebook.only_run().join("manifest.json")).expect("a manifest");
    assert_eq!(manifest.model.requested, "fake");
    assert_eq!(manifest.model.used, "fake-7b");
    assert_eq!(notebook.status().status, RunStatus::Complete);
}
