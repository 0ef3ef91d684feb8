//! `report [arguments]`: renders the reports. The dev profile: polars in release takes minutes
//! to build and the data are small.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;
use crate::trailing_args::TrailingArgs;

pub fn run(args: &TrailingArgs) -> Result<ExitCode> {
    let mut arguments: Vec<String> = ["run", "--package", "reports", "--"]
        .map(String::from)
        .into();
    arguments.extend(args.args.iter().cloned());
    cargo::exec_cargo(&arguments)
}
