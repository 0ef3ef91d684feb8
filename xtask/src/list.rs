//! `list`: experiments and runs.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo;

pub fn run() -> Result<ExitCode> {
    // A list does not need the engine, but uses it if there is one already.
    if cargo::release_binary("engine")?.is_file() {
        cargo::build_release(&cargo::MEASURED)?;
    } else {
        cargo::build_release(&["experiments"])?;
    }
    cargo::exec_program(&cargo::release_binary("experiments")?, &["list".into()])
}
