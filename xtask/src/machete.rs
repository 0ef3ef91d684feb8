//! cargo-machete over the workspace: dependencies that a crate names and does not use.
//!
//! It is built from its sources, once for each version, since no registry here has the program.

use std::path::Path;

use anyhow::{Context, Result, bail};
use duct::cmd;

use crate::cargo;

const VERSION: &str = "0.9.2";

/// # Errors
///
/// Where a dependency is not used, or the program cannot be built.
pub fn check(root: &Path) -> Result<()> {
    let program = cargo::tool("cargo-machete", VERSION)?;
    let checked = cmd!(&program, root)
        .dir(root)
        .stdout_to_stderr()
        .unchecked()
        .run()
        .with_context(|| program.display().to_string())?;
    if !checked.status.success() {
        bail!(
            "unused dependencies, or cargo-machete failed ({})",
            checked.status
        );
    }
    Ok(())
}
