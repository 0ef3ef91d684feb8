//! `experiments reproduce`: a recorded configuration, measured again.
//!
//! Nothing is checked out: what runs is today's engine with the flags, model, seed and load of the
//! record, and every difference to the day of the record is said beforehand. Whether the old
//! figures hold is decided afterwards, by another program, from both records.

pub mod differences;

use anyhow::{Context, Result};
use clap::Args;
use records::manifest::{Hashes, Manifest};
use records::run_folder;
use records::status::RunStatus;

use crate::commands::ended::EndedArgs;
use crate::commands::reproduce::differences::{Difference, of_code, of_machine, of_model};
use crate::record::recorded::RecordedRun;
use crate::run::campaign::{self, Arm, CampaignEnd, ServingArgs};
use crate::run::interrupts::Interrupts;
use crate::run::rounds;
use crate::spec::repository::Repository;
use crate::spec::{Experiment, Overrides};
use crate::terminal::{note, say};

#[derive(Debug, Clone, Args)]
pub struct ReproduceArgs {
    /// Run to measure again: its id, a part of it that fits one run only, campaign#arm/round, or its
    /// folder
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Server starts [default: as many as the old campaign had of this configuration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub replicates: Option<u32>,
    /// Say what differs and run nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub serving: ServingArgs,
    #[command(flatten)]
    pub ended: EndedArgs,
}

pub async fn reproduce(args: &ReproduceArgs, repository: Repository) -> Result<CampaignEnd> {
    let store = args.serving.store(&repository);
    let recorded = RecordedRun::read(&store, &store.find(&args.run)?)?;
    let then = &recorded.manifest;
    let experiment = recorded.experiment(args.replicates.unwrap_or(recorded.n_starts))?;
    say!(
        "{} ({}, {}): {} start(s) then, {} to come",
        then.run_id,
        then.experiment,
        then.model.used,
        recorded.n_starts,
        experiment.replicates
    );
    // No file ever described an arm of `ablate` or a candidate of `tune`.
    let changes = if then.derived.is_none() {
        changes_of_spec(&repository, &experiment)
    } else {
        Vec::new()
    };

    let mut interrupts = Interrupts::catch().context("signals cannot be caught")?;
    let source = campaign::server_source(args.serving.engine_bin.as_deref())?;
    let mut arms = vec![Arm::new(&repository, experiment)?];
    let mut campaign = campaign::describe(&args.serving, source, repository)?;
    let hashes = Hashes {
        prompts: Some(arms[0].prompts.sha256.clone()),
        ..campaign.sources.sha256.clone()
    };
    warn(&of_code(then, &campaign.sources.git, &hashes));
    warn(&of_machine(&recorded.environment, &campaign.environment));
    for change in changes {
        note!("WARNING: {change}");
    }
    if args.dry_run {
        return Ok(CampaignEnd::Complete);
    }
    let wait = args.serving.wait;
    let prepared = campaign::prepare(&mut campaign, wait, &mut arms, &mut interrupts).await?;
    if prepared == CampaignEnd::Interrupted {
        return Ok(CampaignEnd::Interrupted);
    }
    let ends = rounds::run_rounds(&campaign, arms, &mut interrupts, |_, _| Vec::new()).await?;
    say!("{}", rounds::table_of(&campaign, &ends));
    if let Some(first) = ends.iter().find(|end| end.status == RunStatus::Complete) {
        let now: Manifest = run_folder::read_json(&first.dir.join(records::MANIFEST))?;
        warn(&of_model(then, &now));
        args.ended.tell(&campaign.id, "reproduction")?;
    }
    campaign.close()?;
    Ok(CampaignEnd::of(&ends))
}

fn warn(differences: &[Difference]) {
    for difference in differences {
        note!("WARNING: {difference}");
    }
}

/// How the experiment's file differs from the record by now: `exp` would not repeat this run.
fn changes_of_spec(repository: &Repository, recorded: &Experiment) -> Vec<String> {
    let overrides = Overrides {
        quick: recorded.quick,
        model: Some(recorded.model.clone()),
        replicates: None,
        slo: None,
        extra_flags: recorded.extra_flags.clone(),
    };
    let name = &recorded.name;
    let Ok(today) = Experiment::load(&repository.experiments_dir(), name, &overrides) else {
        return vec![format!(
            "{name}: no experiment.toml describes this any more; the record does"
        )];
    };
    let mut changes: Vec<String> = recorded
        .flags
        .differing(&today.flags)
        .iter()
        .map(|flag| {
            format!(
                "experiments/{name}/experiment.toml has changed: {} then, {} now; the record's is taken",
                recorded.flags.shown(flag),
                today.flags.shown(flag)
            )
        })
        .collect();
    if recorded.workload != today.workload {
        changes.push(format!(
            "experiments/{name}/experiment.toml has another workload now; the record's is taken"
        ));
    }
    if recorded.seed != today.seed {
        changes.push(format!(
            "experiments/{name}/experiment.toml has the seed {} now; the record's {} is taken",
            today.seed, recorded.seed
        ));
    }
    changes
}
