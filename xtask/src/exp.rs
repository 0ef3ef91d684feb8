//! `exp <name>… [--quick] [--model …] [--replicates N] [--engine ours,vllm] [-- engine flags]`

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo;

#[derive(Args)]
pub struct ExpArgs {
    /// Experiments, with or without their number: balanced-v2, 03-balanced-v2
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// A small workload that ends within two minutes; the record says so
    #[arg(long)]
    quick: bool,
    /// Model to serve instead of the experiment's: a path, a hub id, `synthetic:<preset>`; with
    /// --base-url, which of the server's models to use
    #[arg(long)]
    model: Option<String>,
    /// Server starts per experiment
    #[arg(long, value_name = "N")]
    replicates: Option<u32>,
    /// Measure a running server (its key from OPENAI_API_KEY) instead of starting one
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Engines, each an arm of every experiment: ours, vllm, sglang, llama.cpp; with @ and a preset:
    /// vllm@enforce-eager, sglang@documents [default: ours]
    #[arg(long, value_name = "ENGINES")]
    engine: Vec<String>,
    /// Where an engine is, if not on PATH: a Python environment, a kit folder for PYTHONPATH, a
    /// program: vllm=/opt/vllm
    #[arg(long, value_name = "ENGINE=PLACE")]
    engine_path: Vec<String>,
    /// Model files for one engine instead of the experiment's: llama.cpp=/models/x.gguf
    #[arg(long, value_name = "ENGINE=PATH")]
    engine_model: Vec<String>,
    /// Instead of the experiment's cases, search the highest load at which a share of the requests
    /// meets limits: ttft_ms=200,tpot_ms=20,share=0.95; load=open (requests a second) or closed (users)
    #[arg(long, value_name = "LIMITS", conflicts_with = "a_a")]
    slo: Option<String>,
    /// Run the same configuration as two arms: how many verdicts are false
    #[arg(long = "a-a")]
    a_a: bool,
    /// Wait for another measurement on this machine to end, instead of refusing
    #[arg(long)]
    wait: bool,
    /// Record even if the sources differ from the commit; the difference is stored, and the record
    /// is marked wherever it is shown
    #[arg(long)]
    allow_dirty: bool,
    /// Extra engine flags, which override the experiment's
    #[arg(last = true, value_name = "FLAGS")]
    engine_flags: Vec<String>,
}

pub fn run(args: &ExpArgs) -> Result<ExitCode> {
    refuse_unknown(&args.names)?;
    match args.base_url {
        // An external server: nothing of ours is measured, so the engine is not built.
        Some(_) => cargo::build_release(&["experiments"])?,
        None => cargo::build_release(&cargo::MEASURED)?,
    }
    cargo::exec_program(&cargo::release_binary("experiments")?, &to_arguments(args))
}

fn to_arguments(args: &ExpArgs) -> Vec<String> {
    let mut arguments = vec!["run".to_string(), "--seal".to_string()];
    arguments.extend(args.names.iter().cloned());
    if args.quick {
        arguments.push("--quick".into());
    }
    if args.a_a {
        arguments.push("--a-a".into());
    }
    if args.wait {
        arguments.push("--wait".into());
    }
    if args.allow_dirty {
        arguments.push("--allow-dirty".into());
    }
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            arguments.extend([name.to_string(), value]);
        }
    };
    option("--model", args.model.clone());
    option("--replicates", args.replicates.map(|n| n.to_string()));
    option("--base-url", args.base_url.clone());
    option("--slo", args.slo.clone());
    for (name, values) in [
        ("--engine", &args.engine),
        ("--engine-path", &args.engine_path),
        ("--engine-model", &args.engine_model),
    ] {
        for value in values {
            option(name, Some(value.clone()));
        }
    }
    if !args.engine_flags.is_empty() {
        arguments.push("--".into());
        arguments.extend(args.engine_flags.iter().cloned());
    }
    arguments
}

/// The numbered experiments of `dir`, in their order.
///
/// # Errors
///
/// If the folder cannot be read.
pub fn known(dir: &Path) -> Result<Vec<String>> {
    let mut known: Vec<String> = fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("experiment.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    known.sort();
    Ok(known)
}

/// Checks names before building. `experiments` checks everything else.
fn refuse_unknown(names: &[String]) -> Result<()> {
    let known = known(&cargo::root()?.join("experiments"))?;
    for name in names {
        let fits = |full: &String| {
            full == name
                || full
                    .split_once('-')
                    .is_some_and(|(number, rest)| rest == name || number == name)
        };
        if !known.iter().any(fits) {
            bail!(
                "no experiment is called `{name}`; there are: {}",
                known.join(", ")
            );
        }
    }
    Ok(())
}
