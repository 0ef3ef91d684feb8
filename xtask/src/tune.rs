//! `tune <experiment> --objective … --budget …`: builds, and hands all to `experiments`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct TuneArgs {
    /// Arguments of `experiments tune`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &TuneArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::become_experiments("tune", &args.arguments)
}
