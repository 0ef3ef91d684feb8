//! `import <file> --source vllm|sglang [arguments]`: hands all to `experiments`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct ImportArgs {
    /// Arguments of `experiments import`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &ImportArgs) -> Result<ExitCode> {
    cargo::build_experiments()?;
    cargo::become_experiments("import", &args.arguments)
}
