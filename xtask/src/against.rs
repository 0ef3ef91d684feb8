//! `against --gpu h100 [arguments]`: builds, and hands all to `experiments`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct AgainstArgs {
    /// Arguments of `experiments against`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &AgainstArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    let mut words = vec!["against".to_string()];
    words.extend(args.arguments.iter().cloned());
    cargo::become_program(&cargo::release_binary("experiments")?, &words)
}
