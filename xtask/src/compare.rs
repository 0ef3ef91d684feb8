//! `compare <run or experiment> <run or experiment> [arguments]`: hands all to `reports compare`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct CompareArgs {
    /// Arguments of `reports compare`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &CompareArgs) -> Result<ExitCode> {
    let mut words: Vec<String> = ["run", "--quiet", "--package", "reports", "--", "compare"]
        .map(String::from)
        .into();
    words.extend(args.arguments.iter().cloned());
    cargo::become_cargo(&words)
}
