//! `experiments list`: the experiments that can be run, what the last report said of them, and the
//! runs there are, with those marked that a run of today would not repeat, and those that are broken.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use records::integrity::{self, Vouched};
use records::run_folder;
use records::source::Source;
use records::status::{RunStatus, Status};
use records::store::{Store, StoredRun};

use crate::commands::last_verdicts;
use crate::record::drift::CurrentBuild;
use crate::spec::repository::Repository;
use crate::spec::{Experiment, Overrides, experiment_names};

/// How many runs are what a reader must know of.
#[derive(Default)]
struct Counts {
    drifted: usize,
    broken: usize,
    without_digests: usize,
    of_unknown_source: usize,
}

/// Labels killed runs first, so that the list says what is true now. `engine`: the binary that the
/// next run would measure.
pub fn list(repository: &Repository, store: &Store, engine: &Path) -> Result<String> {
    for place in store.places() {
        run_folder::finalise_killed(place)?;
    }
    let dir = repository.experiments_dir();
    let runs = store.all()?;
    let verdicts = last_verdicts::read(&repository.verdicts_file())?;
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
        for line in last_verdicts::lines_of(&verdicts, &name) {
            let _ = writeln!(text, "      {line}");
        }
    }
    let ids = runs.iter().map(|run| run.run_id.as_str());
    if let Some(remark) = last_verdicts::remark(&verdicts, ids) {
        let _ = writeln!(text, "  {remark}");
    }
    let places = store.places().iter();
    let places: Vec<String> = places
        .map(|place| repository.relative(place).display().to_string())
        .collect();
    let _ = writeln!(text, "\nruns in {}", places.join(" and "));
    if runs.is_empty() {
        text.push_str("  none yet: cargo xtask exp balanced-v2 --quick\n");
    }
    let mut current = CurrentBuild::new(&dir, engine);
    let mut counts = Counts::default();
    for run in &runs {
        let line = line_of(run, &mut current, &mut counts);
        let _ = writeln!(text, "  {line}");
    }
    text.push_str(&counts.remarks(runs.len()));
    Ok(text)
}

impl Counts {
    /// A line each, where there are some.
    fn remarks(&self, n_runs: usize) -> String {
        let mut text = String::new();
        if self.broken > 0 {
            let _ = writeln!(
                text,
                "{} of {n_runs} runs are broken: no report uses them",
                self.broken
            );
        }
        if self.of_unknown_source > 0 {
            let _ = writeln!(
                text,
                "{} of {n_runs} runs have an unknown source: no verdict uses them",
                self.of_unknown_source
            );
        }
        if self.without_digests > 0 {
            let _ = writeln!(
                text,
                "{} complete runs have no digests (older versions recorded them): the number of their rows is right, and no more is known",
                self.without_digests
            );
        }
        if self.drifted > 0 {
            let _ = writeln!(
                text,
                "≠ {} of {n_runs} runs are not what their experiment.toml and the engine binary are now; `cargo xtask exp` measures anew",
                self.drifted
            );
        }
        text
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn line_of(run: &StoredRun, current: &mut CurrentBuild<'_>, counts: &mut Counts) -> String {
    let status = run.status().ok().flatten();
    let is_complete = status
        .as_ref()
        .is_some_and(|status| status.status == RunStatus::Complete);
    let checked = is_complete.then(|| integrity::check(run));
    counts.without_digests += usize::from(checked == Some(Ok(Vouched::ByRows)));
    let broken = checked.and_then(Result::err);
    counts.broken += usize::from(broken.is_some());
    let mut parts = vec![run.run_id.clone(), state_of(status.as_ref(), broken)];
    let Ok(manifest) = run.manifest() else {
        parts.push("no manifest".into());
        return parts.join("  ");
    };
    let quick = if manifest.quick { ", quick" } else { "" };
    let engine = manifest.other_engine();
    let engine = engine.map_or_else(String::new, |engine| format!("{engine}, "));
    parts.push(format!(
        "replicate {}, {engine}{}{quick}",
        manifest.replicate, manifest.model.used
    ));
    let source = run.source();
    counts.of_unknown_source += usize::from(source == Source::Unknown);
    parts.extend(source.remark().map(|remark| format!("({remark})")));
    let differences = current.differences(run, &manifest);
    counts.drifted += usize::from(!differences.is_empty());
    parts.extend(differences.iter().map(|what| format!("≠ {what}")));
    parts.join("  ")
}

fn state_of(status: Option<&Status>, broken: Option<String>) -> String {
    match (status, broken) {
        (Some(_), Some(problem)) => format!("broken ({problem})"),
        (Some(status), None) => {
            let word = status.status.word();
            let reason = status
                .reason
                .as_deref()
                .and_then(|reason| reason.lines().next());
            reason.map_or_else(|| word.to_string(), |reason| format!("{word} ({reason})"))
        }
        (None, _) => "no status".into(),
    }
}
