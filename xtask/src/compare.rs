//! `compare <run or experiment> <run or experiment> [arguments]`: passes everything to `reports
//! compare`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use crate::trailing_args::TrailingArgs;

pub fn run(args: &TrailingArgs) -> Result<ExitCode> {
    let mut arguments: Vec<String> = ["run", "--quiet", "--package", "reports", "--", "compare"]
        .map(String::from)
        .into();
    arguments.extend(args.args.iter().cloned());
    cargo::exec_cargo(&arguments)
}
