//! `experiments seal`: makes campaign folders of run folders that have ended.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use records::run_folder::finalise_killed;
use records::seal;
use records::source::Source;

use crate::run::measurement_lock::MeasurementLock;
use crate::spec::repository::Repository;

#[derive(Debug, Clone, Args)]
pub struct SealArgs {
    /// Campaigns, or parts of their ids; quick ones, which are tries, are sealed only so [default: all
    /// that are not quick]
    #[arg(value_name = "CAMPAIGN")]
    pub campaigns: Vec<String>,
    /// Folder of the run folders [default: data/runs]
    #[arg(long, value_name = "PATH")]
    pub runs_dir: Option<PathBuf>,
    /// Folder that takes the campaign folders [default: data/campaigns]
    #[arg(long, value_name = "PATH")]
    pub campaigns_dir: Option<PathBuf>,
}

/// Returns where each campaign went, a line each.
pub fn seal(args: &SealArgs, repository: &Repository) -> Result<String> {
    // A campaign that is being measured has starts to come.
    let _lock = MeasurementLock::take_now()?;
    let runs_dir = args.runs_dir.clone().unwrap_or(repository.runs_dir());
    let campaigns_dir = args
        .campaigns_dir
        .clone()
        .unwrap_or(repository.campaigns_dir());
    finalise_killed(&runs_dir)?;
    let waiting = seal::unsealed_campaigns(&runs_dir)?;
    let mut chosen: Vec<&String> = Vec::new();
    for typed in &args.campaigns {
        let fits = waiting.iter().map(|(id, _)| id);
        let fits: Vec<&String> = fits.filter(|id| id.contains(typed.as_str())).collect();
        match fits.as_slice() {
            [one] => chosen.push(one),
            [] => bail!("no campaign `{typed}` has runs in {}", runs_dir.display()),
            _ => bail!("`{typed}` fits {} campaigns", fits.len()),
        }
    }
    if args.campaigns.is_empty() {
        chosen.extend(waiting.iter().filter(|(_, quick)| !quick).map(|(id, _)| id));
    }
    let mut text = String::new();
    for id in chosen {
        let dir = seal::seal(&runs_dir, &campaigns_dir, id, &Source::of)?;
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{id} → {}", repository.relative(&dir).display());
    }
    if text.is_empty() {
        text = "nothing to seal\n".into();
    }
    Ok(text)
}
