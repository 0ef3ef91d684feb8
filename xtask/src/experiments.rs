//! Recipes that are commands of `experiments`: builds what each needs and passes the arguments on.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
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

/// `policies [--write]`
pub fn policies(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("policies", &args.args)
}

/// `ablate <experiment>`; `reports` renders the table.
pub fn ablate(args: &TrailingArgs) -> Result<ExitCode> {
    if args.has("--dry-run") {
        // A list of arms does not need the engine.
        cargo::build_experiments()?;
    } else {
        cargo::build_release(&cargo::MEASURED)?;
        cargo::build_reports()?;
    }
    cargo::exec_experiments_with_reports("ablate", &sealing(args))
}

/// `tune <experiment> --objective … --budget …`
pub fn tune(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::exec_experiments("tune", &sealing(args))
}

/// `reproduce <run id>`; `reports` computes the verdict.
pub fn reproduce(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    if !args.has("--dry-run") {
        cargo::build_reports()?;
    }
    cargo::exec_experiments_with_reports("reproduce", &sealing(args))
}

/// `new <name> --from <experiment>`
pub fn new(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::exec_experiments("new", &args.args)
}

/// `export <run id> --format json|csv|parquet`; `reports` writes Parquet.
pub fn export(args: &TrailingArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    if args.args.iter().any(|word| word.contains("parquet")) {
        cargo::build_reports()?;
    }
    cargo::exec_experiments_with_reports("export", &args.args)
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

/// The arguments of a recipe that records: its campaign is sealed at its end.
fn sealing(args: &TrailingArgs) -> Vec<String> {
    let seal = std::iter::once("--seal".to_string());
    seal.chain(args.args.iter().cloned()).collect()
}
