//! `policies [--write]`: builds, and hands all to `experiments`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct PoliciesArgs {
    /// Arguments of `experiments policies`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &PoliciesArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    let mut words = vec!["policies".to_string()];
    words.extend(args.arguments.iter().cloned());
    cargo::become_program(&cargo::release_binary("experiments")?, &words)
}
