//! A run's record, read back: the experiment that it was.
//!
//! The record holds everything that ran, so no `experiment.toml` is looked at: the file may have
//! changed since, or be gone.

use anyhow::{Context, Result, bail};
use records::config::ResolvedConfig;
use records::environment::Environment;
use records::integrity;
use records::manifest::{Derived, Manifest};
use records::status::RunStatus;
use records::store::{Store, StoredRun};

use crate::spec::flags::Flags;
use crate::spec::{Experiment, ModelSpec};

#[derive(Debug)]
pub struct RecordedRun {
    pub manifest: Manifest,
    pub environment: Environment,
    config: ResolvedConfig,
    /// Complete starts of the same configuration in the same campaign, this one included.
    pub n_starts: u32,
}

impl RecordedRun {
    pub fn read(store: &Store, run: &StoredRun) -> Result<Self> {
        let place = run.place();
        let status = run.status()?.context("the run has no status")?;
        if status.status != RunStatus::Complete {
            bail!(
                "{} did not complete ({}); there is no figure to confirm",
                place.display(),
                status.reason.unwrap_or_else(|| "no reason noted".into())
            );
        }
        if let Err(problem) = integrity::check(run) {
            bail!(
                "{} is broken, so nothing can be confirmed: {problem}",
                place.display()
            );
        }
        let manifest = run.manifest()?;
        if let Some(url) = &manifest.base_url {
            bail!(
                "{} measured the server at {url}, which was not started here; start it and call `cargo xtask exp {} --base-url {url}`",
                manifest.run_id,
                manifest.experiment
            );
        }
        if let Some(engine) = manifest.other_engine() {
            bail!(
                "{} measured {engine}; `cargo xtask exp {} --engine {engine}` measures it again",
                manifest.run_id,
                manifest.experiment
            );
        }
        Ok(Self {
            n_starts: n_starts(store, &manifest)?,
            environment: run.environment()?,
            config: run.config()?,
            manifest,
        })
    }

    /// The same server command and the same load; the record of it says what it repeats.
    pub fn experiment(&self, replicates: u32) -> Result<Experiment> {
        let manifest = &self.manifest;
        let models = self.config.models.iter().map(|m| {
            Ok(ModelSpec {
                name: m.name.clone(),
                model: m.model.clone(),
                flags: Flags::parse(&m.flags)?,
            })
        });
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
            workload: self
                .config
                .workload
                .clone()
                .with_context(|| format!("{} has no workload", manifest.run_id))?,
            models: models.collect::<Result<_>>()?,
            baseline: manifest.baseline,
            focus: manifest.focus,
            derived: Some(Derived::Reproduction {
                parent: manifest.experiment.clone(),
                of_run: manifest.run_id.clone(),
            }),
        })
    }
}

fn n_starts(store: &Store, of: &Manifest) -> Result<u32> {
    let mut n = 0;
    for run in store.all()? {
        let Ok(manifest) = run.manifest() else {
            continue;
        };
        let same = manifest.campaign == of.campaign
            && manifest.arm() == of.arm()
            && manifest.extra_flags == of.extra_flags;
        n += u32::from(same && run.is_complete() && integrity::check(&run).is_ok());
    }
    // A folder given by path may lie outside the store.
    Ok(n.max(1))
}
