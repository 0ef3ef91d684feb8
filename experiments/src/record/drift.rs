//! Whether a run is still what its `experiment.toml` and the engine say now.
//!
//! The file is resolved anew with what was typed for the run (`--quick`, extra flags) and
//! compared with the record. Number of starts, title, lineage and model do not count: they change nothing
//! that the run measured, or were typed. The binary is the one that the next run would measure.

use std::collections::HashMap;
use std::path::Path;

use records::manifest::Manifest;
use records::store::StoredRun;
use toml::{Table, Value};

use crate::record::provenance;
use crate::spec::{Experiment, Overrides};

/// Keys of `config.resolved.toml` that say nothing of what a run measured.
const NOT_MEASURED: [&str; 5] = ["name", "title", "lineage", "model", "replicates"];

/// What runs are compared with.
pub struct CurrentBuild<'a> {
    experiments_dir: &'a Path,
    /// Of the engine in the release profile; none where it was not built.
    engine_sha256: Option<String>,
    /// By everything that was typed: many runs share it.
    resolved: HashMap<(String, bool, Vec<String>), Option<Table>>,
}

impl<'a> CurrentBuild<'a> {
    pub fn new(experiments_dir: &'a Path, engine: &Path) -> Self {
        Self {
            experiments_dir,
            engine_sha256: provenance::sha256_of_file(engine).ok(),
            resolved: HashMap::new(),
        }
    }

    /// In what the run differs from now; empty where it does not, or nothing can be said.
    pub fn differences(&mut self, run: &StoredRun, manifest: &Manifest) -> Vec<&'static str> {
        let mut differences = Vec::new();
        // An arm of an ablation is no experiment of its own.
        // Another engine's flags are mapped ones.
        let is_own = manifest.derived.is_none() && manifest.other_engine().is_none();
        if is_own && self.config_differs(run, manifest).unwrap_or(false) {
            differences.push("experiment.toml");
        }
        let recorded = manifest.sha256.engine_binary.as_ref();
        if recorded
            .zip(self.engine_sha256.as_ref())
            .is_some_and(|(then, now)| then != now)
        {
            differences.push("binary");
        }
        differences
    }

    fn config_differs(&mut self, run: &StoredRun, manifest: &Manifest) -> Option<bool> {
        let text = run.text(records::CONFIG).ok()?;
        let recorded = measured(text.parse().ok()?);
        let typed = (
            manifest.experiment.clone(),
            manifest.quick,
            manifest.extra_flags.clone(),
        );
        let experiments_dir = self.experiments_dir;
        let now = self
            .resolved
            .entry(typed)
            .or_insert_with_key(|(name, quick, flags)| {
                let overrides = Overrides {
                    quick: *quick,
                    extra_flags: flags.clone(),
                    ..Overrides::default()
                };
                // An experiment that is gone, or broken, matches no run.
                let experiment = Experiment::load(experiments_dir, name, &overrides).ok()?;
                match Value::try_from(experiment).ok()? {
                    Value::Table(table) => Some(measured(table)),
                    _ => None,
                }
            });
        Some(now.as_ref() != Some(&recorded))
    }
}

fn measured(mut table: Table) -> Table {
    for key in NOT_MEASURED {
        table.remove(key);
    }
    table
}
