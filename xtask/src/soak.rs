//! `soak --requests N`: the server under a long mixed load; `engine/tests/server/soak.rs` defines
//! the load and the checks.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use duct::cmd;

use crate::cargo;

#[derive(Args)]
pub struct SoakArgs {
    /// Requests to send
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(4001..))]
    requests: u64,
    /// Seed for the kind and time of the requests [default: the tests' own]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

pub fn run(args: &SoakArgs) -> Result<ExitCode> {
    // The same selection of packages as `test`, so that nothing is built twice.
    let mut command = cmd!(
        "cargo",
        "test",
        "--workspace",
        "--test",
        "server",
        "--",
        "--ignored",
        "--exact",
        "soak::soak",
        "--nocapture"
    )
    .dir(cargo::root()?)
    .env("SOAK_REQUESTS", args.requests.to_string());
    if let Some(seed) = args.seed {
        command = command.env("SOAK_SEED", seed.to_string());
    }
    let status = command
        .unchecked()
        .run()
        .context("cargo cannot be started")?
        .status;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
