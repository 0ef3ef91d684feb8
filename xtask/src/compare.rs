//! `compare <run or experiment> <run or experiment> [arguments]`: hands all to `reports compare`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use crate::trailing_args::TrailingArgs;

pub fn run(args: &TrailingArgs) -> Result<ExitCode> {
    let mut words: Vec<String> = ["run", "--quiet", "--package", "reports", "--", "compare"]
        .map(String::from)
        .into();
    words.extend(args.words.iter().cloned());
    cargo::exec_cargo(&words)
}
