//! `experiments list`: the experiments that can be run, what the last report said of them, and the
//! runs there are, with those marked that a run of today would not repeat.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::drift::Present;
use crate::record::{self, Manifest, RunStatus, Status};
use crate::repository::Repository;
use crate::spec::{Experiment, Overrides, experiment_names};
use crate::verdict_list::LastVerdicts;

/// Labels killed runs first, so that the list says what is true now. `engine`: the binary that the
/// next run would measure.
pub fn list(repository: &Repository, runs_dir: &Path, engine: &Path) -> Result<String> {
    record::finalise_killed(runs_dir)?;
    let dir = repository.experiments_dir();
    let runs = record::run_folders(runs_dir)?;
    let verdicts = LastVerdicts::read(&repository.verdicts_file())?;
    let mut text =
        String::from("experiments, with the last report's verdicts against the baseline\n");
    for name in experiment_names(&dir)? {
        let experiment = Experiment::load(&dir, &name, &Overrides::default())?;
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {name:<20} {}", experiment.title);
        for line in verdicts.lines_of(&name) {
            let _ = writeln!(text, "      {line}");
        }
    }
    if let Some(remark) = verdicts.remark(&runs) {
        let _ = writeln!(text, "  {remark}");
    }
    let _ = writeln!(
        text,
        "\nruns in {}",
        repository.relative(runs_dir).display()
    );
    if runs.is_empty() {
        text.push_str("  none yet: cargo xtask exp balanced-v2 --quick\n");
    }
    let mut present = Present::new(&dir, engine);
    let mut n_drifted = 0;
    for run in &runs {
        let (line, drifted) = line_of(run, &mut present);
        let _ = writeln!(text, "  {line}");
        n_drifted += usize::from(drifted);
    }
    if n_drifted > 0 {
        let _ = writeln!(
            text,
            "≠ {n_drifted} of {} runs are not what their experiment.toml and the engine binary are now; `cargo xtask exp` measures anew",
            runs.len()
        );
    }
    Ok(text)
}

/// The line, and whether the run differs from what it would be today.
fn line_of(run: &Path, present: &mut Present<'_>) -> (String, bool) {
    let name = run
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let status = match record::read_json::<Status>(&run.join(record::STATUS)) {
        Ok(status) => {
            let word = match status.status {
                RunStatus::Running => "running",
                RunStatus::Complete => "complete",
                RunStatus::Failed => "failed",
            };
            let reason = status
                .reason
                .as_deref()
                .and_then(|reason| reason.lines().next());
            reason.map_or_else(|| word.to_string(), |reason| format!("{word} ({reason})"))
        }
        Err(_) => "no status".into(),
    };
    let (about, differences) = match record::read_json::<Manifest>(&run.join(record::MANIFEST)) {
        Ok(manifest) => {
            let quick = if manifest.quick { ", quick" } else { "" };
            (
                format!(
                    "replicate {}, {}{quick}",
                    manifest.replicate, manifest.model.used
                ),
                present.differences(run, &manifest),
            )
        }
        Err(_) => ("no manifest".into(), Vec::new()),
    };
    let parts: Vec<String> = [name, status, about]
        .into_iter()
        .chain(differences.iter().map(|what| format!("≠ {what}")))
        .collect();
    (parts.join("  "), !differences.is_empty())
}
