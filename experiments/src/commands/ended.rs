//! What a command leaves for the program that judges its campaign.
//!
//! Verdicts are made from records, by a program that this one does not know. The recipe calls both, one
//! after the other: it names a file here, and reads in it which campaign has ended.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::terminal::say;

#[derive(Debug, Clone, Args)]
pub struct EndedArgs {
    /// File that takes the id of the campaign once there is something to judge (the recipes say so)
    #[arg(long, value_name = "PATH", hide = true)]
    pub ended_file: Option<PathBuf>,
}

impl EndedArgs {
    /// Where no recipe waits for it, the command that shows the verdict is printed.
    pub fn tell(&self, campaign: &str, verdict: &str) -> Result<()> {
        match &self.ended_file {
            Some(path) => {
                fs::write(path, campaign).with_context(|| path.display().to_string())?;
            }
            None => say!("the verdicts: cargo xtask report {verdict} {campaign}"),
        }
        Ok(())
    }
}
