//! `compare <run or experiment> <run or experiment> [arguments]`: hands all to `reports compare`.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use crate::passed_on::PassedOn;

pub fn run(args: &PassedOn) -> Result<ExitCode> {
    let mut words: Vec<String> = ["run", "--quiet", "--package", "reports", "--", "compare"]
        .map(String::from)
        .into();
    words.extend(args.words.iter().cloned());
    cargo::become_cargo(&words)
}
