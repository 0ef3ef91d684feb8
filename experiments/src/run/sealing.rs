//! When run folders become campaign folders: at the end of a recipe, at the next call for a campaign
//! that was killed, and by `experiments seal`.

use anyhow::{Context, Result};
use records::seal;
use records::source::Source;

use crate::spec::repository::Repository;
use crate::terminal::note;

/// The campaign that has just ended. A quick one is a try and stays where it is. The figures are safe
/// either way, so a campaign that cannot be sealed now is no failure of the recipe.
pub fn seal_ended(repository: &Repository, id: &str) -> Result<()> {
    let waiting = seal::unsealed_campaigns(&repository.runs_dir()).context("the runs")?;
    match waiting.iter().find(|(waiting, _)| waiting == id) {
        Some((_, true)) => {
            note!("a quick campaign stays in data/runs; `cargo xtask seal {id}` keeps it");
        }
        Some((_, false)) => seal_one(repository, id),
        None => {}
    }
    Ok(())
}

/// Those that a killed runner has left. The lock on measurements must be held.
pub fn seal_all(repository: &Repository) -> Result<()> {
    let waiting = seal::unsealed_campaigns(&repository.runs_dir()).context("the runs")?;
    for (id, quick) in waiting {
        if !quick {
            seal_one(repository, &id);
        }
    }
    Ok(())
}

fn seal_one(repository: &Repository, id: &str) {
    let (runs, campaigns) = (repository.runs_dir(), repository.campaigns_dir());
    match seal::seal(&runs, &campaigns, id, &Source::of) {
        Ok(dir) => note!("sealed: {}", repository.relative(&dir).display()),
        Err(error) => note!("WARNING: {error}; the run folders stay in data/runs"),
    }
}
