//! Whole runs of the real program with a stand-in engine: what a good one records, how every
//! kind of failure is labelled, and that no process is left whoever is killed.

#[path = "lifecycle/broken_records.rs"]
mod broken_records;
#[path = "lifecycle/energy.rs"]
mod energy;
#[path = "lifecycle/engines.rs"]
mod engines;
#[path = "lifecycle/foreign_servers.rs"]
mod foreign_servers;
#[path = "lifecycle/notebook.rs"]
mod notebook;
#[path = "lifecycle/searches.rs"]
mod searches;

use std::fs;
use std::process::Command;

use records::manifest::Manifest;
use records::rows::CaseLoad;
use records::rows::ServerSample;
use records::run_folder::read_json;
use records::status::{RunStatus, Status};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use self::notebook::{Notebook, PROGRAM, is_alive, parent_of, pid_of, rows, wait_until};

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
            "machine_load.jsonl",
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
            .starts_with("listening on http://127.0.0.1:")
    );
    let loads = fs::read_to_string(run.join("machine_load.jsonl")).expect("loads");
    let loads: Vec<CaseLoad> = loads
        .lines()
        .map(|line| serde_json::from_str(line).expect("a load"))
        .collect();
    assert_eq!(loads.len(), 4);
    assert_eq!(loads[3].cases, ["users-2"]);
    assert!(loads.iter().all(|load| load.load_average_1m.is_some()));
    assert!(loads.iter().any(|load| load.others_share.is_some()));
    let record = notebook.status();
    assert_eq!(record.status, RunStatus::Complete);
    // The machine may be busy with other tests, and the record then says so.
    assert!(
        record
            .reason
            .is_none_or(|reason| reason.starts_with("busy machine: ")),
    );
    let digests = record.sha256.expect("digests");
    assert_eq!(digests.len(), files.len() - 1);
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
    let (status, _, _) = notebook.run("never-healthy", &["--start-limit-s", "4"]);
    assert_eq!(status.code(), Some(1));
    assert!(
        notebook
            .status()
            .reason
            .is_some_and(|reason| reason.contains("not healthy after 4 s: "))
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
