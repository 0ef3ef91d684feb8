//! Recipes that are commands of `experiments`: what each needs is built, and the words handed on.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use crate::judged::{self, Call, Programs};
use crate::passed_on::PassedOn;

/// `simulate <name> --gpu rtx-5090|h100|h200`
pub fn simulate(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::become_experiments("simulate", &args.words)
}

/// `against --gpu h100`
pub fn against(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::become_experiments("against", &args.words)
}

/// `policies [--write]`
pub fn policies(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::become_experiments("policies", &args.words)
}

/// `notes [experiment…] [--write]`
pub fn notes(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::become_experiments("notes", &args.words)
}

/// `ablate <experiment>`; then `reports` makes the table.
pub fn ablate(args: &PassedOn) -> Result<ExitCode> {
    if args.has("--dry-run") {
        // A list of arms is worth no build of the engine.
        cargo::build_experiments()?;
        return cargo::become_experiments("ablate", &args.words);
    }
    judged("ablate", args, "ablation")
}

/// `tune <experiment> --objective … --budget …`
pub fn tune(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::become_experiments("tune", &sealing(args))
}

/// `reproduce <run id>`; then `reports` gives the verdict.
pub fn reproduce(args: &PassedOn) -> Result<ExitCode> {
    if args.has("--dry-run") {
        cargo::build_release(&cargo::MEASURED)?;
        return cargo::become_experiments("reproduce", &args.words);
    }
    judged("reproduce", args, "reproduction")
}

/// `new <name> --from <experiment>`
pub fn new(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::become_experiments("new", &args.words)
}

/// `export <run id> --format json|csv|parquet`; `reports` writes Parquet.
pub fn export(args: &PassedOn) -> Result<ExitCode> {
    if args.value_of("--format") == Some("parquet") {
        cargo::build_reports()?;
        let mut words = vec!["parquet".to_string()];
        words.extend(without_format(&args.words));
        return cargo::become_program(&cargo::reports_binary()?, &words);
    }
    cargo::build_experiments()?;
    cargo::become_experiments("export", &args.words)
}

/// The words without `--format` and its value.
fn without_format(words: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--format" {
            words.next();
        } else if !word.starts_with("--format=") {
            kept.push(word.clone());
        }
    }
    kept
}

/// `import <file> --source vllm|sglang`
pub fn import(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::become_experiments("import", &args.words)
}

/// `seal [campaign…]`
pub fn seal(args: &PassedOn) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::become_experiments("seal", &args.words)
}

/// Everything is built before the measurement, which nothing compiles beside.
fn judged(command: &str, args: &PassedOn, verdict: &str) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::build_reports()?;
    let programs = Programs {
        experiments: cargo::release_binary("experiments")?,
        reports: cargo::reports_binary()?,
        folder: cargo::root()?,
    };
    let call = Call {
        command,
        words: sealing(args),
        verdict,
        runs_dir: args.value_of("--runs-dir"),
    };
    let note = cargo::target_dir()?.join(format!("ended-{}", std::process::id()));
    Ok(judged::run(&programs, &call, &note)?.into())
}

/// The arguments of a recipe that records: its campaign is sealed at its end.
fn sealing(args: &PassedOn) -> Vec<String> {
    let seal = std::iter::once("--seal".to_string());
    seal.chain(args.words.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::without_format;

    #[test]
    fn the_format_is_taken_out() {
        let without = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(ToString::to_string).collect();
            without_format(&words)
        };
        assert_eq!(
            without(&["run", "--format", "parquet", "--out", "x"]),
            ["run", "--out", "x"]
        );
        assert_eq!(without(&["--format=parquet", "run"]), ["run"]);
    }
}
