//! `experiments list`: the experiments that can be run and the runs there are.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::record::{self, Manifest, RunStatus, Status};
use crate::repository::Repository;
use crate::spec::{Experiment, Overrides, experiment_names};

/// Labels killed runs first, so that the list says what is true now.
pub fn list(repository: &Repository, runs_dir: &Path) -> Result<String> {
    record::finalise_killed(runs_dir)?;
    let dir = repository.experiments_dir();
    let mut text = String::from("experiments\n");
    for name in experiment_names(&dir)? {
        let experiment = Experiment::load(&dir, &name, &Overrides::default())?;
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {name:<20} {}", experiment.title);
    }
    let runs = record::run_folders(runs_dir)?;
    let _ = writeln!(
        text,
        "\nruns in {}",
        repository.relative(runs_dir).display()
    );
    if runs.is_empty() {
        text.push_str("  none yet: cargo xtask exp balanced-v2 --quick\n");
    }
    for run in &runs {
        let _ = writeln!(text, "  {}", line_of(run));
    }
    Ok(text)
}

fn line_of(run: &Path) -> String {
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
    let about = match record::read_json::<Manifest>(&run.join(record::MANIFEST)) {
        Ok(manifest) => {
            let quick = if manifest.quick { ", quick" } else { "" };
            format!(
                "replicate {}, {}{quick}",
                manifest.replicate, manifest.model.used
            )
        }
        Err(_) => "no manifest".into(),
    };
    format!("{name}  {status}  {about}")
}
