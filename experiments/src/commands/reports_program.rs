//! The `reports` program, as the commands that end with a verdict call it.
//!
//! Verdicts are made there, from records. Building it takes minutes (polars), so it may be missing:
//! then the command that shows the verdict is printed instead.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::terminal::say;
use anyhow::{Context, Result, bail};
use records::store::Store;

#[derive(Debug, Clone)]
pub struct ReportsProgram {
    /// None: not built.
    path: Option<PathBuf>,
}

impl ReportsProgram {
    /// The program that was typed must exist; the one beside this program need not.
    pub fn find(typed: Option<&Path>) -> Result<Self> {
        let path = match typed {
            Some(path) if path.is_file() => Some(path.to_path_buf()),
            Some(path) => bail!("--reports-bin {}: there is no such file", path.display()),
            None => {
                let own = std::env::current_exe().context("the path of this program")?;
                Some(own.with_file_name("reports")).filter(|path| path.is_file())
            }
        };
        Ok(Self { path })
    }

    /// Server starts an arm with which this many figures can be judged together; `None` where the
    /// program is missing.
    pub fn starts_needed(&self, n_comparisons: usize) -> Result<Option<u32>> {
        let Some(path) = &self.path else {
            return Ok(None);
        };
        let n = n_comparisons.to_string();
        let answer = duct::cmd(path, ["starts-needed", &n])
            .read()
            .with_context(|| format!("{} starts-needed {n}", path.display()))?;
        let needed = answer
            .trim()
            .parse()
            .with_context(|| format!("reports starts-needed answered `{answer}`"))?;
        Ok(Some(needed))
    }

    /// Runs it with its output on ours; where it is missing, prints how to.
    pub fn show(&self, words: &[OsString]) -> Result<()> {
        let Some(path) = &self.path else {
            let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
            say!("the verdicts: cargo xtask report {}", words.join(" "));
            return Ok(());
        };
        run(path, words)
    }

    /// For what nothing else can do: that it is missing is an error.
    pub fn run(&self, words: &[OsString]) -> Result<()> {
        match &self.path {
            Some(path) => run(path, words),
            None => bail!(
                "`reports` is not built beside this program; `cargo xtask` builds it, --reports-bin names another"
            ),
        }
    }
}

/// Where it is to look for runs.
pub fn runs_arguments(store: &Store) -> Vec<OsString> {
    let places = store.places().iter();
    places
        .filter(|place| place.is_dir())
        .flat_map(|place| ["--runs-dir".into(), place.clone().into_os_string()])
        .collect()
}

fn run(path: &Path, words: &[OsString]) -> Result<()> {
    duct::cmd(path, words)
        .run()
        .with_context(|| path.display().to_string())?;
    Ok(())
}
