//! Other engines as arms, with a stand-in that is found, started and asked as they are.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use records::manifest::{AnswerOutcome, EngineUsed, Manifest};
use records::run_folder::read_json;
use records::status::{RunStatus, Status};
use rustix::process::{Signal, kill_process};

use crate::notebook::{Notebook, PROGRAM, fake_engine, is_alive, pid_of, wait_until};

/// A notebook beside which a model and stand-ins of other engines lie.
struct Bench {
    notebook: Notebook,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            notebook: Notebook::new(),
        };
        bench.write("model/config.json", "{}");
        bench.write("model.gguf", "GGUF");
        for package in ["vllm", "vllm/entrypoints", "vllm/entrypoints/cli", "sglang"] {
            bench.write(&format!("kit/{package}/__init__.py"), "");
        }
        let run = |name: &str, insert: &str| {
            format!(
                "import os, runpy, sys\nos.environ['FAKE_ENGINE_NAME'] = '{name}'\n{insert}\n\
                 runpy.run_path(os.environ['FAKE_ENGINE_FILE'], run_name='__main__')\n"
            )
        };
        bench.write("kit/vllm/entrypoints/cli/main.py", &run("vllm", ""));
        let serve = "sys.argv.insert(1, 'serve')";
        bench.write("kit/sglang/launch_server.py", &run("sglang", serve));
        for (name, version) in [("vllm", "0.26.0"), ("sglang", "0.5.15")] {
            let info = format!("kit/{name}-{version}.dist-info");
            let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
            bench.write(&format!("{info}/METADATA"), &metadata);
            bench.write(&format!("{info}/RECORD"), "vllm/__init__.py,sha256=x,0\n");
        }
        let llama = format!(
            "#!/usr/bin/env python3\nimport sys\nif '--version' in sys.argv:\n    \
             print('version: 11434 (0a1b2c3)', file=sys.stderr)\n    sys.exit()\n{}",
            run("llama.cpp", serve)
        );
        bench.write("bin/llama-server", &llama);
        fs::set_permissions(
            bench.path("bin/llama-server"),
            fs::Permissions::from_mode(0o755),
        )
        .expect("executable");
        bench
    }

    fn path(&self, path: &str) -> PathBuf {
        self.notebook.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }

    /// The files that the fake `fetch` names.
    fn start(&self, files: &str, token_s: &str, wrong: &str, args: &[&str]) -> Child {
        let kit = self.path("kit").display().to_string();
        let llama = self.path("bin").display().to_string();
        let mut command = Command::new(PROGRAM);
        command
            .args(["run", "tiny", "--engine-bin"])
            .arg(fake_engine());
        for arg in args {
            command.arg(arg.replace("KIT", &kit).replace("BIN", &llama));
        }
        command
            .current_dir(self.notebook.dir.path())
            .env("ENGINE_CACHE", self.notebook.cache())
            .env("FAKE_ENGINE_FILE", fake_engine())
            .env("FAKE_ENGINE_FILES", self.path(files))
            .env("FAKE_ENGINE_WRONG", wrong)
            .env("FAKE_ENGINE_TOKEN_S", token_s)
            .env("FAKE_ENGINE_PIDS", self.notebook.pids_file())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started")
    }

    fn run(&self, files: &str, wrong: &str, args: &[&str]) -> (Option<i32>, String) {
        let child = self.start(files, "0.001", wrong, args);
        let output = child.wait_with_output().expect("ended");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// In the order of their starts.
    fn starts(&self) -> Vec<(Manifest, Status)> {
        let read = |run: &PathBuf| {
            let manifest: Manifest = read_json(&run.join("manifest.json")).expect("a manifest");
            let status: Status = read_json(&run.join("status.json")).expect("a status");
            (
                modified(&run.join("config.resolved.toml")),
                manifest,
                status,
            )
        };
        let mut starts: Vec<_> = self.notebook.runs().iter().map(read).collect();
        starts.sort_by_key(|(written, ..)| *written);
        starts
            .into_iter()
            .map(|(_, manifest, status)| (manifest, status))
            .collect()
    }
}

/// The configuration is the first file of a run and is written once.
fn modified(path: &Path) -> std::time::SystemTime {
    fs::metadata(path)
        .and_then(|found| found.modified())
        .expect("a time")
}

fn engine(manifest: &Manifest) -> &EngineUsed {
    manifest.engine.as_ref().expect("an engine")
}

#[test]
fn engines_are_arms_that_take_turns() {
    let bench = Bench::new();
    let args = [
        "--engine",
        "vllm,ours,vllm@enforce-eager,sglang@documents",
        "--engine-path",
        "vllm=KIT",
        "--engine-path",
        "sglang=KIT",
        "--replicates",
        "2",
    ];
    let (code, text) = bench.run("model", "", &args);
    assert_eq!(code, Some(0), "{text}");
    bench.notebook.assert_no_process_is_left();

    let starts = bench.starts();
    let arms: Vec<String> = starts.iter().map(|(m, _)| m.arm()).collect();
    let of_others = ["vllm@best", "vllm@enforce-eager", "sglang@documents"];
    let mut wanted = vec!["01-tiny".to_owned()];
    wanted.extend(of_others.map(|engine| format!("01-tiny+{engine}")));
    let round: Vec<String> = wanted
        .iter()
        .cloned()
        .chain(wanted.iter().rev().cloned())
        .collect();
    assert_eq!(arms, round, "ours first, every other round backwards");
    assert!(starts.iter().all(|(_, s)| s.status == RunStatus::Complete));

    let manifests: Vec<&Manifest> = starts.iter().map(|(manifest, _)| manifest).collect();
    assert!(
        manifests
            .iter()
            .all(|m| m.campaign == manifests[0].campaign)
    );
    assert!(manifests.iter().all(|m| m.model.used == "fake-7b"));
    let ours = engine(manifests[0]);
    assert_eq!(
        (ours.shown().as_str(), ours.version.as_deref()),
        ("ours", Some("0.0.7"))
    );
    assert_eq!(
        ours.answers.as_ref().expect("asked").outcome,
        AnswerOutcome::Reference
    );
    let again = engine(manifests[7]).answers.as_ref().expect("asked");
    assert_eq!(
        (again.outcome, again.reference.as_deref()),
        (AnswerOutcome::Right, Some("ours"))
    );

    let vllm = engine(manifests[1]);
    assert_eq!(vllm.version.as_deref(), Some("0.26.0"));
    assert_eq!(
        vllm.digest_of.as_deref(),
        Some("vllm-0.26.0.dist-info/RECORD")
    );
    assert_eq!(vllm.sha256.as_ref().map(String::len), Some(64));
    assert!(vllm.environment["PYTHONPATH"].contains("kit"), "{vllm:?}");
    let left_out = &vllm.flags_left_out["schedule-policy"];
    assert!(left_out.contains("first come"), "{left_out}");
    let answers = vllm.answers.as_ref().expect("asked");
    assert_eq!(
        (answers.outcome, answers.n_positions),
        (AnswerOutcome::Right, 64)
    );
    assert_eq!(
        (answers.argmax_agreement, answers.mean_abs_delta),
        (Some(1.0), Some(0.0))
    );

    let command = manifests[1].command.join(" ");
    let model = bench.path("model");
    let wanted = format!(
        "python3 -m vllm.entrypoints.cli.main serve {} --served-model-name fake-7b-file --host 127.0.0.1 --port ",
        model.display()
    );
    assert!(command.starts_with(&wanted), "{command}");
    assert!(
        !command.contains("enforce-eager") && !command.contains("schedule"),
        "{command}"
    );
    assert!(
        manifests[2]
            .command
            .ends_with(&["--enforce-eager".to_owned()])
    );
    let documents = manifests[3].command.join(" ");
    assert!(
        documents.contains("-m sglang.launch_server --model-path "),
        "{documents}"
    );
    assert!(documents.ends_with("--schedule-policy fcfs"), "{documents}");
    // Not the engine that is built here, but the same files.
    assert!(manifests[1].sha256.engine_binary.is_none());
    assert_eq!(manifests[1].sha256.model, Some("f".repeat(64)));
    assert!(bench.notebook.list().contains("vllm@best, fake-7b"));
}

#[test]
fn a_start_with_wrong_answers_is_not_measured() {
    let bench = Bench::new();
    let args = [
        "--engine",
        "ours,llama.cpp",
        "--engine-path",
        "llama.cpp=BIN",
        "--replicates",
        "2",
    ];
    let (code, text) = bench.run("model.gguf", "llama.cpp", &args);
    assert_eq!(code, Some(1), "{text}");
    bench.notebook.assert_no_process_is_left();
    let starts = bench.starts();
    let of = |arm: &str| -> Vec<&(Manifest, Status)> {
        starts
            .iter()
            .filter(|(manifest, _)| manifest.arm() == arm)
            .collect()
    };
    assert!(
        of("01-tiny")
            .iter()
            .all(|(_, status)| status.status == RunStatus::Complete)
    );
    assert_eq!(of("01-tiny").len(), 2);
    let wrong = of("01-tiny+llama.cpp@best");
    assert_eq!(wrong.len(), 1, "it has no second start");
    let (manifest, status) = wrong[0];
    assert_eq!(status.status, RunStatus::Wrong);
    let reason = status.reason.as_deref().unwrap_or_default();
    assert!(reason.contains("are not those of ours"), "{reason}");
    let used = engine(manifest);
    assert_eq!(used.version.as_deref(), Some("11434 (0a1b2c3)"));
    let answers = used.answers.as_ref().expect("asked");
    assert_eq!(answers.outcome, AnswerOutcome::Wrong);
    assert_eq!(answers.argmax_agreement, Some(0.0));
    let runs = bench.notebook.runs();
    let dir = runs
        .iter()
        .find(|run| run.ends_with(&manifest.run_id))
        .expect("a folder");
    assert!(!dir.join("summary.json").exists() && !dir.join("server_metrics.jsonl").exists());
    assert!(bench.notebook.list().contains("wrong (its answers"));
}

#[test]
fn other_weights_are_measured_and_marked() {
    for (own_model, load_format, reason) in [
        (true, "auto", "its weights are not the files of ours"),
        (false, "dummy", "every engine makes weights of its own"),
    ] {
        let bench = Bench::new();
        bench.write("other/config.json", "{}");
        let model = format!("vllm={}", bench.path("other").display());
        let mut args = vec!["--engine", "ours,vllm", "--engine-path", "vllm=KIT"];
        if own_model {
            args.extend(["--engine-model", model.as_str()]);
        }
        args.extend(["--", "--load-format", load_format]);
        let (code, text) = bench.run("model", "vllm", &args);
        assert_eq!(code, Some(0), "{text}");
        let starts = bench.starts();
        let (ours, (vllm, status)) = (&starts[0].0, &starts[1]);
        // It would answer otherwise, and is not asked.
        assert_eq!(status.status, RunStatus::Complete);
        let why = vllm.not_comparable().expect("not comparable");
        assert!(why.contains(reason), "{why}");
        assert!(ours.not_comparable().is_none());
        // Shown beside ours, in the same group of a report.
        assert_eq!(vllm.model.used, ours.model.used);
        let has_own_weights = vllm.sha256.model != ours.sha256.model;
        assert_eq!(has_own_weights, own_model);
    }
}

#[test]
fn what_an_engine_cannot_do_is_refused_before_anything_starts() {
    let bench = Bench::new();
    let toml = bench.path("experiments/01-tiny/experiment.toml");
    let text = fs::read_to_string(&toml).expect("read");
    for (files, args, problem) in [
        (
            "model",
            "--engine vlllm",
            "vlllm is not one of ours, vllm, sglang, llama.cpp",
        ),
        (
            "model",
            "--engine vllm@fast",
            "vllm has no preset fast; it has best, enforce-eager",
        ),
        ("model", "--engine ours,ours", "ours is named twice"),
        (
            "model",
            "--engine vllm,vllm@best --engine-path vllm=KIT",
            "vllm@best is named twice",
        ),
        (
            "model",
            "--engine vllm --engine-path vllm=/nowhere",
            "/nowhere is neither a Python",
        ),
        (
            "model",
            "--engine ours --engine-path vllm=KIT",
            "--engine does not name vllm",
        ),
        (
            "model",
            "--engine ours --engine-path KIT",
            "must be ENGINE=PLACE",
        ),
        (
            "model",
            "--engine vllm --engine-path vllm=KIT -- --device-memory-limit 1GiB",
            "nothing is known of --device-memory-limit for vllm@best",
        ),
        (
            "model",
            "--engine vllm --engine-path vllm=KIT --model synthetic:tiny-qwen3",
            "cargo xtask model synthetic:tiny-qwen3 --write FOLDER",
        ),
        (
            "model.gguf",
            "--engine ours,vllm --engine-path vllm=KIT",
            "it reads a folder with config.json and safetensors",
        ),
        (
            "model",
            "--engine llama.cpp --engine-path llama.cpp=BIN",
            "it reads a GGUF file",
        ),
        (
            "gone",
            "--engine vllm --engine-path vllm=KIT",
            "give all engines one checkpoint",
        ),
    ] {
        let args: Vec<&str> = args.split(' ').collect();
        let (code, text) = bench.run(files, "", &args);
        assert_eq!(code, Some(1), "{args:?}: {text}");
        assert!(text.contains(problem), "{args:?}: {text}");
        assert!(bench.notebook.runs().is_empty(), "{args:?}");
    }
    assert_eq!(fs::read_to_string(&toml).expect("read"), text);
}

#[test]
fn a_killed_runner_leaves_no_process_of_another_engine() {
    let bench = Bench::new();
    let args = ["--engine", "vllm", "--engine-path", "vllm=KIT"];
    let mut runner = bench.start("model", "0.2", "", &args);
    bench.notebook.wait_for_rows();
    kill_process(pid_of(&runner), Signal::KILL).expect("killed");
    runner.wait().expect("ended");
    let pids = bench.notebook.pids();
    assert_eq!(pids.len(), 2);
    wait_until("the end of all processes", || {
        pids.iter().all(|&pid| !is_alive(pid))
    });
    wait_until("the label", || {
        bench.notebook.status().status == RunStatus::Failed
    });
}
