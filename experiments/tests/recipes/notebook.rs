//! A repository of its own with a baseline and an experiment over it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use records::manifest::Manifest;
use records::run_folder::read_json;

pub struct Notebook {
    pub dir: tempfile::TempDir,
}

/// How a command ended.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Notebook {
    pub fn new() -> Self {
        let notebook = Self {
            dir: tempfile::tempdir().expect("temporary folder"),
        };
        // Alone in its folder, whatever else was built: an engine is looked for beside the program.
        let built = Path::new(env!("CARGO_BIN_EXE_experiments"));
        if fs::hard_link(built, notebook.path("experiments-program")).is_err() {
            fs::copy(built, notebook.path("experiments-program")).expect("copied");
        }
        notebook.write("Cargo.toml", "");
        notebook.write("Cargo.lock", "locked");
        notebook.write("kernels/src/lib.rs", "// kernels");
        notebook.write(
            "data/prompts/p.jsonl",
            "{\"id\":\"p1\",\"text\":\"hello\"}\n{\"id\":\"p2\",\"text\":\"안녕\"}\n",
        );
        notebook.write(
            "experiments/01-base/experiment.toml",
            r#"
            name = "01-base"
            title = "The reference"
            model = "fake"
            seed = 1
            replicates = 1
            [flags]
            shared = 1
            token-ms = 3
            [workload]
            endpoint = "completions"
            prompts = ["p"]
            temperature = 0.0
            ignore_eos = true
            request_timeout_s = 30.0
            [workload.warmup]
            n_requests = 1
            output_tokens = 2
            [workload.users]
            n_users = [2]
            output_tokens = 3
            n_requests_per_user = 1
            [workload.goodput]
            ttft_ms = 1000.0
            "#,
        );
        notebook.write(
            "experiments/02-full/experiment.toml",
            "name = \"02-full\"\ntitle = \"Two changes\"\nextends = \"01-base\"\n\
             [flags]\ntoken-ms = 1\nidle = true\n",
        );
        notebook
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        fs::write(path, text).expect("written");
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).expect("readable")
    }

    /// Runs the program to its end.
    pub fn run(&self, words: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let output = Command::new(self.path("experiments-program"))
            .args(words)
            .current_dir(self.dir.path())
            .env("ENGINE_CACHE", self.path("cache"))
            .env("FAKE_ENGINE_PIDS", self.path("pids"))
            .envs(environment.iter().copied())
            .output()
            .expect("ended");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome {
            code: output.status.code(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// As [`Self::run`], with the stand-in for the engine.
    pub fn measure(&self, words: &[&str], environment: &[(&str, &str)]) -> Outcome {
        let engine = stand_in("fake_engine.py");
        let program = ["--engine-bin", &engine];
        self.run(&[&words[..2], &program, &words[2..]].concat(), environment)
    }

    pub fn manifests(&self) -> Vec<Manifest> {
        let Ok(entries) = fs::read_dir(self.path("data/runs")) else {
            return Vec::new();
        };
        let mut runs: Vec<PathBuf> = entries
            .map(|entry| entry.expect("an entry").path())
            .collect();
        runs.sort();
        let mut manifests: Vec<Manifest> = runs
            .iter()
            .map(|run| read_json(&run.join("manifest.json")).expect("a manifest"))
            .collect();
        // Runs of one second sort by their hash.
        manifests.sort_by_key(|manifest| manifest.replicate);
        manifests
    }
}

pub fn stand_in(file: &str) -> String {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    tests.join(file).to_string_lossy().into_owned()
}
