//! `poison [--engine-bin FILE]`: twenty users stream while other clients send malicious requests,
//! to an engine on the CPU with a tiny model with random weights; `experiments/poison.py` defines
//! what must hold. Runs twice, each with half of the table: with default settings, and with mixed
//! prefill and an API key. Each engine must shut down cleanly.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use duct::cmd;
use serde_json::Value;

use crate::cargo;
use crate::served::Served;

const SCRIPT: &str = "experiments/poison.py";
const TABLE: &str = "engine/tests/data/poison.json";
const KEY: &str = "a-key-of-this-run";
const FLAGS: [&str; 6] = [
    "--model-path",
    "synthetic:tiny-qwen3",
    "--device",
    "cpu",
    // So that slow clients are refused within the run.
    "--client-timeout-s",
    "5",
];

#[derive(Args)]
pub struct PoisonArgs {
    /// An engine that has been built [default: build it in the release profile]
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
    /// Requests in each of the two runs, half of them malicious [default: as many as the table has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(2..))]
    requests: Option<u64>,
    /// Users who stream meanwhile
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    users: u64,
    /// Seed for the choice and order of requests
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// One engine and the requests sent to it.
struct Case {
    name: &'static str,
    flags: &'static [&'static str],
    key: Option<&'static str>,
}

const CASES: [Case; 2] = [
    Case {
        name: "plain",
        flags: &[],
        key: None,
    },
    Case {
        name: "mixed",
        flags: &["--enable-mixed-chunk", "--api-key", KEY],
        key: Some(KEY),
    },
];

pub fn run(args: &PoisonArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    let folder = cargo::target_dir()?.join("poison");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let engine = if let Some(engine) = &args.engine_bin {
        engine.clone()
    } else {
        cargo::build_release(&cargo::MEASURED)?;
        cargo::release_binary("engine")?
    };
    let n_requests = match args.requests {
        Some(n) => n,
        None => n_poisons(&root.join(TABLE))?,
    };
    let mut all_passed = true;
    for (i, case) in CASES.iter().enumerate() {
        let skip = i as u64 * n_requests.div_ceil(2);
        let passed = play(args, case, &engine, &folder, n_requests, skip)?;
        all_passed = all_passed && passed;
    }
    Ok(if all_passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn n_poisons(table: &Path) -> Result<u64> {
    let text = fs::read(table).with_context(|| table.display().to_string())?;
    let entries: Vec<Value> =
        serde_json::from_slice(&text).with_context(|| table.display().to_string())?;
    // Half of each run's requests are malicious, so that two runs send the whole table.
    Ok(entries.len().next_multiple_of(2) as u64)
}

/// Returns whether all checks passed.
fn play(
    args: &PoisonArgs,
    case: &Case,
    engine: &Path,
    folder: &Path,
    n_requests: u64,
    skip: u64,
) -> Result<bool> {
    println!("\n== {} ({})", case.name, case.flags.join(" "));
    let flags = [&FLAGS[..], case.flags].concat();
    let log = folder.join(format!("{}.log", case.name));
    let mut served = Served::start(engine, &flags, &log)?;
    let mut arguments: Vec<String> = vec![
        cargo::root()?.join(SCRIPT).display().to_string(),
        "--compare-texts".to_owned(),
    ];
    let kept = folder.join(format!("{}.json", case.name));
    for (name, value) in [
        ("--url", format!("http://{}", served.address)),
        ("--requests", n_requests.to_string()),
        ("--users", args.users.to_string()),
        ("--seed", args.seed.to_string()),
        ("--skip", skip.to_string()),
        ("--json", kept.display().to_string()),
    ] {
        arguments.extend([name.to_owned(), value]);
    }
    arguments.extend(case.key.map(|key| format!("--api-key={key}")));
    let status = cmd("python3", &arguments)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .unchecked()
        .run()
        .context("python3 cannot be started")?
        .status;
    // If the server died, that is why the rest failed.
    served.check()?;
    let ended = served.stop();
    if let Err(error) = &ended {
        println!("FAILED  told to end: {error:#}");
    }
    Ok(status.success() && ended.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each entry describes the request, the allowed outcome and the reason; names are unique.
    #[test]
    fn the_table_is_whole() {
        let table = cargo::root().expect("a root").join(TABLE);
        let text = fs::read(&table).expect("the table");
        let entries: Vec<Value> = serde_json::from_slice(&text).expect("JSON");
        let mut names: Vec<&str> = entries
            .iter()
            .map(|entry| entry["name"].as_str().expect("a name"))
            .collect();
        let n_entries = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n_entries, "a name is there twice");
        for entry in &entries {
            let name = &entry["name"];
            assert!(entry["why"].is_string(), "{name}");
            let statuses = entry["status"].as_array().expect("statuses");
            assert!(!statuses.is_empty(), "{name}");
            // Unsupported features are not failures.
            let is_failure = |status: &Value| matches!(status.as_u64(), Some(500 | 502));
            assert!(!statuses.iter().any(is_failure), "{name}");
        }
        let rounded = n_poisons(&table).expect("the table");
        assert!(rounded.is_multiple_of(2) && rounded >= n_entries as u64);
    }

    #[test]
    fn the_script_can_be_read() {
        let script = cargo::root().expect("a root").join(SCRIPT);
        let help = cmd!("python3", script, "--help")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .read()
            .expect("python3");
        assert!(help.contains("--compare-texts"), "{help}");
    }
}
