//! `ablate <experiment> [arguments]`: builds, and hands all to `experiments`, which calls `reports`
//! for the table.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct AblateArgs {
    /// Arguments of `experiments ablate`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &AblateArgs) -> Result<ExitCode> {
    if args.arguments.iter().any(|word| word == "--dry-run") {
        // A list of arms is worth no build of the engine.
        cargo::build_experiments()?;
    } else {
        cargo::build_release(&cargo::MEASURED)?;
        cargo::build_reports()?;
    }
    cargo::become_experiments_with_reports("ablate", &args.arguments)
}
