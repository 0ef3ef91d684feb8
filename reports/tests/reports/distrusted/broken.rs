//! A folder that does not hold what its run wrote is left out and named; the others are reported.

use std::fs;
use std::path::{Path, PathBuf};

use reports::lang::Lang;
use reports::load;
use reports::load::run_folder::Outcome;
use reports::render::Report;
use reports::render::assemble::build;
use reports::stats::verdict::VerdictConfig;
use serde_json::{Value, json};

use super::data;

/// Copies of the fixed data set's complete runs of balanced-v2 on the fixture machine.
struct Runs {
    dir: tempfile::TempDir,
    folders: Vec<PathBuf>,
}

impl Runs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut folders = Vec::new();
        for run in fs::read_dir(data("runs")).unwrap() {
            let from = run.unwrap().path();
            let to = dir.path().join(from.file_name().unwrap());
            copy(&from, &to);
            let name = to.to_string_lossy().into_owned();
            if name.contains("T09") && name.contains("03-balanced-v2") {
                folders.push(to);
            }
        }
        folders.sort();
        Self { dir, folders }
    }

    /// What is wrong with one of them.
    fn problem(&self, folder: &Path) -> Option<String> {
        let records = load::load(self.dir.path(), &data("imported"), |_| true).unwrap();
        let name = folder.file_name().unwrap().to_string_lossy();
        let run = records.runs.iter().find(|run| run.run_id == name).unwrap();
        match &run.outcome {
            Outcome::Broken { reason } => Some(reason.clone()),
            _ => None,
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

fn change(path: PathBuf, change: impl FnOnce(String) -> String) {
    let text = fs::read_to_string(&path).unwrap();
    fs::write(path, change(text)).unwrap();
}

/// The SHA-256 of a file that holds `abc`.
const OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn each_kind_of_damage_is_named() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 8] = [
        ("requests.jsonl, line 3: ", |run| {
            change(run.join("requests.jsonl"), |text| {
                let start: Vec<&str> = text.lines().take(3).collect();
                start.join("\n")[..start.join("\n").len() - 9].to_owned()
            });
        }),
        (
            "line 2: the server's usage says 1000000000000 output tokens, but 10 were asked for",
            |run| {
                change(run.join("requests.jsonl"), |text| {
                    let mut lines: Vec<Value> = text
                        .lines()
                        .map(|l| serde_json::from_str(l).unwrap())
                        .collect();
                    lines[1]["output_tokens"] = json!(1_000_000_000_000_u64);
                    lines.iter().map(|line| line.to_string() + "\n").collect()
                });
            },
        ),
        (
            "has 1 rows of case ladder-20; the workload asked for 7",
            |run| {
                change(run.join("config.resolved.toml"), |text| {
                    let workload = "[workload]\nendpoint = \"completions\"\nprompts = []\ntemperature = 0.0\nignore_eos = true\nrequest_timeout_s = 1.0\nwarmup = { n_requests = 0, output_tokens = 1 }\n";
                    text + workload + "[workload.ladder]\noutput_tokens = [20]\nn_requests = 7\n"
                });
            },
        ),
        ("server.log is not what the run wrote", |run| {
            fs::write(run.join("server.log"), "abd").unwrap();
            change(run.join("status.json"), |text| {
                let mut status: Value = serde_json::from_str(&text).unwrap();
                status["sha256"] = json!({ "server.log": OF_ABC });
                status.to_string()
            });
        }),
        ("server.log: No such file", |run| {
            change(run.join("status.json"), |text| {
                let mut status: Value = serde_json::from_str(&text).unwrap();
                status["sha256"] = json!({ "server.log": OF_ABC });
                status.to_string()
            });
        }),
        ("manifest.json", |run| {
            fs::remove_file(run.join("manifest.json")).unwrap();
        }),
        ("requests.jsonl: No such file", |run| {
            fs::remove_file(run.join("requests.jsonl")).unwrap();
        }),
        ("server_metrics.jsonl, line 4: ", |run| {
            change(run.join("server_metrics.jsonl"), |text| text + "{\"t_s\":");
        }),
    ];
    let runs = Runs::new();
    assert_eq!(runs.problem(&runs.folders[0]), None);
    for (wanted, damage) in cases {
        let runs = Runs::new();
        damage(&runs.folders[0]);
        let problem = runs.problem(&runs.folders[0]).unwrap_or_default();
        assert!(problem.contains(wanted), "{wanted}: {problem}");
        assert_eq!(runs.problem(&runs.folders[1]), None);
    }
    // What a digest stands for is right.
    fs::write(runs.folders[0].join("server.log"), "abc").unwrap();
    change(runs.folders[0].join("status.json"), |text| {
        let mut status: Value = serde_json::from_str(&text).unwrap();
        status["sha256"] = json!({ "server.log": OF_ABC });
        status.to_string()
    });
    assert_eq!(runs.problem(&runs.folders[0]), None);
}

#[test]
fn the_report_goes_on_without_a_broken_run_and_names_it() {
    let runs = Runs::new();
    change(runs.folders[0].join("requests.jsonl"), |text| {
        text + "{\"case\":"
    });
    let copied = runs
        .dir
        .path()
        .join("20990101T000000Z_03-balanced-v2_fixture_copy");
    copy(&runs.folders[1], &copied);
    let original = runs.folders[1].file_name().unwrap().to_string_lossy();
    let is_copy = format!("a copy: its manifest is that of {original}");
    assert_eq!(runs.problem(&copied), Some(is_copy));
    for lang in [Lang::Ko, Lang::En] {
        let records = load::load(runs.dir.path(), &data("imported"), |_| true).unwrap();
        let context = build(&records, VerdictConfig::default(), lang).unwrap();
        let arms = &context.groups[0].arms;
        let arm = arms
            .iter()
            .find(|arm| arm.experiment == "03-balanced-v2")
            .unwrap();
        assert_eq!(arm.n_runs, runs.folders.len() - 1);
        for name in ["00", "02", "03", "index"] {
            let text = Report::find(name).unwrap().render(&context).unwrap();
            let broken = runs.folders[0].file_name().unwrap().to_string_lossy();
            for id in [&*broken, "20990101T000000Z_03-balanced-v2_fixture_copy"] {
                let row = format!(
                    "| `{id}` | 03-balanced-v2 | {} |",
                    lang.pick("손상", "broken")
                );
                assert!(text.contains(&row), "{name}: {row}");
            }
            assert!(text.contains("requests.jsonl, line 12: "), "{name}");
        }
    }
}
