//! Recipes that are commands of `experiments`: builds what each needs and passes the arguments on.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use crate::judged::{self, Call, Programs};
use crate::trailing_args::TrailingArgs;

/// `simulate <name> --gpu rtx-5090|h100|h200`
pub fn simulate(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::exec_experiments("simulate", &args.args)
}

/// `against --gpu h100`
pub fn against(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::exec_experiments("against", &args.args)
}

/// `project [--out FOLDER]`
pub fn project(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::exec_experiments("project", &args.args)
}

/// `policies [--write]`
pub fn policies(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("policies", &args.args)
}

/// `notes [experiment…] [--write]`
pub fn notes(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("notes", &args.args)
}

/// `ablate <experiment>`; then `reports` makes the table.
pub fn ablate(args: &TrailingArgs) -> Result<ExitCode> {
    if args.has("--dry-run") {
        // A list of arms does not need the engine.
        cargo::build_experiments()?;
        return cargo::exec_experiments("ablate", &args.args);
    }
    judged("ablate", args, "ablation")
}

/// `tune <experiment> --objective … --budget …`
pub fn tune(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::exec_experiments("tune", &sealing(args))
}

/// `reproduce <run id>`; then `reports` gives the verdict.
pub fn reproduce(args: &TrailingArgs) -> Result<ExitCode> {
    if args.has("--dry-run") {
        cargo::build_release(&cargo::MEASURED)?;
        return cargo::exec_experiments("reproduce", &args.args);
    }
    judged("reproduce", args, "reproduction")
}

/// `new <name> --from <experiment>`
pub fn new(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("new", &args.args)
}

/// `export <run id> --format json|csv|parquet`; `reports` writes Parquet.
pub fn export(args: &TrailingArgs) -> Result<ExitCode> {
    if args.value_of("--format") == Some("parquet") {
        cargo::build_reports()?;
        let mut arguments = vec!["parquet".to_string()];
        arguments.extend(without_format(&args.args));
        return cargo::exec_program(&cargo::reports_binary()?, &arguments);
    }
    cargo::build_experiments()?;
    cargo::exec_experiments("export", &args.args)
}

/// The arguments without `--format` and its value.
fn without_format(args: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.iter();
    while let Some(word) = args.next() {
        if word == "--format" {
            args.next();
        } else if !word.starts_with("--format=") {
            kept.push(word.clone());
        }
    }
    kept
}

/// `import <file> --source vllm|sglang`
pub fn import(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("import", &args.args)
}

/// `seal [campaign…]`
pub fn seal(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("seal", &args.args)
}

/// Everything is built before the measurement: nothing may compile while it runs.
fn judged(command: &str, args: &TrailingArgs, verdict: &str) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::build_reports()?;
    let programs = Programs {
        experiments: cargo::release_binary("experiments")?,
        reports: cargo::reports_binary()?,
        folder: cargo::root()?,
    };
    let call = Call {
        command,
        args: sealing(args),
        verdict,
        runs_dir: args.value_of("--runs-dir"),
    };
    let note = cargo::target_dir()?.join(format!("ended-{}", std::process::id()));
    Ok(judged::run(&programs, &call, &note)?.into())
}

/// The arguments of a recipe that records: its campaign is sealed at its end.
fn sealing(args: &TrailingArgs) -> Vec<String> {
    let seal = std::iter::once("--seal".to_string());
    seal.chain(args.args.iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::without_format;

    #[test]
    fn the_format_is_taken_out() {
        let without = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            without_format(&args)
        };
        assert_eq!(
            without(&["run", "--format", "parquet", "--out", "x"]),
            ["run", "--out", "x"]
        );
        assert_eq!(without(&["--format=parquet", "run"]), ["run"]);
    }
}
