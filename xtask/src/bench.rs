//! `bench [arguments]`: the kernels' benchmarks.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub struct BenchArgs {
    /// Arguments of `cargo bench`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGS"
    )]
    arguments: Vec<String>,
}

pub fn run(args: &BenchArgs) -> Result<ExitCode> {
    let mut words: Vec<String> = ["bench", "--package", "kernels"].map(String::from).into();
    words.extend(args.arguments.iter().cloned());
    cargo::become_cargo(&words)
}
