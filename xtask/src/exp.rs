//! `exp <name>… [--quick] [--model …] [--replicates N] [-- engine flags]`

use std::fs;
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
    /// --base-url, which of the server's models to ask
    #[arg(long)]
    model: Option<String>,
    /// Server starts per experiment
    #[arg(long, value_name = "N")]
    replicates: Option<u32>,
    /// Measure a server that runs already (its key from OPENAI_API_KEY) and start none
    #[arg(long, value_name = "URL")]
    base_url: Option<String>,
    /// Wait for another measurement on this machine to end, instead of refusing
    #[arg(long)]
    wait: bool,
    /// Record from sources that are not those of a commit; the difference is kept, and the record
    /// marked wherever it is shown
    #[arg(long)]
    allow_dirty: bool,
    /// Extra engine flags, laid over the experiment's
    #[arg(last = true, value_name = "FLAGS")]
    engine_flags: Vec<String>,
}

pub fn run(args: &ExpArgs) -> Result<ExitCode> {
    refuse_unknown(&args.names)?;
    match args.base_url {
        // Another's server: nothing of ours is measured, nothing of it is built.
        Some(_) => cargo::build_release(&["experiments"])?,
        None => cargo::build_release(&cargo::MEASURED)?,
    }
    cargo::become_program(&cargo::release_binary("experiments")?, &to_arguments(args))
}

fn to_arguments(args: &ExpArgs) -> Vec<String> {
    let mut words = vec!["run".to_string(), "--seal".to_string()];
    words.extend(args.names.iter().cloned());
    if args.quick {
        words.push("--quick".into());
    }
    if args.wait {
        words.push("--wait".into());
    }
    if args.allow_dirty {
        words.push("--allow-dirty".into());
    }
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            words.extend([name.to_string(), value]);
        }
    };
    option("--model", args.model.clone());
    option("--replicates", args.replicates.map(|n| n.to_string()));
    option("--base-url", args.base_url.clone());
    if !args.engine_flags.is_empty() {
        words.push("--".into());
        words.extend(args.engine_flags.iter().cloned());
    }
    words
}

/// A typo shall not cost a build. `experiments` checks everything else.
fn refuse_unknown(names: &[String]) -> Result<()> {
    let dir = cargo::root()?.join("experiments");
    let mut known: Vec<String> = fs::read_dir(&dir)
        .with_context(|| dir.display().to_string())?
        .filter_map(Result::ok)
        .filter(|entry| entry.path().join("experiment.toml").is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    known.sort();
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
