//! `clean`: removes what can be built again. `data/` is never touched.

use std::process::ExitCode;

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::cargo;

/// Caches inside the working tree; all of them are ignored by git.
const CACHES: [&str; 3] = [".cache", ".cuda", ".venv"];

pub fn run() -> Result<ExitCode> {
    let sh = Shell::new()?;
    sh.change_dir(cargo::root()?);
    for cache in CACHES {
        if sh.path_exists(cache) {
            eprintln!("remove {cache}");
            sh.remove_path(cache)?;
        }
    }
    let target_dir = cargo::target_dir()?;
    cmd!(sh, "cargo clean --target-dir {target_dir}").run()?;
    eprintln!("models stay in the user's cache folder, records in data/campaigns and data/runs");
    Ok(ExitCode::SUCCESS)
}
