//! `reproduce <run id> [arguments]`: builds, and hands all to `experiments`, which calls `reports`
//! for the verdict.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct ReproduceArgs {
    /// Arguments of `experiments reproduce`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &ReproduceArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    if !args.arguments.iter().any(|word| word == "--dry-run") {
        cargo::build_reports()?;
    }
    cargo::become_experiments_with_reports("reproduce", &args.arguments)
}
