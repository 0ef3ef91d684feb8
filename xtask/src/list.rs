//! `list`: experiments and runs.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;

pub fn run() -> Result<ExitCode> {
    cargo::build_release(&["experiments"])?;
    cargo::become_program(&cargo::release_binary("experiments")?, &["list".into()])
}
