//! `report [arguments]`: renders the reports. The dev profile: polars in release takes minutes
//! to build and the data are small.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct ReportArgs {
    /// Arguments of `reports`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &ReportArgs) -> Result<ExitCode> {
    let mut words: Vec<String> = ["run", "--package", "reports", "--"]
        .map(String::from)
        .into();
    words.extend(args.arguments.iter().cloned());
    cargo::become_cargo(&words)
}
