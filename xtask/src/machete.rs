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
    let folder = cargo::target_dir()?.join(format!("cargo-machete-{VERSION}"));
    let program = folder.join("bin/cargo-machete");
    if !program.is_file() {
        eprintln!("ci: cargo-machete {VERSION} into {}", folder.display());
        let built = cmd!(
            "cargo",
            "install",
            "--quiet",
            "--locked",
            // It runs for a second.
            "--debug",
            "--version",
            VERSION,
            "--root",
            &folder,
            "--target-dir",
            folder.join("build"),
            "cargo-machete"
        )
        .unchecked()
        .run()
        .context("cargo cannot be started")?;
        if !built.status.success() {
            bail!("cargo-machete cannot be built ({})", built.status);
        }
    }
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
