//! `export <run id> --format json|csv|parquet [arguments]`: hands all to `experiments`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct ExportArgs {
    /// Arguments of `experiments export`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    if args.arguments.iter().any(|word| word.contains("parquet")) {
        cargo::build_reports()?;
    }
    cargo::become_experiments_with_reports("export", &args.arguments)
}
