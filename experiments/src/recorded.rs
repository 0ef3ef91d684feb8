//! A run's record, read back: its parts, and the experiment that it was.
//!
//! The record holds everything that ran, so no `experiment.toml` is looked at: the file may have
//! changed since, or be gone.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::derived::Derived;
use crate::environment::Environment;
use crate::flags::Flags;
use crate::integrity;
use crate::loadgen::RequestRow;
use crate::record::{self, Manifest, RunStatus, Status};
use crate::spec::{Experiment, ModelSpec};
use crate::workload::Workload;

#[derive(Debug)]
pub struct RecordedRun {
    pub manifest: Manifest,
    pub environment: Environment,
    config: ResolvedConfig,
    /// Complete starts of the same configuration in the same campaign, this one included.
    pub n_starts: u32,
}

/// `config.resolved.toml`.
#[derive(Debug, Deserialize)]
pub struct ResolvedConfig {
    pub title: String,
    pub lineage: Vec<String>,
    pub seed: u64,
    /// As the server got them.
    pub flags: Vec<String>,
    pub workload: Workload,
    #[serde(default)]
    pub models: Vec<RecordedModel>,
}

#[derive(Debug, Deserialize)]
pub struct RecordedModel {
    pub name: String,
    pub model: String,
    pub flags: Vec<String>,
}

impl RecordedRun {
    /// `typed`: a run id, a part of one that fits one run only, or a run folder.
    pub fn read(runs_dir: &Path, typed: &str) -> Result<Self> {
        let dir = folder_of(runs_dir, typed)?;
        let status: Status = record::read_json(&dir.join(record::STATUS))?;
        if status.status != RunStatus::Complete {
            bail!(
                "{} did not complete ({}); there is no figure to confirm",
                dir.display(),
                status.reason.unwrap_or_else(|| "no reason noted".into())
            );
        }
        if let Err(problem) = integrity::check(&dir) {
            bail!(
                "{} is broken, so nothing can be confirmed: {problem}",
                dir.display()
            );
        }
        let manifest: Manifest = record::read_json(&dir.join(record::MANIFEST))?;
        if let Some(url) = &manifest.base_url {
            bail!(
                "{} measured the server at {url}, which was not started here; start it and call `cargo xtask exp {} --base-url {url}`",
                manifest.run_id,
                manifest.experiment
            );
        }
        Ok(Self {
            n_starts: n_starts(runs_dir, &manifest)?,
            environment: record::read_json(&dir.join(record::ENVIRONMENT))?,
            manifest,
            config: read_config(&dir)?,
        })
    }

    /// The same server command and the same load; the record of it says what it repeats.
    pub fn experiment(&self, replicates: u32) -> Result<Experiment> {
        let manifest = &self.manifest;
        Ok(Experiment {
            name: manifest.experiment.clone(),
            title: self.config.title.clone(),
            lineage: self.config.lineage.clone(),
            quick: manifest.quick,
            model: manifest.model.requested.clone(),
            seed: self.config.seed,
            replicates,
            extra_flags: manifest.extra_flags.clone(),
            flags: Flags::parse(&self.config.flags)?,
            workload: self.config.workload.clone(),
            models: self
                .config
                .models
                .iter()
                .map(|m| {
                    Ok(ModelSpec {
                        name: m.name.clone(),
                        model: m.model.clone(),
                        flags: Flags::parse(&m.flags)?,
                    })
                })
                .collect::<Result<_>>()?,
            derived: Some(Derived::Reproduction {
                parent: manifest.experiment.clone(),
                of_run: manifest.run_id.clone(),
            }),
        })
    }
}

pub fn read_config(dir: &Path) -> Result<ResolvedConfig> {
    let path = dir.join(record::CONFIG);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

pub fn read_rows(dir: &Path) -> Result<Vec<RequestRow>> {
    let path = dir.join(record::REQUESTS);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            serde_json::from_str(line)
                .with_context(|| format!("{}, line {}", path.display(), index + 1))
        })
        .collect()
}

/// The one run folder that `typed` names.
pub fn folder_of(runs_dir: &Path, typed: &str) -> Result<PathBuf> {
    let path = Path::new(typed);
    if path.join(record::MANIFEST).is_file() {
        return Ok(path.to_path_buf());
    }
    let name_of = |dir: &PathBuf| {
        dir.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let mut fits = record::run_folders(runs_dir)?;
    if let Some(exact) = fits.iter().find(|dir| name_of(dir) == typed) {
        return Ok(exact.clone());
    }
    fits.retain(|dir| name_of(dir).contains(typed));
    match fits.as_slice() {
        [dir] => Ok(dir.clone()),
        [] => bail!("{}: no run is called `{typed}`", runs_dir.display()),
        _ => {
            let names: Vec<String> = fits.iter().map(name_of).collect();
            bail!("`{typed}` fits {} runs: {}", names.len(), names.join(", "));
        }
    }
}

fn n_starts(runs_dir: &Path, of: &Manifest) -> Result<u32> {
    let mut n = 0;
    for dir in record::run_folders(runs_dir)? {
        let Ok(manifest) = record::read_json::<Manifest>(&dir.join(record::MANIFEST)) else {
            continue;
        };
        let same = manifest.campaign == of.campaign
            && manifest.experiment == of.experiment
            && manifest.extra_flags == of.extra_flags;
        if same {
            let status = record::read_json::<Status>(&dir.join(record::STATUS));
            let is_complete = status.is_ok_and(|status| status.status == RunStatus::Complete);
            n += u32::from(is_complete && integrity::check(&dir).is_ok());
        }
    }
    // A folder given by path may lie outside `runs_dir`.
    Ok(n.max(1))
}
