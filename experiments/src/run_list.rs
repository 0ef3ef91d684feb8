//! `experiments list`: the experiments that can be run, what the last report said of them, and the
//! runs there are, with those marked that a run of today would not repeat, and those that are broken.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::drift::Present;
use crate::integrity::{self, Vouched};
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
        // Writing into a String cannot fail.
        let _ = match Experiment::load(&dir, &name, &Overrides::default()) {
            Ok(experiment) => writeln!(text, "  {name:<20} {}", experiment.title),
            Err(error) => writeln!(
                text,
                "  {name:<20} cannot be read: {}",
                one_line(&error.to_string())
            ),
        };
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
    let (mut n_drifted, mut n_broken, mut n_without_digests) = (0, 0, 0);
    for run in &runs {
        let status = record::read_json::<Status>(&run.join(record::STATUS)).ok();
        let is_complete = status
            .as_ref()
            .is_some_and(|s| s.status == RunStatus::Complete);
        let checked = is_complete.then(|| integrity::check(run));
        n_without_digests += usize::from(checked == Some(Ok(Vouched::ByRows)));
        let broken = checked.and_then(Result::err);
        n_broken += usize::from(broken.is_some());
        let (line, drifted) = line_of(run, status.as_ref(), broken, &mut present);
        let _ = writeln!(text, "  {line}");
        n_drifted += usize::from(drifted);
    }
    if n_broken > 0 {
        let _ = writeln!(
            text,
            "{n_broken} of {} runs are broken: no report uses them",
            runs.len()
        );
    }
    if n_without_digests > 0 {
        let _ = writeln!(
            text,
            "{n_without_digests} complete runs have no digests (older versions recorded them): the number of their rows is right, and no more is known"
        );
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

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The line, and whether the run differs from what it would be today.
fn line_of(
    run: &Path,
    status: Option<&Status>,
    broken: Option<String>,
    present: &mut Present<'_>,
) -> (String, bool) {
    let name = run
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let status = match (status, broken) {
        (Some(_), Some(problem)) => format!("broken ({problem})"),
        (Some(status), None) => {
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
        (None, _) => "no status".into(),
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
