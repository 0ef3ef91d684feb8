//! Reads what experiments wrote and what was imported. Nothing is changed, repaired or guessed.
//!
//! Runs come in four states: complete, failed, killed (no `status.json`, or one that says `running`), and
//! broken (complete once, but no more what the run wrote: [`records::integrity`]). Only complete ones give
//! statistics; the others are kept for the reports to list.

pub mod energy;
pub mod gaps;
pub mod imported;
pub mod memory;
pub mod requests;
pub mod run_folder;
pub mod side_by_side;

use std::collections::BTreeMap;
use std::path::Path;

use crate::ReportError;
use gaps::Gaps;
use memory::Memory;
use records::store::Store;
use requests::CaseSamples;
use run_folder::{Outcome, RunFolder};

/// Everything a report can draw on.
#[derive(Debug, Default)]
pub struct Records {
    /// Sorted by run id.
    pub runs: Vec<RunFolder>,
    /// One entry a run and case, of complete runs, sorted by run id, then case.
    pub cases: Vec<CaseSamples>,
    /// Gaps between tokens by run id and case, of complete runs.
    pub gaps: BTreeMap<(String, String), Gaps>,
    /// Memory by run id, of complete runs.
    pub memory: BTreeMap<String, Memory>,
    /// Figures that others measured, sorted by source and row.
    pub imported: Vec<imported::Figure>,
    /// This engine and another one without a server, the oldest first; see [`side_by_side::read_all`].
    pub side_by_side: Vec<side_by_side::Bench>,
}

/// Reads all runs of `store` and all imported figures below `imported_dir`.
/// A folder that does not exist counts as empty: a fresh clone has no runs.
///
/// # Errors
///
/// If the list of runs, a complete run's rows or samples, or an imported file cannot be read. A
/// run that is broken is not an error; its outcome says so.
pub fn load(
    store: impl Into<Store>,
    imported_dir: &Path,
    keep: impl Fn(&RunFolder) -> bool,
) -> Result<Records, ReportError> {
    let mut runs = run_folder::read_all(&store.into())?;
    runs.retain(keep);
    let complete: Vec<&RunFolder> = runs
        .iter()
        .filter(|r| r.outcome == Outcome::Complete)
        .collect();
    let mut cases = requests::read_cases(&complete)?;
    energy::take_in(&mut cases, &complete)?;
    Ok(Records {
        cases,
        gaps: gaps::read_all(&complete)?,
        memory: memory::read_all(&complete)?,
        imported: imported::read_all(imported_dir)?,
        side_by_side: Vec::new(),
        runs,
    })
}
